"""The worker processes: started, told, listened to, replaced.

What always holds: a worker that dies or hangs is replaced within a second, others are not touched by it, and clients
that wait to be accepted stay where they are, because the listening sockets belong to all workers and to the parent.
Totals never go back: what a worker told before it died stays counted.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Final

import structlog
import trio

from meshgate.core.changes import difference
from meshgate.core.routes import RouteTable

from . import sockets
from .counters import Counters, OpenStream
from .engine import Observer
from .limits import Limits
from .messages import (
    TO_PARENT,
    Ask,
    Beat,
    Change,
    Limit,
    Listen,
    LogLine,
    Receiver,
    Setup,
    StopListening,
    ToWorker,
    encode,
)
from .shared import SharedCounts

log = structlog.get_logger(module="meshgate.relay")

ANSWER_SECONDS: Final = 0.5
HANG_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.5
_HEALTHY_SECONDS: Final = 5.0
_LONGEST_PAUSE: Final = 5.0
_EMPTY: Final = RouteTable.of("", "", "default", iter(()))
_COMMAND: Final = (sys.executable, "-m", "meshgate.adapters.relay.worker")
# What Python and the measuring of its coverage need. A worker has no use for the rest, least of all for a token.
_WORKER_VARIABLES: Final = ("PATH", "HOME", "TMPDIR", "TZ", "LANG", "LC_", "LD_", "PYTHON", "VIRTUAL_ENV", "COVERAGE_")


class RelayPool:
    """The gateway's relays. Make it and use it within one trio run.

    Args:
        workers: how many processes.
        limits: timeouts and bounds; `max_connections` holds for all workers together.
        observer: is told of refused and ended streams, up to half a second later.
        drain_seconds: how long the streams of a worker live on when this process dies.
    """

    def __init__(self, workers: int, limits: Limits, observer: Observer, drain_seconds: float) -> None:
        self._limits = limits
        self._observer = observer
        self._drain_seconds = drain_seconds
        self._table = _EMPTY
        self._sockets: list[tuple[str, socket.socket]] = []
        self._listening = False
        self._totals = Counters()
        self._counts = SharedCounts.create(workers)
        self._slots = [_Slot(self, number, workers, self._counts) for number in range(workers)]

    def bind(self, name: str, host: str, port: int) -> tuple[str, int]:
        """Take a numeric address ("" is every IPv4 address, port 0 a free one). Clients are refused until `listen`.

        To be called before `run`.

        Returns:
            The address it is bound to.

        Raises:
            OSError: the address cannot be bound.
        """
        sock = sockets.bind(host, port, self._limits.keepalive)
        self._sockets.append((name, sock))
        bound = sock.getsockname()
        return str(bound[0]), int(bound[1])

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

    def install(self, table: RouteTable) -> None:
        """Place streams that come from now on by `table`. Open ones are never touched."""
        change = difference(self._table, table)
        self._table = table
        self._tell_all(Change.of(change))

    @property
    def limits(self) -> Limits:
        """The limits in force."""
        return self._limits

    def limit(self, limits: Limits) -> None:
        """Use other limits for streams that come from now on."""
        if limits != self._limits:
            self._limits = limits
            self._tell_all(Limit(limits))

    @property
    def active(self) -> int:
        """Streams open in all workers, as last heard: up to half a second old."""
        return sum(slot.active for slot in self._slots)

    @property
    def workers(self) -> list[int]:
        """The process ids of the workers that live."""
        return [slot.pid for slot in self._slots if slot.pid]

    async def counters(self) -> Counters:
        """The totals of all workers, those that died included; asked for now, so a moment old at most."""
        beats = await self._ask(streams=False)
        counters = self._totals.copy()
        counters.active = self.active
        counters.bytes_received += sum(beat.open_received for beat in beats)
        counters.bytes_sent += sum(beat.open_sent for beat in beats)
        return counters

    async def connections(self) -> list[OpenStream]:
        """The streams open now."""
        return [stream for beat in await self._ask(streams=True) for stream in beat.streams]

    async def run(self) -> None:
        """Keep the workers running until cancelled; their streams are then cut."""
        try:
            async with trio.open_nursery() as nursery:
                for slot in self._slots:
                    nursery.start_soon(slot.run)
        finally:
            for _, sock in self._sockets:
                sock.close()
            os.close(self._counts)

    # --- for the slots -------------------------------------------------------------------------------------------

    def first_words(self, slot: "_Slot") -> list[ToWorker]:
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
        if beat.dropped:
            log.warning("more streams ended than could be told", left_out=beat.dropped)

    # --- asking --------------------------------------------------------------------------------------------------

    async def _ask(self, *, streams: bool) -> list[Beat]:
        beats: list[Beat] = []

        async def ask(slot: _Slot) -> None:
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


class _Slot:
    """The place of one worker, and the process that fills it at the moment."""

    def __init__(self, pool: RelayPool, number: int, workers: int, counts: int) -> None:
        self.number = number
        self.active = 0
        self.pid = 0
        self._pool = pool
        self._row = SharedCounts(counts, workers, number)
        self._outbox: trio.MemorySendChannel[bytes] | None = None
        self._questions: dict[int, Callable[[Beat], None]] = {}
        self._asked = 0
        self._heard_at = 0.0

    def send(self, data: bytes) -> None:
        """Send a message to the worker, if there is one; a new one is told everything anyway."""
        if self._outbox is not None:
            self._outbox.send_nowait(data)

    async def ask(self, *, streams: bool) -> Beat | None:
        """The worker's answer; None when it dies before. Wait with a deadline: it may hang."""
        if self._outbox is None:
            return None
        self._asked += 1
        question = self._asked
        answers: list[Beat] = []
        answered = trio.Event()

        def on_answer(beat: Beat) -> None:
            answers.append(beat)
            answered.set()

        self._questions[question] = on_answer
        self.send(encode(Ask(question, streams)))
        try:
            await answered.wait()
        finally:
            self._questions.pop(question, None)
        return answers[0]

    async def run(self) -> None:
        """Keep a worker in this place until cancelled."""
        pause = 0.0
        while True:
            started = trio.current_time()
            reason = await self._live()
            lived = trio.current_time() - started
            lost, self.active = self.active, 0
            self._row.clear()
            pause = 0.0 if lived > _HEALTHY_SECONDS else min(_LONGEST_PAUSE, pause * 2 or 0.1)
            log.error("a relay worker ended, another one starts", worker=self.number, reason=reason, streams_lost=lost)
            await trio.sleep(pause)

    async def _live(self) -> str:
        """The life of one worker; gives the reason of its end."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = _spawn(theirs.fileno(), self._pool.inherited())
        self.pid = process.pid
        channel = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        outbox, inbox = trio.open_memory_channel[bytes](float("inf"))
        self._outbox = outbox
        self._heard_at = trio.current_time()
        for word in self._pool.first_words(self):
            self.send(encode(word))
        hung = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send, channel, inbox)
                nursery.start_soon(self._receive, channel, nursery.cancel_scope)
                hung = await self._until_hung()
                nursery.cancel_scope.cancel()
        finally:
            self._outbox = None
            self.pid = 0
            channel.socket.close()
            process.kill()
            code = process.wait()
        return "it hung and was killed" if hung else _ending(code)

    async def _until_hung(self) -> bool:
        """True when nothing was heard for too long. When this process itself slept, nobody hangs for that."""
        while True:
            looked = trio.current_time()
            await trio.sleep(_LOOK_SECONDS)
            now = trio.current_time()
            if now - looked > 2 * _LOOK_SECONDS:
                self._heard_at = now
            if now - self._heard_at > HANG_SECONDS:
                return True

    async def _send(self, channel: trio.SocketStream, inbox: trio.MemoryReceiveChannel[bytes]) -> None:
        try:
            async for data in inbox:
                await channel.send_all(data)
        except trio.BrokenResourceError:
            pass  # It is dead; the receiving side ends its life.

    async def _receive(self, channel: trio.SocketStream, scope: trio.CancelScope) -> None:
        receiver = Receiver(channel, TO_PARENT)
        while (message := await receiver.next()) is not None:
            self._heard_at = trio.current_time()
            if isinstance(message, LogLine):
                level = logging.getLevelName(message.level).lower()
                getattr(log, level, log.warning)(message.text, worker=self.number)
                continue
            self.active = message.counters.active
            self._pool.heard(message)
            if message.question in self._questions:
                self._questions[message.question](message)
        scope.cancel()


def _spawn(descriptor: int, inherited: Sequence[int]) -> "subprocess.Popen[bytes]":
    """Start a worker. It shares nothing with this process but the descriptors."""
    return subprocess.Popen(  # noqa: S603 (this very Python)
        [*_COMMAND, str(descriptor)],
        stdin=subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if name.startswith(_WORKER_VARIABLES)},
        pass_fds=[descriptor, *inherited],
    )


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
