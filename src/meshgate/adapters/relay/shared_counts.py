"""Counts that all worker processes share, so that limits hold for the gateway and not for each worker.

A file in memory that every worker maps: each writes its own row only and reads all rows, without locks. A count is
therefore exact for a worker's own streams and at most moments old for the others'.

What is counted by key (clients, destinations) is in a count-min sketch of two rows in one: each key has two places,
which a secret hash picks, and the smaller count is believed. A key is charged for others only if both of its places are
shared, which nobody outside can bring about on purpose.
"""

import mmap
import os
from hashlib import blake2b
from typing import Final

_PLACES: Final = 1 << 18
_HEADER_BYTES: Final = 64
_KEY: Final = slice(16, 32)  # Where the secret of the hash lies, in the first row's header.
_ROW_BYTES: Final = _HEADER_BYTES + 2 * _PLACES
_MOST: Final = 0xFFFF


class SharedCounts:
    """The rows of all workers, seen from one of them.

    Args:
        descriptor: what `create` returned, in this process, which stays the caller's to close; -1 for rows that no
            other process sees.
        workers: how many rows there are.
        row: the row of this worker.
    """

    def __init__(self, descriptor: int, workers: int, row: int) -> None:
        self._map = mmap.mmap(descriptor, workers * _ROW_BYTES)
        view = memoryview(self._map)
        rows = [view[start : start + _ROW_BYTES] for start in range(0, workers * _ROW_BYTES, _ROW_BYTES)]
        self._active = [each[:_HEADER_BYTES].cast("Q") for each in rows]
        self._sketches = [each[_HEADER_BYTES:].cast("H") for each in rows]
        self._row = row
        self._key = bytes(self._map[_KEY])

    @staticmethod
    def create(workers: int) -> int:
        """A descriptor of new rows, all zero. Pages that are never written cost nothing."""
        descriptor = os.memfd_create("meshgate-counts", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, workers * _ROW_BYTES)
        os.pwrite(descriptor, os.urandom(_KEY.stop - _KEY.start), _KEY.start)
        return descriptor

    @property
    def active(self) -> int:
        """Streams open in all workers."""
        return sum(row[0] for row in self._active)

    def add(self, change: int) -> None:
        """Count streams of this worker in or out."""
        self._active[self._row][0] += change

    def keyed(self, key: str) -> int:
        """What all workers have counted under a key."""
        first, second = self._places(key)
        return min(sum(row[first] for row in self._sketches), sum(row[second] for row in self._sketches))

    def add_keyed(self, key: str, change: int) -> None:
        """Count in or out under a key."""
        row = self._sketches[self._row]
        for place in self._places(key):
            row[place] = min(row[place] + change, _MOST)

    def clear(self) -> None:
        """Forget the row: the worker it belonged to is dead."""
        self._active[self._row][0] = 0
        start = self._row * _ROW_BYTES + _HEADER_BYTES
        self._map[start : start + _ROW_BYTES - _HEADER_BYTES] = bytes(_ROW_BYTES - _HEADER_BYTES)

    def _places(self, key: str) -> tuple[int, int]:
        digest = blake2b(key.encode(), digest_size=8, key=self._key).digest()
        return int.from_bytes(digest[:4]) % _PLACES, int.from_bytes(digest[4:]) % _PLACES
