"""One stream, from its first byte to its last: a state machine that is called with events and never waits.

    setup       the hello is read and an endpoint dialed (`setup` is set, see there)
    relaying    both legs are open, or one direction of them
    refused     an alert was sent; what the client still sends is thrown away until it closes, so that the kernel
                does not reset the connection before the client has read the alert
    closed

What always holds: all bytes of the stream go to one endpoint of its route or nowhere. An end of stream is passed on
after all bytes before it, and leaves the other direction alive; a reset is passed on as a reset. Events are hints: a
stale one does no harm, because every step asks the kernel first.
"""

import itertools
import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from meshgate.core.addresses import host_port
from meshgate.core.proxy_config import KEEPALIVE_UNSET
from meshgate.core.reasons import Reason, StreamEnd, alert_in, alert_record, envoy_flags

from . import sockets
from .counters import LONGEST_TEXT, OpenStream, Refused, StreamRecord
from .hand_over import HandedRoute, HandedStream
from .overload import SECOND_FLIGHT_SECONDS
from .pump import AGAIN, BLOCKED, BROKEN, DESTINATION_BROKEN, DRY, EOF, READ_BYTES, SOURCE_BROKEN, Leg, Moved, Pipe
from .sockets import client_key
from .stream_setup import LATER, Connected, Outcome, Pending, Refused as SetupRefused, StreamSetup

if TYPE_CHECKING:
    from meshgate.core.load_balancer import HostSet
    from meshgate.core.routes import Endpoint

    from .circuit_breakers import Ticket
    from .context import Context

LINGER_SECONDS: Final = 1.0
SETTLED_SECONDS: Final = 3.0  # Most streams are over by then.
_LINGER_BYTES: Final = 1 << 18
_NEVER: Final = float("inf")
_HANDSHAKE: Final = 22  # The types of TLS records.
_ALERT: Final = 21
_CLOSED: Final = StreamEnd.CLOSED  # An enum's members are slow to get at.
# A request without its answer looks like silence. Envoy gives one 15 s by default; then nobody waits for it any more.
UNANSWERED_SECONDS: Final = 15.0
SHORT_ANSWER_BYTES: Final = 1 << 16  # In a drain. A longer one may go on after any pause.
ALIKE_ANSWERS: Final = 4  # In a drain: after so many more like the first it is known what an answer looks like.
# In a drain: whose handshake and first question are still to come. A round trip between continents is not quiet.
YOUNG_SECONDS: Final = 1.5
HELLO_SECONDS: Final = 1.0  # In a drain, for the next byte of a hello: a lost packet takes that long.
# How many times as long as a client a placed stream's endpoint may keep the other one waiting in the handshake.
_ENDPOINTS_TURN: Final = 4
# No other process has the same, and a browser's numbers can hold them.
_ids: Final = itertools.count(int.from_bytes(os.urandom(4)) >> 10 << 31)
_SHED: Final = "no complete hello, and its place was needed"
_SHED_UNKNOWN: Final = "no route for this name yet, and its place was needed"
_NO_LEG: Final = Leg.__new__(Leg)  # A stream's client when it is over.
_NO_LEG.readable = _NO_LEG.until_eagain = False


class Relayed(NamedTuple):
    """What a relayed stream has beside its client."""

    upstream: socket.SocketType
    hosts: "HostSet"
    endpoint: "Endpoint"
    to_client: Pipe | None
    to_endpoint: Pipe | None


class Rhythm:
    """Whether questions and answers alternate, each answer in as many pieces as those before: when one is whole then.

    A caller that has several questions under way has no rhythm, nor has one whose questions come in pieces.
    """

    __slots__ = ("_alike", "_pieces", "_usual")

    def __init__(self) -> None:
        self._pieces = 0  # Of the answer to the last question, so far,
        self._usual = 0  # of the answer before it,
        self._alike = 0  # and how many answers before that had as many.

    def asked(self) -> None:
        self._alike = self._alike + 1 if 0 < self._pieces == self._usual else 0
        self._usual, self._pieces = self._pieces, 0

    def answered(self) -> None:
        self._pieces += 1

    @property
    def whole(self) -> bool:
        """Whether the answer to the last question has most likely come to its end."""
        return self._alike >= ALIKE_ANSWERS and self._pieces == self._usual

    @property
    def nearly_whole(self) -> bool:
        """Whether one piece more makes it whole."""
        return self._alike >= ALIKE_ANSWERS and self._pieces + 1 == self._usual


class Stream:
    """A stream. Created by the listener with an accepted socket and the ticket that it was let in with; call `start`.

    `ending` is how it ends, unless it is refused. What a setup finds out (`server_name` and what
    follows) is the stream's when the setup is over.
    """

    __slots__ = (
        "_asked_at",
        "_departed",
        "_frozen",
        "_opening",
        "_rhythm",
        "_settled",
        "_ticket",
        "alpn",
        "attempts",
        "client",
        "client_address",
        "closed",
        "context",
        "ending",
        "endpoint",
        "hosts",
        "id",
        "listener",
        "reason",
        "relaying",
        "server_name",
        "setup",
        "started",
        "tick",
        "upstream",
    )

    server_name: str | None
    alpn: tuple[str, ...]
    hosts: "HostSet | None"
    endpoint: "Endpoint | None"
    attempts: int

    def __init__(
        self,
        context: "Context[Stream]",
        ticket: "Ticket",
        sock: socket.SocketType,
        client_address: tuple[str, int],
        listener: str,
    ) -> None:
        self.context = context
        self.id = next(_ids)
        self._ticket = ticket
        self.client = Leg(self, sock)
        self.upstream: Leg | None = None
        self.client_address = client_address
        self.listener = listener
        self.setup: StreamSetup[Stream] | None = StreamSetup(self, context, ticket)
        self.relaying = False
        self.closed = False
        self._frozen: HandedStream | None = None
        self._settled = False
        self._opening = 0  # Bytes that the client had sent when its endpoint was settled.
        self._departed = 0.0  # When the hello was sent to the endpoint.
        self._asked_at = 0  # Bytes that the endpoint had sent when the client spoke last; only a drain looks at it.
        self._rhythm: Rhythm | None = None  # Of a stream that moves while the relay drains.
        self.tick = 0
        self.started = context.reactor.now
        self.hosts = None
        self.reason: Reason | None = None
        self.ending = _CLOSED
        context.streams.add(self)

    @property
    def carried(self) -> tuple[int, int]:
        """Bytes received from the client, and sent to it."""
        return self.client.received, self.upstream.received if self.upstream is not None else 0

    @property
    def silent_since(self) -> float | None:
        """As for `overload.Client`: it waits for its hello or its name, lingers, or sends nothing behind its hello."""
        if self.setup is not None:
            return self.started if self.setup.unrouted else None
        if not self.relaying:
            return None if self.closed else self.started
        return self._handshake_deadline(SECOND_FLIGHT_SECONDS)

    def _handshake_deadline(self, seconds: float) -> float | None:
        """When a client with so many seconds for its next handshake byte has used them up; None once that has come.

        It is the client's turn when the endpoint has spoken. Until then the endpoint has more time, as it may be slow.
        """
        upstream = self.upstream
        if upstream is None or self.client.received != self._opening:
            return None
        return upstream.touched + (seconds if upstream.received else seconds * _ENDPOINTS_TURN)

    # --- events --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin with what has come already; often the whole hello."""
        self._read_hello()
        if self.closed:
            return
        if self.setup is not None and not self.setup.connecting:
            reactor = self.context.reactor
            reactor.arm(self, self.started + self.context.limits.hello_timeout - reactor.now)
        self.client.watch()

    def on_early_event(self, leg: Leg, events: int) -> None:
        """An event while the stream is not relaying."""
        setup = self.setup
        if setup is None:
            if not self.closed:
                self._discard()
        elif leg is not self.client:
            self._follow(setup.on_leg(leg))
        elif not setup.connecting:
            self._read_hello()
        elif events & BROKEN:
            self._close_if_gone()

    def on_turn(self) -> None:
        """There is time for a hello that is costly to read, or an answer may be whole while the relay drains."""
        if self.setup is not None and self.setup.late:
            self._follow(self.setup.read_on())
            if self.client.readable:
                self._read_hello()
        elif self.upstream is not None and self._rhythm is not None:
            self._end_behind_answer(self.upstream, self._rhythm)

    def on_lookup_done(self) -> None:
        """The lookup of its name is over: it is placed by what there is."""
        if self.setup is not None:
            self._follow(self.setup.on_lookup_done())

    def on_deadline(self) -> None:
        """The time of the setup, of the linger or of the idle timeout has passed."""
        if self.setup is not None:
            self._follow(self.setup.on_deadline())
        elif self.relaying:
            if not self._settled:
                self._settle()
            self._check_timeouts()
        else:
            self.close()

    def on_defect(self) -> None:
        """An error of ours in a step of this stream ends it and no other."""
        self.context.on_defect()
        if self.closed and self in self.context.streams:  # It is frozen, or half so.
            self._frozen, self.closed, self.relaying = None, False, self.upstream is not None
        if not self.closed:
            self.ending = StreamEnd.INTERNAL_ERROR
            self.abort()

    # --- setup ---------------------------------------------------------------------------------------------------

    def dial(self, endpoint: "Endpoint") -> tuple[Leg, int]:
        sock, error = self.context.pump.calls.dial(endpoint.address, endpoint.port)
        leg = Leg(self, sock)
        leg.readable = False  # An event will say so; one that comes with the connection must not be forgotten.
        return leg, error

    def _read_hello(self) -> None:
        setup, client = self.setup, self.client
        while setup is not None and not setup.connecting and not setup.late:
            try:
                data = self.context.pump.read(client.descriptor, READ_BYTES)
            except BlockingIOError:
                client.readable = False
                return
            except OSError:
                self.close()
                return
            if data:
                client.received += len(data)
                if len(data) < READ_BYTES and not client.until_eagain:
                    client.readable = False  # As in the pump: a short read has emptied the socket.
                self._follow(setup.received(data))
            else:
                self._follow(setup.client_left())
            if not client.readable:
                return
            setup = self.setup

    def _follow(self, outcome: Outcome) -> None:
        """Do what has come of a step of the setup."""
        if isinstance(outcome, Connected):
            self._relay(outcome)
        elif isinstance(outcome, Pending):
            if outcome is LATER:
                self.context.reactor.postpone(self)
            if outcome.seconds is not None:
                self.context.reactor.arm(self, outcome.seconds)
            # A reset that was told before the hello was read is not told again.
            if self.client.until_eagain and self.setup is not None and self.setup.connecting:
                self._close_if_gone()
        elif isinstance(outcome, SetupRefused):
            self.refuse(outcome.reason, outcome.detail)
        else:
            self.close()

    def _close_if_gone(self) -> None:
        """End the stream if its client has reset it: nobody waits for the endpoint any more."""
        # The socket is asked, because the event may be left from a stream that had the same descriptor and ended in the
        # same batch.
        if self.client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.close()

    def _leave_setup(self) -> None:
        """Take over what the setup has found out, and let go of it."""
        setup = self.setup
        if setup is not None:
            setup.give_up()
            self.setup = None
            self.server_name, self.alpn, self.attempts = setup.server_name, setup.alpn, setup.attempts
            self.hosts, self.endpoint = setup.hosts, setup.endpoint
            # Not when it was placed: a stream that is handed over meanwhile is placed again.
            if setup.hosts is not None and setup.offer is not None:
                self.context.counters.count_hello(setup.hosts.destination, setup.offer)

    # --- relaying ------------------------------------------------------------------------------------------------

    def _relay(self, connected: Connected) -> None:
        """The hello has gone to the endpoint: from now on bytes only move."""
        context, client, upstream = self.context, self.client, connected.leg
        self._leave_setup()
        hosts, endpoint = self.hosts, self.endpoint
        assert hosts is not None
        assert endpoint is not None
        if hosts.counts_load:
            self._ticket.carry(hosts, (endpoint.address, endpoint.port))
        self.upstream = upstream
        client.other, upstream.other = upstream, client
        if connected.rest:
            context.pump.hold(upstream, connected.rest)
            upstream.watch_writable()
        elif not upstream.reports_writable:
            upstream.watch()
        self.relaying = True
        self._departed = connected.time
        self._opening = client.received
        # The hello was the last to move, so it is the client that waits for an answer.
        client.touched = upstream.touched = context.reactor.now
        context.counters.count_routed(hosts.destination)
        context.counters.of_servers += hosts.of_servers
        context.reactor.arm(self, context.limits.first_look(SETTLED_SECONDS))
        # The client may have sent more behind its hello, or closed its side, while nobody looked.
        if client.readable:
            self.forward(client)
        if upstream.readable and not self.closed:
            self.forward(upstream)  # It spoke first, or hung up, before its connection was noticed to stand.

    def _touched(self) -> float:
        upstream = self.upstream
        return self.client.touched if upstream is None else max(self.client.touched, upstream.touched)

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
        self.on_moved(source, self.context.pump.move(source, destination))

    def on_heard(self, source: Leg, data: bytes) -> None:
        """Bytes of a leg that does not flow were read and are not counted yet: look at the first one, and for an alert.

        An alert in the clear can only follow handshake messages in the clear.
        """
        hosts, endpoint, counters = self.hosts, self.endpoint, self.context.counters
        assert hosts is not None
        assert endpoint is not None
        if not source.received and source is not self.client:
            waited = max(0.0, self.context.reactor.now - self._departed)
            counters.count_first_byte(hosts.destination, (endpoint.address, endpoint.port), waited)
        source.flows = data[0] != _HANDSHAKE
        if data[0] == _ALERT and (alert := alert_in(data)) is not None:
            counters.count_alert(hosts.destination, "client" if source is self.client else "endpoint", alert)

    def on_moved(self, source: Leg, moved: Moved) -> None:
        """A turn has ended: see to it that the next one comes, or to what has ended with it."""
        destination = source.other
        if moved is DRY:
            source.readable = False
        elif moved is AGAIN:
            self.context.reactor.promise_turn(source)
        elif moved is BLOCKED:
            destination.watch_writable()
        elif moved is EOF:
            self._end_of(source)
        elif moved is SOURCE_BROKEN:
            self._abort_by(source)
        elif moved is DESTINATION_BROKEN:
            self._broken(destination)

    def resume(self, leg: Leg) -> None:
        """A leg that blocked takes bytes again: write what is held back, then go on reading for it."""
        done = self.context.pump.flush(leg)
        if done is None:
            self._broken(leg)
        elif done:
            self.forward(leg.other)

    def on_broken(self, leg: Leg) -> None:
        """A leg seems to have been reset behind its end."""
        # The socket is asked, for the same reason as in `_close_if_gone`.
        if self.relaying and leg.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._abort_by(leg)

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
            return
        if self.context.limits.half_close_timeout > 0:
            self._check_timeouts()

    def _broken(self, leg: Leg) -> None:
        """A leg takes no more bytes: its peer reset it. What the peer sent before that is still to be delivered."""
        self.context.pump.release(leg)
        if not leg.eof and leg.other.held is None and leg.other.pipe is None:
            while self.context.pump.move(leg, leg.other) is AGAIN:
                pass
        self._abort_by(leg)

    def _abort_by(self, leg: Leg) -> None:
        """A leg's peer has reset it."""
        self.ending = StreamEnd.CLIENT_RESET if leg is self.client else StreamEnd.ENDPOINT_RESET
        self.abort()

    def _settle(self) -> None:
        """It has lived for a while and may live long: have the kernel look whether its endpoint is still there."""
        self._settled = True
        if self.context.observer.wants_records:
            self.context.observer.on_settled(self._record())
        limits, hosts, upstream = self.context.limits, self.hosts, self.upstream
        if hosts is not None and upstream is not None:
            chosen = limits.remote_keepalive if hosts.to_gateways else KEEPALIVE_UNSET
            sockets.keep_alive(upstream.sock, limits.keepalive, limits.user_timeout, chosen)

    def _check_timeouts(self) -> None:
        """End it if it has been idle, half closed or in its handshake for too long; else look again when it may be."""
        # No deadline is moved with every byte, only looked at again when it comes.
        limits, reactor, now = self.context.limits, self.context.reactor, self.context.reactor.now
        timeout, ends = limits.idle_timeout, _NEVER
        if limits.half_close_timeout > 0 and (self.client.eof or (self.upstream is not None and self.upstream.eof)):
            timeout = limits.half_close_timeout
        if timeout > 0:
            ends = self._touched() + timeout
        if limits.handshake_timeout > 0:
            ends = min(ends, self._handshake_deadline(limits.handshake_timeout) or _NEVER)
        if ends <= now:
            self.ending = StreamEnd.IDLE
            # Whoever waited in vain for bytes must not take this for their end.
            self._end(Leg.close if self._is_empty() else Leg.reset)
        elif ends < _NEVER or not self._settled:
            reactor.arm(self, ends - now if self._settled else min(ends - now, SETTLED_SECONDS))
        else:
            reactor.disarm(self)

    # --- hand-over -----------------------------------------------------------------------------------------------

    def freeze(self) -> tuple[HandedStream, list[int]] | None:
        """See `hand_over.Handed`. A frozen stream is as if closed to everybody here, but still counts."""
        setup, client, upstream = self.setup, self.client, self.upstream
        if self.closed or (setup is None and not self.relaying):
            return None  # It was refused, and is over within a second.
        if setup is not None:
            hello, looked_up, attempts = setup.freeze()
            self.setup = None
        else:
            hello, looked_up, attempts = b"", False, self.attempts
        self.relaying, self.closed = False, True
        self.context.reactor.disarm(self)
        if self._rhythm is not None:
            sockets.cork(client.sock, on=False)  # What was to leave together with the end.
        per_client, charged = self._ticket.counted
        record = HandedStream(
            id=self.id,
            client=self.client_address,
            listener=self.listener,
            started=self.started,
            from_client=client.freeze(),
            per_client=per_client,
            charged=charged,
            attempts=attempts,
            hello=hello,
            looked_up=looked_up,
        )
        descriptors = [client.descriptor]
        if upstream is not None:
            hosts, endpoint = self.hosts, self.endpoint
            assert hosts is not None
            assert endpoint is not None
            record = msgspec.structs.replace(
                record,
                route=HandedRoute(
                    hosts.sni, hosts.route.kind, hosts.route.destination, (endpoint.address, endpoint.port)
                ),
                from_endpoint=upstream.freeze(),
                server_name=self.server_name,
                alpn=self.alpn,
                departed=self._departed,
                opening=self._opening,
                asked_at=self._asked_at,
                settled=self._settled,
            )
            pipes = (leg.pipe for leg in (client, upstream) if leg.pipe is not None)
            descriptors += [upstream.descriptor, *(end for pipe in pipes for end in (pipe.reader, pipe.writer))]
        self._frozen = record
        return record, descriptors

    def thaw(self) -> None:
        """See `hand_over.Handed`."""
        context, was, upstream = self.context, self._frozen, self.upstream
        assert was is not None
        self._frozen = None
        self.closed = False
        if upstream is not None:
            self.relaying = True
            for leg in (self.client, upstream):
                leg.thaw()
            self._check_timeouts()
            return
        self.setup = StreamSetup(self, context, self._ticket)
        self.setup.attempts = was.attempts
        self.client.readable = True
        counted = context.counters.on_demand
        if was.hello:
            self._follow(self.setup.received(was.hello))
        if was.looked_up:
            context.counters.on_demand = counted
        if not self.closed:
            self.start()

    def let_go(self) -> None:
        """See `hand_over.Handed`."""
        self._frozen = None
        counters = self.context.counters
        for leg in (self.client, self.upstream):
            if leg is not None:
                self.context.pump.release(leg)
                leg.close()
        self._ticket.release()
        self.context.streams.discard(self)
        counters.active -= 1
        self._count_moved_here(1)
        if self.upstream is not None and self.hosts is not None:
            counters.of_servers -= self.hosts.of_servers
            counters.handed_over += 1
        self._forget_legs()

    def _count_moved_here(self, sign: int) -> None:
        """Of a stream that goes from worker to worker each counts the bytes that it has moved itself.

        So it counts what there is by now (1) when it lets go, and takes that off (-1) when it takes over.
        """
        counters, (received, sent) = self.context.counters, self.carried
        counters.bytes_received += sign * received
        counters.bytes_sent += sign * sent
        if self.upstream is not None and self.hosts is not None:
            counters.count_carried(self.hosts.destination, sign * received, sign * sent)

    def _forget_legs(self) -> None:
        """As at its end: legs and stream know each other, and would wait for the garbage collector."""
        self.client.other = self.client = _NO_LEG
        self.upstream = None

    @classmethod
    def rebuilt(
        cls,
        context: "Context[Stream]",
        ticket: "Ticket",
        was: HandedStream,
        client: socket.SocketType,
        relayed: "Relayed | None",
    ) -> "Stream":
        """A frozen stream of another process, as `hand_over.Taken`. Nothing counts it until it is taken over."""
        stream = cls(context, ticket, client, was.client, was.listener)
        context.streams.discard(stream)
        stream.id = was.id
        stream.setup = None
        stream.closed = True
        stream.started = min(was.started, context.reactor.now)
        stream._frozen = was
        if relayed is None or was.route is None or was.from_endpoint is None:
            stream.client.restore(was.from_client, None)
            return stream
        upstream = Leg(stream, relayed.upstream)
        stream.client.restore(was.from_client, relayed.to_client)
        upstream.restore(was.from_endpoint, relayed.to_endpoint)
        stream.client.other, upstream.other, stream.upstream = upstream, stream.client, upstream
        stream.server_name, stream.alpn, stream.attempts = was.server_name, was.alpn, was.attempts
        stream.hosts, stream.endpoint = relayed.hosts, relayed.endpoint
        stream._opening, stream._asked_at, stream._settled = was.opening, was.asked_at, was.settled
        stream._departed = was.departed
        return stream

    def take_over(self) -> None:
        """See `hand_over.Taken`."""
        context, was = self.context, self._frozen
        assert was is not None
        self._ticket.count_in(client_key(self.client_address[0]) if was.per_client else "", was.charged)
        context.streams.add(self)
        context.counters.active += 1
        self._count_moved_here(-1)
        if self.upstream is not None and self.hosts is not None and self.endpoint is not None:
            context.counters.taken_over += 1
            context.counters.of_servers += self.hosts.of_servers
            self._ticket.carry(self.hosts, (self.endpoint.address, self.endpoint.port))
            if self._settled and context.observer.wants_records:
                context.observer.on_settled(self._record())
            for leg in (self.client, self.upstream):
                context.pump.held += len(leg.held or b"")
                if leg.pipe is not None:
                    context.pump.pipes.adopt()
        self.thaw()

    def drop(self) -> None:
        """See `hand_over.Taken`."""
        for leg in (self.client, self.upstream):
            if leg is not None:
                if leg.pipe is not None:
                    self.context.pump.pipes.discard(leg.pipe)
                leg.close()
        self._forget_legs()

    # --- endings -------------------------------------------------------------------------------------------------

    def refuse(self, reason: Reason, detail: str) -> None:
        """End a stream that has reached no endpoint: the alert of the reason, then a close that lets it arrive."""
        context = self.context
        self._leave_setup()
        self.reason = reason
        if self.hosts is not None:
            context.counters.count_failed(self.hosts.destination, reason)
        told = detail[:LONGEST_TEXT]
        context.on_refused(Refused(self.client_address[0], self.server_name, reason, told, self.attempts))
        try:
            self.client.sock.send(alert_record(reason))
            self.client.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        context.reactor.arm(self, LINGER_SECONDS)
        self._discard()

    def shed(self) -> None:
        """End it at once and without a word: its place is needed."""
        if self.setup is not None:
            named = self.setup.connecting
            self.reason, detail = (Reason.MAX_CONNECTIONS, _SHED_UNKNOWN) if named else (Reason.HELLO_TIMEOUT, _SHED)
            self.context.on_refused(Refused(self.client_address[0], self.setup.server_name, self.reason, detail))
        elif not self.relaying:
            self.close()
            return
        self.ending = StreamEnd.SHED
        self.abort()

    def drain(self, quiet: float, answered: float) -> None:
        """End it if nothing seems to be under way; to be called again and again.

        Whose hello does not come is refused. Streams of Consul's servers are left alone.

        Args:
            quiet: seconds without a byte that end a stream whose endpoint spoke last.
            answered: the same for one whose endpoint has given a short answer to what the client said last.
        """
        now, client, upstream = self.context.reactor.clock(), self.client, self.upstream
        if self.setup is not None:
            if not self.setup.connecting and now - client.touched >= max(quiet, HELLO_SECONDS):
                self._refuse_to_begin()
            return
        if upstream is None or not self.relaying or (self.hosts is not None and self.hosts.of_servers):
            return
        if now - self.started < YOUNG_SECONDS:
            return
        if client.touched >= upstream.touched:
            self._asked_at = upstream.received
            wait = max(quiet, UNANSWERED_SECONDS)
        else:
            # Where nobody looked between question and answer the answer seems longer than it was, and that is safe.
            wait = answered if upstream.received - self._asked_at <= SHORT_ANSWER_BYTES else quiet
        if now - self._touched() >= wait and self._is_empty():
            self.ending = StreamEnd.DRAIN
            self.close()

    def ends_with_more_of(self, source: Leg) -> bool:
        """Whether a draining relay that is in a hurry will end it behind the next bytes of a leg."""
        return self._rhythm is not None and source is not self.client and self._rhythm.nearly_whole

    def on_bytes(self, source: Leg, *, hurry: bool) -> None:
        """Bytes of a leg were moved while the relay drains.

        A caller that asks again and again is never quiet. It must learn of the end together with an answer: a moment
        later its next question may be on the way.
        """
        rhythm = self._rhythm
        if rhythm is None:
            rhythm = self._rhythm = Rhythm()
        if source is self.client:
            rhythm.asked()
        else:
            rhythm.answered()
            if hurry and rhythm.whole:
                self.context.reactor.postpone(self)

    def _end_behind_answer(self, upstream: Leg, rhythm: Rhythm) -> None:
        of_servers = self.hosts is not None and self.hosts.of_servers
        if rhythm.whole and self.relaying and not of_servers and self._is_empty():
            self.ending = StreamEnd.DRAIN
            self.close()
        elif not self.closed:
            sockets.cork(self.client.sock, on=False)

    def _is_empty(self) -> bool:
        """Whether nothing is on its way through the relay: nothing held back, nothing in the kernel that was not read.

        A leg that was reset ends the stream here: the kernel tells of it once.
        """
        for leg in (self.client, self.client.other):
            if leg.held is not None or leg.pipe is not None:
                return False
            try:
                leg.sock.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                continue
            except OSError:
                self._abort_by(leg)
                return False
            if not leg.eof:
                return False
        return True

    def end_by_force(self) -> None:
        """End it because the relay ends: one without an endpoint is told so, the others are reset."""
        if self.setup is not None:
            self._refuse_to_begin()
            self.close()
        self.ending = StreamEnd.DRAIN
        self.abort()

    def _refuse_to_begin(self) -> None:
        if self.client.received:
            self.refuse(Reason.DRAINING, "this gateway is stopping")
        else:
            self.close()

    def _discard(self) -> None:
        discarded = 0
        while not self.closed:
            try:
                count = len(self.context.pump.read(self.client.descriptor, READ_BYTES))
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
        context = self.context
        counters = context.counters
        if self.setup is not None:
            self._leave_setup()
        received, sent = self.carried
        if self.relaying and self.hosts is not None:
            lived = context.reactor.clock() - self.started
            counters.count_ended(self.hosts.destination, lived, (received, sent), self.ending)
            counters.of_servers -= self.hosts.of_servers
            if not sent and self.endpoint is not None:
                counters.count_unanswered(self.hosts.destination, (self.endpoint.address, self.endpoint.port))
        self.closed = True
        self.relaying = False
        reactor, pump = context.reactor, context.pump
        reactor.disarm(self)
        for leg in (self.client, self.upstream):
            if leg is not None:
                reactor.forget(leg)
                pump.release(leg)
                shut(leg)
        self._ticket.release()
        context.streams.discard(self)
        counters.active -= 1
        counters.bytes_received += received
        counters.bytes_sent += sent
        # A connection that closed without a byte is a health check, not a stream.
        wanted = self.ending is not _CLOSED or context.observer.wants_records
        if wanted and (received or self.reason is not None):
            context.observer.on_ended(self._record())
        # Legs and stream know each other: without this their memory would wait for the garbage collector.
        self.client.other = self.client = _NO_LEG
        self.upstream = None

    # --- as others see it ----------------------------------------------------------------------------------------

    def snapshot(self) -> OpenStream:
        """The stream as it is now."""
        about = self if self.setup is None else self.setup
        if self.setup is not None:
            state = "connecting" if self.setup.connecting else "hello"
        else:
            state = "relaying" if self.relaying else "refused"
        received, sent = self.carried
        return OpenStream(
            id=self.id,
            client=host_port(*self.client_address),
            sni=about.server_name,
            route=_route(about.hosts),
            endpoint=_where(about.endpoint),
            state=state,
            age=self.context.reactor.clock() - self.started,
            bytes_received=received,
            bytes_sent=sent,
            worker=self.context.worker,
        )

    def _record(self) -> StreamRecord:
        """The stream as the access log tells it, if it ends now."""
        reason, duration = self.reason, self.context.reactor.clock() - self.started
        received, sent = self.carried
        return StreamRecord(
            started=time.time() - duration,
            duration=duration,
            client=host_port(*self.client_address),
            listener=self.listener,
            sni=self.server_name,
            alpn=self.alpn,
            route=_route(self.hosts),
            kind=self.hosts.route.kind.value if self.hosts is not None else None,
            endpoint=_where(self.endpoint),
            attempts=self.attempts,
            bytes_received=received,
            bytes_sent=sent,
            reason=reason.value if reason is not None else None,
            end=StreamEnd.REFUSED if reason is not None and self.ending is StreamEnd.CLOSED else self.ending,
            flags=envoy_flags(reason, self.ending),
            worker=self.context.worker,
            id=self.id if self._settled else 0,
        )


def _route(hosts: "HostSet | None") -> str | None:
    return None if hosts is None else hosts.sni


def _where(endpoint: "Endpoint | None") -> str | None:
    return None if endpoint is None else host_port(endpoint.address, endpoint.port)[:LONGEST_TEXT]
