"""The relay as the rest of the product sees it: addresses, limits and route tables in, counters out.

Nothing here or behind it knows Consul. The seam is made of plain data on purpose: a relay that lives in a process of
its own takes the same tables and returns the same counters as messages.
"""

from collections.abc import Callable
from dataclasses import replace
from select import EPOLLIN

from meshgate.core.routes import RouteTable

from . import sockets
from .counters import Counters, Refused
from .engine import Engine
from .limits import Limits
from .listener import Listener


class Relay:
    """Carries streams. Make it and use it within one trio run.

    Args:
        table: where streams go, until `install` gives another one.
        limits: timeouts and bounds.
        on_refused: called for each stream that was not carried; must not block.
    """

    def __init__(self, table: RouteTable, limits: Limits, on_refused: Callable[[Refused], None]) -> None:
        self._engine = Engine(table, limits, on_refused)
        self._listeners: list[Listener] = []

    def bind(self, name: str, host: str, port: int) -> tuple[str, int]:
        """Take a numeric address ("" is every IPv4 address, port 0 a free one). Clients are refused until `listen`.

        Returns:
            The address it is bound to.

        Raises:
            OSError: the address cannot be bound; the others are not touched.
        """
        sock = sockets.bind(host, port, self._engine.limits.keepalive)
        self._listeners.append(Listener(self._engine, name, sock))
        bound = sock.getsockname()
        return str(bound[0]), int(bound[1])

    def listen(self) -> None:
        """Let clients in on every address that is bound."""
        for listener in self._listeners:
            listener.sock.listen(sockets.BACKLOG)
            self._engine.watch(listener, EPOLLIN)

    def stop_listening(self) -> None:
        """Accept the clients that wait already, then close the listeners. Streams that are open live on."""
        while self._listeners:
            self._listeners.pop().close()

    def install(self, table: RouteTable) -> None:
        """Place streams that come from now on by `table`. Open ones are never touched."""
        self._engine.install(table)

    @property
    def active(self) -> int:
        """Streams open now."""
        return self._engine.counters.active

    def counters(self) -> Counters:
        """A copy of the totals, with the bytes of the streams still open in them."""
        engine = self._engine
        received, sent = engine.counters.bytes_received, engine.counters.bytes_sent
        for connection in engine.connections():
            received += connection.client.received
            sent += connection.upstream.received if connection.upstream is not None else 0
        return replace(
            engine.counters,
            bytes_received=received,
            bytes_sent=sent,
            connect_counts=list(engine.counters.connect_counts),
            connections=dict(engine.counters.connections),
            refused=dict(engine.counters.refused),
        )

    async def run(self) -> None:
        """Relay until cancelled. Then the listeners are closed and the streams still open are reset."""
        try:
            await self._engine.run()
        finally:
            self.stop_listening()
