"""The relay of one process: listening sockets, limits and route tables in, counters out.

Nothing here or behind it knows Consul. The seam is made of plain data on purpose: `pool` runs several of these in
processes of their own, with the same tables and counters as messages.
"""

import random
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Final

import trio

from meshgate.core.addresses import is_numeric
from meshgate.core.load_balancer import HostSet, LoadBalancer
from meshgate.core.outlier_detection import Address
from meshgate.core.routes import Endpoint, Route, RouteTable

from . import reactor as loop, sockets
from .circuit_breakers import CircuitBreakers, Ticket
from .context import Context
from .counters import Counters, Destination, OpenStream, RelayObserver
from .hand_over import HandedRoute, HandedStream
from .limits import Limits
from .listener import CLOSING_SECONDS, Listener
from .on_demand import OnDemand
from .overload import Overload
from .pump import DrainingPump, Pipe, PipePool, Pump
from .reactor import Reactor, run_guarded
from .shared_counts import SharedCounts
from .stream import Relayed, Stream

_MAX_PIPES: Final = 64  # Of 1 MiB each, that blocked streams may fill; past it streams are copied.
# In the last quarter of a drain: seconds from the last byte of an answer to the end of its stream. A caller must not be
# asking again already, and an answer may come in several pieces.
_BEHIND_AN_ANSWER: Final = 0.002
_LOOKS: Final = 4  # At streams within the quiet that they must keep.
_SHORTEST_LOOK: Final = 0.001


def _nobody(_sni: str, _address: Address, _why: str) -> None:
    """Whom a relay without others tells of endpoints."""


class Relay:
    """Carries streams. Make it and use it within one trio run, beside the reactor that serves it.

    `context.table`, `context.limits` and `context.counters` are those in force and the totals.

    Args:
        reactor: reports on its sockets; whoever made it has it serve.
        table: where streams go, until `install` gives another one.
        limits: timeouts and bounds. Others may be set in `context` at any time, for streams that come from then on.
        observer: is told of refused and ended streams.
        worker: its number among those that carry one gateway's streams.
        counts: what all of them count together.
        on_demand: has names looked up; without it no stream waits for that.
        report: gets a route, the address of an endpoint of it, and why that failed, or "" where it is well again.
    """

    def __init__(
        self,
        reactor: Reactor,
        table: RouteTable,
        limits: Limits,
        observer: RelayObserver,
        worker: int = 0,
        counts: SharedCounts | None = None,
        on_demand: OnDemand[Stream] | None = None,
        report: Callable[[str, Address, str], None] = _nobody,
    ) -> None:
        breakers = CircuitBreakers(counts or SharedCounts(), lambda: self.context.table)
        self._pipes = PipePool(_MAX_PIPES)
        self.context = Context(
            reactor=reactor,
            pump=Pump(self._pipes),
            table=table,
            limits=limits,
            observer=observer,
            worker=worker,
            breakers=breakers,
            load_balancer=LoadBalancer(breakers.loads, random.random),
            on_demand=on_demand or OnDemand(None),
            overload=Overload(
                lambda: self.context.streams,
                reactor.clock,
                lambda: (self.context.limits.overload_from, self.context.limits.max_connections),
            ),
            report=report,
        )
        self._listeners: list[Listener] = []

    # --- listeners -----------------------------------------------------------------------------------------------

    def adopt(self, name: str, sock: socket.socket, *, listening: bool = False) -> None:
        """Take a bound socket over; one that listens lets clients in at once. Other processes may have it, too."""
        self._listeners.append(Listener(self.context, name, sock))
        if listening:
            self._listeners[-1].watch()

    def accept_clients(self) -> None:
        """Let clients in; whoever owns the addresses listens there already."""
        for listener in self._listeners:
            listener.watch()

    def close_listener(self, host: str, port: int) -> None:
        """Accept the clients that wait at an address, then close it. Streams that came by it live on."""
        for listener in [each for each in self._listeners if each.sock.getsockname()[:2] == (host, port)]:
            self._listeners.remove(listener)
            listener.close()

    def stop_listening(self, seconds: float = CLOSING_SECONDS) -> None:
        """Accept the clients that wait, for so long, then close the listeners. Streams that are open live on."""
        while self._listeners:
            self._listeners.pop().close(seconds)

    # --- tables and names ----------------------------------------------------------------------------------------

    def install(self, table: RouteTable) -> None:
        """Place streams that come from now on by `table`. Open ones are never touched."""
        self.context.table = table
        self.context.load_balancer.keep_only(table)

    def endpoint_state(self, address: Address, failures: int) -> None:
        """Leave an endpoint alone that others found failing so often; 0: it is well again."""
        ejected = self.context.load_balancer.ejected
        if failures:
            ejected[address] = failures
        else:
            ejected.pop(address, None)

    async def lookup_done(self, name: str, clients: Collection[str] | None = None) -> None:
        """The lookup of a name is over: place the streams that wait for that."""
        await self._place(self.context.on_demand.lookup_done(name, self.context.reactor.clock(), clients))

    async def appeared(self, names: Iterable[str]) -> None:
        """The table has routes for these names: place the streams that wait for one, whoever may ask for it."""
        for name in names:
            await self._place(self.context.on_demand.appeared(name))

    async def _place(self, streams: list[Stream]) -> None:
        if not streams:
            return
        reactor = self.context.reactor
        rested = reactor.clock()
        for stream in streams:
            reactor.now = reactor.clock()
            # There may be thousands. Not after each: it takes a whole round of the loop until it goes on here.
            if reactor.now - rested > loop.CHECKPOINT_SECONDS:
                await trio.lowlevel.checkpoint()
                reactor.now = rested = reactor.clock()
            run_guarded(stream, stream.on_lookup_done)

    async def ask_nobody(self) -> None:
        """Nobody can be asked any more: place who waits by the table that there is, and let no other stream wait."""
        for name in self.context.on_demand.end():
            await self.lookup_done(name)

    def relieve(self) -> None:
        """Cut silent clients if slots are short. Accepting does this too; alone it would leave it to the others."""
        self.context.breakers.forget_old(self.context.reactor.clock())
        self.context.overload.relieve(self.context.breakers.counts.active)

    # --- hand-over -----------------------------------------------------------------------------------------------

    def rebuild(self, was: HandedStream, descriptors: Sequence[int]) -> Stream:
        """A stream that another process has frozen, to be taken over or dropped. It has the descriptors from now on.

        Raises:
            OSError: the descriptors are not what was said.
            ValueError: its client has no address.
        """
        context = self.context
        if not is_numeric(was.client[0].partition("%")[0]):
            raise ValueError("a client without an address")
        made: list[socket.SocketType] = []
        try:
            made += (sockets.adopt(descriptor) for descriptor in descriptors[:2])
            relayed = None
            if was.route is not None and was.from_endpoint is not None:
                pipes = iter(descriptors[2:])
                to_client, to_endpoint = (
                    Pipe((next(pipes), next(pipes)), leg.piped) if leg.piped else None
                    for leg in (was.from_client, was.from_endpoint)
                )
                endpoint = Endpoint(*was.route.endpoint, healthy=True, weight=1, node="", instance="")
                relayed = Relayed(made[1], self._hosts_of(was.route), endpoint, to_client, to_endpoint)
            return Stream.rebuilt(context, Ticket(context.breakers, ""), was, made[0], relayed)
        except BaseException:
            for sock in made:
                sock.detach()
            raise

    def _hosts_of(self, route: HandedRoute) -> HostSet:
        """What a relayed stream needs of its route, which may be gone."""
        known = self.context.table.named(route.sni)
        if known is not None and (known.kind, known.destination) == (route.kind, route.destination):
            return self.context.load_balancer.hosts(known)
        name = route.sni.removeprefix("*.")
        return HostSet(Route(name, route.kind, route.destination, (), suffix=name != route.sni))

    # --- numbers -------------------------------------------------------------------------------------------------

    def count_open(self, counters: Counters) -> None:
        """Add the streams that are open now to a copy of the totals: their bytes, and how many each destination has."""
        received = sent = 0
        routed: dict[Destination, list[int]] = {}
        for stream in self.context.streams:
            (got, gave), hosts = stream.carried, stream.hosts
            received += got
            sent += gave
            if hosts is not None and stream.relaying:
                all_ = routed.setdefault(hosts.destination, [0, 0, 0])
                all_[0] += 1
                all_[1] += got
                all_[2] += gave
        counters.bytes_received += received
        counters.bytes_sent += sent
        for destination, (streams, got, gave) in routed.items():
            counters.open[destination] = streams
            counters.count_carried(destination, got, gave)

    def connections(self) -> Iterator[OpenStream]:
        """The streams open now, each as it is when its turn comes."""
        return (stream.snapshot() for stream in list(self.context.streams) if not stream.closed)

    # --- running and ending --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Relay until cancelled. Then the listeners are closed and the streams still open are ended by force."""
        try:
            await trio.sleep_forever()
        finally:
            for stream in list(self.context.streams):
                stream.end_by_force()
            # Who waits there is nobody's any more: nothing could come of accepting them now.
            while self._listeners:
                self._listeners.pop().drop()
            self._pipes.close()

    async def drain(self, quiet: float, seconds: float) -> None:
        """End streams at quiet moments until cancelled, those of Consul's servers left alone.

        Callers that ask again and again are never quiet for long. In the second half of the time they are ended
        together with an answer where it is known what their answers look like (`stream.Rhythm`), and in the last
        quarter a moment behind any short one.

        Args:
            quiet: seconds without a byte that end a stream.
            seconds: how long this may take. What is open then is for others to end.
        """
        clock = self.context.reactor.clock
        self.context.pump = pump = DrainingPump(self.context.pump)
        ends = clock() + seconds
        while True:
            began = clock()
            pump.hurry = ends - began < seconds / 2
            enough = quiet if ends - began > seconds / 4 else min(quiet, _BEHIND_AN_ANSWER)
            for stream in list(self.context.streams):
                run_guarded(stream, partial(stream.drain, quiet, enough))
            took = clock() - began
            # Thousands of streams take milliseconds, of which the streams themselves must get most.
            await trio.sleep(max(enough / _LOOKS, _LOOKS * took, _SHORTEST_LOOK))
