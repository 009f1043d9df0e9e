"""One stream, from its first byte to its last: a state machine that is called with events and never waits.

    HELLO       the ClientHello is read and kept
    CONNECTING  a connection to an endpoint is under way; the client's bytes wait in the kernel
    RELAYING    both legs are open, or one direction of them
    REFUSED     an alert was sent; what the client still sends is thrown away until it closes, so that the kernel
                does not reset the connection before the client has read the alert
    CLOSED

What always holds: a route is looked up once, by the name in the hello, and all bytes of the stream go to an endpoint
of that route or nowhere. Another endpoint is tried only while no byte has gone to one. An end of stream is passed on
after all bytes before it, and leaves the other direction alive; a reset is passed on as a reset. Events are hints: a
stale one does no harm, because every step asks the kernel first.
"""

import socket
from collections.abc import Callable
from enum import IntEnum
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP
from typing import TYPE_CHECKING, Final

from meshgate.core.hello import Hello, HelloParser, Refusal, parse_hello
from meshgate.core.reasons import Reason, alert_record
from meshgate.core.routes import Endpoint, Route

from . import sockets
from .counters import Refused
from .pump import BUFFER_BYTES, Moved

if TYPE_CHECKING:
    from .engine import Engine
    from .pipes import Pipe

READABLE: Final = EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR
HUNG_UP: Final = EPOLLRDHUP | EPOLLHUP | EPOLLERR
MAX_ATTEMPTS: Final = 5
LINGER_SECONDS: Final = 1.0
_LINGER_BYTES: Final = 1 << 18


class State(IntEnum):
    """Where a stream is; see the module."""

    HELLO = 0
    CONNECTING = 1
    RELAYING = 2
    REFUSED = 3
    CLOSED = 4


class Leg:
    """One socket of a stream, and what is kept for it.

    `held` and `pipe` are bytes that wait to be written to this leg. `readable` says the kernel may have bytes of it,
    `hung_up` that its end of stream (or a reset) is among them, `eof` that all of them were read.
    """

    __slots__ = ("connection", "eof", "full_reads", "held", "hung_up", "other", "pipe", "readable", "received", "sock")

    other: "Leg"

    def __init__(self, connection: "Connection", sock: socket.socket) -> None:
        self.connection = connection
        self.sock = sock
        self.held: bytes | None = None
        self.pipe: Pipe | None = None
        self.readable = True
        self.hung_up = False
        self.eof = False
        self.full_reads = 0
        self.received = 0

    def on_event(self, events: int) -> None:
        """What epoll says about this leg's socket."""
        if events & HUNG_UP:
            self.hung_up = True
        connection = self.connection
        if connection.state is not State.RELAYING:
            connection.on_early_event(self, events)
            return
        connection.touched = connection.engine.now
        if events & EPOLLOUT and (self.held is not None or self.pipe is not None):
            connection.resume(self)
        if events & READABLE:
            self.readable = True
            connection.forward(self)

    def on_turn(self) -> None:
        """The turn that was promised when the last one used up its budget."""
        self.connection.forward(self)


class Connection:
    """A stream. Created by the listener with an accepted socket; call `start` once it is registered."""

    __slots__ = (
        "_discarded",
        "_hello",
        "_parser",
        "_tried",
        "attempts",
        "client",
        "client_host",
        "connect_started",
        "endpoint",
        "engine",
        "route",
        "server_name",
        "state",
        "tick",
        "touched",
        "upstream",
    )

    def __init__(self, engine: "Engine", sock: socket.socket, client_host: str) -> None:
        self.engine = engine
        self.client = Leg(self, sock)
        self.client_host = client_host
        self.upstream: Leg | None = None
        self.state = State.HELLO
        self.tick = 0
        self.touched = engine.now
        self.server_name: str | None = None
        self.route: Route | None = None
        self.endpoint: Endpoint | None = None
        self.attempts = 0
        self.connect_started = 0.0
        self._hello: bytearray | bytes = b""
        self._parser: HelloParser | None = None
        self._tried: tuple[int, ...] = ()
        self._discarded = 0

    def start(self) -> None:
        """Read what has come already; often the whole hello."""
        self.engine.arm(self, self.engine.limits.hello_timeout)
        self._read_hello()

    def on_early_event(self, leg: Leg, events: int) -> None:
        """An event while the stream is not relaying."""
        if events & READABLE:
            leg.readable = True
        if self.state is State.HELLO:
            self._read_hello()
        elif self.state is State.REFUSED:
            self._discard()
        elif self.state is State.CONNECTING:
            if leg is self.upstream:
                self._try_upstream()
            elif events & (EPOLLERR | EPOLLHUP):
                self.close()  # The client is gone; nobody waits for the endpoint any more.

    def on_deadline(self) -> None:
        """The hello, the connect, the linger or the idle timeout has passed."""
        if self.state is State.HELLO:
            self.refuse(Reason.HELLO_TIMEOUT, f"no complete hello within {self.engine.limits.hello_timeout:g} s")
        elif self.state is State.CONNECTING:
            self._attempt_failed(Reason.CONNECT_TIMEOUT, "timed out")
        elif self.state is State.REFUSED:
            self.close()
        elif self.state is State.RELAYING:
            self._check_idle()

    # --- hello ---------------------------------------------------------------------------------------------------

    def _read_hello(self) -> None:
        engine = self.engine
        view = engine.pump.view
        while self.state is State.HELLO:
            try:
                count = self.client.sock.recv_into(engine.pump.buffer)
            except BlockingIOError:
                self.client.readable = False
                return
            except OSError:
                self.close()
                return
            if not count:
                self._client_left_early()
                return
            self.client.received += count
            self._on_hello_bytes(view[:count])
            if count < BUFFER_BYTES and not self.client.hung_up:
                self.client.readable = False  # As in the pump: a short read has emptied the socket.
                return

    def _on_hello_bytes(self, data: memoryview) -> None:
        if self._parser is None:
            verdict = parse_hello(data, self.engine.limits.max_hello_bytes)
            self._hello = bytes(data) if verdict is not None else bytearray(data)
            if verdict is None:
                self._parser = HelloParser(self.engine.limits.max_hello_bytes)
                verdict = self._parser.feed(data)
        else:
            self._hello += data
            verdict = self._parser.feed(data)
        if isinstance(verdict, Refusal):
            self.refuse(verdict.reason, verdict.detail)
        elif isinstance(verdict, Hello):
            self._parser = None
            self._place(verdict)

    def _client_left_early(self) -> None:
        # A connection that closes without a byte is a health check (Consul's own TCP check, a load balancer's).
        if not self.client.received:
            self.close()
        else:
            self.refuse(Reason.HELLO_MALFORMED, "the client closed inside its hello")

    # --- placing and dialling ------------------------------------------------------------------------------------

    def _place(self, hello: Hello) -> None:
        self.server_name = hello.server_name
        if hello.server_name is None:
            self.refuse(Reason.NO_SNI, "the hello names no server")
            return
        self.route = self.engine.table.find(hello.server_name)
        if self.route is None:
            self.refuse(Reason.UNKNOWN_SNI, "no route for this name")
            return
        self._attempt(Reason.NO_HEALTHY_ENDPOINT, f"none of {len(self.route.endpoints)} endpoints is healthy")

    def _attempt(self, failure: Reason, detail: str) -> None:
        """Dial the next endpoint of the route; refuse with `failure` when there is none left to try."""
        route = self.route
        assert route is not None
        position = None
        if self.attempts < MAX_ATTEMPTS:
            position = route.rotation.pick(self.engine.turn(route), self._tried)
        if position is None:
            self.refuse(failure, detail)
            return
        self.attempts += 1
        self._tried += (position,)
        self.endpoint = route.candidates[position]
        self._dial(route, self.endpoint)

    def _dial(self, route: Route, endpoint: Endpoint) -> None:
        engine = self.engine
        self.state = State.CONNECTING
        self.connect_started = engine.clock()
        try:
            sock, error = sockets.dial(endpoint.address, endpoint.port, engine.limits.keepalive)
        except OSError as failure:
            self._attempt_failed(Reason.CONNECT_FAILED, str(failure))
            return
        self.upstream = Leg(self, sock)
        self.upstream.other, self.client.other = self.client, self.upstream
        if error not in sockets.UNDER_WAY:
            self._attempt_failed(Reason.CONNECT_FAILED, sockets.describe(error))
            return
        timeout = route.connect_timeout or engine.limits.connect_timeout
        engine.arm(self, timeout)
        engine.register(self.upstream)
        self._try_upstream()

    def _try_upstream(self) -> None:
        """Send the hello. Once a byte of it is taken, the endpoint is settled."""
        upstream = self.upstream
        assert upstream is not None
        hello = self._hello
        try:
            sent = upstream.sock.send(hello)
        except BlockingIOError:
            return
        except OSError as failure:
            self._attempt_failed(Reason.CONNECT_FAILED, sockets.describe(failure.errno or 0))
            return
        self._hello = b""
        self._tried = ()
        if sent < len(hello):
            upstream.held = bytes(hello[sent:])
        self._relay()

    def _attempt_failed(self, reason: Reason, detail: str) -> None:
        endpoint = self.endpoint
        assert endpoint is not None
        if self.upstream is not None:
            self.engine.forget(self.upstream)
            self.upstream.sock.close()
            self.upstream = None
        self._attempt(reason, f"{endpoint.address}:{endpoint.port} {detail}, attempt {self.attempts}")

    # --- relaying ------------------------------------------------------------------------------------------------

    def _relay(self) -> None:
        engine, route = self.engine, self.route
        assert route is not None
        assert self.upstream is not None
        self.state = State.RELAYING
        self.touched = engine.now
        engine.counters.count_connect(engine.clock() - self.connect_started)
        engine.counters.count_routed(route.kind, route.destination)
        self._arm_idle()
        # The client may have sent more behind its hello, or closed its side, while nobody looked.
        self.forward(self.client)

    def forward(self, source: Leg) -> None:
        """Move what a leg has to the other one, as far as the budget and the other one allow."""
        destination = source.other
        if (
            self.state is not State.RELAYING
            or not source.readable
            or source.eof
            or destination.held is not None
            or destination.pipe is not None
        ):
            return
        moved = self.engine.pump.move(source, destination)
        if moved is Moved.DRY:
            source.readable = False
        elif moved is Moved.AGAIN:
            self.engine.promise_turn(source)
        elif moved is Moved.EOF:
            self._end_of(source)
        elif moved is Moved.SOURCE_BROKEN:
            self.abort()
        elif moved is Moved.DESTINATION_BROKEN:
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
        try:
            destination.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._broken(destination)
            return
        if destination.eof:
            self.close()

    def _broken(self, leg: Leg) -> None:
        """A leg takes no more bytes: its peer reset it. What the peer sent before that is still to be delivered."""
        self.engine.pump.release(leg)
        if not leg.eof and leg.other.held is None and leg.other.pipe is None:
            while self.engine.pump.move(leg, leg.other) is Moved.AGAIN:
                pass
        self.abort()

    # --- endings -------------------------------------------------------------------------------------------------

    def refuse(self, reason: Reason, detail: str) -> None:
        """End a stream that has reached no endpoint: the alert of the reason, then a close that lets it arrive."""
        engine = self.engine
        self.state = State.REFUSED
        self._hello = b""
        self._parser = None
        engine.on_refused(Refused(self.client_host, self.server_name, reason, detail, self.attempts))
        try:
            self.client.sock.send(alert_record(reason))
            self.client.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        engine.arm(self, LINGER_SECONDS)
        self._discard()

    def _discard(self) -> None:
        while self.state is State.REFUSED:
            try:
                count = self.client.sock.recv_into(self.engine.pump.buffer)
            except BlockingIOError:
                return
            except OSError:
                count = 0
            self._discarded += count
            if not count or self._discarded > _LINGER_BYTES:
                self.close()

    def abort(self) -> None:
        """End the stream with a reset on both legs."""
        self._end(sockets.reset)

    def close(self) -> None:
        """End the stream in order."""
        self._end(socket.socket.close)

    def _end(self, shut: Callable[[socket.socket], None]) -> None:
        if self.state is State.CLOSED:
            return
        self.state = State.CLOSED
        engine = self.engine
        engine.disarm(self)
        for leg in (self.client, self.upstream):
            if leg is not None:
                engine.forget(leg)
                engine.pump.release(leg)
                shut(leg.sock)
        engine.on_ended(self)

    # --- idling --------------------------------------------------------------------------------------------------

    def _arm_idle(self) -> None:
        timeout = self.engine.limits.idle_timeout
        if timeout > 0:
            self.engine.arm(self, self.touched + timeout - self.engine.now)
        else:
            self.engine.disarm(self)

    def _check_idle(self) -> None:
        # The deadline is not moved with every byte, only looked at again when it comes.
        if self.engine.now - self.touched >= self.engine.limits.idle_timeout:
            self.engine.counters.idle_timeouts += 1
            self.close()
        else:
            self._arm_idle()
