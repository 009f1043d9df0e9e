"""One worker process of the pool: started, told, listened to, and started again when it ends.

A parent that is replaced by another program (`left`) leaves its workers to that, which goes on with them (`adopted`).
They live for the streams that they have, and are not started again.

What always holds: a worker that dies or hangs is replaced within a second (later and later if they die at once), and
what it told before stays told. Whatever a worker sends, this process lives on: what makes no sense ends that worker,
and so does a flood, or not reading what it is told. It costs `messages.LARGEST` bytes for a message, LINES_AT_ONCE
lines in the log and LINES_PER_SECOND after that, MESSAGES_AT_ONCE entries where an answer is collected, and
LARGEST_KEPT bytes for each of MOST_KEPT streams.
"""

import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import msgspec
import structlog
import trio

from meshgate.adapters.error_words import words_of
from meshgate.core.token_bucket import TokenBucket

from .counters import StreamRecord
from .messages import (
    LARGEST,
    LONGEST_LINE,
    MOST_STREAMS,
    SIGNALS,
    TO_PARENT,
    Accuse,
    Drain,
    EndpointNews,
    FdMessage,
    HandedOver,
    LogLine,
    Lookup,
    Quit,
    Receiver,
    StatsReport,
    StatsRequest,
    StopListening,
    TookOver,
    ToParent,
    ToWorker,
    encode,
)
from .sandbox import Mode
from .shared_counts import NO_ROW, CountRows

log = structlog.get_logger(module="meshgate.relay")

FAREWELL_SECONDS: Final = 2.0
# What a worker may say. One whose streams all fail says 20,000 things a second; a kilobyte more is another one.
MESSAGES_PER_SECOND: Final = 50_000
MESSAGES_AT_ONCE: Final = 200_000
# A record of a stream has some 400 bytes, with the longest names 900; the rest is ALPN.
LARGEST_KEPT: Final = 1024
MOST_KEPT: Final = 100_000
# What an answer may have: entries, and kilobytes. A stream with the longest names is one of each.
ANSWER_ROOM: Final = 3 * MOST_STREAMS
LINES_PER_SECOND: Final = 2.0
LINES_AT_ONCE: Final = 100
# What it may leave unread: the answers to its own questions, as a rule.
_UNREAD: Final = 100_000
_TOLD_OF_NONSENSE: Final = 200
_NEVER: Final = float("inf")
_pack: Final = msgspec.msgpack.Encoder().encode
record_of: Final = msgspec.msgpack.Decoder(StreamRecord).decode
"""A stream that was lost, as `Owner.lost` is told of it; the record as it was when the stream had settled."""
_CHUNK_BYTES: Final = 1 << 16
_MOST_STDERR_BYTES: Final = 1 << 20
_CHECKPOINT_SECONDS: Final = 0.01
_LOOK_SECONDS: Final = 0.5
LOOKS: Final = 3
"""How many looks in a row at a worker's memory, or at its share of the streams, have to find the same."""
_GROWN: Final = 1.5
_HEALTHY_SECONDS: Final = 5.0
_LONGEST_PAUSE: Final = 5.0
# What Python and the measuring of its coverage need. A worker has no use for the rest, least of all for a token.
_WORKER_VARIABLES: Final = ("PATH", "HOME", "TMPDIR", "TZ", "LANG", "LC_", "LD_", "PYTHON", "VIRTUAL_ENV", "COVERAGE_")


@dataclass(slots=True)
class WorkerPolicy:
    """How workers are started and confined, and how many seconds are waited for them. May change while they run."""

    # -P: a module that lies in the current folder is not ours.
    command: Sequence[str] = (sys.executable, "-P", "-m", "meshgate.adapters.relay.worker")
    starting: float = 60.0  # Until the first word: a slow disk or a busy machine is no reason to begin again.
    silent: float = 5.0
    answer: float = 0.5
    sandbox: Mode = Mode.AUTO
    memory: int = 0  # Bytes above which one is replaced by a fresh one; 0: never.
    look: float = 20.0  # Between two looks at their memory, and at how many streams each has.


class WorkerEnd(StrEnum):
    """Why a worker had to be replaced. The value is the name users see."""

    EXITED = "exited"
    KILLED = "killed"  # By a signal: a crash, the kernel for want of memory, somebody.
    HUNG = "hung"
    MISBEHAVED = "misbehaved"
    NOT_STARTED = "not_started"
    MEMORY = "memory"  # In order, its streams handed over: it had grown.


class WorkerLeft(msgspec.Struct, frozen=True):
    """A worker as one parent leaves it and the next one finds it: its descriptors, and what was heard of it so far.

    `begun` is what was read of it and not taken, `asked` how many questions it was asked, `settled` its long streams.
    """

    number: int
    row: int
    pid: int
    channel: int
    stderr: int
    active: int
    of_servers: int
    routed: int
    asked: int
    begun: bytes
    settled: dict[int, bytes] = {}


class Owner(Protocol):
    """Who owns the workers: knows what a worker must be told, and takes what workers tell."""

    def first_words(self, worker: "WorkerProcess") -> list[ToWorker]:
        """What a new worker is told."""
        ...

    def inherited(self, worker: "WorkerProcess") -> list[int]:
        """The descriptors that a worker needs."""
        ...

    def heard(self, report: StatsReport) -> None:
        """A worker has told what came to pass.

        Raises:
            ValueError: that cannot be.
        """
        ...

    def endpoint_news(self, news: EndpointNews) -> None:
        """A worker could not reach an endpoint, or has reached one that was ejected."""
        ...

    def lost(self, worker: "WorkerProcess", cause: WorkerEnd, streams: int, records: list[bytes]) -> None:
        """A worker ended that was not told to, with so many routed streams, as last heard.

        `records` are those of them that are known one by one, for `record_of`.
        """
        ...

    def asked(self, worker: "WorkerProcess", name: str, client: str) -> None:
        """A worker has streams that wait for the lookup of a name."""
        ...

    def hand_over_news(self, worker: "WorkerProcess", news: HandedOver | TookOver | Accuse) -> None:
        """What a worker says of the hand-over that it takes part in.

        Raises:
            ValueError: it takes part in none.
        """
        ...

    def has_settled(self, worker: "WorkerProcess", stream: int) -> None:
        """A worker has this stream, which may have been another one's before."""
        ...

    async def ended(self, worker: "WorkerProcess") -> None:
        """A worker has ended: wait until it is known which streams it had in the end."""
        ...


class Gauges(NamedTuple):
    """What a worker has now, as last heard: streams, and those of them that carry Consul's own servers."""

    active: int = 0
    of_servers: int = 0


class Answer:
    """A worker's answer to a question. `reports` are all there once it is `complete`; none if the worker died first."""

    def __init__(self) -> None:
        self.reports: list[StatsReport] = []
        self.complete = trio.Event()
        self._parts: list[StatsReport] = []
        self._room = ANSWER_ROOM

    def has_room(self, cost: int) -> bool:
        """Whether the worker may tell so much more. An answer has its own limit: what it has was asked for."""
        self._room -= cost
        return self._room >= 0

    def take(self, report: StatsReport) -> None:
        """Take one more part of it."""
        if not self.complete.is_set():
            self._parts.append(report)
            if not report.more:
                self.reports = self._parts
                self.complete.set()


class Memory:
    """What a process has of memory, in bytes, as far as it was looked at."""

    def __init__(self) -> None:
        self._looks: deque[int] = deque(maxlen=LOOKS)
        self._least = 0

    def look(self, pid: int) -> None:
        """Note what it has now; nothing where the system does not tell."""
        with contextlib.suppress(OSError):
            resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * mmap.PAGESIZE
            self._looks.append(resident)
            self._least = min(self._least or resident, resident)

    @property
    def lasting(self) -> int:
        """What it had at each of the last looks at least; 0 before there were enough of them."""
        return min(self._looks) if len(self._looks) == LOOKS else 0

    @property
    def has_grown(self) -> bool:
        """Whether it has done with much less: so another process might, in its place."""
        return self.lasting > _GROWN * self._least


class WorkerProcess:
    """A worker by its number, and the process that is it at the moment.

    `row` is its row of the shared counts; one with NO_ROW takes a row when its process starts.

    While it `moves` streams, which is when it hands some over or takes some over, its gauges stay as they were: taken
    at two moments they would not add up.
    """

    def __init__(self, owner: Owner, number: int, counts: CountRows, policy: WorkerPolicy, row: int) -> None:
        self.number = number
        self.row = row
        self.last_end = ""
        """Why a process of it has ended, in words; "" while none has."""
        self._is_dismissed = trio.Event()
        self._moves = False
        self.is_foreign = False
        """Whether its process is of another version, so that it may not be understood."""
        self._policy = policy
        self._gauges = self._gauges_told = Gauges()
        self.routed = 0
        """Streams that have an endpoint, as last heard."""
        self.handed = self.taken = 0
        """Relayed streams that went to other workers and came from some, ever."""
        self._settled: dict[int, bytes] = {}  # Those that live long, as `record_of` reads them.
        self.pid = 0
        self.memory = Memory()
        self._owner = owner
        self._counts = counts
        self._outbox: trio.MemorySendChannel[bytes | FdMessage] | None = None
        self._unsent = 0
        self._process: _Process | None = None
        self._answers: dict[int, Answer] = {}
        self._questions = 0  # Ever.
        self._life = trio.CancelScope()
        self._heard_at = 0.0
        self._unread_since = _NEVER
        self._has_spoken = False
        self._nonsense = ""
        self._messages = TokenBucket(MESSAGES_PER_SECOND, MESSAGES_AT_ONCE)
        self._lines = TokenBucket(LINES_PER_SECOND, LINES_AT_ONCE)
        self._lines_left_out = 0

    @property
    def works(self) -> bool:
        """Whether there is a worker that has said its first word."""
        return self.pid != 0 and self._has_spoken

    @property
    def active(self) -> int:
        """Streams that are open."""
        return self._gauges.active

    @property
    def of_servers(self) -> int:
        """Those of them that carry Consul's own servers."""
        return self._gauges.of_servers

    def moves(self, *, moves: bool) -> None:
        """It moves streams, or does so no more."""
        self._moves = moves
        self._gauges = self._gauges_told

    def dismiss(self) -> None:
        """Let no other process take its place when it ends."""
        self._is_dismissed.set()

    def forget(self, stream: int) -> None:
        """Another worker has this stream."""
        self._settled.pop(stream, None)

    def send(self, data: bytes) -> None:
        """Send a message to the worker, if there is one that understands it; a new one is told everything anyway."""
        if not self.is_foreign:
            self._put(data)

    def send_last(self, message: StopListening | Drain | Quit) -> None:
        """Send a message that workers of all versions understand."""
        self._put(encode(message))

    def hand(self, data: bytes, descriptor: int) -> None:
        """Send a message with a descriptor beside it, which stays the caller's to close."""
        if self._outbox is not None and not self.is_foreign:
            self._put(FdMessage(data, descriptor))

    def _put(self, message: bytes | FdMessage) -> None:
        if self._outbox is None:
            return
        try:
            self._outbox.send_nowait(message)
            self._unsent += 1
        except trio.WouldBlock:
            if isinstance(message, FdMessage):
                message.drop()
            self.give_up("it does not read what it is told")

    def give_up(self, why: str) -> None:
        """End the worker for what it does."""
        self._nonsense = self._nonsense or why
        self._life.cancel()

    @contextlib.contextmanager
    def question(self, *, streams: bool) -> Iterator[Answer]:
        """Ask the worker. The answer comes while the block runs, and is not taken any more after it."""
        self._questions += 1
        number = self._questions
        answer = Answer()
        if self._outbox is None or self.is_foreign:
            answer.complete.set()
        else:
            self._answers[number] = answer
            self.send(encode(StatsRequest(number, streams)))
        try:
            yield answer
        finally:
            self._answers.pop(number, None)

    async def caught_up(self) -> bool:
        """Wait until it has done all that it was told, with a deadline: it may hang. False when it dies before."""
        with self.question(streams=False) as answer:
            await answer.complete.wait()
        return bool(answer.reports)

    async def run(self) -> None:
        """Keep a process running until cancelled, or it has ended and none is to take its place."""
        process, pause = self._process, 0.0  # One that another parent has left, if so.
        while process is not None or not self._is_dismissed.is_set():
            started = trio.current_time()
            try:
                cause, reason = await (self._live() if process is None else self._accompany(process))
            except OSError as error:
                cause, reason = WorkerEnd.NOT_STARTED, words_of(error)  # No process or descriptor could be had.
            process, lived = None, trio.current_time() - started
            self._counts.clear(self.row)
            self.last_end = reason
            await self._owner.ended(self)
            lost, dismissed = self._gauges_told.active, self._is_dismissed.is_set()
            if lost or cause is not WorkerEnd.EXITED or not dismissed:
                self._owner.lost(self, cause, self.routed, list(self._settled.values()))
                what = "a relay worker ended" if dismissed else "a relay worker ended, another one starts"
                log.error(what, worker=self.number, reason=reason, streams_lost=lost)
            self._gauges = self._gauges_told = Gauges()
            self.routed, self._settled = 0, {}
            pause = 0.0 if lived > _HEALTHY_SECONDS else min(_LONGEST_PAUSE, pause * 2 or 0.1)
            with trio.move_on_after(pause):
                await self._is_dismissed.wait()

    # --- from one parent to the next --------------------------------------------------------------------------------

    @property
    def told_all(self) -> bool:
        """Whether the worker has been sent all that it was to be told."""
        return self._unsent == 0

    def left(self) -> WorkerLeft | None:
        """The worker for another parent, which takes its descriptors; None while there is none.

        To be called where `told_all`; nothing may be sent to it, nor read from it, any more afterwards.
        """
        each = self._process
        if each is None or self.pid == 0:
            return None
        return WorkerLeft(
            self.number,
            self.row,
            self.pid,
            each.channel.socket.fileno(),
            each.stderr.descriptor,
            self.active,
            self.of_servers,
            self.routed,
            self._questions,
            each.receiver.begun,
            self._settled,
        )

    def adopt(self, left: WorkerLeft, *, is_foreign: bool) -> None:
        """Go on with the process that another parent has left; call it in trio, and `run` then."""
        self.is_foreign = is_foreign
        stderr = _WorkerStderr(left.stderr)
        self._process = _Process(_Child(left.pid), socket.socket(fileno=left.channel), stderr, left.begun)
        self._gauges = self._gauges_told = Gauges(left.active, left.of_servers)
        self.routed, self._questions = left.routed, left.asked
        self._settled = left.settled
        self._begin(self._process)
        self._has_spoken = True
        self.dismiss()

    async def retire(self) -> None:
        """Have the worker take no more streams, and end when it has none left."""
        self.send_last(StopListening())
        while self._outbox is not None:
            await trio.sleep(_LOOK_SECONDS)
            answered = self.is_foreign
            if self.is_foreign:
                # It cannot be asked, but it counts where all can see it.
                self._gauges = self._gauges_told = Gauges(self._counts.active(self.row))
            else:
                with trio.move_on_after(self._policy.silent):
                    # Behind what it was told before.
                    answered = await self.caught_up()
            if answered and not self.active:
                self._life.cancel()
                return

    # --- the life of a process ----------------------------------------------------------------------------------------

    async def _live(self) -> tuple[WorkerEnd, str]:
        """The life of one worker; gives the cause of its end, and more about it in words."""
        if self.row == NO_ROW:
            self.row = self._counts.take()
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as undone:
            undone.callback(ours.close)
            with theirs:
                stderr = _WorkerStderr()
                undone.callback(stderr.close)
                try:
                    child = _spawn(self._policy, theirs.fileno(), self._owner.inherited(self), stderr.pipe)
                finally:
                    stderr.close_workers_end()
            undone.pop_all()
        process = _Process(child, ours, stderr)
        self._begin(process)
        self._has_spoken = False
        for word in self._owner.first_words(self):
            self.send(encode(word))
        return await self._accompany(process)

    def _begin(self, process: "_Process") -> None:
        self.pid = process.child.pid
        self.memory = Memory()
        self._process = process
        self._outbox, self._inbox = trio.open_memory_channel[bytes | FdMessage](_UNREAD)
        self._unsent = 0
        self._heard_at = trio.current_time()
        self._unread_since = _NEVER
        self._nonsense = ""
        self._life = trio.CancelScope()

    async def _accompany(self, process: "_Process") -> tuple[WorkerEnd, str]:
        stderr = process.stderr
        hung = False
        try:
            with self._life:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send, process.channel, self._inbox)
                    nursery.start_soon(self._receive, process.receiver)
                    nursery.start_soon(self._read_stderr, stderr)
                    hung = await self._until_hung()
                    nursery.cancel_scope.cancel()
        finally:
            self._outbox = None
            drop_unsent(self._inbox)
            for answer in self._answers.values():
                answer.complete.set()
            self.pid = 0
            if not hung and not self._nonsense:
                await self._part(process)
            process.channel.socket.close()
            process.child.kill()
            code = process.child.wait()
            stderr.read()
            stderr.close()
        if self._nonsense:
            return WorkerEnd.MISBEHAVED, f"what it did made no sense, and it was killed: {self._nonsense}"
        if hung:
            return WorkerEnd.HUNG, "it hung and was killed"
        return WorkerEnd.KILLED if code < 0 else WorkerEnd.EXITED, _ending(code) + stderr.quoted

    async def _until_hung(self) -> bool:
        """True when nothing was heard, or read, for too long. When this process itself slept, nobody hangs for that.

        A worker that has not spoken yet may still be reading its modules from a slow disk.
        """
        while True:
            looked = trio.current_time()
            await trio.sleep(_LOOK_SECONDS)
            now = trio.current_time()
            if now - looked > 2 * _LOOK_SECONDS:
                self._heard_at = now
                self._unread_since = max(now, self._unread_since)
            since = min(self._heard_at, self._unread_since)
            if now - since > (self._policy.silent if self._has_spoken else self._policy.starting):
                return True

    async def _send(self, channel: trio.SocketStream, inbox: trio.MemoryReceiveChannel[bytes | FdMessage]) -> None:
        try:
            async for message in inbox:
                self._unread_since = trio.current_time()
                if isinstance(message, FdMessage):
                    await message.send(channel)
                else:
                    await channel.send_all(message)
                self._unread_since = _NEVER
                self._unsent -= 1
        except trio.BrokenResourceError:
            pass  # It is dead; the receiving side ends its life.

    async def _read_stderr(self, stderr: "_WorkerStderr") -> None:
        while True:
            await trio.lowlevel.wait_readable(stderr.descriptor)
            if not stderr.read():
                return
            if stderr.size > _MOST_STDERR_BYTES:
                self.give_up("a flood of words")

    async def _receive(self, receiver: Receiver[ToParent]) -> None:
        """Take what the worker says until it is dead, or makes no sense."""
        rested = trio.current_time()
        try:
            while (message := await self._next(receiver)) is not None:
                now = self._heard_at = trio.current_time()
                self._has_spoken = True
                self._take(message, receiver.size, now)
                if now - rested > _CHECKPOINT_SECONDS:  # A chunk of small messages is read without waiting.
                    await trio.lowlevel.checkpoint()
                    rested = trio.current_time()
        except (ValueError, RecursionError) as error:
            if self.is_foreign:
                # Whatever it says, it keeps its streams.
                await self._read_on(receiver)
            else:
                self._nonsense = words_of(error)[:_TOLD_OF_NONSENSE]
        except Exception as error:
            # Ours to mend; but a way to get here must not be a way to end the gateway.
            log.exception("internal error in what a worker said, it is replaced; please report this")
            self._nonsense = words_of(error)[:_TOLD_OF_NONSENSE]
        self._life.cancel()

    async def _read_on(self, receiver: Receiver[ToParent]) -> None:
        """Read what a worker says until it is dead, and take none of it."""
        while await receiver.skip():
            self._heard_at = trio.current_time()
            await trio.sleep(_CHECKPOINT_SECONDS)

    async def _next(self, receiver: Receiver[ToParent]) -> ToParent | None:
        """The worker's next message. One of another version may say what is not understood here, and does no wrong."""
        while True:
            try:
                return await receiver.next()
            except msgspec.DecodeError:
                if not self.is_foreign:
                    raise
                self._heard_at = trio.current_time()
                await trio.sleep(0 if self._messages.take(self._heard_at, 1 + receiver.size // 1024) else _LOOK_SECONDS)

    def _take(self, message: ToParent, size: int, now: float) -> None:
        """What a worker says, which may be anything that the decoder lets pass.

        Raises:
            ValueError: an honest worker does not say that, or so much.
        """
        cost, answer = 1 + size // 1024, None
        if isinstance(message, StatsReport):
            cost += message.entries
            answer = self._answers.get(message.question)
        if not (self._messages.take(now, cost) if answer is None else answer.has_room(cost)):
            raise ValueError("a flood of messages")
        if isinstance(message, LogLine):
            self._tell_line(message, now)
        elif isinstance(message, Lookup):
            self._owner.asked(self, message.name, message.client)
        elif isinstance(message, EndpointNews):
            self._owner.endpoint_news(message)
        elif not isinstance(message, StatsReport):
            self._owner.hand_over_news(self, message)
        else:
            self._owner.heard(message)
            self._keep(message)
            counters = message.counters
            self._gauges_told = Gauges(counters.active, counters.of_servers)
            if not self._moves:
                self._gauges = self._gauges_told
            self.handed += counters.handed_over
            self.taken += counters.taken_over
            more = sum(counters.connections.values()) + counters.taken_over
            self.routed = max(0, self.routed + more - sum(counters.ends.values()) - counters.handed_over)
            if answer is not None:
                answer.take(message)

    def _keep(self, report: StatsReport) -> None:
        """Note which streams would be lost with the worker. Packed, because there may be very many."""
        for record in report.settled:
            packed = _pack(record)
            if len(packed) <= LARGEST_KEPT and len(self._settled) < MOST_KEPT:
                self._settled[record.id] = packed
            self._owner.has_settled(self, record.id)
        for record in report.ended:
            if record.id:
                self._settled.pop(record.id, None)

    def _tell_line(self, line: LogLine, now: float) -> None:
        if not self._lines.take(now):
            self._lines_left_out += 1
            return
        more = {"left_out": self._lines_left_out} if self._lines_left_out else {}
        self._lines_left_out = 0
        getattr(log, line.level)(line.text, worker=self.number, **more)

    async def _part(self, process: "_Process") -> None:
        """Tell a worker to end, and hear how its streams ended; killed, it would seem to have ended them in order."""
        with trio.move_on_after(FAREWELL_SECONDS, shield=True) as scope:
            with contextlib.suppress(trio.BrokenResourceError):
                await process.channel.send_all(encode(Quit()))
                with trio.CancelScope() as self._life:
                    await self._receive(process.receiver)
            while process.child.poll() is None:  # noqa: ASYNC110 (the standard library has no event for it)
                await trio.sleep(0.01)
        if scope.cancelled_caught:
            log.warning("a relay worker did not end by itself and is killed", worker=self.number)


class _Child:
    """A process that an earlier program in this process has started: what of `subprocess.Popen` is used here."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, below zero for a signal; None while it lives."""
        return self._code if self._code is not None else self._look(os.WNOHANG)

    def wait(self) -> int:
        code = self.poll()
        while code is None:
            code = self._look(0)
        return code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def _look(self, options: int) -> int | None:
        try:
            pid, status = os.waitpid(self.pid, options)
        except ChildProcessError:  # Somebody else has waited for it, and knows how it ended.
            pid, status = self.pid, 0
        if pid:
            self._code = os.waitstatus_to_exitcode(status)
        return self._code


class _Process:
    """A process and what leads to it; `begun` is what was read of its words before."""

    def __init__(
        self,
        child: "subprocess.Popen[bytes] | _Child",
        channel: socket.socket,
        stderr: "_WorkerStderr",
        begun: bytes = b"",
    ) -> None:
        self.child = child
        channel.setblocking(False)
        self.channel = trio.SocketStream(trio.socket.from_stdlib_socket(channel))
        self.stderr = stderr
        self.receiver = Receiver(self.channel, TO_PARENT, largest=LARGEST, begun=begun)


class _WorkerStderr:
    """A worker's standard error: what Python says where it cannot start, or crashes. It says all else by messages.

    `descriptor` is the end to read, `pipe` the worker's, `size` the bytes that were read, `quoted` what was kept of
    them, for the end of a sentence.
    """

    def __init__(self, descriptor: int = -1) -> None:
        """Make the pipe, or go on reading one."""
        self.descriptor, self.pipe = os.pipe() if descriptor < 0 else (descriptor, -1)
        os.set_blocking(self.descriptor, False)
        self._kept = b""
        self.size = 0

    @property
    def quoted(self) -> str:
        text = self._kept.decode(errors="replace").strip()
        return f": {text}" if text else ""

    def close_workers_end(self) -> None:
        os.close(self.pipe)

    def read(self) -> bool:
        """Read what is there, and keep the first LONGEST_LINE bytes. Whether there may be more at some time."""
        try:
            said = os.read(self.descriptor, _CHUNK_BYTES)
        except BlockingIOError:
            return True
        self.size += len(said)
        self._kept = (self._kept + said)[:LONGEST_LINE]
        return bool(said)

    def close(self) -> None:
        os.close(self.descriptor)


def drop_unsent(inbox: "trio.MemoryReceiveChannel[bytes | FdMessage]") -> None:
    """Let descriptors go that were never sent."""
    with contextlib.suppress(trio.WouldBlock):
        while True:
            message = inbox.receive_nowait()
            if isinstance(message, FdMessage):
                message.drop()


def _spawn(policy: WorkerPolicy, descriptor: int, inherited: Sequence[int], stderr: int) -> "subprocess.Popen[bytes]":
    """Start a worker. It shares nothing with this process but the descriptors.

    Signals that are not its business, and that a terminal or a supervisor sends to all processes, would end it until
    it ignores them. So it begins with them blocked.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return subprocess.Popen(  # noqa: S603 (this very Python)
            [*policy.command, str(descriptor), policy.sandbox],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env={name: value for name, value in os.environ.items() if name.startswith(_WORKER_VARIABLES)},
            pass_fds=[descriptor, *inherited],
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
