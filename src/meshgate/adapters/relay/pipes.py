"""The pool of kernel pipes that spliced bytes go through.

A pipe belongs to a stream only while it holds bytes of it; an empty one goes back at once. So the number of pipes
follows the number of heavy streams that are blocked at the same moment, not the number of streams.
"""

import contextlib
import fcntl
import os
from typing import Final

WANTED_BYTES: Final = 1 << 20
USEFUL_BYTES: Final = 1 << 16  # The kernel's default. A smaller pipe (quota used up) is slower than copying.
_KEPT: Final = 32


class Pipe:
    """A pipe and how many bytes are inside."""

    __slots__ = ("capacity", "inside", "reader", "writer")

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.inside = 0
        # Unprivileged users have a quota of large pipes; past it the kernel refuses and the default size stays.
        with contextlib.suppress(OSError):
            fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, WANTED_BYTES)
        self.capacity = fcntl.fcntl(self.writer, fcntl.F_GETPIPE_SZ)

    def close(self) -> None:
        """Close both ends; bytes inside are gone."""
        os.close(self.reader)
        os.close(self.writer)


class PipePool:
    """Lends pipes, at most `limit` at a time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lent = 0
        self._idle: list[Pipe] = []

    def take(self) -> Pipe | None:
        """An empty pipe, or None when there is none to be had: then copy."""
        if self._lent >= self._limit:
            return None
        pipe = self._idle.pop() if self._idle else self._make()
        if pipe is not None:
            self._lent += 1
        return pipe

    def give(self, pipe: Pipe) -> None:
        """Take a pipe back. One that still holds bytes is closed: they must never reach another stream."""
        self._lent -= 1
        if pipe.inside or len(self._idle) >= _KEPT:
            pipe.close()
        else:
            self._idle.append(pipe)

    def close(self) -> None:
        """Close the idle pipes."""
        while self._idle:
            self._idle.pop().close()

    def _make(self) -> Pipe | None:
        try:
            pipe = Pipe()
        except OSError:
            return None
        if pipe.capacity < USEFUL_BYTES:
            pipe.close()
            return None
        return pipe
