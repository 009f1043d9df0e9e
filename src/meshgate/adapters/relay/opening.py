"""The beginning of a stream: its hello is read, its route found, an endpoint dialled. Gone once the stream relays.

What always holds: a route is looked up once, by the name in the hello, and only endpoints of that route are dialled.
Another endpoint is tried only while no byte has gone to one. The hello is kept until then, at most as long as the
limits allow; what the client sends behind it waits in the kernel.
"""

from typing import TYPE_CHECKING, Final

from meshgate.core.hello import Hello, HelloParser, Refusal, parse_hello
from meshgate.core.reasons import Reason
from meshgate.core.routes import Endpoint, Route

from . import sockets
from .leg import BROKEN, Leg
from .pump import BUFFER_BYTES

if TYPE_CHECKING:
    from .connection import Connection

MAX_ATTEMPTS: Final = 5
_PROTOCOLS_KEPT: Final = 8  # For the access log; a stream must not keep all that a stranger can put into a hello.


class Opening:
    """Brings a stream from its first byte to its endpoint.

    `connecting` is False while the hello is read.
    """

    __slots__ = ("_connection", "_hello", "_parser", "_started", "_tried", "connecting")

    def __init__(self, connection: "Connection") -> None:
        self.connecting = False
        self._connection = connection
        self._hello: bytearray | bytes = b""
        self._parser: HelloParser | None = None
        self._tried: tuple[int, ...] = ()
        self._started = 0.0

    def start(self) -> None:
        """Read what has come already; often the whole hello."""
        engine = self._connection.engine
        engine.arm(self._connection, engine.limits.hello_timeout)
        self._read_hello()

    def on_event(self, leg: Leg, events: int) -> None:
        """Something has happened on a socket of the stream."""
        if not self.connecting:
            self._read_hello()
        elif leg is self._connection.upstream:
            self._try_upstream()
        elif events & BROKEN:
            self._connection.close()  # The client is gone; nobody waits for the endpoint any more.

    def on_deadline(self) -> None:
        """The time for the hello, or for one connection attempt, is over."""
        connection = self._connection
        if self.connecting:
            self._attempt_failed(Reason.CONNECT_TIMEOUT, "timed out")
        else:
            timeout = connection.engine.limits.hello_timeout
            connection.refuse(Reason.HELLO_TIMEOUT, f"no complete hello within {timeout:g} s")

    # --- hello ---------------------------------------------------------------------------------------------------

    def _read_hello(self) -> None:
        connection = self._connection
        client, pump = connection.client, connection.engine.pump
        while connection.opening is self and not self.connecting:
            try:
                count = client.sock.recv_into(pump.buffer)
            except BlockingIOError:
                client.readable = False
                return
            except OSError:
                connection.close()
                return
            if not count:
                self._client_left()
                return
            client.received += count
            if count < BUFFER_BYTES and not client.hung_up:
                client.readable = False  # As in the pump: a short read has emptied the socket.
            self._on_bytes(pump.view[:count])
            if not client.readable:
                return

    def _on_bytes(self, data: memoryview) -> None:
        most = self._connection.engine.limits.max_hello_bytes
        if self._parser is None:
            verdict = parse_hello(data, most)
            if verdict is None:
                self._parser = HelloParser(most)
                verdict = self._parser.feed(data)
                self._hello = bytearray(data)
            else:
                self._hello = bytes(data)
        else:
            self._hello += data
            verdict = self._parser.feed(data)
        if isinstance(verdict, Refusal):
            self._connection.refuse(verdict.reason, verdict.detail)
        elif isinstance(verdict, Hello):
            self._parser = None
            self._place(verdict)

    def _client_left(self) -> None:
        # A connection that closes without a byte is a health check (Consul's own TCP check, a load balancer's).
        connection = self._connection
        if connection.client.received:
            connection.refuse(Reason.HELLO_MALFORMED, "the client closed inside its hello")
        else:
            connection.close()

    # --- placing and dialling ------------------------------------------------------------------------------------

    def _place(self, hello: Hello) -> None:
        connection = self._connection
        connection.server_name, connection.alpn = hello.server_name, hello.alpn[:_PROTOCOLS_KEPT]
        if hello.server_name is None:
            connection.refuse(Reason.NO_SNI, "the hello names no server")
            return
        route = connection.route = connection.engine.table.find(hello.server_name)
        if route is None:
            connection.refuse(Reason.UNKNOWN_SNI, "no route for this name")
            return
        self.connecting = True
        self._attempt(route, Reason.NO_HEALTHY_ENDPOINT, f"none of {len(route.endpoints)} endpoints is healthy")

    def _attempt(self, route: Route, failure: Reason, detail: str) -> None:
        """Dial the next endpoint of the route; refuse with `failure` when there is none left to try."""
        connection = self._connection
        engine = connection.engine
        position = engine.placing.next(route, self._tried, engine.now) if connection.attempts < MAX_ATTEMPTS else None
        if position is None:
            connection.refuse(failure, detail)
            return
        connection.attempts += 1
        self._tried += (position,)
        connection.endpoint = route.candidates[position]
        self._dial(route, connection.endpoint)

    def _dial(self, route: Route, endpoint: Endpoint) -> None:
        connection = self._connection
        engine = connection.engine
        self._started = engine.clock()
        engine.placing.trying(endpoint, engine.now)
        try:
            sock, error = sockets.dial(endpoint.address, endpoint.port, engine.limits.keepalive)
        except (OSError, OverflowError) as failure:
            # No socket could be had: the fault is ours, and no other endpoint would fare better.
            connection.refuse(Reason.CONNECT_FAILED, str(failure))
            return
        upstream = connection.upstream = Leg(connection, sock)
        upstream.other, connection.client.other = connection.client, upstream
        if error not in sockets.UNDER_WAY:
            self._attempt_failed(Reason.CONNECT_FAILED, sockets.describe(error))
            return
        engine.arm(connection, route.connect_timeout or engine.limits.connect_timeout)
        engine.register(upstream)
        self._try_upstream()

    def _try_upstream(self) -> None:
        """Send the hello. Once a byte of it is taken, the endpoint is settled."""
        connection = self._connection
        upstream = connection.upstream
        assert upstream is not None
        try:
            sent = upstream.sock.send(self._hello)
        except BlockingIOError:
            return
        except OSError as failure:
            self._attempt_failed(Reason.CONNECT_FAILED, sockets.describe(failure.errno or 0))
            return
        if sent < len(self._hello):
            connection.engine.pump.hold(upstream, self._hello[sent:])
        engine = connection.engine
        engine.counters.count_connect(engine.clock() - self._started)
        connection.relay()

    def _attempt_failed(self, reason: Reason, detail: str) -> None:
        connection = self._connection
        endpoint, route = connection.endpoint, connection.route
        assert endpoint is not None
        assert route is not None
        connection.engine.placing.failed(endpoint, connection.engine.now)
        if connection.upstream is not None:
            connection.engine.forget(connection.upstream)
            connection.upstream.sock.close()
            connection.upstream = None
        where = sockets.host_port(endpoint.address, endpoint.port)
        self._attempt(route, reason, f"{where} {detail}, attempt {connection.attempts}")
