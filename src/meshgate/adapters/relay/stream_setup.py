"""The beginning of a stream: its hello is read, its route found, an endpoint dialed.

A machine in the manner of h11: it is told what came to pass, and each call returns what came of it, an `Outcome`. What
is written, refused or ended is for the stream to do.

What always holds: a route is looked up once, by the name in the hello, and only endpoints of that route are dialed.
Another endpoint is tried only while no byte has gone to one. The hello is kept until then, at most as long as the
limits allow; what the client sends behind it waits in the kernel.

How long it takes: `connect_timeout` is for all attempts together. While another endpoint is left that does not fail
already, an attempt gets `per_try_timeout`, or half of the time that is left if that is less. An address of a host name
with both families gets a rival of the other family beside it after RACE_SECONDS (RFC 8305 section 5, "Connection
Attempt Delay").
"""

from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from meshgate.adapters.error_words import words_of
from meshgate.core.addresses import host_port
from meshgate.core.hello import Hello, HelloParser, Offer, Refusal, is_cut, read_whole
from meshgate.core.load_balancer import HostSet
from meshgate.core.reasons import Reason
from meshgate.core.routes import Endpoint, Route

from . import sockets
from .circuit_breakers import Ticket
from .context import Context
from .pump import Leg
from .sockets import client_key

MAX_ATTEMPTS: Final = 5
_HEAD: Final = 9  # Bytes of a stream that tell whether its hello is cut.
RACE_SECONDS: Final = 0.25
_NEVER: Final = float("inf")


class Pending(NamedTuple):
    """Nothing to do but wait; call `on_deadline` in so many seconds, None: when it was to be called anyway."""

    seconds: float | None


class Refused(NamedTuple):
    """The stream reaches no endpoint."""

    reason: Reason
    detail: str


class Connected(NamedTuple):
    """A connection stands and took some bytes of the hello, at a time by the clock; the rest is to follow in order."""

    leg: Leg
    rest: bytes
    time: float


class Gone(NamedTuple):
    """The client has left without a word, as a health check does."""


Outcome = Pending | Refused | Connected | Gone

WAIT: Final = Pending(None)
LATER: Final = Pending(None)  # Call `read_on` when there is time; until then nothing more of the client is wanted.
GONE: Final = Gone()


class _Attempt(NamedTuple):
    """A connection that is dialed and does not stand yet."""

    leg: Leg
    position: int
    begun: float


class Dialing(Protocol):
    """A stream, as its setup needs it."""

    client_address: tuple[str, int]

    def dial(self, endpoint: Endpoint) -> tuple[Leg, int]:
        """Begin to connect to an endpoint: the leg, and the errno as `sockets.dial` gives it.

        Raises:
            OSError: as `sockets.dial`.
        """


StreamT = TypeVar("StreamT", bound=Dialing)


class StreamSetup(Generic[StreamT]):
    """Brings a stream from its first byte to its endpoint.

    `connecting` is False while the hello is read, and True from then on. `endpoint` is the one that was tried last.
    `late` is what has come of a hello that waits for `read_on`; nothing more is read meanwhile.

    Args:
        stream: dials, and waits where its name is looked up.
        context: of all streams.
        ticket: counts what is awaited.
    """

    __slots__ = (
        "_attempts",
        "_begun",
        "_context",
        "_ends",
        "_hello",
        "_looking_up",
        "_parser",
        "_race_at",
        "_stream",
        "_ticket",
        "_tried",
        "alpn",
        "attempts",
        "connecting",
        "endpoint",
        "hosts",
        "late",
        "offer",
        "server_name",
    )

    def __init__(self, stream: StreamT, context: Context[StreamT], ticket: Ticket) -> None:
        self.connecting = False
        self.server_name: str | None = None
        self.alpn: tuple[str, ...] = ()
        self.hosts: HostSet | None = None
        self.endpoint: Endpoint | None = None
        self.attempts = 0
        self.late = b""
        self._stream = stream
        self._context = context
        self._ticket = ticket
        self._hello: bytearray | bytes = b""
        self._parser: HelloParser | None = None
        self.offer: Offer | None = None
        self._looking_up = ""  # The name for which it waits.
        self._attempts: tuple[_Attempt, ...] = ()
        self._tried: tuple[int, ...] = ()

    @property
    def unrouted(self) -> bool:
        """Whether nothing but the client's word stands for it: no complete hello, or a name that nobody knows."""
        return not self.connecting or (bool(self._looking_up) and self._context.table.find(self._looking_up) is None)

    # --- what comes to pass --------------------------------------------------------------------------------------

    def received(self, data: bytes) -> Outcome:
        """The client has sent the first bytes of its hello, or more of it.

        One that is cut into records waits until there is time for it, so that a flood of them delays nobody else.
        """
        most = self._context.limits.max_hello_bytes
        parser = self._parser
        if parser is None:
            verdict = read_whole(data, most)
            if verdict is not None:
                self._hello = data
                return self._judged(verdict)
            parser = self._parser = HelloParser(most)
            self._hello = parser.stream
        if is_cut(parser.stream[:_HEAD] + data[:_HEAD]):
            self.late = data
            return LATER
        return self._judged(parser.feed(data))

    def read_on(self) -> Outcome:
        """There is time for what was put off."""
        late, self.late = self.late, b""
        return self._judged(self._parser.feed(late)) if self._parser is not None else WAIT

    def _judged(self, verdict: Hello | Refusal | None) -> Outcome:
        if verdict is None:
            return WAIT
        if isinstance(verdict, Refusal):
            return Refused(verdict.reason, verdict.detail)
        self._parser = None
        return self._on_hello(verdict)

    def client_left(self) -> Outcome:
        """The client has closed its side before its hello was complete."""
        # A connection that closes without a byte is a health check (Consul's own TCP check, a load balancer's).
        return Refused(Reason.HELLO_MALFORMED, "the client closed inside its hello") if self._hello else GONE

    def on_lookup_done(self) -> Outcome:
        """The lookup of the name is over: it is placed by what there is."""
        name = self._leave()
        return self._place(self._context.table.find(name)) if name else WAIT

    def on_leg(self, leg: Leg) -> Outcome:
        """Something has happened on the socket of a connection that is dialed."""
        for attempt in self._attempts:
            if attempt.leg is leg:
                break
        else:
            return WAIT
        try:
            sent = leg.send(self._hello)
        except BlockingIOError:
            return WAIT
        except OSError as failure:
            why = sockets.describe(failure.errno or 0)
            self._drop(attempt, why)
            detail = self._told(attempt.position, why)
            # Where a rival is under way it may still make it.
            return self._await() if self._attempts else self._attempt(self._placed, Reason.CONNECT_FAILED, detail)
        self._attempts = tuple(each for each in self._attempts if each is not attempt)
        self._ticket.settle(self._placed.address_of[attempt.position])
        return self._stands(self._placed, leg, attempt.position, attempt.begun, sent)

    def on_deadline(self) -> Outcome:
        """The time for the hello, for the lookup of its name, for a rival or for a connection attempt, is over."""
        if self._looking_up:
            return self.on_lookup_done()
        if not self.connecting:
            timeout = self._context.limits.hello_timeout
            return Refused(Reason.HELLO_TIMEOUT, f"no complete hello within {timeout:g} s")
        if self._context.reactor.now >= self._race_at:
            return self._race()
        detail = "timed out"
        for attempt in self._attempts:
            detail = self._told(attempt.position, "timed out")
            self._drop(attempt, "timed out")
        return self._attempt(self._placed, Reason.CONNECT_TIMEOUT, detail)

    def give_up(self) -> None:
        """The stream ends, or goes on without this: let go of what is awaited."""
        if self._looking_up:
            self._leave()
        for attempt in self._attempts:
            self._drop(attempt)

    def freeze(self) -> tuple[bytes, bool, int]:
        """Let go of what is awaited, and say what the next setup of the stream begins with.

        Returns:
            `hello`, `looked_up` and `attempts` of `hand_over.HandedStream`.
        """
        frozen = bytes(self._hello) + self.late, bool(self._looking_up), self.attempts - len(self._attempts)
        self.give_up()
        return frozen

    # --- placing and dialling ------------------------------------------------------------------------------------

    def _on_hello(self, hello: Hello) -> Outcome:
        context, name = self._context, hello.server_name
        self.server_name, self.alpn, self.offer = name, hello.alpn, hello.offer
        if name is None:
            return Refused(Reason.NO_SNI, "the hello names no server")
        route = context.table.find(name)
        now = context.reactor.now
        if route is None or route.stale:
            client = client_key(self._stream.client_address[0]) if route is None else ""
            if context.on_demand.wants(name, route, context.table, client, now):
                self.connecting = True
                self._looking_up = name
                context.counters.on_demand += 1
                return Pending(context.on_demand.wait(self._stream, name, client, now))
        return self._place(route)

    def _leave(self) -> str:
        """Wait no longer for a name; the one that was waited for, "" where none was."""
        name, self._looking_up = self._looking_up, ""
        if name:
            self._context.on_demand.leave(self._stream, name)
        return name

    def _place(self, route: Route | None) -> Outcome:
        context = self._context
        if route is None:
            return Refused(Reason.UNKNOWN_SNI, "no route for this name")
        hosts = self.hosts = context.load_balancer.hosts(route)
        limits = context.limits
        if limits.max_connections_per_destination or limits.max_pending_per_destination:
            full = self._ticket.charge(hosts, limits)
            if full is not None:
                return Refused(*full)
        self.connecting = True
        self._ends = context.reactor.now + (route.connect_timeout or limits.connect_timeout)
        return self._attempt(hosts)

    def _attempt(self, hosts: HostSet, failure: Reason = Reason.NO_HEALTHY_ENDPOINT, detail: str = "") -> Outcome:
        """Dial the next endpoint, and the next; refuse with `failure` when none, or no time, is left."""
        context = self._context
        most, now = context.limits.max_pending_per_endpoint, context.reactor.now
        while True:
            tried = self._tried
            if most and context.breakers.pending >= most and (full := context.breakers.full(hosts, most)):
                tried += full
                if self.attempts == 0:
                    failure = Reason.CONNECT_FAILED
                    detail = f"{most} connections that do not stand yet are under way there"
            position = None
            if self.attempts < MAX_ATTEMPTS and (now < self._ends or not self.attempts):
                position = context.load_balancer.next(hosts, tried)
            if position is None:
                return Refused(failure, detail or f"none of {len(hosts.route.endpoints)} endpoints is healthy")
            self._begun = now
            self._race_at = _NEVER
            if hosts.names and context.load_balancer.rival(hosts, position, (*tried, position)) is not None:
                self._race_at = self._begun + RACE_SECONDS
            outcome = self._dial(hosts, position)
            if isinstance(outcome, str):
                failure, detail = Reason.CONNECT_FAILED, outcome
                continue
            return self._await() if outcome is WAIT else outcome

    def _race(self) -> Outcome:
        """Dial an address of the other family beside the one that does not answer."""
        hosts, self._race_at = self._placed, _NEVER
        balancer, (attempt, *_) = self._context.load_balancer, self._attempts
        rival = balancer.rival(hosts, attempt.position, self._tried) if self.attempts < MAX_ATTEMPTS else None
        outcome = self._dial(hosts, rival) if rival is not None else WAIT
        # Where there is no socket for it either, the other one may still make it.
        return outcome if isinstance(outcome, Connected) else self._await()

    def _await(self) -> Outcome:
        """Wait for the connections that are under way, as long as the ones that are left allow it."""
        context, now = self._context, self._context.reactor.now
        until = self._ends
        each = context.limits.per_try_timeout
        if each and self.attempts < MAX_ATTEMPTS and context.load_balancer.has_another(self._placed, self._tried):
            # Where all attempts together get little, the first must not take all of it.
            until = min(until, self._begun + each, (self._begun + until) / 2)
        return Pending(max(0.0, min(until, self._race_at) - now))

    def _dial(self, hosts: HostSet, position: int) -> Outcome | str:
        """Begin an attempt: `Connected` where it stands at once, WAIT where it is under way, why it failed in words."""
        context = self._context
        endpoint = self.endpoint = hosts.candidates[position]
        self.attempts += 1
        self._tried += (position,)
        begun = context.reactor.clock()
        while True:
            try:
                leg, error = self._stream.dial(endpoint)
                break
            except (OSError, OverflowError) as failure:
                number = failure.errno if isinstance(failure, OSError) else 0
                if number in sockets.NO_DESCRIPTOR and context.overload.free_descriptors():
                    continue
                if number in sockets.OWN_FAULTS:
                    # No socket could be had: the fault is ours, and no other endpoint would fare better.
                    return Refused(Reason.CONNECT_FAILED, words_of(failure))
                self._note_failure(position, words_of(failure))
                return self._told(position, words_of(failure))
        try:
            if error in sockets.UNDER_WAY:
                return self._stands(hosts, leg, position, begun, leg.send(self._hello))
        except BlockingIOError:
            self._attempts += (_Attempt(leg, position, begun),)
            self._ticket.wait(hosts, hosts.address_of[position], context.limits)
            leg.watch_writable()
            return WAIT
        except OSError as failure:
            number = failure.errno or 0
        else:
            number = error
        leg.close()
        self._note_failure(position, sockets.describe(number))
        return self._told(position, sockets.describe(number))

    def _stands(self, hosts: HostSet, leg: Leg, position: int, begun: float, sent: int) -> Connected:
        """A byte of the hello is taken, so the endpoint is settled."""
        context = self._context
        self.endpoint = hosts.candidates[position]
        now = context.reactor.clock()
        context.counters.count_connect(now - begun)
        balancer = context.load_balancer
        if (balancer.ejected or hosts.names) and balancer.succeeded(hosts, position):
            context.report(hosts.sni, hosts.address_of[position], "")
        return Connected(leg, bytes(self._hello[sent:]) if sent < len(self._hello) else b"", now)

    def _drop(self, attempt: _Attempt, why: str = "") -> None:
        """Close a connection that is not wanted any more, or that failed: then why."""
        context, hosts = self._context, self._placed
        self._attempts = tuple(each for each in self._attempts if each is not attempt)
        self._ticket.settle(hosts.address_of[attempt.position])
        context.reactor.forget(attempt.leg)
        attempt.leg.close()
        if why:
            self._note_failure(attempt.position, why)

    def _note_failure(self, position: int, why: str) -> None:
        hosts = self._placed
        address = hosts.address_of[position]
        counters = self._context.counters
        counters.count_connect_failure(hosts.destination)
        counters.endpoint(address).failures += 1
        self._context.load_balancer.failed(address)
        self._context.report(hosts.sni, address, why or "failed")

    def _told(self, position: int, detail: str) -> str:
        return f"{host_port(*self._placed.address_of[position])} {detail}, attempt {self.attempts}"

    @property
    def _placed(self) -> HostSet:
        assert self.hosts is not None
        return self.hosts
