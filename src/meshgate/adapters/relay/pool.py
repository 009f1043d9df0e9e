"""The worker processes: started, told, listened to, replaced.

What always holds: a worker's end touches no other worker, and clients that wait to be accepted stay where they are,
because the listening sockets belong to all workers and to the parent.
Totals never go back: what a worker told before it died stays counted.
"""

import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import structlog
import trio

from meshgate.core.allowance import Allowance
from meshgate.core.changes import TableChange, difference
from meshgate.core.routes import RouteTable

from . import sockets
from .counters import Counters, OpenStream
from .limits import Limits
from .messages import (
    AddListener,
    Beat,
    Change,
    Learned,
    Limit,
    Listen,
    RemoveListener,
    Setup,
    StopListening,
    ToWorker,
    WantRecords,
    encode,
)
from .protocols import Observer
from .shared import SharedCounts
from .slot import WorkerSlot

if TYPE_CHECKING:
    import socket

log = structlog.get_logger(module="meshgate.relay")

ANSWER_SECONDS: Final = 0.5
LEARN_SECONDS: Final = 1.0
# Told in the log; a defect may come with each stream.
_DEFECTS_PER_SECOND: Final = 0.1
_DEFECTS_AT_ONCE: Final = 10
_EMPTY: Final = RouteTable.of("", "", "default", iter(()))


async def _nothing_to_learn(_: str) -> None:
    """Where nobody knows more than the table has."""


class RelayPool:
    """The gateway's relays. Make it and use it within one trio run.

    Args:
        workers: how many processes.
        limits: timeouts and bounds; `max_connections` holds for all workers together.
        observer: is told of refused and ended streams, up to half a second later.
        drain_seconds: how long the streams of a worker live on when this process dies.
        learn: called with a name that has no route or a cold one; returns when `install` was given what Consul has of
            it. It may be cancelled.
    """

    def __init__(
        self,
        workers: int,
        limits: Limits,
        observer: Observer,
        drain_seconds: float,
        learn: Callable[[str], Awaitable[None]] = _nothing_to_learn,
    ) -> None:
        self._limits = limits
        self._observer = observer
        self._drain_seconds = drain_seconds
        self._learn = learn
        self._asked: dict[str, set[WorkerSlot]] = {}
        self._defects = Allowance(_DEFECTS_PER_SECOND, _DEFECTS_AT_ONCE)
        self._nursery: trio.Nursery | None = None
        self._table = _EMPTY
        self._sockets: list[tuple[str, socket.socket]] = []
        self._listening = False
        self._totals = Counters()
        self.untold = 0
        """Refusals and ended streams that were too many to be told of, ever."""
        self._counts = SharedCounts.create(workers)
        self._slots = [WorkerSlot(self, number, workers, self._counts) for number in range(workers)]

    def bind(self, name: str, host: str, port: int) -> tuple[str, int]:
        """Take a numeric address ("" is every IPv4 address, port 0 a free one). Clients are refused until `listen`.

        Before `run` or later: workers that run already get the address too, and let clients in if others may come in.

        Returns:
            The address it is bound to.

        Raises:
            OSError: the address cannot be bound.
        """
        sock = sockets.bind(host, port, self._limits.keepalive)
        try:
            if self._listening:
                sock.listen(sockets.BACKLOG)
        except OSError:
            sock.close()
            raise
        self._sockets.append((name, sock))
        for slot in self._slots:
            slot.hand(encode(AddListener(name, self._listening)), sock.fileno())
        bound = sock.getsockname()
        return str(bound[0]), int(bound[1])

    def unbind(self, host: str, port: int) -> None:
        """Give an address back that `bind` returned: who waits there is let in, then no more. Open streams live on."""
        for entry in [each for each in self._sockets if each[1].getsockname()[:2] == (host, port)]:
            self._sockets.remove(entry)
            entry[1].close()
        self._tell_all(RemoveListener(host, port))

    def listen(self) -> None:
        """Let clients in.

        Raises:
            OSError: somebody else listens there meanwhile.
        """
        for _, sock in self._sockets:
            sock.listen(sockets.BACKLOG)
        self._listening = True
        self._tell_all(Listen())

    def stop_listening(self) -> None:
        """Let the clients in that wait already, then no more. Streams that are open live on."""
        self._listening = False
        # The workers' copies keep the sockets open until each has accepted who waits.
        while self._sockets:
            self._sockets.pop()[1].close()
        self._tell_all(StopListening())

    def install(self, table: RouteTable) -> TableChange:
        """Place streams that come from now on by `table`. Open ones are never touched.

        Returns:
            What is different from the table before, an empty one at first.
        """
        change = difference(self._table, table)
        self._table = table
        self._tell_all(Change.of(change))
        return change

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """The addresses that are bound."""
        return [sock.getsockname()[:2] for _, sock in self._sockets]

    @property
    def limits(self) -> Limits:
        """The limits in force."""
        return self._limits

    def limit(self, limits: Limits) -> None:
        """Use other limits for streams that come from now on."""
        if limits != self._limits:
            self._limits = limits
            self._tell_all(Limit(limits))

    def want_records(self, wanted: bool) -> None:
        """Have the observer told of ended streams from now on, or not; its `wants_records` says the same."""
        self._tell_all(WantRecords(wanted))

    @property
    def active(self) -> int:
        """Streams open in all workers, as last heard: up to half a second old."""
        return sum(slot.active for slot in self._slots)

    @property
    def workers(self) -> list[int]:
        """The process ids of the workers that live."""
        return [slot.pid for slot in self._slots if slot.pid]

    @property
    def loads(self) -> list[tuple[int, int]]:
        """For each worker's place the process id, 0 while it is empty, and the streams open there as last heard."""
        return [(slot.pid, slot.active) for slot in self._slots]

    @property
    def works(self) -> bool:
        """Whether there is a worker to take clients; without one they wait in the kernel."""
        return any(slot.works for slot in self._slots)

    @property
    def totals(self) -> Counters:
        """The totals as last heard, up to half a second old, without the bytes of open streams. Not to be changed."""
        return self._totals

    async def counters(self) -> Counters:
        """The totals of all workers, those that died included; asked for now, so a moment old at most."""
        beats = await self._ask(streams=False)
        counters = self._totals.copy()
        counters.active = self.active
        counters.bytes_received += sum(beat.open_received for beat in beats)
        counters.bytes_sent += sum(beat.open_sent for beat in beats)
        for beat in beats:
            counters.add_carried(beat.open_carried)
        return counters

    async def connections(self) -> list[OpenStream]:
        """The streams open now."""
        return [stream for beat in await self._ask(streams=True) for stream in beat.streams]

    async def run(self) -> None:
        """Keep the workers running until cancelled; their streams are then cut."""
        try:
            async with trio.open_nursery() as self._nursery:
                for slot in self._slots:
                    self._nursery.start_soon(slot.run)
        finally:
            for _, sock in self._sockets:
                sock.close()
            os.close(self._counts)

    # --- for the slots -------------------------------------------------------------------------------------------

    def first_words(self, slot: WorkerSlot) -> list[ToWorker]:
        """What a new worker is told."""
        listeners = [(name, sock.fileno()) for name, sock in self._sockets]
        setup = Setup(
            slot.number,
            len(self._slots),
            self._limits,
            listeners,
            self._counts,
            self._drain_seconds,
            records=self._observer.wants_records,
        )
        words: list[ToWorker] = [setup, Change.of(difference(_EMPTY, self._table))]
        return [*words, Listen()] if self._listening else words

    def inherited(self) -> list[int]:
        """The descriptors that a worker needs."""
        return [self._counts, *(sock.fileno() for _, sock in self._sockets)]

    def heard(self, beat: Beat) -> None:
        """A worker has told what came to pass."""
        self._totals.add(beat.counters)
        for refused in beat.refused:
            self._observer.on_refused(refused)
        for record in beat.ended:
            self._observer.on_ended(record)
        self.untold += beat.dropped
        if beat.dropped:
            log.warning("more streams ended than could be told", left_out=beat.dropped)

    def asked(self, slot: WorkerSlot, name: str) -> None:
        """A worker has streams that wait until a name is learned."""
        slots = self._asked.get(name)
        if slots is not None:
            slots.add(slot)  # Or it is there already: its worker died, and the next one asks the same.
        elif self._nursery is not None:
            self._asked[name] = {slot}
            self._nursery.start_soon(self._have_learned, name)

    async def _have_learned(self, name: str) -> None:
        try:
            with trio.move_on_after(LEARN_SECONDS):
                await self._learn(name)
        except Exception:
            if self._defects.take(trio.current_time()):
                log.exception("internal error in learning of a name; please report this", sni=name)
        for slot in self._asked.pop(name):
            slot.send(encode(Learned(name)))

    # --- asking --------------------------------------------------------------------------------------------------

    async def _ask(self, *, streams: bool) -> list[Beat]:
        beats: list[Beat] = []

        async def ask(slot: WorkerSlot) -> None:
            beat = await slot.ask(streams=streams)
            if beat is not None:
                beats.append(beat)

        with trio.move_on_after(ANSWER_SECONDS):
            async with trio.open_nursery() as nursery:
                for slot in self._slots:
                    nursery.start_soon(ask, slot)
        return beats

    def _tell_all(self, message: ToWorker) -> None:
        data = encode(message)
        for slot in self._slots:
            slot.send(data)
