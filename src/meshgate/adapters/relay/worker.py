"""A relay in a process of its own: `python -m meshgate.adapters.relay.worker DESCRIPTOR SANDBOX`.

It speaks with its parent over the inherited socket and knows nothing else of the world; before a stranger's first byte
it has given up all other rights (`sandbox`), so that nothing can be imported any more from then on. Signals are the
parent's business and are ignored here. When the parent is gone the worker drains: its streams live on for the drain
time, no new ones are taken.
"""

import contextlib
import ctypes
import importlib
import logging
import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from itertools import islice
from typing import Final, cast

import trio

from meshgate.adapters.error_words import words_of
from meshgate.core.outlier_detection import Address
from meshgate.core.routes import NO_ROUTES, changed

from .counters import LONGEST_TEXT, Counters, Refused, StreamRecord
from .hand_over import HandsOver, TakesOver
from .messages import (
    LONGEST_LINE,
    MOST_STREAMS,
    SIGNALS,
    TO_WORKER,
    Accuse,
    AddCounts,
    AddListener,
    Change,
    Drain,
    EndpointNews,
    EndpointState,
    HandedOver,
    HandOver,
    Level,
    Listen,
    LogLine,
    Lookup,
    LookupDone,
    Quit,
    Receiver,
    RemoveListener,
    SetLimits,
    Setup,
    StatsReport,
    StatsRequest,
    StopListening,
    TakeOver,
    TookOver,
    ToWorker,
    WantRecords,
    encode,
)
from .on_demand import OnDemand
from .reactor import Reactor
from .relay import Relay
from .sandbox import Mode, confine, support
from .shared_counts import SharedCounts

log = logging.getLogger("meshgate.relay")

REPORT_SECONDS: Final = 0.5
# For clients that wait where others listen as well. Were there more, they would hear of those that come after.
_LEAVING_SECONDS: Final = 0.02
_MOST_TOLD: Final = 10_000  # Refusals and records kept between two reports; what is over is counted.
_MOST_ENDS: Final = 100  # Records where nobody wants all of them.
_MOST_LINES: Final = 50
_SNAPSHOTS: Final = 200  # Of open streams, which take a millisecond or two.


class Worker:
    """The parent's orders carried out, and what came to pass told."""

    def __init__(self, reactor: Reactor, setup: Setup, channel: trio.SocketStream) -> None:
        self.wants_records = setup.records
        counts = SharedCounts(setup.counts, setup.row, setup.counts_key)
        for row in setup.counts:
            os.close(row)
        self._counts = counts
        self._relay = Relay(
            reactor, NO_ROUTES, setup.limits, self, setup.worker, counts, OnDemand(self._ask), self._report_endpoint
        )
        for name, descriptor in setup.listeners:
            self._relay.adopt(name, socket.socket(fileno=descriptor))
        self._drain_seconds = setup.drain_seconds
        self._drain_quiet = setup.drain_quiet
        self._draining = False
        self._channel = channel
        self._sending = trio.Lock()
        self._told = Counters()
        self._refused: list[Refused] = []
        self._settled: list[StreamRecord] = []
        self._ended: list[StreamRecord] = []
        self._log: list[LogLine] = []
        self._news: dict[tuple[object, ...], Lookup | EndpointNews] = {}
        self._has_news = trio.Event()
        self._dropped = 0
        self._hand_overs = 0

    def on_refused(self, refused: Refused) -> None:
        """Keep a refusal for the next report."""
        if len(self._refused) < _MOST_TOLD:
            self._refused.append(refused)
        else:
            self._dropped += 1

    def on_settled(self, record: StreamRecord) -> None:
        """Keep the record of a stream that may live long for the next report: its line, should this process be lost."""
        if len(self._settled) < _MOST_TOLD:
            self._settled.append(record)

    def on_ended(self, record: StreamRecord) -> None:
        """Keep the record of an ended stream for the next report."""
        if not self.wants_records:
            if len(self._ended) < _MOST_ENDS:
                self._ended.append(record)
        # The parent waits for the ends of those that have settled; no more than were open at once can end in a while.
        elif record.id or len(self._ended) < _MOST_TOLD:
            self._ended.append(record)
        else:
            self._dropped += 1

    def on_log(self, level: Level, text: str) -> None:
        """Keep a line for the parent's log."""
        if len(self._log) < _MOST_LINES:
            half = LONGEST_LINE // 2
            self._log.append(LogLine(level, text if len(text) <= LONGEST_LINE else text[:half] + text[-half:]))

    async def run(self, receiver: Receiver[ToWorker]) -> None:
        """Relay and obey until the parent says so, or is gone and the streams have ended."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._relay.run)
            nursery.start_soon(self._report)
            nursery.start_soon(self._tell_news)
            order = await receiver.next()
            while order is not None and not isinstance(order, Quit):
                if isinstance(order, AddListener):
                    self._add_listener(order, receiver.descriptors.popleft())
                elif isinstance(order, AddCounts):
                    self._add_counts(receiver.descriptors.popleft())
                elif isinstance(order, HandOver):
                    nursery.start_soon(self._hand_over, order, receiver.descriptors.popleft(), nursery)
                elif isinstance(order, TakeOver):
                    self._hand_overs += 1
                    nursery.start_soon(self._take_over, receiver.descriptors.popleft())
                elif isinstance(order, StatsRequest) and order.streams:
                    nursery.start_soon(self._tell_streams, order)
                elif isinstance(order, Drain):
                    if not self._draining:
                        self._draining = True
                        nursery.start_soon(self._relay.drain, order.quiet, order.seconds)
                else:
                    await self._obey(order)
                order = await receiver.next()
            if order is None:
                await self._drain()
            nursery.cancel_scope.cancel()
        await self._tell()  # How the streams ended that were cut.

    async def _drain(self) -> None:
        """The parent is gone: let the open streams end."""
        with trio.move_on_after(self._drain_seconds):
            await self._relay.ask_nobody()
            self._relay.stop_listening()
            async with trio.open_nursery() as nursery:
                if not self._draining:
                    nursery.start_soon(self._drain_late)
                counters = self._relay.context.counters
                # A stream's end wakes nobody; and who takes streams over may have none yet.
                while self._hand_overs or counters.active > counters.of_servers:  # noqa: ASYNC110
                    await trio.sleep(0.05)
                nursery.cancel_scope.cancel()

    async def _drain_late(self) -> None:
        """In the second half of the time that is left: nobody has told callers to go elsewhere."""
        half = self._drain_seconds / 2
        await trio.sleep(half)
        await self._relay.drain(self._drain_quiet, half)

    async def _hand_over(self, order: HandOver, descriptor: int, nursery: trio.Nursery) -> None:
        """Let another worker have streams; where it is to have all, end when none is left."""
        if not order.stays:
            self._relay.stop_listening(_LEAVING_SECONDS)
        handed, why = 0, "no descriptor left"
        if descriptor >= 0:
            self._hand_overs += 1
            context, side = self._relay.context, HandsOver(_channel(descriptor), self._accuse)
            begun = context.reactor.clock() - order.seconds
            with _guarded():
                await side.run([stream for stream in context.streams if stream.started <= begun], order.streams)
            handed, why = side.handed, side.why
            self._hand_overs -= 1
        await self._tell()
        await self._send(encode(HandedOver(handed, len(self._relay.context.streams), why)))
        if order.stays:
            return
        while self._relay.context.streams or self._hand_overs:  # noqa: ASYNC110 (a stream's end wakes nobody)
            await trio.sleep(0.05)
        nursery.cancel_scope.cancel()

    async def _take_over(self, descriptor: int) -> None:
        """Take another worker's streams over."""
        why = "no descriptor left"
        if descriptor >= 0:
            side = TakesOver(_channel(descriptor), self._relay.rebuild, self._accuse)
            with _guarded():
                await side.run()
            why = side.why
        if why:
            log.warning("not all streams of another relay worker were taken over: %s", why)
        self._hand_overs -= 1
        await self._tell()
        await self._send(encode(TookOver()))

    async def _accuse(self, why: str) -> None:
        await self._send(encode(Accuse(why)))

    def _add_counts(self, descriptor: int) -> None:
        if descriptor < 0:
            log.error("no descriptor left for the counts of another worker, its streams are not in the limits here")
            return
        self._counts.add_row(descriptor)
        os.close(descriptor)

    def _add_listener(self, order: AddListener, descriptor: int) -> None:
        # Open streams are worth more than a listener: what takes more descriptors than there are must not end them.
        if descriptor < 0:
            log.error("no descriptor left for a listener, other workers serve it: listener=%s", order.name)
            return
        sock = socket.socket(fileno=descriptor)
        try:
            sock.setblocking(False)
            self._relay.adopt(order.name, sock, listening=order.listening)
        except OSError as error:
            sock.close()
            what = "a listener cannot be served here, other workers do: listener=%s: %s"
            log.error(what, order.name, words_of(error))  # noqa: TRY400

    async def _obey(self, order: ToWorker) -> None:
        if isinstance(order, Change):
            self._relay.install(changed(self._relay.context.table, order.change))
            await self._relay.appeared(route.name for route in order.change.routes if not route.suffix)
        elif isinstance(order, LookupDone):
            await self._relay.lookup_done(order.name, order.clients)
        elif isinstance(order, SetLimits):
            self._relay.context.limits = order.limits
        elif isinstance(order, EndpointState):
            self._relay.endpoint_state((order.address, order.port), order.failures)
        elif isinstance(order, Listen):
            self._relay.accept_clients()
        elif isinstance(order, RemoveListener):
            self._relay.close_listener(order.host, order.port)
        elif isinstance(order, WantRecords):
            self.wants_records = order.wanted
        elif isinstance(order, StopListening):
            self._relay.stop_listening()
            await self._tell()
        elif isinstance(order, StatsRequest):
            await self._tell(order)

    async def _report(self) -> None:
        while True:
            self._relay.relieve()
            await self._tell()
            await trio.sleep(REPORT_SECONDS)

    def _ask(self, name: str, client: str) -> None:
        self._tell_soon((name, client), Lookup(name, client))

    def _report_endpoint(self, sni: str, address: Address, why: str) -> None:
        if len(address[0]) <= LONGEST_TEXT:
            self._tell_soon(address, EndpointNews(sni, *address, failed=bool(why), why=why[:LONGEST_TEXT]))

    def _tell_soon(self, about: tuple[object, ...], news: Lookup | EndpointNews) -> None:
        """Tell the parent at once, but not from the midst of what a stream does; of several news the last one."""
        self._news[about] = news
        self._has_news.set()

    async def _tell_news(self) -> None:
        while True:
            await self._has_news.wait()
            self._has_news = trio.Event()
            news, self._news = self._news, {}
            await self._send(b"".join(map(encode, news.values())))

    async def _tell_streams(self, question: StatsRequest) -> None:
        """Tell of the open streams, of which there may be very many: a few after another, so that none has to wait."""
        counters, streams = self._relay.context.counters, islice(self._relay.connections(), MOST_STREAMS)
        while told := list(islice(streams, _SNAPSHOTS)):
            now = Counters(active=counters.active, of_servers=counters.of_servers)
            await self._send(encode(StatsReport(now, [], [], 0, question.question, streams=told, more=True)))
        await self._tell(question)

    async def _tell(self, question: StatsRequest | None = None) -> None:
        counters = self._relay.context.counters
        now, counters.endpoints = counters.copy(), {}
        if question is not None:
            self._relay.count_open(now)
        now.tell_no_less(self._told)
        report = StatsReport(
            now.since(self._told),
            self._refused,
            self._ended,
            self._dropped,
            settled=self._settled,
            question=question.question if question is not None else 0,
        )
        lines, self._log = self._log, []
        data = b"".join([*map(encode, lines), *map(encode, report.pieces())])
        self._told, self._refused, self._settled, self._ended, self._dropped = now, [], [], [], 0
        await self._send(data)

    async def _send(self, data: bytes) -> None:
        """Tell the parent. What is taken out has to be told, and after half a message it would understand nothing.

        So it is told also when this is cancelled.
        """
        # The parent reads, or is dead.
        with trio.CancelScope(shield=True):
            async with self._sending:
                # Where it fails the parent is gone, which `run` notices by itself.
                with contextlib.suppress(trio.BrokenResourceError):
                    await self._channel.send_all(data)


class _ToParent(logging.Handler):
    """Log lines of the relay go to the parent, which knows where to write them."""

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self._worker = worker

    def emit(self, record: logging.LogRecord) -> None:
        self._worker.on_log(cast("Level", record.levelname.lower()), self.format(record))


def _import_all() -> None:
    """Load what Python, its library and the C library load only when they need it, as far as that may be here."""
    for name in ("encodings.idna", "encodings.unicode_escape"):
        importlib.import_module(name)
    traceback.format_exception(ExceptionGroup("", [ValueError()]))
    # A thread that is still there when Python ends is ended by the C library, and glibc aborts where it has not this.
    with contextlib.suppress(OSError):
        ctypes.CDLL("libgcc_s.so.1")


@contextlib.contextmanager
def _guarded() -> Iterator[None]:
    """An error of ours in a hand-over must not cost all the streams that are not in it."""
    try:
        yield
    except Exception:
        log.exception("internal error in a hand-over; please report this")


def _channel(descriptor: int) -> trio.SocketStream:
    return trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=descriptor)))


async def _main(reactor: Reactor, descriptor: int, sandbox: Mode) -> None:
    # Now that trio has made what it needs for itself, and has not started its thread yet.
    _import_all()
    missing = support().missing
    failed = [] if sandbox is Mode.OFF else confine()
    if sandbox is Mode.REQUIRE and (missing or failed):
        sys.exit(f"meshgate: no sandbox for a relay worker: {'; '.join([*missing, *failed])}")
    channel = _channel(descriptor)
    receiver = Receiver(channel, TO_WORKER, descriptors=1)
    setup = await receiver.next()
    if not isinstance(setup, Setup):
        return
    worker = Worker(reactor, setup, channel)
    logging.getLogger("meshgate").addHandler(_ToParent(worker))
    for problem in failed:
        log.warning("the sandbox is not whole: %s", problem)
    await worker.run(receiver)


def main(descriptor: int, sandbox: Mode) -> None:
    """Live until the parent says otherwise, or is gone."""
    reactor = Reactor()
    reactor.run_trio(_main, reactor, descriptor, sandbox)


if __name__ == "__main__":
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    main(int(sys.argv[1]), Mode(sys.argv[2]))
