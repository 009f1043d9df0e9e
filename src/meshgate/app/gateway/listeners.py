"""The gateway's listeners: opened where the registration says, and kept so while it changes.

What always holds: an address that is wanted before and after a change is never closed; one that cannot be had is tried
again and again, told as a problem, and harms no other; streams know nothing of any of this.

Beside them, which addresses lead back to this gateway: no endpoint may be one of those.
"""

import errno
import time
from collections.abc import Iterable
from typing import Final

import structlog
import trio

from meshgate.adapters.error_words import words_of
from meshgate.adapters.machine import machine_addresses
from meshgate.adapters.relay.pool import RelayPool
from meshgate.app.errors import CommandError
from meshgate.app.settings.settings import Settings
from meshgate.core.addresses import OwnAddresses, is_numeric
from meshgate.core.proxy_config import BindAddress, ListenPlan

log = structlog.get_logger(module="meshgate")

# Seconds between two tries at an address that cannot be bound. Workers give an address back a moment after they were
# told, so the first tries come soon.
_PATIENCE: Final = 5.0
_AT_FIRST: Final = 0.1
_SOON: Final = 10
_KEPT_SECONDS: Final = 10.0  # The kernel's list can be long on a machine that routes for others.


class Listeners:
    """What the relay is bound to, and what it is to be bound to."""

    def __init__(self, relay: RelayPool) -> None:
        self.opened = trio.Event()
        """Set once there is a listener."""
        self._relay = relay
        self._bound: dict[tuple[str, int], tuple[BindAddress, tuple[str, int]]] = {}
        self._wanted: tuple[BindAddress, ...] = ()
        self._impossible: tuple[str, ...] = ()
        self._failing: dict[BindAddress, str] = {}
        self._changed = trio.Event()
        self._tried = trio.Event()
        self._closed = False

    @property
    def addresses(self) -> tuple[BindAddress, ...]:
        return tuple(bind for bind, _ in self._bound.values())

    def problems(self) -> list[str]:
        """Addresses that the registration asks for and that are not served, a line each."""
        return [*self._impossible, *(f"cannot bind {bind}: {why}" for bind, why in self._failing.items())]

    def bind(self, addresses: Iterable[BindAddress]) -> None:
        """Take addresses at the start; CommandError where one of them cannot be bound."""
        self._wanted = tuple(addresses)
        for bind in self._wanted:
            try:
                self._take(bind)
            except OSError as error:
                raise CommandError(f"cannot bind {bind}: {words_of(error)}") from None

    def left(self) -> list[tuple[BindAddress, tuple[str, int]]]:
        """What is bound, each with the address as the kernel spells it."""
        return list(self._bound.values())

    def go_on(self, left: Iterable[tuple[BindAddress, tuple[str, int]]]) -> None:
        """Go on with the listeners of the version before, which the relay has already."""
        self._bound = {(bind.address, bind.port): (bind, spelled) for bind, spelled in left}
        self._wanted = self.addresses
        if self._bound:
            self.opened.set()

    def want(self, plan: ListenPlan) -> None:
        """Have other addresses from now on; `run` opens and closes them. A plan without any changes nothing."""
        impossible = plan.problems
        if not plan.addresses:
            impossible += ("the registration leaves no address to listen on, so nothing changes",)
        if impossible != self._impossible:
            for problem in impossible:
                log.warning("the registration asks for a listener that cannot be", problem=problem)
        self._impossible = impossible
        if plan.addresses:
            self._wanted = plan.addresses
        self._changed.set()

    def stop(self) -> None:
        """Change nothing any more: the gateway is about to stop."""
        self._closed = True

    async def until_settled(self) -> None:
        """Wait until each address that is wanted is bound, or cannot be had; for five seconds at most."""
        with trio.move_on_after(_PATIENCE):
            while any((it.address, it.port) not in self._bound and it not in self._failing for it in self._wanted):
                await self._tried.wait()

    async def run(self) -> None:
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            tries = 0
            while self._follow() and not self._changed.is_set():
                tries += 1
                with trio.move_on_after(_AT_FIRST if tries < _SOON else _PATIENCE):
                    await self._changed.wait()

    def _follow(self) -> bool:
        """Open what is new, close what nobody wants any more; whether something is left to be tried again."""
        if self._closed:
            return False
        failing = self._open_missing()
        wanted = {(bind.address, bind.port) for bind in self._wanted}
        unwanted = [place for place in self._bound if place not in wanted]
        # What is given up can be in the way of what is new, as 0.0.0.0:8443 is of 10.0.0.7:8443. Otherwise the old
        # ones stay until something of the new is there.
        taken = {bind.port for bind, error in failing.items() if error.errno == errno.EADDRINUSE}
        if unwanted and (len(unwanted) < len(self._bound) or any(port in taken for _, port in unwanted)):
            for place in unwanted:
                self._give_back(place)
            failing = self._open_missing()
        for bind, error in failing.items():
            if self._failing.get(bind) != words_of(error):
                log.warning("cannot bind, tried again until it works", listener=str(bind), error=words_of(error))
        self._failing = {bind: words_of(error) for bind, error in failing.items()}
        self._tried.set()
        self._tried = trio.Event()
        return bool(failing)

    def _open_missing(self) -> dict[BindAddress, OSError]:
        """Take what is wanted and not bound; what cannot be had, and why."""
        failing: dict[BindAddress, OSError] = {}
        for bind in self._wanted:
            if (bind.address, bind.port) not in self._bound:
                try:
                    self._take(bind)
                except OSError as error:
                    failing[bind] = error
                else:
                    log.info("listener opened", listener=str(bind))
        return failing

    def _take(self, bind: BindAddress) -> None:
        # The relay knows the address as the kernel spells it.
        self._bound[bind.address, bind.port] = bind, self._relay.bind(bind.name, bind.address, bind.port)
        self.opened.set()

    def _give_back(self, place: tuple[str, int]) -> None:
        bind, spelled = self._bound.pop(place)
        self._relay.unbind(*spelled)
        log.info("listener closed, its streams live on", listener=str(bind))


class OwnAddressKeeper:
    """Puts together where the gateway listens, what it is registered with, and what the machine has."""

    def __init__(self, settings: Settings) -> None:
        named = (settings.address, settings.wan_address)
        self._registered = frozenset((it.host, it.port) for it in named if it is not None and is_numeric(it.host))
        self._machine: frozenset[str] = frozenset()
        self._looked_at = float("-inf")

    def now(self, listeners: Iterable[tuple[str, int]], admin: Iterable[tuple[str, int]] = ()) -> OwnAddresses:
        """The addresses of this moment; those of the machine are up to ten seconds old."""
        if time.monotonic() - self._looked_at > _KEPT_SECONDS:
            self._machine, self._looked_at = machine_addresses(), time.monotonic()
        return OwnAddresses(frozenset(listeners), self._machine, self._registered, frozenset(admin))

    def is_own(self, bound: Iterable[BindAddress], host: str, port: int) -> bool:
        """Whether who dials an address meets this process, which is bound to these; False for a host name."""
        listeners = ((bind.address or "0.0.0.0", bind.port) for bind in bound)  # noqa: S104 - compared, never bound
        return is_numeric(host) and self.now(listeners).leads_back(host, port, elsewhere=False)
