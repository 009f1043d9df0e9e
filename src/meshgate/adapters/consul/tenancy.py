"""The shared parts of the watches as one namespace, partition or peer sees them.

`LocalServices`, `Subsets` and `Gateways` follow one place and know nothing of others. To follow another place they are
given these views: requests go there, names in accounts say where, and all else is the shared part itself.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any, cast

from .acl_visibility import AclVisibility
from .api import ConsulClient, Cursor, PermissionDeniedError, Tenant
from .blocking_query_pool import BlockingQueryPool
from .initial_sync import InitialSync
from .watch_registry import WatchRegistry, WatchState

# How a name in an account becomes one that says where it is.
Label = Callable[[str], str]


def registry_at(registry: WatchRegistry, label: Label) -> WatchRegistry:
    """The registry, with other names for what is watched."""
    return cast("WatchRegistry", _HubView(registry, label))


def pool_at(pool: BlockingQueryPool, tenant: Tenant) -> BlockingQueryPool:
    """The pool, whose readers ask elsewhere."""
    return cast("BlockingQueryPool", _PoolView(pool, tenant))


def sync_at(sync: InitialSync, label: Label) -> InitialSync:
    """The account of a start, with other names for the sources."""
    return cast("InitialSync", _ProgressView(sync, label))


def visibility_at(visibility: AclVisibility, reader: ConsulClient) -> AclVisibility:
    """What a shorter answer from elsewhere is worth.

    Whether the token sees services is asked there, by the reader. Whether it sees nodes is asked at home, where the
    gateway itself is registered: elsewhere there may be none to see, and every Consul that has other places says itself
    when it leaves out rows (see `VerifiedInstances`).
    """
    return cast("AclVisibility", _SightView(visibility, reader))


def visibility_in_partition(visibility: AclVisibility, reader: ConsulClient) -> AclVisibility:
    """The visibility of a gateway in a partition that has none of Consul's servers.

    Before it registers itself there need not be anything in its partition but nodes.
    """
    return cast("AclVisibility", _PartitionSight(visibility, reader))


class _View:
    """All that is not said otherwise is the shared part's."""

    def __init__(self, shared: object) -> None:
        self._shared = shared

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the shared part has
        return getattr(self._shared, name)


class _HubView(_View):
    def __init__(self, registry: WatchRegistry, label: Label) -> None:
        super().__init__(registry)
        self._registry = registry
        self._label = label

    def watching(self, kind: str, name: str) -> AbstractContextManager[WatchState]:
        return self._registry.watching(kind, self._label(name))

    def register(self, kind: str, name: str) -> WatchState:
        return self._registry.register(kind, self._label(name))


class _PoolView(_View):
    def __init__(self, pool: BlockingQueryPool, tenant: Tenant) -> None:
        super().__init__(pool)
        self._pool = pool
        self._tenant = tenant

    @asynccontextmanager
    async def slot(self, cursor: Cursor, *wait: float) -> AsyncIterator[tuple[ConsulClient, Cursor]]:
        async with self._pool.slot(cursor, *wait) as (reader, turn):
            yield reader.at(self._tenant), turn

    @asynccontextmanager
    async def dedicated(self) -> AsyncIterator[ConsulClient]:
        async with self._pool.dedicated() as reader:
            yield reader.at(self._tenant)


class _ProgressView(_View):
    def __init__(self, sync: InitialSync, label: Label) -> None:
        super().__init__(sync)
        self._sync = sync
        self._label = label

    def add(self, source: str) -> None:
        self._sync.add(self._label(source))

    def mark(self, source: str) -> None:
        self._sync.mark(self._label(source))


class _PartitionSight(_View):
    def __init__(self, visibility: AclVisibility, reader: ConsulClient) -> None:
        super().__init__(visibility)
        self._visibility = visibility
        self._reader = reader

    async def confirm(self, service: str, *, since: float, datacenter: str = "") -> None:
        await self._reader.resolver_exists(service, datacenter=datacenter)
        await self.confirm_nodes(since=since, datacenter=datacenter)

    async def confirm_nodes(self, *, since: float, datacenter: str = "") -> None:
        try:
            await self._visibility.confirm_nodes(since=since, datacenter=datacenter)
        except PermissionDeniedError:
            if not await self._reader.nodes_visible():
                raise


class _SightView(_View):
    def __init__(self, visibility: AclVisibility, reader: ConsulClient) -> None:
        super().__init__(visibility)
        self._visibility = visibility
        self._reader = reader

    async def confirm(self, service: str, *, since: float, datacenter: str = "") -> None:
        await self._reader.resolver_exists(service, datacenter=datacenter)
        await self._visibility.confirm_nodes(since=since, datacenter=datacenter)
