"""A relay in a process of its own: `python -m meshgate.adapters.relay.worker DESCRIPTOR`.

It speaks with its parent over the inherited socket and knows nothing else of the world. Signals are the parent's
business and are ignored here. When the parent is gone the worker drains: its streams live on for the drain time, no
new ones are taken.
"""

import contextlib
import logging
import signal
import socket
import sys
from typing import Final

import trio

from meshgate.core.changes import changed
from meshgate.core.routes import RouteTable

from .counters import Counters, Refused, StreamRecord
from .messages import (
    SIGNALS,
    TO_WORKER,
    AddListener,
    Ask,
    Beat,
    Change,
    Learn,
    Learned,
    Limit,
    Listen,
    LogLine,
    Quit,
    Receiver,
    RemoveListener,
    Setup,
    StopListening,
    ToWorker,
    WantRecords,
    encode,
)
from .relay import Relay, Share
from .shared import SharedCounts

log = logging.getLogger("meshgate.relay")

BEAT_SECONDS: Final = 0.5
_MOST_TOLD: Final = 10_000  # Refusals and records kept between two beats; what is over is counted.


class Worker:
    """The parent's orders carried out, and what came to pass told."""

    def __init__(self, setup: Setup, channel: trio.SocketStream) -> None:
        self.wants_records = setup.records
        counts = SharedCounts(setup.counts, setup.workers, setup.worker)
        table = RouteTable.of("", "", "default", iter(()))
        self._relay = Relay(table, setup.limits, self, Share(setup.worker, counts), self._ask)
        for name, descriptor in setup.listeners:
            self._relay.adopt(name, socket.socket(fileno=descriptor))
        self._drain_seconds = setup.drain_seconds
        self._channel = channel
        self._sending = trio.Lock()
        self._told = Counters()
        self._refused: list[Refused] = []
        self._ended: list[StreamRecord] = []
        self._log: list[LogLine] = []
        self._asked: list[str] = []
        self._question = trio.Event()
        self._dropped = 0

    def on_refused(self, refused: Refused) -> None:
        """Keep a refusal for the next beat."""
        if len(self._refused) < _MOST_TOLD:
            self._refused.append(refused)
        else:
            self._dropped += 1

    def on_ended(self, record: StreamRecord) -> None:
        """Keep the record of an ended stream for the next beat."""
        if len(self._ended) < _MOST_TOLD:
            self._ended.append(record)
        else:
            self._dropped += 1

    def on_log(self, level: int, text: str) -> None:
        """Keep a line for the parent's log."""
        if len(self._log) < _MOST_TOLD:
            self._log.append(LogLine(level, text))

    async def run(self, receiver: Receiver[ToWorker]) -> None:
        """Relay and obey until the parent says so, or is gone and the streams have ended."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._relay.run)
            nursery.start_soon(self._beat)
            nursery.start_soon(self._put_questions)
            order = await receiver.next()
            while order is not None and not isinstance(order, Quit):
                if isinstance(order, AddListener):
                    self._add_listener(order, receiver.descriptors.popleft())
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
            while self._relay.active:  # noqa: ASYNC110 (a stream's end wakes nobody)
                await trio.sleep(0.05)

    def _add_listener(self, order: AddListener, descriptor: int) -> None:
        # Open streams are worth more than a listener: what takes more descriptors than there are must not end them.
        if descriptor < 0:
            log.error("no descriptor left for a listener, other workers serve it: listener=%s", order.name)
            return
        sock = socket.socket(fileno=descriptor)
        try:
            sock.setblocking(False)
            if order.listening:
                self._relay.listen_also(order.name, sock)
            else:
                self._relay.adopt(order.name, sock)
        except OSError as error:
            sock.close()
            log.error("a listener cannot be served here, other workers do: listener=%s: %s", order.name, error)  # noqa: TRY400

    async def _obey(self, order: ToWorker) -> None:
        if isinstance(order, Change):
            self._relay.install(changed(self._relay.table, order.table_change()))
        elif isinstance(order, Learned):
            await self._relay.learned(order.name)
        elif isinstance(order, Limit):
            self._relay.limit(order.limits)
        elif isinstance(order, Listen):
            self._relay.listen()
        elif isinstance(order, RemoveListener):
            self._relay.close_listener(order.host, order.port)
        elif isinstance(order, WantRecords):
            self.wants_records = order.wanted
        elif isinstance(order, StopListening):
            self._relay.stop_listening()
            await self._tell()
        elif isinstance(order, Ask):
            await self._tell(order)

    async def _beat(self) -> None:
        while True:
            self._relay.relieve()
            await self._tell()
            await trio.sleep(BEAT_SECONDS)

    def _ask(self, name: str) -> None:
        self._asked.append(name)
        self._question.set()

    async def _put_questions(self) -> None:
        while True:
            await self._question.wait()
            self._question = trio.Event()
            names, self._asked = self._asked, []
            with trio.CancelScope(shield=True):
                await self._send(b"".join(encode(Learn(name)) for name in names))

    async def _tell(self, question: Ask | None = None) -> None:
        now = self._relay.ended()
        received, sent, carried = self._relay.open_bytes() if question is not None else (0, 0, {})
        beat = Beat(
            now.since(self._told),
            self._refused,
            self._ended,
            self._dropped,
            question=question.question if question is not None else 0,
            open_received=received,
            open_sent=sent,
            open_carried=carried,
            streams=self._relay.connections() if question is not None and question.streams else [],
        )
        lines, self._log = self._log, []
        data = b"".join(map(encode, lines)) + encode(beat)
        self._told, self._refused, self._ended, self._dropped = now, [], [], 0
        # What is taken out has to be told, and a half message would be the end of all understanding. The parent reads,
        # or is dead.
        with trio.CancelScope(shield=True):
            await self._send(data)

    async def _send(self, data: bytes) -> None:
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
        self._worker.on_log(record.levelno, self.format(record))


async def _main(descriptor: int) -> None:
    channel = trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=descriptor)))
    receiver = Receiver(channel, TO_WORKER, takes_descriptors=True)
    setup = await receiver.next()
    if not isinstance(setup, Setup):
        return
    worker = Worker(setup, channel)
    logging.getLogger("meshgate").addHandler(_ToParent(worker))
    await worker.run(receiver)


if __name__ == "__main__":
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    trio.run(_main, int(sys.argv[1]))
