"""What one worker counts all see, and none but itself can change."""

import ctypes
import fcntl
import mmap
import os
import resource
from collections.abc import Iterator

import pytest

from meshgate.adapters.relay.shared_counts import NO_ROW, CountRows, SharedCounts

from .streams import open_descriptors


@pytest.fixture
def rows() -> Iterator[CountRows]:
    made = CountRows()
    assert [made.take() for _ in range(3)] == [0, 1, 2]
    yield made
    made.close()


def seen(rows: CountRows, worker: int) -> SharedCounts:
    return SharedCounts(rows.seen_by(worker), worker, rows.key)


def test_all_see_what_each_counts_until_its_row_is_cleared(rows: CountRows) -> None:
    workers = [seen(rows, worker) for worker in range(3)]
    for number, worker in enumerate(workers):
        worker.add(number + 1)
        worker.add_keyed("192.0.2.1", 10 * (number + 1))
    assert [worker.active for worker in workers] == [6] * 3
    assert [worker.keyed("192.0.2.1") for worker in workers] == [60] * 3
    assert workers[0].keyed("192.0.2.2") == 0
    rows.clear(2)
    assert [worker.active for worker in workers] == [3] * 3
    assert [worker.keyed("192.0.2.1") for worker in workers] == [30] * 3


def test_counts_without_others_are_nobody_elses() -> None:
    one, other = SharedCounts(), SharedCounts()
    one.add(1)
    one.add_keyed("x", 2)
    assert (one.active, one.keyed("x"), other.active, other.keyed("x")) == (1, 2, 0, 0)


def test_no_row_is_shrunk_or_grown_under_those_who_read_it(rows: CountRows) -> None:
    size = os.fstat(rows.rows[0][0]).st_size
    for other in (0, size - 4096, size + 4096):
        with pytest.raises(PermissionError):
            os.ftruncate(rows.rows[0][0], other)
    with pytest.raises(PermissionError):
        fcntl.fcntl(rows.rows[0][0], fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)  # Nor closed for who writes it.


def test_no_descriptor_is_left_of_a_row_for_which_there_is_no_room(rows: CountRows) -> None:
    before, usual = open_descriptors(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, usual[1]))
    try:
        assert rows.take_if_any() == NO_ROW
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert open_descriptors() == before


def test_the_others_rows_cannot_be_written_by_what_a_worker_is_given(rows: CountRows) -> None:
    own, foreign, _ = rows.seen_by(0)
    os.pwrite(own, b"\0", 0)
    for attempt in (lambda: os.pwrite(foreign, b"\1", 0), lambda: mmap.mmap(foreign, 4096, access=mmap.ACCESS_WRITE)):
        with pytest.raises(OSError, match=r"Bad file descriptor|Permission denied"):
            attempt()
    mapped = mmap.mmap(foreign, 4096, access=mmap.ACCESS_READ)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    address = libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_SHARED, foreign, 0)
    assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(4096), mmap.PROT_READ | mmap.PROT_WRITE) == -1
    libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(4096))
    mapped.close()
