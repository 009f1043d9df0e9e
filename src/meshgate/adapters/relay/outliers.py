"""Ejected endpoints, for all workers together.

What one worker meets all of them know, and a connection of the gateway's own tries an endpoint again: it is opened and
closed, not a byte is sent.
"""

import socket
import time
from collections.abc import Callable, Iterable
from typing import Final

import structlog
import trio

from meshgate.core.addresses import host_port
from meshgate.core.outlier_detection import Address, OutlierDetector
from meshgate.core.text import printable

from . import sockets

log = structlog.get_logger(module="meshgate.relay")

_AT_ONCE: Final = 64


Ejected = tuple[str, int, int, float, str]
"""An address and its port, the failures in a row, since when (Unix time), and why."""


class Outliers:
    """Keeps what is ejected, and probes it; `detector` knows what that is.

    Args:
        tell: gets each endpoint that is ejected or restored, with its failures; 0 for a restored one.
        patience: how long a probe may take, in seconds.
    """

    def __init__(self, tell: Callable[[Address, int], None], patience: Callable[[], float]) -> None:
        self._tell = tell
        self._patience = patience
        self.detector = OutlierDetector()
        self._alarm = trio.CancelScope()

    def left(self) -> list[Ejected]:
        """What is ejected, for the parent after this one."""
        return [(*address, it.failures, it.since, it.why) for address, it in self.detector.ejections.items()]

    def remember(self, ejected: Iterable[Ejected]) -> None:
        """Take over what the parent before this one has ejected."""
        for host, port, failures, since, why in ejected:
            self.detector.remember((host, port), failures, trio.current_time(), since=since, why=why)

    def failed(self, address: Address, why: str) -> None:
        """A stream could not be connected to it."""
        if self.detector.failed(address, trio.current_time(), since=time.time(), why=why):
            told = "endpoint ejected, it gets no streams while others are left"
            log.info(told, endpoint=host_port(*address), why=printable(why))
            self._tell(address, 1)
            self._alarm.deadline = min(self._alarm.deadline, self.detector.next_probe())

    def succeeded(self, address: Address) -> None:
        """A connection to it stands."""
        if self.detector.succeeded(address):
            log.info("ejected endpoint is well again", endpoint=host_port(*address))
            self._tell(address, 0)

    def keep_only(self, addresses: Callable[[], set[Address]]) -> None:
        """Forget what gets no traffic any more."""
        if self.detector.ejections:
            self.detector.keep_only(addresses())

    async def run(self) -> None:
        """Probe until cancelled."""
        limiter = trio.CapacityLimiter(_AT_ONCE)
        async with trio.open_nursery() as nursery:
            while True:
                with trio.CancelScope(deadline=self.detector.next_probe()) as self._alarm:
                    await trio.sleep_forever()
                for address in self.detector.due(trio.current_time()):
                    nursery.start_soon(self._probe, address, limiter)

    async def _probe(self, address: Address, limiter: trio.CapacityLimiter) -> None:
        async with limiter:
            with trio.move_on_after(self._patience()):
                if await _connects(address):
                    self.succeeded(address)


async def _connects(address: Address) -> bool:
    """Whether a connection can be had; waits until that is known."""
    try:
        sock, error = sockets.dial(*address)
    except (OSError, OverflowError):
        return False
    try:
        if error not in sockets.UNDER_WAY:
            return False
        await trio.lowlevel.wait_writable(sock.fileno())
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    finally:
        sock.close()
