"""Counts that all worker processes share, so that limits hold for the gateway and not for each worker.

Each worker has a row of its own in memory, which it alone can write to, and reads the rows of the others, without
locks. A count is therefore exact for a worker's own streams and at most moments old for the others'. A worker that
somebody took over can lie in its own row, and no more: no row can be shrunk or grown under those that read it, and the
others' rows are open to it for reading alone.

What is counted by key (clients, destinations) is in a count-min sketch of two rows in one: each key has two places,
which a secret hash picks, and the smaller count is believed. A key is charged for others only if both of its places are
shared, which nobody outside can bring about on purpose.
"""

import fcntl
import mmap
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from itertools import chain
from typing import Final

_PLACES: Final = 1 << 18
_HEADER_BYTES: Final = 64
_ROW_BYTES: Final = _HEADER_BYTES + 4 * _PLACES
NO_ROW: Final = -1
_KNOWN: Final = 4096  # Keys whose places are kept: the same clients come again and again.


class CountRows:
    """The rows as the parent has them, which reads none of them. Close it.

    `rows` has two descriptors of each row, one to write to and one to read; `key` is the secret of the hash.

    Args:
        key, rows: begin with those that another parent has made.
        added: gets the descriptor to read of each row that comes later; the workers that there are have to know of it.
    """

    def __init__(
        self,
        key: bytes = b"",
        rows: Iterable[tuple[int, int]] = (),
        added: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._added = added
        self.key = key or os.urandom(16)
        self.rows = list(rows)
        self._free: list[int] = []

    def take(self) -> int:
        """A row for a worker, all zero: one that was given back, or a new one.

        Raises:
            OSError: there is no descriptor or memory to be had.
        """
        if self._free:
            return self._free.pop()
        row = os.memfd_create("meshgate-counts", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(row, _ROW_BYTES)  # Pages that are never written cost nothing.
            fcntl.fcntl(row, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            readable = os.open(f"/proc/self/fd/{row}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            os.close(row)
            raise
        self.rows.append((row, readable))
        self._added(readable)
        return len(self.rows) - 1

    def take_if_any(self) -> int:
        """As `take`; NO_ROW where there is none to be had."""
        try:
            return self.take()
        except OSError:
            return NO_ROW

    def active(self, row: int) -> int:
        """The streams that the worker of a row has open."""
        return int.from_bytes(os.pread(self.rows[row][1], 8, 0), sys.byteorder)

    def clear(self, row: int) -> None:
        """Forget what a row counts: the worker it belongs to is dead."""
        if row != NO_ROW:
            os.pwrite(self.rows[row][0], bytes(_ROW_BYTES), 0)

    def give_back(self, row: int) -> None:
        """Let another worker have a row: the one it belonged to is dead."""
        self.clear(row)
        if row != NO_ROW:
            self._free.append(row)

    def seen_by(self, row: int) -> list[int]:
        """The descriptors that the worker of a row needs: its own row's to write to, the others' to read."""
        return [ends[0] if place == row else ends[1] for place, ends in enumerate(self.rows)]

    def close(self) -> None:
        """Let go of the rows; who has mapped them keeps them."""
        for descriptor in chain.from_iterable(self.rows):
            os.close(descriptor)


class SharedCounts:
    """The rows of all workers, seen from one of them. Without arguments: a row that no other process sees.

    Args:
        rows: their descriptors, as `CountRows.seen_by` gives them; they are not needed any more afterwards.
        own: which of them is this worker's.
        key: `CountRows.key`.
    """

    def __init__(self, rows: Sequence[int] = (-1,), own: int = 0, key: bytes = b"") -> None:
        self._active: list[memoryview] = []
        self._sketches: list[memoryview] = []
        for number, row in enumerate(rows):
            self.add_row(row, mmap.ACCESS_WRITE if number == own else mmap.ACCESS_READ)
        self._own = own
        self._key = key
        self._known: dict[str, tuple[int, int]] = {}

    def add_row(self, row: int, access: int = mmap.ACCESS_READ) -> None:
        """Read another worker's row, too; the descriptor is not needed any more afterwards."""
        mapped = memoryview(mmap.mmap(row, _ROW_BYTES, access=access))
        self._active.append(mapped[:_HEADER_BYTES].cast("Q"))
        self._sketches.append(mapped[_HEADER_BYTES:].cast("I"))

    @property
    def active(self) -> int:
        """Streams open in all workers."""
        active = 0
        for row in self._active:
            active += row[0]
        return active

    def add(self, change: int) -> None:
        """Count streams of this worker in or out."""
        self._active[self._own][0] += change

    def keyed(self, key: str) -> int:
        """What all workers have counted under a key."""
        first, second = self._places(key)
        return min(sum(row[first] for row in self._sketches), sum(row[second] for row in self._sketches))

    def add_keyed(self, key: str, change: int) -> None:
        """Count in or out under a key."""
        row = self._sketches[self._own]
        for place in self._places(key):
            row[place] += change

    def _places(self, key: str) -> tuple[int, int]:
        places = self._known.get(key)
        if places is None:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            digest = blake2b(key.encode(), digest_size=8, key=self._key).digest()
            places = int.from_bytes(digest[:4]) % _PLACES, int.from_bytes(digest[4:]) % _PLACES
            self._known[key] = places
        return places
