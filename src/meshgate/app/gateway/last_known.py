"""The last known good catalog, from the gateway's side: when its file is believed, and for how long.

At the start the file is read. It stands in for Consul where Consul does not answer: for everything while there is no
agent or no leader, and for what Consul has not answered yet once there is. From its first answer on Consul alone says
what exists: a name that only the file has is gone. A file of another gateway service, datacenter or partition is
refused as soon as that is known.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog
import trio

from meshgate.adapters.consul import CatalogWatcher
from meshgate.adapters.state import Kept, StateFileError, StateKeeper, read
from meshgate.core.catalog import Snapshot
from meshgate.core.warm_start import PendingSources, merge_last_known

log = structlog.get_logger(module="meshgate.state")

# Seconds that the start waits for the agent, and, once it has answered, for the catalog, before the file is used.
AGENT_PATIENCE: Final = 2.5
CATALOG_PATIENCE: Final = 8.0
# Seconds after Consul's first answer in which a datacenter without gateways proves nothing: servers that were just
# started learn of other datacenters by gossip.
REMOTES_PATIENCE: Final = 60.0
# Where a catalog is from, as it is said.
_DISK: Final = "disk"
_BEFORE: Final = "the version before"
# Seconds that a disk may take at the start.
_READ_TIMEOUT: Final = 10.0


class LastKnown:
    """The catalog on disk. Without a folder it does nothing.

    `from_disk` says whether streams are placed by the file alone, `kept` is its content while any of it is in use or
    may be. `service` and `partition` are this gateway's, "" for a partition that is not set; `current` says whether
    Consul answers, so that the catalog in use is its present one.
    """

    def __init__(self, folder: Path | None, service: str, partition: str, current: Callable[[], bool]) -> None:
        self.from_disk = False
        self.kept: Kept | None = None
        self._folder = folder
        self._service = service
        self._partition = partition
        self._keeper = None if folder is None else StateKeeper(folder, service, current)
        self._loaded_at = 0.0
        self._age_when_loaded = 0.0
        self._first_answer: float | None = None
        self._carried = 0
        self._where = _DISK

    def go_on(self, snapshot: Snapshot, addresses: Mapping[str, tuple[str, ...]], age: float, *, stale: bool) -> None:
        """Take the catalog that the version before has used as the last known one: `age` seconds old, perhaps `stale`.

        It is used at once, and stands in for Consul where that does not answer, as one from disk does.
        """
        self._where, self.from_disk = _BEFORE, stale
        self._have(Kept(snapshot, self._service, time.time() - age, addresses), age)

    async def load(self) -> None:
        """Read the file. One that is not to be used is reported, and is as good as none."""
        if self._folder is None:
            return
        try:
            with trio.fail_after(_READ_TIMEOUT):
                kept = await trio.to_thread.run_sync(read, self._folder, abandon_on_cancel=True)
        except StateFileError as error:
            self._refuse(str(error))
            return
        except trio.TooSlowError:
            self._refuse(f"the state file in {self._folder} is not used: reading it takes too long")
            return
        if kept is None:
            log.info("no state file yet", folder=str(self._folder))
            return
        self._have(kept, max(0.0, time.time() - kept.saved))
        self._compare("the gateway service", kept.gateway_service, self._service)
        self._compare("partition", kept.snapshot.partition, self._partition or kept.snapshot.partition)

    def _have(self, kept: Kept, age: float) -> None:
        # Where Consul is not there to be asked before a stream is placed, no stream should wait for that.
        services = tuple(replace(service, cold=False) for service in kept.snapshot.services)
        self.kept = replace(kept, snapshot=replace(kept.snapshot, services=services))
        self._loaded_at, self._age_when_loaded = trio.current_time(), age

    @property
    def unkept(self) -> str:
        """Why a restart would have no catalog without Consul; "" where it would have one."""
        if self._keeper is None:
            return "MESHGATE_STATE_DIR is not set"
        return self._keeper.problem

    async def run(self) -> None:
        if self._keeper is not None:
            await self._keeper.run()

    @property
    def age(self) -> float:
        """Seconds since the file's catalog was last known to be Consul's, as far as the clocks can be trusted."""
        return self._age_when_loaded + trio.current_time() - self._loaded_at

    def accept(self, datacenter: str, partition: str) -> None:
        """Compare with where the agent is; afterwards `kept` is None and `from_disk` false if that is elsewhere."""
        if (kept := self.kept) is not None:
            self._compare("datacenter", kept.snapshot.datacenter, datacenter)
            self._compare("partition", kept.snapshot.partition, partition)

    def stand_in(self) -> Kept | None:
        """Begin to serve by the file alone; None where there is none to serve by."""
        if self.kept is not None:
            self.from_disk = True
            said = f"Consul does not answer: serving the last known catalog from {self._where}"
            log.warning(
                said,
                age_seconds=round(self.age),
                services=len(self.kept.snapshot.services),
                datacenters=len(self.kept.snapshot.remotes),
            )
        return self.kept

    def pending(self, watcher: CatalogWatcher) -> PendingSources:
        """What Consul has not answered yet, of what the file has."""
        if self.kept is None:
            return PendingSources()
        early = self._first_answer is None or trio.current_time() - self._first_answer < REMOTES_PATIENCE
        return watcher.unanswered(self.kept.snapshot, early=early)

    def completed(self, snapshot: Snapshot, pending: PendingSources) -> Snapshot:
        """Consul's catalog, and what it has not answered for as the file has it."""
        if self._first_answer is None:
            self._first_answer = trio.current_time()
        if self.from_disk:
            self.from_disk = False
            said = f"Consul answers: its catalog replaces the one from {self._where}"
            log.info(said, age_seconds=round(self.age))
        if self.kept is None:
            return snapshot
        result = merge_last_known(snapshot, self.kept.snapshot, pending)
        # What is not carried over is the same object.
        self._carried = len({id(it) for it in _records(result)} - {id(it) for it in _records(snapshot)})
        if result is snapshot:
            self.kept = None
        return result

    def keep(self, snapshot: Snapshot, addresses: Mapping[str, tuple[str, ...]]) -> None:
        """Have Consul's catalog written; not the one that came from the file."""
        if self._keeper is not None and not self.from_disk:
            self._keeper.keep(snapshot, addresses)

    def problems(self) -> list[str]:
        """What is worth knowing, a line each."""
        found = []
        # Each version that goes on has a moment in which Consul has not said all.
        late = trio.current_time() - self._loaded_at > CATALOG_PATIENCE or self._where == _DISK
        if self.kept is not None and self._carried and late:
            one = self._carried == 1
            them = "1 service or datacenter is" if one else f"{self._carried} services and datacenters are"
            found.append(f"{them} served from {self._where}: Consul has not answered yet")
        if self._keeper is not None and self._keeper.problem:
            found.append(f"the catalog cannot be kept on disk: {self._keeper.problem}")
        return found

    def _compare(self, what: str, found: str, expected: str) -> None:
        if found != expected and self.kept is not None:
            named = f"the state file in {self._folder}" if self._where == _DISK else f"the catalog of {self._where}"
            self._refuse(f"{named} is not used: it is of {what} {found}, this is {expected}")

    def _refuse(self, line: str) -> None:
        log.error(line)
        self.kept = None
        self.from_disk = False


def _records(snapshot: Snapshot) -> tuple[object, ...]:
    return (*snapshot.services, *snapshot.remotes, *snapshot.partitions, *snapshot.imports, *snapshot.exports)
