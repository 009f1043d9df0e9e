"""Keeps the addresses of host names, so that nothing on the data path ever waits for DNS.

Names are asked for again every REFRESH_SECONDS, as Consul's Envoy gateway does; getaddrinfo tells no time to live. All
addresses of a name count, of both families. What a name resolved to last is kept when asking fails: an outage of DNS is
no outage of traffic. A name whose servers do not answer holds up no other.
"""

import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import structlog
import trio

from meshgate.adapters.error_words import words_of

log = structlog.get_logger(module="meshgate.names")

REFRESH_SECONDS: Final = 10.0
_AT_ONCE: Final = 32
# Answers that come together make one change.
_TOGETHER_SECONDS: Final = 0.05


class NameKeeper:
    """Resolves the names that are wanted; `on_change` is called after `addresses` changed, and must not block."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self.addresses: dict[str, tuple[str, ...]] = {}
        self._on_change = on_change
        self._wanted: frozenset[str] = frozenset()
        self._failing: set[str] = set()
        self._news = trio.Event()
        self._change = trio.Event()

    def want(self, names: Iterable[str]) -> None:
        """Set the names to keep; new ones are asked for at once, others are forgotten."""
        wanted = frozenset(names)
        if wanted != self._wanted:
            self._news.set()
        self._wanted = wanted
        self._failing &= wanted
        self.addresses = {name: known for name, known in self.addresses.items() if name in wanted}

    def remember(self, addresses: Mapping[str, tuple[str, ...]]) -> None:
        """Use these until DNS answers: what the names were in an earlier life. To be called before `want`."""
        self.addresses = dict(addresses) | self.addresses

    async def run(self) -> None:
        limiter = trio.CapacityLimiter(_AT_ONCE)
        following: dict[str, trio.CancelScope] = {}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell)
            while True:
                self._news = trio.Event()
                for name in following.keys() - self._wanted:
                    following.pop(name).cancel()
                for name in self._wanted - following.keys():
                    following[name] = trio.CancelScope()
                    nursery.start_soon(self._follow, name, following[name], limiter)
                await self._news.wait()

    async def _follow(self, name: str, scope: trio.CancelScope, limiter: trio.CapacityLimiter) -> None:
        with scope:
            while True:
                await self._resolve(name, limiter)
                await trio.sleep(REFRESH_SECONDS)

    async def _tell(self) -> None:
        while True:
            await self._change.wait()
            await trio.sleep(_TOGETHER_SECONDS)
            self._change = trio.Event()
            self._on_change()

    async def _resolve(self, name: str, limiter: trio.CapacityLimiter) -> None:
        try:
            async with limiter:
                found = await trio.socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            if name not in self._failing:
                self._failing.add(name)
                kept = ", ".join(self.addresses.get(name, ())) or "nothing"
                what = "host name does not resolve, its last addresses are kept"
                log.warning(what, name=name, kept=kept, error=words_of(error))
            return
        if name in self._failing:
            self._failing.discard(name)
            log.info("host name resolves again", name=name)
        addresses = tuple(sorted({str(address[0]) for *_, address in found}))
        if name in self._wanted and self.addresses.get(name) != addresses:
            self.addresses[name] = addresses
            self._change.set()
