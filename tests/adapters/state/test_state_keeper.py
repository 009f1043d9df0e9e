"""Writing beside the traffic: gathered, never in the way, and no failure is the gateway's."""

import errno
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from meshgate.adapters import state
from meshgate.adapters.state import Kept, StateKeeper, read
from meshgate.core.catalog import Snapshot

from .catalogs import catalog


@dataclass
class Disk:
    """Stands for the disk: notes when what was written, and fails or hangs on demand."""

    written: list[tuple[float, Kept]] = field(default_factory=list)
    tries: list[float] = field(default_factory=list)
    failure: Exception | None = None
    blocked: threading.Event | None = None
    threads: set[int] = field(default_factory=set)

    def write(self, _: Path, kept: Kept) -> None:
        self.threads.add(threading.get_ident())
        now = trio.from_thread.run_sync(trio.current_time) if self.blocked is None else 0.0
        self.tries.append(now)
        if self.blocked is not None:
            self.blocked.wait(10)
        if self.failure is not None:
            raise self.failure
        self.written.append((now, kept))

    @property
    def names(self) -> list[str]:
        return [kept.snapshot.trust_domain for _, kept in self.written]


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(state, "write", disk.write)
    # A disk that costs nothing, however busy this machine is: the keeper rests by what a write has cost.
    monkeypatch.setattr("time.thread_time", lambda: 0.0)
    return disk


@pytest.fixture
def patient_clock() -> MockClock:
    """A clock that jumps only when threads have had their time too."""
    return MockClock(autojump_threshold=0.02)


@asynccontextmanager
async def keeping(folder: Path, *, current: bool = True) -> AsyncIterator[StateKeeper]:
    it = StateKeeper(folder, "mesh-gateway", lambda: current)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(it.run)
        yield it
        nursery.cancel_scope.cancel()


def version(name: str) -> Snapshot:
    return replace(catalog(), trust_domain=name)


async def until(holds: object, seconds: float = 5, interval: float = 0.01) -> None:
    assert callable(holds)
    with trio.fail_after(seconds):
        while not holds():
            await trio.sleep(interval)


async def test_a_catalog_is_on_disk_soon_with_its_names_addresses(tmp_path: Path) -> None:
    async with keeping(tmp_path) as it:
        it.keep(catalog(), {"web.example": ("192.0.2.8",)})
        await until(lambda: read(tmp_path) is not None)
    found = read(tmp_path)
    assert found is not None
    assert (found.snapshot, found.gateway_service) == (catalog(), "mesh-gateway")
    assert found.addresses == {"web.example": ("192.0.2.8",)}


async def test_many_changes_are_one_write_a_second_and_the_last_one_counts(
    tmp_path: Path, disk: Disk, patient_clock: MockClock
) -> None:
    async with keeping(tmp_path) as it:
        for number in range(60):
            it.keep(version(str(number)), {})
            await trio.sleep(0.05)
        await trio.sleep(2)
        await until(lambda: disk.names[-1:] == ["59"], seconds=1e6, interval=30)
    # 5 s by the clock, which may jump while the disk's thread is slow: then they are fewer.
    assert len(disk.written) <= 5 / state.PACE


@pytest.mark.parametrize(("cost", "pause"), [(0.009, 1.0), (0.04, 30.0), (5.0, 60.0)])
async def test_the_more_processor_time_a_write_takes_the_fewer_there_are(
    tmp_path: Path, patient_clock: MockClock, monkeypatch: pytest.MonkeyPatch, cost: float, pause: float
) -> None:
    began: list[float] = []

    def costly(_folder: Path, _kept: object) -> float:
        began.append(trio.from_thread.run_sync(trio.current_time))
        return cost

    monkeypatch.setattr(state, "_timed_write", costly)
    async with keeping(tmp_path) as it:
        for number in range(4):
            it.keep(version(str(number)), {})
            await until(lambda number=number: len(began) > number, seconds=1000, interval=2)
    # The clock jumps while the disk's thread is slow to begin; the next greater pause is far off.
    assert all(pause - 2.1 <= later - earlier < pause + 20 for earlier, later in pairwise(began))


async def test_trios_thread_never_waits_for_the_disk(tmp_path: Path, disk: Disk) -> None:
    disk.blocked = threading.Event()
    async with keeping(tmp_path) as it:
        it.keep(version("a"), {})
        await until(lambda: disk.tries)
        with trio.fail_after(20):
            for _ in range(10):
                it.keep(version("b"), {})
                await trio.lowlevel.checkpoint()
        disk.blocked.set()
        await until(lambda: disk.written)
    assert threading.get_ident() not in disk.threads


async def test_the_end_waits_for_a_hanging_disk_only_a_second(
    tmp_path: Path, disk: Disk, patient_clock: MockClock
) -> None:
    disk.blocked = threading.Event()
    start = 0.0
    async with keeping(tmp_path) as it:
        it.keep(version("a"), {})
        # The mock clock jumps only while all tasks wait, which one in a thread does not count for.
        while not disk.tries:
            await trio.lowlevel.checkpoint()
        start = trio.current_time()
    assert trio.current_time() - start <= state.FAREWELL + 0.1
    disk.blocked.set()


async def test_the_last_catalog_is_written_at_the_end(tmp_path: Path, disk: Disk, patient_clock: MockClock) -> None:
    async with keeping(tmp_path) as it:
        it.keep(version("a"), {})
        await until(lambda: disk.written)
        it.keep(version("b"), {})
    assert disk.names == ["a", "b"]


async def test_a_failure_is_said_once_and_its_end_too_and_tries_get_rare(
    tmp_path: Path, disk: Disk, patient_clock: MockClock
) -> None:
    disk.failure = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with capture_logs() as logs:
        async with keeping(tmp_path) as it:
            it.keep(version("a"), {})
            minutes = partial(until, seconds=1e6, interval=30)
            await minutes(lambda: len(disk.tries) > 10)
            assert it.problem == "No space left on device"
            # The clock may jump while the disk's thread is slow: later than this, never sooner.
            pauses = [after - before for before, after in pairwise(disk.tries)]
            assert all(pause >= least for pause, least in zip(pauses, [2, 4, 8, 16, 32, *[60] * 5], strict=False))
            disk.failure = OSError(errno.EROFS, os.strerror(errno.EROFS))
            await minutes(lambda: it.problem == "Read-only file system")
            disk.failure = None
            await minutes(lambda: it.problem == "")
    assert disk.names == ["a"]
    assert [(entry["log_level"], entry.get("error")) for entry in logs] == [
        ("warning", "No space left on device"),
        ("warning", "Read-only file system"),
        ("info", None),
    ]


async def test_a_mistake_of_ours_fails_no_gateway_either(tmp_path: Path, disk: Disk, patient_clock: MockClock) -> None:
    disk.failure = TypeError("not encodable")
    async with keeping(tmp_path) as it:
        it.keep(version("a"), {})
        await trio.sleep(10)
        assert it.problem == "unexpected TypeError: not encodable"


async def test_a_folder_that_cannot_be_written_is_reported_and_used_once_it_can(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.touch()
    async with keeping(folder) as it:
        it.keep(catalog(), {})
        await until(lambda: it.problem == "File exists")
        folder.unlink()
        await until(lambda: not it.problem)
    assert read(folder) is not None


@pytest.mark.parametrize("current", [True, False])
async def test_an_unchanged_catalog_is_confirmed_while_it_is_consuls_and_only_then(
    tmp_path: Path, disk: Disk, patient_clock: MockClock, current: bool
) -> None:
    snapshot = version("a")
    async with keeping(tmp_path, current=current) as it:
        it.keep(snapshot, {})
        await until(lambda: disk.written)
        it.keep(snapshot, {})
        await trio.sleep(1000)
    assert len(disk.written) == (4 if current else 1)


async def test_without_a_catalog_nothing_is_written(tmp_path: Path, disk: Disk, patient_clock: MockClock) -> None:
    async with keeping(tmp_path):
        await trio.sleep(1000)
    assert disk.tries == []
