"""The relay of one process: addresses, limits and route tables in, counters out.

Nothing here or behind it knows Consul. The seam is made of plain data on purpose: `pool` runs several of these in
processes of their own, with the same tables and counters as messages.
"""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from select import EPOLLEXCLUSIVE, EPOLLIN

from meshgate.core.routes import RouteTable

from . import sockets
from .counters import Carried, Counters, Destination, OpenStream
from .engine import Engine
from .limits import Limits
from .listener import Listener
from .protocols import Observer
from .records import open_stream
from .shared import SharedCounts


@dataclass(frozen=True, slots=True)
class Share:
    """The place of this relay among those that carry one gateway's streams: its number and the common counts."""

    worker: int
    counts: SharedCounts

    @classmethod
    def alone(cls) -> "Share":
        """The place of a relay that is all of its gateway."""
        return cls(0, SharedCounts(-1, 1, 0))


class Relay:
    """Carries streams. Make it and use it within one trio run.

    Args:
        table: where streams go, until `install` gives another one.
        limits: timeouts and bounds.
        observer: is told of refused and ended streams.
        share: its place among the gateway's relays; alone by default.
        ask: has a name learned, and `learned` called then; without it no stream waits for that.
    """

    def __init__(
        self,
        table: RouteTable,
        limits: Limits,
        observer: Observer,
        share: Share | None = None,
        ask: Callable[[str], None] | None = None,
    ) -> None:
        share = share or Share.alone()
        self._engine = Engine(table, limits, share.counts, observer, share.worker, ask)
        self._listeners: list[Listener] = []

    def bind(self, name: str, host: str, port: int) -> tuple[str, int]:
        """Take a numeric address ("" is every IPv4 address, port 0 a free one). Clients are refused until `listen`.

        Returns:
            The address it is bound to.

        Raises:
            OSError: the address cannot be bound; the others are not touched.
        """
        sock = sockets.bind(host, port, self._engine.limits.keepalive)
        self.adopt(name, sock)
        bound = sock.getsockname()
        return str(bound[0]), int(bound[1])

    def adopt(self, name: str, sock: socket.socket) -> None:
        """Take a bound socket over. Other processes may listen on it too."""
        self._listeners.append(Listener(self._engine, name, sock))

    def listen(self) -> None:
        """Let clients in on every address that is bound.

        Raises:
            OSError: somebody else listens there meanwhile.
        """
        for listener in self._listeners:
            listener.sock.listen(sockets.BACKLOG)
            # Of the processes that listen on a socket the kernel wakes one for a client, not all.
            self._engine.watch(listener, EPOLLIN | EPOLLEXCLUSIVE)

    def listen_also(self, name: str, sock: socket.socket) -> None:
        """Take over a socket that listens already, while others are in use."""
        self.adopt(name, sock)
        self._engine.watch(self._listeners[-1], EPOLLIN | EPOLLEXCLUSIVE)

    def close_listener(self, host: str, port: int) -> None:
        """Accept the clients that wait at an address, then close it. Streams that came by it live on."""
        for listener in [each for each in self._listeners if each.sock.getsockname()[:2] == (host, port)]:
            self._listeners.remove(listener)
            listener.close()

    def stop_listening(self) -> None:
        """Accept the clients that wait already, then close the listeners. Streams that are open live on."""
        while self._listeners:
            self._listeners.pop().close()

    def install(self, table: RouteTable) -> None:
        """Place streams that come from now on by `table`. Open ones are never touched."""
        self._engine.install(table)

    async def learned(self, name: str) -> None:
        """The table has what could be learned of a name: place the streams that wait for that."""
        await self._engine.learned(name)

    async def ask_nobody(self) -> None:
        """Nobody can be asked to have a name learned any more: no stream waits for that from now on."""
        await self._engine.ask_nobody()

    def limit(self, limits: Limits) -> None:
        """Use other limits for streams that come from now on."""
        self._engine.limits = limits

    def relieve(self) -> None:
        """Cut silent clients if slots are short. Accepting does this too; alone it would leave it to the others."""
        self._engine.relieve()

    @property
    def table(self) -> RouteTable:
        """The table in force."""
        return self._engine.table

    @property
    def active(self) -> int:
        """Streams open now."""
        return self._engine.counters.active

    def ended(self) -> Counters:
        """A copy of the totals; bytes are those of streams that have ended."""
        return self._engine.counters.copy()

    def open_bytes(self) -> tuple[int, int, Carried]:
        """Bytes received and sent by the streams that are open now, and those of routed ones by destination."""
        received = sent = 0
        routed: dict[Destination, list[int]] = {}
        for connection in self._engine.connections():
            (got, gave), route = connection.carried, connection.route
            received += got
            sent += gave
            if route is not None and connection.relaying:
                both = routed.setdefault((route.kind, route.destination), [0, 0])
                both[0] += got
                both[1] += gave
        return received, sent, {key: (both[0], both[1]) for key, both in routed.items()}

    def counters(self) -> Counters:
        """A copy of the totals, with the bytes of the streams still open in them."""
        counters = self.ended()
        received, sent, carried = self.open_bytes()
        counters.bytes_received += received
        counters.bytes_sent += sent
        counters.add_carried(carried)
        return counters

    def connections(self) -> list[OpenStream]:
        """The streams open now."""
        return [open_stream(connection) for connection in self._engine.connections()]

    async def run(self) -> None:
        """Relay until cancelled. Then the listeners are closed and the streams still open are reset."""
        try:
            await self._engine.run()
        finally:
            # Who waits there is nobody's any more: nothing could come of accepting them now.
            while self._listeners:
                self._listeners.pop().drop()
