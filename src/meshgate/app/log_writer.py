"""Lines to a descriptor without ever making the caller wait.

A thread writes; callers only put lines into a bounded queue. When the reader of the other end stands still, the queue
fills and further lines are dropped and counted: losing log lines is better than stopping every stream. The count is
reported in a line of its own as soon as there is room again.
"""

import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Final

QUEUE_LINES: Final = 10_000
_BATCH_LINES: Final = 256


class LogWriter:
    """Writes lines to the descriptor `fd`, which stays open when the writer is closed.

    Args:
        fd: where to; blocking or not.
        report_dropped: makes the line that reports how many lines were dropped.
        limit: lines that may wait.
    """

    def __init__(self, fd: int, report_dropped: Callable[[int], str], *, limit: int = QUEUE_LINES) -> None:
        self._fd = fd
        self._report_dropped = report_dropped
        self._limit = limit
        # SimpleQueue.put may be called from anywhere, also from a destructor that interrupts another put.
        self._queue: SimpleQueue[str | None] = SimpleQueue()
        self._reported = 0
        self._closed = False
        self.dropped = 0
        """Lines that were not written, ever."""
        self._thread = threading.Thread(target=self._run, name="meshgate-log", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Take a line (without its newline). Never blocks, never raises."""
        if self._closed or self._queue.qsize() >= self._limit:
            self.dropped += 1
        else:
            self._queue.put(line)

    def close(self, timeout: float) -> None:
        """Write what waits, at most for `timeout` seconds, and take no more lines."""
        self._closed = True
        self._queue.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        closing = False
        while not closing:
            taken = [self._queue.get()]
            # Nobody else takes, so what is there stays there.
            while len(taken) < _BATCH_LINES and not self._queue.empty():
                taken.append(self._queue.get())
            closing = None in taken
            self._put_out([line for line in taken if line is not None])

    def _put_out(self, lines: list[str]) -> None:
        if lines and not self._write_all("".join(f"{line}\n" for line in lines)):
            self.dropped += len(lines)
            return
        missing = self.dropped - self._reported
        if missing and self._write_all(f"{self._report_dropped(missing)}\n"):
            self._reported += missing

    def _write_all(self, text: str) -> bool:
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:
                # Somebody who shares the descriptor made it non-blocking.
                with suppress(OSError):
                    select.select((), (self._fd,), ())
            except OSError:
                return False
        return True
