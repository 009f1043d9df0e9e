"""The shared parts of the watches as one namespace, partition or peer sees them.

`LocalServices`, `Subsets` and `Gateways` follow one place and know nothing of others. To follow another place they are
given these views: requests go there, names in accounts say where, and all else is the shared part itself.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any, cast

from .errors import PermissionDeniedError
from .hub import WatchHub, WatchState
from .mesh_records import MeshReader, Tenant
from .pool import ReaderPool
from .records import Cursor, Reader
from .sight import Sight
from .tasks import Progress

# How a name in an account becomes one that says where it is.
Label = Callable[[str], str]


def hub_at(hub: WatchHub, label: Label) -> WatchHub:
    """The hub, with other names for what is watched."""
    return cast("WatchHub", _HubView(hub, label))


def pool_at(pool: ReaderPool, tenant: Tenant) -> ReaderPool:
    """The pool, whose readers ask elsewhere."""
    return cast("ReaderPool", _PoolView(pool, tenant))


def progress_at(progress: Progress, label: Label) -> Progress:
    """The account of a start, with other names for the sources."""
    return cast("Progress", _ProgressView(progress, label))


def sight_at(sight: Sight, reader: Reader) -> Sight:
    """What a shorter answer from elsewhere is worth.

    Whether the token sees services is asked there, by the reader. Whether it sees nodes is asked at home, where the
    gateway itself is registered: elsewhere there may be none to see, and every Consul that has other places says itself
    when it leaves out rows (see `HeldInstances`).
    """
    return cast("Sight", _SightView(sight, reader))


def sight_in_partition(sight: Sight, reader: MeshReader) -> Sight:
    """The sight of a gateway in a partition that has none of Consul's servers.

    Before it registers itself there need not be anything in its partition but nodes.
    """
    return cast("Sight", _PartitionSight(sight, reader))


class _View:
    """All that is not said otherwise is the shared part's."""

    def __init__(self, shared: object) -> None:
        self._shared = shared

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the shared part has
        return getattr(self._shared, name)


class _HubView(_View):
    def __init__(self, hub: WatchHub, label: Label) -> None:
        super().__init__(hub)
        self._hub = hub
        self._label = label

    def watching(self, kind: str, name: str) -> AbstractContextManager[WatchState]:
        return self._hub.watching(kind, self._label(name))

    def enlist(self, kind: str, name: str) -> WatchState:
        return self._hub.enlist(kind, self._label(name))


class _PoolView(_View):
    def __init__(self, pool: ReaderPool, tenant: Tenant) -> None:
        super().__init__(pool)
        self._pool = pool
        self._tenant = tenant

    @asynccontextmanager
    async def turn(self, cursor: Cursor, *wait: float) -> AsyncIterator[tuple[MeshReader, Cursor]]:
        async with self._pool.turn(cursor, *wait) as (reader, turn):
            yield cast("MeshReader", reader).within(self._tenant), turn

    @asynccontextmanager
    async def dedicated(self) -> AsyncIterator[MeshReader]:
        async with self._pool.dedicated() as reader:
            yield cast("MeshReader", reader).within(self._tenant)


class _ProgressView(_View):
    def __init__(self, progress: Progress, label: Label) -> None:
        super().__init__(progress)
        self._progress = progress
        self._label = label

    def expect(self, source: str) -> None:
        self._progress.expect(self._label(source))

    def done(self, source: str) -> None:
        self._progress.done(self._label(source))


class _PartitionSight(_View):
    def __init__(self, sight: Sight, reader: MeshReader) -> None:
        super().__init__(sight)
        self._sight = sight
        self._reader = reader

    async def confirm(self, service: str, *, since: float, datacenter: str = "") -> None:
        await self._reader.resolver_exists(service, datacenter=datacenter)
        await self.confirm_nodes(since=since, datacenter=datacenter)

    async def confirm_nodes(self, *, since: float, datacenter: str = "") -> None:
        try:
            await self._sight.confirm_nodes(since=since, datacenter=datacenter)
        except PermissionDeniedError:
            if not await self._reader.nodes_visible():
                raise


class _SightView(_View):
    def __init__(self, sight: Sight, reader: Reader) -> None:
        super().__init__(sight)
        self._sight = sight
        self._reader = reader

    async def confirm(self, service: str, *, since: float, datacenter: str = "") -> None:
        await self._reader.resolver_exists(service, datacenter=datacenter)
        await self._sight.confirm_nodes(since=since, datacenter=datacenter)
