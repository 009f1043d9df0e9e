"""One stream, from its first byte to its last: a state machine that is called with events and never waits.

    opening     the hello is read and an endpoint dialled (`opening` is set, see there)
    relaying    both legs are open, or one direction of them
    refused     an alert was sent; what the client still sends is thrown away until it closes, so that the kernel
                does not reset the connection before the client has read the alert
    closed

What always holds: all bytes of the stream go to one endpoint of its route or nowhere. An end of stream is passed on
after all bytes before it, and leaves the other direction alive; a reset is passed on as a reset. Events are hints: a
stale one does no harm, because every step asks the kernel first.
"""

import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from meshgate.core.reasons import Reason, alert_record

from .counters import Refused
from .leg import READABLE, Leg
from .opening import Opening
from .pump import AGAIN, BLOCKED, DESTINATION_BROKEN, DRY, EOF, READ_BYTES, SOURCE_BROKEN, Moved

if TYPE_CHECKING:
    from meshgate.core.routes import Endpoint, Route

    from .engine import Engine

LINGER_SECONDS: Final = 1.0
_LINGER_BYTES: Final = 1 << 18


class Connection:
    """A stream. Created by the listener with an accepted socket; call `start`.

    `charged` is the destination whose connections it counts among; "" while nobody counts. `touched` is when bytes
    last moved. `abort_flag` is Envoy's letters for an end that was not in order.
    """

    __slots__ = (
        "abort_flag",
        "alpn",
        "attempts",
        "charged",
        "client",
        "client_address",
        "closed",
        "endpoint",
        "engine",
        "listener",
        "opening",
        "reason",
        "relaying",
        "route",
        "server_name",
        "started",
        "tick",
        "touched",
        "upstream",
    )

    def __init__(
        self, engine: "Engine", sock: socket.SocketType, client_address: tuple[str, int], listener: str
    ) -> None:
        self.engine = engine
        self.client = Leg(self, sock)
        self.upstream: Leg | None = None
        self.client_address = client_address
        self.listener = listener
        self.opening: Opening | None = Opening(self)
        self.relaying = False
        self.closed = False
        self.tick = 0
        self.started = self.touched = engine.now
        self.server_name: str | None = None
        self.alpn: tuple[str, ...] = ()
        self.route: Route | None = None
        self.endpoint: Endpoint | None = None
        self.attempts = 0
        self.reason: Reason | None = None
        self.abort_flag = ""
        self.charged = ""

    @property
    def carried(self) -> tuple[int, int]:
        """Bytes received from the client, and sent to it."""
        return self.client.received, self.upstream.received if self.upstream is not None else 0

    def start(self) -> None:
        """Begin with what has come already."""
        assert self.opening is not None
        self.opening.start()
        if not self.closed:
            self.engine.register(self.client)

    def on_early_event(self, leg: Leg, events: int) -> None:
        """An event while the stream is not relaying."""
        if events & READABLE:
            leg.readable = True
        if self.opening is not None:
            self.opening.on_event(leg, events)
        elif not self.closed:
            self._discard()

    def on_deadline(self) -> None:
        """The hello, the connect, the linger or the idle timeout has passed."""
        if self.opening is not None:
            self.opening.on_deadline()
        elif self.relaying:
            self._check_idle()
        else:
            self.close()

    # --- relaying ------------------------------------------------------------------------------------------------

    def relay(self) -> None:
        """The hello has gone to the endpoint: from now on bytes only move."""
        engine, route, endpoint = self.engine, self.route, self.endpoint
        assert route is not None
        assert endpoint is not None
        engine.placing.began(route, endpoint)
        if self.opening is not None:
            self.opening.on_end()
        self.opening = None
        self.relaying = True
        self.touched = engine.now
        engine.counters.count_routed(route.kind, route.destination)
        self._arm_idle()
        # The client may have sent more behind its hello, or closed its side, while nobody looked.
        self.forward(self.client)
        upstream = self.upstream
        if upstream is not None and upstream.readable:
            self.forward(upstream)  # It spoke first, or hung up, before its connection was noticed to stand.

    def forward(self, source: Leg) -> None:
        """Move what a leg has to the other one, as far as the budget and the other one allow."""
        destination = source.other
        if (
            not self.relaying
            or not source.readable
            or source.eof
            or destination.held is not None
            or destination.pipe is not None
        ):
            return
        self.on_moved(source, self.engine.pump.move(source, destination))

    def on_moved(self, source: Leg, moved: Moved) -> None:
        """A turn has ended: see to it that the next one comes, or to what has ended with it."""
        destination = source.other
        if moved is DRY:
            source.readable = False
        elif moved is AGAIN:
            self.engine.promise_turn(source)
        elif moved is BLOCKED:
            self.engine.register_writer(destination)
        elif moved is EOF:
            self._end_of(source)
        elif moved is SOURCE_BROKEN:
            self._abort_by(source)
        elif moved is DESTINATION_BROKEN:
            self._broken(destination)

    def resume(self, leg: Leg) -> None:
        """A leg that blocked takes bytes again: write what is held back, then go on reading for it."""
        done = self.engine.pump.flush(leg)
        if done is None:
            self._broken(leg)
        elif done:
            self.forward(leg.other)

    def _end_of(self, source: Leg) -> None:
        """All of a leg's bytes are in the other's socket: pass the end on, and let the other direction live."""
        source.eof = True
        source.readable = False
        destination = source.other
        if destination.eof:
            self.close()  # That passes the end on as well.
            return
        try:
            destination.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._broken(destination)

    def _broken(self, leg: Leg) -> None:
        """A leg takes no more bytes: its peer reset it. What the peer sent before that is still to be delivered."""
        self.engine.pump.release(leg)
        if not leg.eof and leg.other.held is None and leg.other.pipe is None:
            while self.engine.pump.move(leg, leg.other) is AGAIN:
                pass
        self._abort_by(leg)

    def _abort_by(self, leg: Leg) -> None:
        """A leg's peer has reset it; in Envoy's letters, downstream or upstream connection termination."""
        self.abort_flag = "DC" if leg is self.client else "UC"
        self.abort()

    def _arm_idle(self) -> None:
        timeout = self.engine.limits.idle_timeout
        if timeout > 0:
            self.engine.arm(self, self.touched + timeout - self.engine.now)
        else:
            self.engine.disarm(self)

    def _check_idle(self) -> None:
        # The deadline is not moved with every byte, only looked at again when it comes.
        if 0 < self.engine.limits.idle_timeout <= self.engine.now - self.touched:
            self.engine.counters.idle_timeouts += 1
            self.abort_flag = "SI"
            self.close()
        else:
            self._arm_idle()

    # --- endings -------------------------------------------------------------------------------------------------

    def refuse(self, reason: Reason, detail: str) -> None:
        """End a stream that has reached no endpoint: the alert of the reason, then a close that lets it arrive."""
        engine = self.engine
        self.opening = None
        self.reason = reason
        if self.route is not None:
            engine.counters.count_failed(self.route.kind, self.route.destination, reason)
        engine.on_refused(Refused(self.client_address[0], self.server_name, reason, detail, self.attempts))
        try:
            self.client.sock.send(alert_record(reason))
            self.client.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        engine.arm(self, LINGER_SECONDS)
        self._discard()

    def shed(self, reason: Reason, detail: str) -> None:
        """End a stream whose hello is not complete, at once and without a word: its slot is needed."""
        self.reason = reason
        self.engine.on_refused(Refused(self.client_address[0], None, reason, detail))
        self.abort()

    def _discard(self) -> None:
        discarded = 0
        while not self.closed:
            try:
                count = len(os.read(self.client.descriptor, READ_BYTES))
            except BlockingIOError:
                return
            except OSError:
                count = 0
            discarded += count
            if not count or discarded > _LINGER_BYTES:
                self.close()

    def abort(self) -> None:
        """End the stream with a reset on both legs."""
        self._end(Leg.reset)

    def close(self) -> None:
        """End the stream in order."""
        self._end(Leg.close)

    def _end(self, shut: Callable[[Leg], None]) -> None:
        if self.closed:
            return
        engine = self.engine
        if self.relaying and self.route is not None and self.endpoint is not None:
            engine.placing.ended(self.route, self.endpoint)
            destination = (self.route.kind, self.route.destination)
            engine.counters.count_ended(destination, engine.clock() - self.started, self.carried, self.abort_flag)
        if self.opening is not None:
            self.opening.on_end()
        self.closed = True
        self.relaying = False
        self.opening = None
        engine.disarm(self)
        for leg in (self.client, self.upstream):
            if leg is not None:
                engine.forget(leg)
                engine.pump.release(leg)
                shut(leg)
        engine.on_ended(self)
