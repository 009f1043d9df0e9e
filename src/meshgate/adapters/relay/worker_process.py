"""One worker process of the pool: started, told, listened to, and started again when it ends.

What always holds: a worker that dies or hangs is replaced within a second (later and later if they die at once), and
what it told before stays told.
"""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec
import structlog
import trio

from meshgate.core.outlier_detection import Address

from .messages import (
    SIGNALS,
    TO_PARENT,
    EndpointNews,
    FdMessage,
    Learn,
    LogLine,
    Quit,
    Receiver,
    StatsReport,
    StatsRequest,
    ToParent,
    ToWorker,
    encode,
)
from .shared_counts import SharedCounts

log = structlog.get_logger(module="meshgate.relay")

FAREWELL_SECONDS: Final = 2.0
_LOOK_SECONDS: Final = 0.5
_HEALTHY_SECONDS: Final = 5.0
_LONGEST_PAUSE: Final = 5.0
# What Python and the measuring of its coverage need. A worker has no use for the rest, least of all for a token.
_WORKER_VARIABLES: Final = ("PATH", "HOME", "TMPDIR", "TZ", "LANG", "LC_", "LD_", "PYTHON", "VIRTUAL_ENV", "COVERAGE_")


@dataclass(slots=True)
class WorkerPolicy:
    """How workers are started, and how many seconds are waited for them. May change while they run."""

    command: Sequence[str] = (sys.executable, "-m", "meshgate.adapters.relay.worker")
    starting: float = 60.0  # Until the first word: a slow disk or a busy machine is no reason to begin again.
    silent: float = 5.0
    answer: float = 0.5


class Owner(Protocol):
    """Who owns the workers: knows what a worker must be told, and takes what workers tell."""

    def first_words(self, worker: "WorkerProcess") -> list[ToWorker]:
        """What a new worker is told."""
        ...

    def inherited(self) -> list[int]:
        """The descriptors that a worker needs."""
        ...

    def heard(self, report: StatsReport) -> None:
        """A worker has told what came to pass."""
        ...

    def endpoint_news(self, worker: "WorkerProcess", address: Address, *, failed: bool) -> None:
        """A worker could not reach an endpoint, or has reached one that was ejected."""
        ...

    def asked(self, worker: "WorkerProcess", name: str) -> None:
        """A worker has streams that wait until a name is learned."""
        ...


class WorkerProcess:
    """A worker by its number, and the process that is it at the moment."""

    def __init__(self, owner: Owner, number: int, workers: int, counts: int, policy: WorkerPolicy) -> None:
        self.number = number
        self._policy = policy
        self.active = 0
        self.of_servers = 0
        self.pid = 0
        self._owner = owner
        self._row = SharedCounts(counts, workers, number)
        self._outbox: trio.MemorySendChannel[bytes | FdMessage] | None = None
        self._questions: dict[int, Callable[[StatsReport], None]] = {}
        self._asked = 0
        self._heard_at = 0.0
        self._has_spoken = False
        self._nonsense = ""

    @property
    def works(self) -> bool:
        """Whether there is a worker that has said its first word."""
        return self.pid != 0 and self._has_spoken

    def send(self, data: bytes) -> None:
        """Send a message to the worker, if there is one; a new one is told everything anyway."""
        if self._outbox is not None:
            self._outbox.send_nowait(data)

    def hand(self, data: bytes, descriptor: int) -> None:
        """Send a message with a descriptor beside it, which stays the caller's to close."""
        if self._outbox is not None:
            self._outbox.send_nowait(FdMessage(data, descriptor))

    async def ask(self, *, streams: bool) -> StatsReport | None:
        """The worker's answer; None when it dies before. Wait with a deadline: it may hang."""
        if self._outbox is None:
            return None
        self._asked += 1
        question = self._asked
        answers: list[StatsReport] = []
        answered = trio.Event()

        def on_answer(report: StatsReport) -> None:
            answers.append(report)
            answered.set()

        self._questions[question] = on_answer
        self.send(encode(StatsRequest(question, streams)))
        try:
            await answered.wait()
        finally:
            self._questions.pop(question, None)
        return answers[0]

    async def run(self) -> None:
        """Keep a process running until cancelled."""
        pause = 0.0
        while True:
            started = trio.current_time()
            try:
                reason = await self._live()
            except OSError as error:
                reason = repr(error)  # No process or descriptor could be had.
            lived = trio.current_time() - started
            lost, self.active, self.of_servers = self.active, 0, 0
            self._row.clear()
            pause = 0.0 if lived > _HEALTHY_SECONDS else min(_LONGEST_PAUSE, pause * 2 or 0.1)
            log.error("a relay worker ended, another one starts", worker=self.number, reason=reason, streams_lost=lost)
            await trio.sleep(pause)

    async def _live(self) -> str:
        """The life of one worker; gives the reason of its end."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = _spawn(self._policy.command, theirs.fileno(), self._owner.inherited())
            except OSError:
                ours.close()
                raise
        self.pid = process.pid
        channel = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        outbox, inbox = trio.open_memory_channel[bytes | FdMessage](float("inf"))
        self._outbox = outbox
        receiver = Receiver(channel, TO_PARENT)
        self._heard_at = trio.current_time()
        self._has_spoken = False
        self._nonsense = ""
        for word in self._owner.first_words(self):
            self.send(encode(word))
        hung = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send, channel, inbox)
                nursery.start_soon(self._receive, receiver, nursery.cancel_scope)
                hung = await self._until_hung()
                nursery.cancel_scope.cancel()
        finally:
            self._outbox = None
            drop_unsent(inbox)
            self.pid = 0
            if not hung and not self._nonsense:
                await self._part(channel, receiver, process)
            channel.socket.close()
            process.kill()
            code = process.wait()
        if self._nonsense:
            return f"what it said made no sense, and it was killed: {self._nonsense}"
        return "it hung and was killed" if hung else _ending(code)

    async def _until_hung(self) -> bool:
        """True when nothing was heard for too long. When this process itself slept, nobody hangs for that.

        A worker that has not spoken yet may still be reading its modules from a slow disk.
        """
        while True:
            looked = trio.current_time()
            await trio.sleep(_LOOK_SECONDS)
            now = trio.current_time()
            if now - looked > 2 * _LOOK_SECONDS:
                self._heard_at = now
            if now - self._heard_at > (self._policy.silent if self._has_spoken else self._policy.starting):
                return True

    async def _send(self, channel: trio.SocketStream, inbox: trio.MemoryReceiveChannel[bytes | FdMessage]) -> None:
        try:
            async for message in inbox:
                if isinstance(message, FdMessage):
                    await message.send(channel)
                else:
                    await channel.send_all(message)
        except trio.BrokenResourceError:
            pass  # It is dead; the receiving side ends its life.

    async def _receive(self, receiver: Receiver[ToParent], scope: trio.CancelScope) -> None:
        while (message := await self._next(receiver)) is not None:
            self._heard_at = trio.current_time()
            self._has_spoken = True
            if isinstance(message, LogLine):
                level = logging.getLevelName(message.level).lower()
                getattr(log, level, log.warning)(message.text, worker=self.number)
                continue
            if isinstance(message, Learn):
                self._owner.asked(self, message.name)
                continue
            if isinstance(message, EndpointNews):
                self._owner.endpoint_news(self, (message.address, message.port), failed=message.failed)
                continue
            self.active, self.of_servers = message.counters.active, message.counters.of_servers
            self._owner.heard(message)
            if message.question in self._questions:
                self._questions[message.question](message)
        scope.cancel()

    async def _next(self, receiver: Receiver[ToParent]) -> ToParent | None:
        """The worker's next message; None at its end, and when it makes no sense."""
        try:
            return await receiver.next()
        except msgspec.MsgspecError as error:
            self._nonsense = str(error)
            return None

    async def _part(
        self, channel: trio.SocketStream, receiver: Receiver[ToParent], process: "subprocess.Popen[bytes]"
    ) -> None:
        """Tell a worker to end, and hear how its streams ended; killed, it would seem to have ended them in order."""
        with trio.move_on_after(FAREWELL_SECONDS, shield=True) as scope:
            with contextlib.suppress(trio.BrokenResourceError):
                await channel.send_all(encode(Quit()))
                with trio.CancelScope() as heard:
                    await self._receive(receiver, heard)
            while process.poll() is None:  # noqa: ASYNC110 (the standard library has no event for it)
                await trio.sleep(0.01)
        if scope.cancelled_caught:
            log.warning("a relay worker did not end by itself and is killed", worker=self.number)


def drop_unsent(inbox: "trio.MemoryReceiveChannel[bytes | FdMessage]") -> None:
    """Let descriptors go that were never sent."""
    with contextlib.suppress(trio.WouldBlock):
        while True:
            message = inbox.receive_nowait()
            if isinstance(message, FdMessage):
                message.drop()


def _spawn(command: Sequence[str], descriptor: int, inherited: Sequence[int]) -> "subprocess.Popen[bytes]":
    """Start a worker. It shares nothing with this process but the descriptors.

    Signals that are not its business, and that a terminal or a supervisor sends to all processes, would end it until
    it ignores them. So it begins with them blocked.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return subprocess.Popen(  # noqa: S603 (this very Python)
            [*command, str(descriptor)],
            stdin=subprocess.DEVNULL,
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
