"""Lines to a descriptor without ever making the caller wait.

A thread writes; callers only put lines into a bounded queue. When the reader of the other end stands still, the queue
fills and further lines are dropped and counted: losing log lines is better than stopping every stream. What happens to
the count is the owner's to say: a line of its own as soon as there is room again, or anything else.

What always holds: a line comes out whole or not at all, unless writing fails in its middle for good. What is left of
such a line is written first when writing works again, so that no other line ever continues it.
"""

import os
import select
import stat
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

QUEUE_LINES: Final = 10_000
_BATCH_LINES: Final = 256

# Two writers may share one pipe (stdout and stderr of a container), and a long write to a pipe is not atomic.
_locks: Final[dict[tuple[int, int], threading.Lock]] = {}


class LogWriter:
    """Writes lines to the descriptor `fd`, which stays open when the writer is closed.

    Args:
        fd: where to; blocking or not. `redirect` changes it.
        report_dropped: hears how many lines were dropped since the last time, once lines get through again; the line
            it returns is written.
        on_error: hears of the first failure to write after a success, in the writer's thread.
    """

    def __init__(
        self,
        fd: int,
        report_dropped: Callable[[int], str | None],
        *,
        on_error: Callable[[OSError], None] | None = None,
    ) -> None:
        self._fd = fd
        self._lock = _lock_of(fd)
        self._report_dropped = report_dropped
        self._on_error = on_error
        # SimpleQueue.put may be called from anywhere, also from a destructor that interrupts another put.
        self._queue: SimpleQueue[str | Callable[[], None] | None] = SimpleQueue()
        self._rest = b""
        self._failing = False
        self._reported = 0
        self._closed = False
        self.dropped = 0
        """Lines that were not written, ever."""
        self._thread = threading.Thread(target=self._run, name="meshgate-log", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Take a line (without its newline). Never blocks, never raises."""
        if self._closed or self._queue.qsize() >= QUEUE_LINES:
            self.dropped += 1
        else:
            self._queue.put(line)

    def call(self, action: Callable[[], None]) -> None:
        """Call `action`, which must not raise, in the writer's thread, behind the lines taken so far."""
        if not self._closed:
            self._queue.put(action)

    def flush(self, timeout: float) -> bool:
        """Wait until the lines taken so far are written; blocks for at most `timeout` seconds. Whether they are."""
        written = threading.Event()
        self._queue.put(written.set)
        return written.wait(timeout) and not self._rest

    def redirect(self, fd: int) -> None:
        """Write to another descriptor from now on. Only for actions given to `call` and for callbacks."""
        self._fd, self._lock = fd, _lock_of(fd)
        self.dropped += bool(self._rest)
        self._rest = b""

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
            lines: list[str] = []
            for item in taken:
                if isinstance(item, str):
                    lines.append(item)
                    continue
                self._put_out(lines)
                lines = []
                if item is None:
                    closing = True
                else:
                    item()
            self._put_out(lines)

    def _put_out(self, lines: list[str]) -> None:
        if not lines:
            return
        lost = self._write_lines(lines)
        self.dropped += lost
        missing = self.dropped - self._reported
        if lost or self._rest or not missing:
            return
        line = self._report_dropped(missing)
        if line is None or not self._write_lines([line]):
            self._reported += missing

    def _write_lines(self, lines: list[str]) -> int:
        """Write them; gives how many were lost. One that was cut stays in `_rest` and is not lost yet."""
        encoded = [f"{line}\n".encode("utf-8", "backslashreplace") for line in lines]
        rest = memoryview(self._rest + b"".join(encoded))
        try:
            with self._lock:
                while rest:
                    rest = rest[self._write_some(rest) :]
            self._failing = False
        except OSError as error:
            if not self._failing and self._on_error is not None:
                self._on_error(error)
            self._failing = True
        return self._keep_cut_line(rest, encoded)

    def _keep_cut_line(self, rest: memoryview, lines: list[bytes]) -> int:
        lost = 0
        left = len(rest)
        for line in reversed(lines):
            if left < len(line):
                break
            left -= len(line)
            lost += 1
        self._rest = bytes(rest[:left])
        return lost

    def _write_some(self, data: memoryview) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            # Somebody who shares the descriptor made it non-blocking.
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            poll.poll()
            return 0


def _lock_of(fd: int) -> threading.Lock:
    try:
        status = os.fstat(fd)
    except OSError:
        return threading.Lock()
    if stat.S_ISREG(status.st_mode):  # where appending is atomic
        return threading.Lock()
    return _locks.setdefault((status.st_dev, status.st_ino), threading.Lock())
