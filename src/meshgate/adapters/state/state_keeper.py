"""Keeps the catalog on disk while the gateway runs.

What always holds: trio's thread never waits for the disk, there is one write at a time and at most one a second, fewer
where a write takes long, and whatever the disk does, the gateway goes on. A failure is said when it begins, when it
changes and when it ends.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import structlog
import trio

from meshgate.core.catalog import Snapshot

from .state_file import Kept, sweep, write

log = structlog.get_logger(module="meshgate.state")

# Seconds between two writes, and how many times the processor time of the last one beyond what a small catalog takes:
# one of 5,000 services that changes each second must not keep a core busy with its file.
PACE: Final = 1.0
REST: Final = 1000
SMALL: Final = 0.01
# After failures the next try comes later and later, up to this many seconds.
LONGEST_PAUSE: Final = 60.0
# An unchanged catalog is written again that often, in seconds, so that the file tells how old it really is.
CONFIRM: Final = 300.0
# Seconds that the end waits for a last write.
FAREWELL: Final = 1.0


class StateKeeper:
    """Writes the catalog to a folder. `problem` says why that fails, in one line, and is empty while it works.

    Args:
        folder: where; made when it is missing.
        gateway_service: whose catalog it is.
        current: whether the catalog is known to be Consul's present one. While it is not, the file is left alone.
    """

    def __init__(self, folder: Path, gateway_service: str, current: Callable[[], bool]) -> None:
        self.problem = ""
        self._folder = folder
        self._service = gateway_service
        self._current = current
        self._latest: tuple[Snapshot, Mapping[str, tuple[str, ...]]] | None = None
        self._due = False
        self._news = trio.Event()
        self._failures = 0
        self._cost = 0.0
        # A write that was given up may still hang in its thread: the next one must not overtake it.
        self._one = trio.CapacityLimiter(1)

    def keep(self, snapshot: Snapshot, addresses: Mapping[str, tuple[str, ...]]) -> None:
        """Write this soon; what was to be written before it is dropped. Returns at once."""
        if self._latest is not None and self._latest[0] is snapshot and self._latest[1] == addresses:
            return
        self._latest = (snapshot, dict(addresses))
        self._due = True
        self._news.set()

    async def run(self) -> None:
        """Write until cancelled; then write what is left, for at most `FAREWELL` seconds."""
        try:
            await trio.to_thread.run_sync(sweep, self._folder, abandon_on_cancel=True, limiter=self._one)
            while True:
                with trio.move_on_after(CONFIRM):
                    await self._news.wait()
                if self._due or self._current():
                    await self._write()
                pause = max(PACE * 2**self._failures, REST * (self._cost - SMALL))
                await trio.sleep(min(LONGEST_PAUSE, pause))
        finally:
            if self._due:
                with trio.move_on_after(FAREWELL, shield=True):
                    await self._write()

    async def _write(self) -> None:
        if self._latest is None:
            return
        self._news = trio.Event()
        snapshot, addresses = self._latest
        self._due = True
        kept = Kept(snapshot, self._service, time.time(), addresses)
        try:
            # Given up rather than waited for: a disk that hangs must not hold up the end of the gateway.
            self._cost = await trio.to_thread.run_sync(
                _timed_write, self._folder, kept, abandon_on_cancel=True, limiter=self._one
            )
        except Exception as error:  # noqa: BLE001 (whatever fails here, streams matter more)
            self._news.set()
            self._failures = min(self._failures + 1, 10)
            self._report((isinstance(error, OSError) and error.strerror) or f"{type(error).__name__}: {error}")
            return
        self._due = self._latest[0] is not snapshot or self._latest[1] is not addresses
        self._failures = 0
        self._report("")

    def _report(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.warning("the catalog cannot be kept on disk", folder=str(self._folder), error=problem)
        elif self.problem and not problem:
            log.info("the catalog is kept on disk again", folder=str(self._folder))
        self.problem = problem


def _timed_write(folder: Path, kept: Kept) -> float:
    """Write; the seconds of processor time that it took."""
    before = time.thread_time()
    write(folder, kept)
    return time.thread_time() - before
