"""The beginning of a stream: its hello is read, its route found, an endpoint dialled. Gone once the stream relays.

What always holds: a route is looked up once, by the name in the hello, and only endpoints of that route are dialled.
Another endpoint is tried only while no byte has gone to one. The hello is kept until then, at most as long as the
limits allow; what the client sends behind it waits in the kernel.
"""

from os import read, write
from socket import SO_ERROR, SOL_SOCKET
from typing import TYPE_CHECKING, Final

from meshgate.core.gateway_options import KEEPALIVE_UNSET
from meshgate.core.hello import Hello, HelloParser, Refusal, parse_hello
from meshgate.core.reasons import Reason
from meshgate.core.routes import Endpoint, Route, RouteKind

from . import sockets
from .learning import LEARN_SECONDS
from .leg import BROKEN, Leg
from .pump import READ_BYTES

if TYPE_CHECKING:
    from .connection import Connection

MAX_ATTEMPTS: Final = 5
_TO_GATEWAYS: Final = (RouteKind.DATACENTER, RouteKind.PARTITION, RouteKind.PEER_IMPORT)


class Opening:
    """Brings a stream from its first byte to its endpoint.

    `connecting` is False while the hello is read, and True from then on.
    """

    __slots__ = (
        "_connection",
        "_hello",
        "_learning",
        "_parser",
        "_pending",
        "_started",
        "_tried",
        "_waits",
        "connecting",
    )

    def __init__(self, connection: "Connection") -> None:
        self.connecting = False
        self._connection = connection
        self._hello: bytearray | bytes = b""
        self._parser: HelloParser | None = None
        self._learning = ""  # The name for which it waits.
        self._pending: Endpoint | None = None  # Whose connection is awaited, and counted.
        self._tried: tuple[int, ...] = ()
        self._waits = ""  # Among whom it is counted meanwhile, where the destination's are.
        self._started = 0.0

    @property
    def client(self) -> Leg:
        """The leg whose stream it is."""
        return self._connection.client

    def start(self) -> None:
        """Read what has come already; often the whole hello."""
        connection = self._connection
        self._read_hello()
        if connection.opening is self and not self.connecting:
            connection.engine.arm(connection, connection.engine.limits.hello_timeout)

    def on_event(self, leg: Leg, events: int) -> None:
        """Something has happened on a socket of the stream."""
        if not self.connecting:
            self._read_hello()
        elif leg is self._connection.upstream:
            self._try_upstream()
        elif events & BROKEN:
            self._close_if_gone()

    def _close_if_gone(self) -> None:
        """End the stream if its client has reset it: nobody waits for the endpoint any more."""
        # The socket is asked, because the event may be left from a stream that had the same descriptor and ended in the
        # same batch.
        if self.client.sock.getsockopt(SOL_SOCKET, SO_ERROR):
            self._connection.close()

    def _close_if_told(self) -> None:
        """End it if its client's reset was told before its hello was read; it is not told again."""
        if self.client.hung_up:
            self._close_if_gone()

    def on_end(self) -> None:
        """The stream goes on without this, or ends."""
        if self._pending is not None:
            self._connection.engine.placing.settled(self._pending)
            self._pending = None
            if self._waits:
                self._connection.engine.destinations.release(self._waits)
        self._learned()

    def on_learned(self) -> None:
        """What could be learned of the name is in the table, or cannot be had: it is placed by what there is."""
        name = self._learned()
        if name:
            self._place(self._connection.engine.table.find(name))

    def _learned(self) -> str:
        """Wait no longer; the name that was waited for, "" where none was."""
        name, self._learning = self._learning, ""
        if name:
            self._connection.engine.learning.leave(self, name)
        return name

    def on_deadline(self) -> None:
        """The time for the hello, for learning of its name, or for one connection attempt, is over."""
        connection = self._connection
        if self._learning:
            self.on_learned()
        elif self.connecting:
            self._attempt_failed(Reason.CONNECT_TIMEOUT, "timed out")
        else:
            timeout = connection.engine.limits.hello_timeout
            connection.refuse(Reason.HELLO_TIMEOUT, f"no complete hello within {timeout:g} s")

    # --- hello ---------------------------------------------------------------------------------------------------

    def _read_hello(self) -> None:
        connection = self._connection
        client = connection.client
        while connection.opening is self and not self.connecting:
            try:
                data = read(client.descriptor, READ_BYTES)
            except BlockingIOError:
                client.readable = False
                return
            except OSError:
                connection.close()
                return
            if not data:
                self._client_left()
                return
            client.received += len(data)
            if len(data) < READ_BYTES and not client.hung_up:
                client.readable = False  # As in the pump: a short read has emptied the socket.
            self._on_bytes(data)
            if not client.readable:
                return

    def _on_bytes(self, data: bytes) -> None:
        most = self._connection.engine.limits.max_hello_bytes
        if self._parser is None:
            verdict = parse_hello(data, most)
            if verdict is None:
                self._parser = HelloParser(most)
                self._parser.feed(data)
                self._hello = self._parser.stream
            else:
                self._hello = data
        else:
            verdict = self._parser.feed(data)
        if isinstance(verdict, Refusal):
            self._connection.refuse(verdict.reason, verdict.detail)
        elif isinstance(verdict, Hello):
            self._parser = None
            self._on_hello(verdict)

    def _client_left(self) -> None:
        # A connection that closes without a byte is a health check (Consul's own TCP check, a load balancer's).
        connection = self._connection
        if connection.client.received:
            connection.refuse(Reason.HELLO_MALFORMED, "the client closed inside its hello")
        else:
            connection.close()

    # --- placing and dialling ------------------------------------------------------------------------------------

    def _on_hello(self, hello: Hello) -> None:
        connection = self._connection
        engine, name = connection.engine, hello.server_name
        connection.server_name, connection.alpn = name, hello.alpn
        if name is None:
            connection.refuse(Reason.NO_SNI, "the hello names no server")
            return
        route = engine.table.find(name)
        if (route is None or route.cold) and engine.learning.wants(name, route, engine.table, engine.now):
            self.connecting = True
            self._learning = name
            engine.counters.learned += 1
            engine.learning.wait(self, name, engine.now)
            engine.arm(connection, LEARN_SECONDS)
            self._close_if_told()
            return
        self._place(route)

    def _place(self, route: Route | None) -> None:
        connection = self._connection
        connection.route = route
        if route is None:
            connection.refuse(Reason.UNKNOWN_SNI, "no route for this name")
            return
        full = connection.engine.destinations.charge(connection, route)
        if full is not None:
            connection.refuse(*full)
            return
        self.connecting = True
        self._attempt(route, Reason.NO_HEALTHY_ENDPOINT, f"none of {len(route.endpoints)} endpoints is healthy")

    def _attempt(self, route: Route, failure: Reason, detail: str) -> None:
        """Dial the next endpoint of the route; refuse with `failure` when there is none left to try."""
        connection = self._connection
        engine = connection.engine
        tried, most = self._tried, engine.limits.max_pending_per_endpoint
        if most and engine.placing.pending >= most and (full := engine.placing.full(route, most)):
            tried += full
            if connection.attempts == 0:
                failure, detail = Reason.CONNECT_FAILED, f"{most} connections that do not stand yet are under way there"
        position = engine.placing.next(route, tried, engine.now) if connection.attempts < MAX_ATTEMPTS else None
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
            chosen = engine.limits.remote_keepalive if route.kind in _TO_GATEWAYS else KEEPALIVE_UNSET
            sock, error = sockets.dial(endpoint.address, endpoint.port, engine.limits.keepalive, chosen)
        except (OSError, OverflowError) as failure:
            number = failure.errno if isinstance(failure, OSError) else 0
            if number in sockets.NO_DESCRIPTOR and engine.pressure.free_descriptors():
                self._dial(route, endpoint)
                return
            # No socket could be had: the fault is ours, and no other endpoint would fare better.
            connection.refuse(Reason.CONNECT_FAILED, str(failure))
            return
        upstream = connection.upstream = Leg(connection, sock)
        upstream.other, connection.client.other = connection.client, upstream
        upstream.readable = False  # An event will say so; one that comes with the connection must not be forgotten.
        if error not in sockets.UNDER_WAY:
            self._attempt_failed(Reason.CONNECT_FAILED, sockets.describe(error))
            return
        self._try_upstream()
        if connection.opening is self and connection.upstream is upstream:
            engine.arm(connection, route.connect_timeout or engine.limits.connect_timeout)

    def _try_upstream(self) -> None:
        """Send the hello. Once a byte of it is taken, the endpoint is settled."""
        connection = self._connection
        upstream = connection.upstream
        assert upstream is not None
        engine = connection.engine
        try:
            sent = write(upstream.descriptor, self._hello)
        except BlockingIOError:
            engine.register_writer(upstream)
            if self._pending is None and connection.endpoint is not None:
                self._pending = connection.endpoint
                engine.placing.awaited(connection.endpoint)
                self._waits = engine.destinations.wait(connection)
                self._close_if_told()
            return
        except OSError as failure:
            self._attempt_failed(Reason.CONNECT_FAILED, sockets.describe(failure.errno or 0))
            return
        if sent < len(self._hello):
            engine.pump.hold(upstream, bytes(self._hello[sent:]))
            engine.register_writer(upstream)
        elif not upstream.reports_writable:
            engine.register(upstream)
        engine.counters.count_connect(engine.clock() - self._started)
        connection.relay()

    def _attempt_failed(self, reason: Reason, detail: str) -> None:
        connection = self._connection
        endpoint, route = connection.endpoint, connection.route
        assert endpoint is not None
        assert route is not None
        connection.engine.placing.failed(endpoint, connection.engine.now)
        self.on_end()
        if connection.upstream is not None:
            connection.engine.forget(connection.upstream)
            connection.upstream.close()
            connection.upstream = None
        where = sockets.host_port(endpoint.address, endpoint.port)
        self._attempt(route, reason, f"{where} {detail}, attempt {connection.attempts}")
