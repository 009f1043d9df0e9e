"""The worker processes: started, told, listened to, replaced.

An upgrade replaces this process's program and leaves workers and sockets as they are: `left` says all that the next
program needs to go on with them.

What always holds: a worker's end touches no other worker, and clients that wait to be accepted stay where they are,
because the listening sockets belong to all workers and to the parent.
Totals never go back: what a worker told before it died stays counted.
"""

import socket
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import msgspec
import structlog
import trio

from meshgate.adapters.error_words import words_of
from meshgate.core.load_balancer import addresses_of
from meshgate.core.outlier_detection import Address, Ejection
from meshgate.core.reasons import StreamEnd
from meshgate.core.routes import NO_ROUTES, RouteTable, TableChange, difference
from meshgate.core.token_bucket import TokenBucket

from . import sockets
from .counters import LONGEST_TEXT, Counters, Destination, EndpointHistory, EndpointRecord, Observer, OpenStream
from .limits import Limits
from .messages import (
    VERSION,
    Accuse,
    AddCounts,
    AddListener,
    Change,
    Drain,
    EndpointNews,
    EndpointState,
    HandedOver,
    HandOver,
    Listen,
    LookupDone,
    Quit,
    RemoveListener,
    SetLimits,
    Setup,
    StatsReport,
    StopListening,
    TakeOver,
    TookOver,
    ToWorker,
    WantRecords,
    encode,
)
from .outliers import Ejected, Outliers
from .sandbox import Mode
from .shared_counts import CountRows
from .worker_process import LOOKS, WorkerEnd, WorkerLeft, WorkerPolicy, WorkerProcess, record_of

log = structlog.get_logger(module="meshgate.relay")

DRAIN_QUIET: Final = 0.2
LOOKUP_SECONDS: Final = 1.0
# Told in the log; a defect may come with each stream.
_DEFECTS_PER_SECOND: Final = 0.1
_DEFECTS_AT_ONCE: Final = 10
_MOST_ASKED: Final = 10_000
_LOSSES_KEPT: Final = 100
_LOST_AT_ONCE: Final = 500  # Lines that are told without letting others have a turn.
_ALL: Final = 1 << 30
_LOOK_SECONDS: Final = 0.05
_A_FEW: Final = 20  # Streams.


@dataclass(frozen=True, slots=True)
class WorkerLoss:
    """A worker that ended at `at` (Unix time) with so many streams, of which so many are known one by one."""

    at: float
    worker: int
    cause: WorkerEnd
    streams: int
    known: int


class PoolLeft(msgspec.Struct, frozen=True):
    """A pool as one parent leaves it and the next one finds it, with the descriptors that it has.

    `version` is that of the workers' messages. `rows` are those of the shared counts, to write to and to read. `asked`
    has the names that workers wait for: which worker, by its place in `workers`, and for which client.
    """

    version: int
    listeners: list[tuple[str, int]]
    listening: bool
    totals: Counters
    destinations: list[Destination]
    untold: int
    restarts: dict[str, int]
    rows: list[tuple[int, int]]
    row_key: bytes
    ejected: list[Ejected]
    asked: list[tuple[str, int, str]]
    workers: list[WorkerLeft]
    losses: list[WorkerLoss] = []
    endpoints: list[tuple[Address, EndpointRecord]] = []

    @property
    def descriptors(self) -> list[int]:
        """All that it has."""
        ours = [descriptor for _, descriptor in self.listeners]
        ours += [descriptor for row in self.rows for descriptor in row]
        return ours + [descriptor for worker in self.workers for descriptor in (worker.channel, worker.stderr)]


class WorkerNotStartedError(Exception):
    """A new worker ended before its first word, or did not say it in time."""


class OpenStreams(NamedTuple):
    """The streams open now; and the workers, by their numbers, that have not told theirs.

    Those answer late, or are of another version, which cannot be asked.
    """

    listed: list[OpenStream]
    silent: list[int]


class _Asked(NamedTuple):
    """What workers have answered in time, and who has not; `settled`: no stream went between two of them meanwhile."""

    reports: list[StatsReport]
    settled: bool
    silent: list[int]


class _HandOver:
    """A hand-over that is under way, and what its two sides have said in the end; None: that one has died."""

    def __init__(self, old: WorkerProcess, new: WorkerProcess) -> None:
        self.old, self.new = old, new
        self.sides = {old, new}
        self.said: dict[WorkerProcess, HandedOver | TookOver | None] = {}
        self.over = trio.Event()
        self._before = old.handed, new.taken
        for worker in self.sides:
            worker.moves(moves=True)

    def hear(self, worker: WorkerProcess, news: HandedOver | TookOver | None) -> None:
        """One side has said its last word, or died."""
        if news is not None or worker not in self.said:  # Who has handed everything over ends before the other is done.
            self.said[worker] = news
        if len(self.said) < len(self.sides):
            return
        # Who died may not have told of the last streams that it gave away, or got.
        dead = next((each for each, last in self.said.items() if last is None), None)
        if dead is not None:
            handed, taken = self._before
            dead.routed = max(0, dead.routed + (self.old.handed - handed) - (self.new.taken - taken))
        for each in self.sides:
            each.moves(moves=False)
        self.over.set()


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 (a worker has many lives, and no event for each)
        await trio.sleep(_LOOK_SECONDS)


async def _no_lookup(_: str) -> None:
    """Where nobody knows more than the table has."""


class RelayPool:
    """The gateway's relays. Make it and use it within one trio run.

    Args:
        workers: how many processes.
        limits: timeouts and bounds; `max_connections` holds for all workers together.
        observer: is told of refused and ended streams, up to half a second later.
        drain_seconds: how long the streams of a worker live on when this process dies.
        drain_quiet: seconds without a byte after which these streams are ended, as in `drain`.
        lookup: called with a name that has no route or a stale one; returns when `install` was given what Consul has of
            it. It may be cancelled.
        may_look_up: whether a name may be looked up for a client, "" for one of those that had a route. Where not, the
            streams get no answer, but wait for a route.
        lookup_seconds: how long it is waited for.
        policy: of the workers.
        left: what the parent before has left, to go on with.
    """

    def __init__(  # noqa: PLR0913 - most by keyword
        self,
        workers: int,
        limits: Limits,
        observer: Observer,
        drain_seconds: float,
        drain_quiet: float = DRAIN_QUIET,
        *,
        lookup: Callable[[str], Awaitable[None]] = _no_lookup,
        may_look_up: Callable[[str, str], bool] = lambda _name, _client: True,
        lookup_seconds: float = LOOKUP_SECONDS,
        policy: WorkerPolicy | None = None,
        left: PoolLeft | None = None,
    ) -> None:
        self._limits = limits
        self._observer = observer
        self._drain_seconds = drain_seconds
        self._drain_quiet = drain_quiet
        self._lookup = lookup
        self._may_look_up = may_look_up
        self._lookup_seconds = lookup_seconds
        self._policy = policy or WorkerPolicy()
        self._asked: dict[str, dict[tuple[WorkerProcess, str], None]] = {}
        self._defects = TokenBucket(_DEFECTS_PER_SECOND, _DEFECTS_AT_ONCE)
        self._nursery: trio.Nursery | None = None
        self._table = NO_ROUTES
        self._sockets: list[tuple[str, socket.socket]] = []
        self._listening = False
        self._totals = Counters()
        # All that there ever were: a worker may still tell of streams whose route is gone.
        self._destinations: set[Destination] = set()
        self.untold = 0
        """Refusals and ended streams that were too many to be told of, ever."""
        self.restarts = dict.fromkeys(WorkerEnd, 0)
        """Workers that were replaced, ever, by the cause."""
        self.losses: deque[WorkerLoss] = deque(maxlen=_LOSSES_KEPT)
        """The last workers that were lost, the newest at the end."""
        self.taken_over = trio.Event()
        """Set when no worker of before takes streams any more, where there were any."""
        self.moved = 0
        """Streams of theirs that workers of now have taken over."""
        self._counts = CountRows(added=self._tell_of_row)
        self.endpoints = EndpointHistory()
        """What became of the streams of each endpoint."""
        self._outliers = Outliers(
            lambda address, failures: self._tell_all(EndpointState(*address, failures)),
            lambda: self._limits.per_try_timeout or self._limits.connect_timeout,
        )
        self._workers: list[WorkerProcess] = []
        # Those of a parent before this one, which take streams as long as the new ones do not; those that others have
        # taken the place of, as long as they have streams; and those that are to take a place.
        self._old: list[WorkerProcess] = []
        self._changing = trio.Lock()
        self._hand_over: _HandOver | None = None
        self._hand_overs = 0  # Ever.
        self._is_draining = False
        self._shape = workers, self._policy.sandbox
        self._shape_is_new = trio.Event()
        self.misshapen = ""
        """Why there are not those workers that there should be; "" while there are."""
        self._crowded: deque[WorkerProcess | None] = deque(maxlen=LOOKS)
        self._open: dict[Destination, int] = {}
        self._left_asked: list[tuple[str, int, str]] = []
        if left is not None:
            self._adopt(left)
        for number in range(workers):
            # Without one a worker is not started yet. That must not end a gateway which goes on with workers of before.
            self._workers.append(WorkerProcess(self, number, self._counts, self._policy, self._counts.take_if_any()))
        # For one that takes another one's place: all know of it already.
        self._counts.give_back(self._counts.take_if_any())

    def bind(self, name: str, host: str, port: int) -> tuple[str, int]:
        """Take a numeric address ("" is every IPv4 address, port 0 a free one). Clients are refused until `listen`.

        Before `run` or later: workers that run already get the address too, and let clients in if others may come in.

        Returns:
            The address it is bound to.

        Raises:
            OSError: the address cannot be bound.
        """
        sock = sockets.bind(host, port, self._limits.keepalive, self._limits.user_timeout)
        bound, name = sock.getsockname(), name[:LONGEST_TEXT]
        self._sockets.append((name, sock))
        try:
            if self._listening:
                sock.listen(sockets.BACKLOG)
            for worker in self._everybody:
                worker.hand(encode(AddListener(name, self._listening)), sock.fileno())
        except OSError:
            self.unbind(*bound[:2])
            raise
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
        self._destinations.update((route.kind, route.destination) for route in change.routes)
        self._tell_all(Change(change))
        self._outliers.keep_only(lambda: addresses_of(table))
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
            self._tell_all(SetLimits(limits))

    def want_records(self, wanted: bool) -> None:
        """Have the observer told of ended streams from now on, or not; its `wants_records` says the same."""
        self._tell_all(WantRecords(wanted))

    @property
    def active(self) -> int:
        """Streams open in all workers, as last heard: up to half a second old."""
        return sum(worker.active for worker in self._everybody)

    @property
    def ejected(self) -> dict[Address, int]:
        """The endpoints that get no streams while others are left, and how often each has failed in a row."""
        return self._outliers.detector.ejected

    def ejection(self, address: Address) -> Ejection | None:
        """Since when and why an endpoint is ejected; None where it is not."""
        return self._outliers.detector.ejections.get(address)

    def drain(self, seconds: float) -> None:
        """End streams at quiet moments from now on, those of Consul's servers left alone; all within `seconds`."""
        self._is_draining = True
        for worker in self._everybody:
            worker.send_last(Drain(self._drain_quiet, seconds))

    @property
    def workers(self) -> list[int]:
        """The process ids of the workers that live."""
        return [worker.pid for worker in self._workers if worker.pid]

    @property
    def kept(self) -> int:
        """Streams that workers of before still have, as last heard."""
        return sum(worker.active for worker in self._old)

    @property
    def lost_streams(self) -> int:
        """Streams that ended with their worker, ever."""
        return self._totals.ends.get(StreamEnd.WORKER_LOST, 0)

    @property
    def loads(self) -> list[tuple[int, int]]:
        """For each worker's place the process id, 0 while it is empty, and the streams open there as last heard."""
        return [(worker.pid, worker.active) for worker in self._workers]

    @property
    def works(self) -> bool:
        """Whether there is a worker to take clients; without one they wait in the kernel."""
        return any(worker.works for worker in self._everybody)

    @property
    def totals(self) -> Counters:
        """The totals as last heard, up to half a second old; with the bytes of open streams as of the last question.

        Not to be changed.
        """
        return self._totals

    async def counters(self) -> Counters:
        """The totals of all workers, those that died included; asked for now. Not to be changed.

        `open` is without the streams of a worker that is too busy to answer. It is as it was before while streams go
        from one worker to another, which takes a second.
        """
        reports, settled, _ = await self._ask(streams=False)
        if settled:  # Otherwise a stream would count twice, or not at all.
            opened = Counter[Destination]()
            for report in reports:
                opened.update(report.counters.open)
            self._open = dict(opened)
        counters = self._totals.copy()
        counters.open = self._open
        counters.active = self.active
        counters.of_servers = sum(worker.of_servers for worker in self._everybody)
        return counters

    async def connections(self) -> OpenStreams:
        reports, _, silent = await self._ask(streams=True)
        listed = {stream.id: stream for report in reports for stream in report.streams}
        return OpenStreams([*listed.values()], silent)

    async def run(self) -> None:
        """Keep the workers running until cancelled; their streams are then cut."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._outliers.run)
                for worker in self._workers:
                    self._nursery.start_soon(self._live_with, worker)
                for worker in self._old:
                    self._nursery.start_soon(self._live_with, worker)
                self._nursery.start_soon(self._take_over)
                self._nursery.start_soon(self._look_after)
        finally:
            for _, sock in self._sockets:
                sock.close()
            self._counts.close()

    # --- from one parent to the next ------------------------------------------------------------------------------

    @property
    def told_all(self) -> bool:
        """Whether each worker has been sent all that it was to be told, and none hands streams over."""
        return not self._changing.locked() and all(worker.told_all for worker in self._everybody)

    def left(self) -> PoolLeft:
        """All that another parent needs to go on; to be called where `told_all`.

        Nothing is changed by that. But where the other one begins, this one may do nothing any more.
        """
        known = [(worker, left) for worker in self._everybody if (left := worker.left()) is not None]
        places = {worker: place for place, (worker, _) in enumerate(known)}
        return PoolLeft(
            VERSION,
            [(name, sock.fileno()) for name, sock in self._sockets],
            self._listening,
            self._totals,
            list(self._destinations),
            self.untold,
            {cause.value: count for cause, count in self.restarts.items()},
            self._counts.rows,
            self._counts.key,
            self._outliers.left(),
            [
                (name, places[worker], client)
                for name, asked in self._asked.items()
                for worker, client in asked
                if worker in places
            ],
            [left for _, left in known],
            [*self.losses],
            self.endpoints.left(),
        )

    def _adopt(self, left: PoolLeft) -> None:
        self._counts = CountRows(left.row_key, left.rows, self._tell_of_row)
        self._sockets = [(name, socket.socket(fileno=descriptor)) for name, descriptor in left.listeners]
        self._listening = left.listening
        self._totals = left.totals
        self._destinations = set(left.destinations)
        self.untold = left.untold
        self.losses.extend(left.losses)
        self.restarts |= {cause: left.restarts.get(cause, 0) for cause in WorkerEnd}
        self._outliers.remember(left.ejected)
        self.endpoints = EndpointHistory(left.endpoints)
        self._left_asked = left.asked
        for each in left.workers:
            worker = WorkerProcess(self, each.number, self._counts, self._policy, each.row)
            worker.adopt(each, is_foreign=left.version != VERSION)
            self._old.append(worker)
        for row in set(range(len(left.rows))).difference(each.row for each in left.workers):
            self._counts.give_back(row)

    async def _take_over(self) -> None:
        """Let the workers of before take streams until those of now do, then have these take over what they have."""
        old = list(self._old)
        for name, place, client in self._left_asked:
            self.asked(old[place], name, client)
        await _until(lambda: all(worker.works for worker in self._workers))
        async with self._changing:
            for worker in old:
                if not worker.is_foreign and worker in self._old:
                    same = len(old) == len(self._workers) > worker.number
                    moved = await self._retire(worker, [self._workers[worker.number]] if same else self._workers)
                    self.moved += moved.streams
        async with trio.open_nursery() as nursery:
            for worker in old:
                nursery.start_soon(worker.retire)
            self.taken_over.set()

    async def _live_with(self, worker: WorkerProcess) -> None:
        await worker.run()
        self._old.remove(worker)
        self._counts.give_back(worker.row)

    # --- other workers -------------------------------------------------------------------------------------------

    async def replace(self, number: int) -> HandedOver:
        """Have a new process in a worker's place, which takes over the streams of the old one.

        Raises:
            WorkerNotStartedError: there is none to be had; the old one goes on.
        """
        async with self._changing:
            new, old = await self._start(number), self._workers[number]
            self._old.remove(new)
            self._old.append(old)
            self._workers[number] = new
            return await self._retire(old, [new])

    def reshape(self, workers: int, sandbox: Mode) -> None:
        """Have so many workers, so confined, some time from now on; streams are handed over where that takes it.

        Where no other worker can be started, those that there are go on, and `misshapen` says so.
        """
        self._shape = workers, sandbox
        self._shape_is_new.set()

    def problems(self) -> list[str]:
        """What is not as it should be with the workers, a line each."""
        found = [self.misshapen] if self.misshapen else []
        for number, worker in enumerate(self._workers):
            if 0 < self._policy.memory < worker.memory.lasting:
                has, may = worker.memory.lasting >> 20, self._policy.memory >> 20
                why = "" if worker.memory.has_grown else ": its streams need as much"
                found.append(f"relay worker {number} has {has} MiB of memory, and may have {may} MiB{why}")
        return found

    async def _look_after(self) -> None:
        """Have those workers that there should be, and look at them again and again."""
        while True:
            with trio.move_on_after(self._policy.look):
                await self._shape_is_new.wait()
            is_new, self._shape_is_new = self._shape_is_new.is_set(), trio.Event()
            if self._is_draining:
                continue  # It ends all streams, and new workers would not.
            if is_new:
                await self._take_shape(*self._shape)
            elif self.taken_over.is_set():
                await self._replace_grown()
                await self._rebalance()

    async def _take_shape(self, workers: int, sandbox: Mode) -> None:
        before = self._policy.sandbox
        self._policy.sandbox = sandbox
        try:
            await self.resize(min(workers, len(self._workers)))
            if sandbox is not before:
                for number in range(len(self._workers)):
                    await self.replace(number)
            await self.resize(workers)
            self.misshapen = ""
        except (WorkerNotStartedError, OSError) as error:
            self._policy.sandbox = before
            self.misshapen = f"relay workers could not be changed, those of before go on: {words_of(error)}"
            log.error("relay workers could not be changed, those of before go on", error=words_of(error))  # noqa: TRY400

    async def _replace_grown(self) -> None:
        """Replace each worker that has more memory than it may have, and has done with much less."""
        for number, worker in enumerate(self._workers):
            memory = worker.memory
            memory.look(worker.pid)
            if not (0 < self._policy.memory < memory.lasting and memory.has_grown):
                continue
            log.warning("the memory of a relay worker has grown, it is replaced", worker=number, bytes=memory.lasting)
            try:
                await self.replace(number)
                self.restarts[WorkerEnd.MEMORY] += 1
            except (WorkerNotStartedError, OSError) as error:
                log.error("a relay worker cannot be replaced and goes on", worker=number, error=words_of(error))  # noqa: TRY400

    async def _rebalance(self) -> None:
        """Have a worker that keeps most of the streams share them; without this they stay where they were accepted."""
        self._crowded.append(self._most_crowded())
        worker = self._crowded[0]
        if worker is None or self._crowded.count(worker) < LOOKS:
            return
        self._crowded.clear()
        mean, moved = sum(each.active for each in self._workers) // len(self._workers), HandedOver(0, 0, "")
        async with self._changing:
            for other in sorted(self._workers, key=lambda each: each.active):
                streams = min(worker.active - mean, mean - other.active)
                if streams <= 0 or moved.why:
                    break
                now = await self._move(worker, other, HandOver(streams, stays=True, seconds=LOOKS * self._policy.look))
                moved = msgspec.structs.replace(now, streams=moved.streams + now.streams)
        if moved.streams or moved.why:
            what = "a relay worker had most of the streams, others took some"
            log.info(what, worker=worker.number, streams=moved.streams, left=moved.left, reason=moved.why or None)

    def _most_crowded(self) -> WorkerProcess | None:
        """The worker that has more than twice as many streams as the others, and not just a few more; if one has."""
        most = max(self._workers, key=lambda each: each.active)
        others = sum(each.active for each in self._workers) - most.active
        mean = others / max(1, len(self._workers) - 1)
        return most if len(self._workers) > 1 and most.active > max(2 * mean, mean + _A_FEW) else None

    async def resize(self, workers: int) -> None:
        """Have more workers, or fewer: the streams of those that go are taken over by those that stay.

        Raises:
            WorkerNotStartedError: there is none more to be had.
        """
        async with self._changing:
            while len(self._workers) < workers:
                worker = await self._start(len(self._workers))
                self._old.remove(worker)
                self._workers.append(worker)
            while len(self._workers) > workers:
                old = self._workers.pop()
                self._old.append(old)
                await self._retire(old, self._workers)

    async def _start(self, number: int) -> WorkerProcess:
        """Start one more process, which lets clients in if any come in."""
        assert self._nursery is not None
        worker = WorkerProcess(self, number, self._counts, self._policy, self._counts.take())
        self._old.append(worker)
        self._nursery.start_soon(self._live_with, worker)
        answered = False
        try:
            with trio.move_on_after(self._policy.starting):
                await _until(lambda: worker.works or bool(worker.last_end))
                # It answers when it has done all that it was told, and so listens.
                answered = await worker.caught_up()
        finally:
            if not answered:
                worker.dismiss()
                worker.send_last(Quit())
        if not answered:
            raise WorkerNotStartedError(worker.last_end or "it has not begun in time")
        return worker

    async def _retire(self, old: WorkerProcess, new: Sequence[WorkerProcess]) -> HandedOver:
        """Have a worker's streams taken over by others, in equal parts; it ends when it has none left."""
        old.dismiss()
        if not old.works:
            old.send_last(Quit())
        streams, left, why = 0, 0, ""
        for place, worker in enumerate(new):
            others = len(new) - place
            moved = await self._move_persistently(old, worker, -(-old.active // others) if others > 1 else _ALL)
            streams, left, why = streams + moved.streams, moved.left, why or moved.why
            if not left:
                break
        if left and self._nursery is not None:
            self._nursery.start_soon(old.retire)  # It may not have heard of any of this.
        log.info("a relay worker was replaced", worker=old.number, streams=streams, left=left, reason=why or None)
        return HandedOver(streams, left, why)

    async def _move_persistently(self, old: WorkerProcess, new: WorkerProcess, most: int) -> HandedOver:
        """As `_move`; if the new process dies meanwhile, the rest goes to the one that takes its place."""
        moved = await self._move(old, new, HandOver(most))
        if moved.left and not new.works:
            with trio.move_on_after(self._policy.starting):
                await _until(lambda: new.works or not old.works)
            again = await self._move(old, new, HandOver(_ALL))
            moved = HandedOver(moved.streams + again.streams, again.left, again.why)
        return moved

    async def _move(self, old: WorkerProcess, new: WorkerProcess, order: HandOver) -> HandedOver:
        """Have streams of a worker taken over by another one."""
        while self._hand_over is not None:  # Whoever asked for it has been cancelled.
            await self._hand_over.over.wait()
        if not (old.works and new.works):
            return HandedOver(0, old.active, "one of the two has ended")
        try:
            ours, theirs = socket.socketpair()
            with ours, theirs:
                new.hand(encode(TakeOver()), theirs.fileno())
                it = self._hand_over = _HandOver(old, new)
                self._hand_overs += 1
                try:
                    old.hand(encode(order), ours.fileno())
                except OSError as error:
                    it.hear(old, HandedOver(0, old.active, words_of(error)))
        except OSError as error:
            return HandedOver(0, old.active, words_of(error))
        await it.over.wait()
        handed = it.said[old]
        return handed if isinstance(handed, HandedOver) else HandedOver(0, 0, "the old worker ended")

    def hand_over_news(self, worker: WorkerProcess, news: HandedOver | TookOver | Accuse) -> None:
        """What a worker says of the hand-over that it takes part in.

        Raises:
            ValueError: it takes part in none.
        """
        it = self._hand_over
        if it is None or worker not in it.sides:
            raise ValueError("words about a hand-over that there is not")
        if isinstance(news, Accuse):
            (it.new if worker is it.old else it.old).give_up(news.why)
        else:
            self._hear(it, worker, news)

    def _hear(self, it: _HandOver, worker: WorkerProcess, news: HandedOver | TookOver | None) -> None:
        it.hear(worker, news)
        if it.over.is_set():
            self._hand_over = None

    def has_settled(self, worker: WorkerProcess, stream: int) -> None:
        """A worker has this stream, which may have been another one's before."""
        it = self._hand_over
        if it is not None and worker is it.new:
            it.old.forget(stream)

    async def ended(self, worker: WorkerProcess) -> None:
        """A worker has ended: wait until it is known which streams it had in the end."""
        it = self._hand_over
        if it is not None and worker in it.sides:
            self._hear(it, worker, None)
            await it.over.wait()

    # --- for the workers ------------------------------------------------------------------------------------------

    def first_words(self, worker: WorkerProcess) -> list[ToWorker]:
        """What a new worker is told."""
        listeners = [(name, sock.fileno()) for name, sock in self._sockets]
        setup = Setup(
            worker.number,
            worker.row,
            self._limits,
            listeners,
            self._counts.seen_by(worker.row),
            self._counts.key,
            self._drain_seconds,
            self._drain_quiet,
            records=self._observer.wants_records,
        )
        ejected = (EndpointState(*address, failures) for address, failures in self.ejected.items())
        words: list[ToWorker] = [setup, Change(difference(NO_ROUTES, self._table)), *ejected]
        return [*words, Listen()] if self._listening else words

    def inherited(self, worker: WorkerProcess) -> list[int]:
        """The descriptors that a worker needs."""
        return [*self._counts.seen_by(worker.row), *(sock.fileno() for _, sock in self._sockets)]

    def heard(self, report: StatsReport) -> None:
        """A worker has told what came to pass.

        Raises:
            ValueError: that cannot be.
        """
        report.counters.check(self._destinations)
        self._totals.add(report.counters)
        if report.counters.endpoints:
            self.endpoints.add(report.counters.endpoints, time.time())
        for refused in report.refused:
            self._observer.on_refused(refused)
        for record in report.ended:
            self._observer.on_ended(record)
        self.untold += report.dropped
        if report.dropped:
            log.warning("more streams ended than could be told", left_out=report.dropped)

    def endpoint_news(self, news: EndpointNews) -> None:
        """A worker could not reach an endpoint, or has reached one that was ejected."""
        address, route = (news.address, news.port), self._table.named(news.sni)
        if route is None or all((each.address, each.port) != address for each in route.endpoints):
            return  # Gone meanwhile, or invented.
        if news.failed:
            self.endpoints.note_failure(address, news.why, time.time())
            self._outliers.failed(address, news.why)
        else:
            self._outliers.succeeded(address)

    def lost(self, worker: WorkerProcess, cause: WorkerEnd, streams: int, records: list[bytes]) -> None:
        """A worker ended that was not told to, with so many routed streams, as last heard.

        `records` are those of them that are known one by one, for `record_of`.
        """
        if worker in self._workers:
            self.restarts[cause] += 1
        ends = self._totals.ends
        ends[StreamEnd.WORKER_LOST] = ends.get(StreamEnd.WORKER_LOST, 0) + streams
        loss = WorkerLoss(time.time(), worker.number, cause, streams, len(records))
        self.losses.append(loss)
        if records and self._nursery is not None:
            self._nursery.start_soon(self._tell_lost, loss, records)

    async def _tell_lost(self, loss: WorkerLoss, records: list[bytes]) -> None:
        for number, packed in enumerate(records, 1):
            record = record_of(packed)
            lived = max(0.0, loss.at - record.started)
            self._observer.on_ended(replace(record, duration=lived, end=StreamEnd.WORKER_LOST, id=0))
            if not number % _LOST_AT_ONCE:
                await trio.lowlevel.checkpoint()

    def asked(self, worker: WorkerProcess, name: str, client: str) -> None:
        """A worker has streams that wait for the lookup of a name."""
        asked = self._asked.get(name)
        if asked is not None:
            # Or it is there already: its worker died, and the next one asks the same.
            asked.setdefault((worker, client))
        elif self._nursery is None or len(self._asked) >= _MOST_ASKED:
            worker.send(encode(LookupDone(name, (client,))))
        elif self._may_look_up(name, client):
            self._asked[name] = {(worker, client): None}
            self._nursery.start_soon(self._look_up, name)

    async def _look_up(self, name: str) -> None:
        """Look a name up, and once more where somebody asked meanwhile.

        That Consul has not heard of a service was true when it answered, which may be before he asked. Where it has not
        answered, streams without a route get no answer either, and wait for one as long as they do.
        """
        asked = self._asked[name]
        while asked:
            answered = list(asked)
            in_time = trio.move_on_after(self._lookup_seconds)
            try:
                with in_time:
                    await self._lookup(name)
            except Exception:
                if self._defects.take(trio.current_time()):
                    log.exception("internal error in an on-demand lookup; please report this", sni=name)
            known = self._table.find(name) is not None
            if known:
                answered = list(asked)
            clients: dict[WorkerProcess, list[str]] = {}
            for worker, client in answered:
                del asked[worker, client]
                if not client or not in_time.cancelled_caught or known:
                    clients.setdefault(worker, []).append(client)
            for worker, whose in clients.items():
                worker.send(encode(LookupDone(name, tuple(whose))))
        del self._asked[name]

    # --- asking --------------------------------------------------------------------------------------------------

    async def _ask(self, *, streams: bool) -> _Asked:
        with trio.move_on_after(self._policy.answer):
            while self._hand_over is not None:
                await self._hand_over.over.wait()
        before, asked = self._hand_overs, self._everybody
        # A list may be long, and is sent in parts between what else there is to do.
        with ExitStack() as questions, trio.move_on_after(self._policy.silent if streams else self._policy.answer):
            answers = [questions.enter_context(worker.question(streams=streams)) for worker in asked]
            for answer in answers:
                await answer.complete.wait()
        # One without a process has no streams to tell.
        silent = {it.number for it, answer in zip(asked, answers, strict=True) if it.pid and not answer.reports}
        settled = self._hand_over is None and self._hand_overs == before
        return _Asked([report for answer in answers for report in answer.reports], settled, sorted(silent))

    @property
    def _everybody(self) -> list[WorkerProcess]:
        return [*self._workers, *self._old]

    def _tell_of_row(self, row: int) -> None:
        for worker in self._everybody:
            try:
                worker.hand(encode(AddCounts()), row)
            except OSError as error:
                what = "a relay worker cannot be told of the counts of another one, whose streams are not in its limits"
                log.error(what, worker=worker.number, error=words_of(error))  # noqa: TRY400

    def _tell_all(self, message: ToWorker) -> None:
        data = encode(message)
        for worker in self._everybody:
            worker.send(data)
