"""The services of the gateway's partition, of all its namespaces.

The community edition has one namespace and is asked without naming it. In Enterprise one gateway, in the namespace
`default`, serves all namespaces of its partition; HTTP has no wildcard for services, so each namespace has its own
list, asked for in turns of the pool. A namespace that is no longer listed is given up when it holds no instance any
more: the list leaves out silently what a token has no right in.
"""

from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Final, cast

import trio

from meshgate.core.catalog import Service, in_namespace
from meshgate.core.sni import DEFAULT

from .acl_visibility import AclVisibility
from .api import ConsulClient, Cursor, Page, Resolver, Tenant
from .blocking_query_pool import BlockingQueryPool
from .initial_sync import InitialSync, KeyedTasks
from .services import NAMES, LocalServices
from .subsets import RESOLVERS, Subsets
from .tenancy import pool_at, registry_at, sync_at, visibility_at
from .watch import Watch
from .watch_registry import WatchRegistry

NAMESPACES: Final = "namespaces"


@dataclass(frozen=True, slots=True)
class _Place:
    services: LocalServices
    subsets: Subsets


class LocalCatalog:
    """Follows the services.

    Args:
        client: asks in the default namespace.
        registry: shared by all watches.
        pool: connections for the watches of single services; its readers ask as `client` does.
        visibility: decides whether a shorter answer is believed.
        enterprise: whether there may be other namespaces.
        sync: told of each source that is to be waited for at the start.
        changed: called whenever `services()` may have changed.
    """

    def __init__(
        self,
        client: ConsulClient,
        registry: WatchRegistry,
        pool: BlockingQueryPool,
        visibility: AclVisibility,
        *,
        enterprise: bool,
        sync: InitialSync,
        changed: Callable[[], None],
    ) -> None:
        self._client = client
        self._registry = registry
        self._pool = pool
        self._visibility = visibility
        self._enterprise = enterprise
        self._sync = sync
        self._changed = changed
        self._listed: frozenset[str] = frozenset()
        self._tasks: KeyedTasks[str] | None = None
        subsets = Subsets(client, registry, pool, visibility, sync=sync, changed=changed)
        services = LocalServices(client, registry, visibility, subsets, sync=sync, changed=changed)
        sync.add(RESOLVERS)
        self._places: dict[str, _Place] = {DEFAULT: _Place(services, subsets)}
        if enterprise:
            sync.add(NAMESPACES)

    @property
    def known(self) -> bool:
        """Whether the services of the default namespace are known."""
        return self._places[DEFAULT].services.known

    async def run(self) -> None:
        """Follow until cancelled."""
        async with trio.open_nursery() as nursery:
            self._tasks = KeyedTasks(nursery)
            self._reconcile()
            if self._enterprise:
                with self._pool.registered():
                    await Watch(
                        self._registry,
                        "namespaces",
                        NAMESPACES,
                        self._ask,
                        self._named,
                        on_error=lambda _: self._sync.mark(NAMESPACES),
                        minds_token=True,
                    ).run()

    def services(self) -> tuple[Service, ...]:
        """Those that have instances in the mesh, by namespace and name."""
        of_each = [self._places[namespace].services.services(namespace) for namespace in sorted(self._places)]
        return tuple(chain.from_iterable(of_each)) if len(of_each) > 1 else of_each[0]

    def used(self, services: Iterable[str]) -> None:
        """These names have streams, in whatever namespace."""
        names = tuple(services)
        for place in self._places.values():
            place.subsets.scheduler.used(names)

    async def learn(self, services: Collection[str], namespace: str = "") -> bool:
        """Return when these are known as Consul has them now, or when that cannot be had; lower-case names.

        Without a namespace they are those of all namespaces that are known; with one, unknown names are looked for.

        Returns:
            Whether `services` has something else to say of them than when that was asked last.
        """
        news: list[bool] = []

        async def learn(place: _Place, name: str) -> None:
            news.append(await place.services.learn(name, look=bool(namespace)))

        async with trio.open_nursery() as nursery:
            for where, place in self._places.items():
                if namespace in ("", where):
                    for name in services:
                        nursery.start_soon(learn, place, name)
        return any(news)

    def problems(self) -> list[str]:
        """What the token is known not to see, and what cannot be followed."""
        places = self._places.values()
        return [line for place in places for line in (*place.services.problems(), *place.subsets.problems())]

    async def _ask(self, cursor: Cursor) -> Page[tuple[str, ...]]:
        async with self._pool.slot(cursor) as (reader, turn):
            return await reader.namespaces(turn)

    def _named(self, names: tuple[str, ...]) -> None:
        self._listed = frozenset(names)
        self._reconcile()
        self._sync.mark(NAMESPACES)
        self._changed()

    def _reconcile(self) -> None:
        occupied = {namespace for namespace, place in self._places.items() if place.services.instances()}
        wanted = self._listed | occupied | {DEFAULT}
        for namespace in self._places.keys() - wanted:
            del self._places[namespace]
            self._sync.mark(in_namespace(namespace, NAMES))
        for namespace in wanted - self._places.keys():
            self._places[namespace] = self._place(namespace)
        if self._tasks is not None:
            self._tasks.keep(wanted, self._follow)

    def _place(self, namespace: str) -> _Place:
        tenant = Tenant(namespace=namespace)
        label = partial(in_namespace, namespace)
        client = self._client.at(tenant)
        pool = pool_at(self._pool, tenant)
        registry = registry_at(self._registry, label)
        visibility = visibility_at(self._visibility, client)
        sync = sync_at(self._sync, label)
        sync.add(RESOLVERS)
        sync.add(NAMES)
        lists = cast("ConsulClient", _TakingTurns(client, pool))
        changed = partial(self._changed_in, namespace)
        subsets = Subsets(lists, registry, pool, visibility, sync=sync, changed=changed)
        return _Place(LocalServices(lists, registry, visibility, subsets, sync=sync, changed=changed), subsets)

    def _changed_in(self, namespace: str) -> None:
        place = self._places.get(namespace)
        if place is not None and place.services.known:
            self._sync.mark(in_namespace(namespace, NAMES))
            if namespace not in self._listed and not place.services.instances():
                self._reconcile()
        self._changed()

    async def _follow(self, namespace: str) -> None:
        place = self._places[namespace]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(place.subsets.run)
            await place.services.run()


class _TakingTurns:
    """A client, or a pool, whose readers for lists take turns instead of having connections of their own."""

    def __init__(self, shared: object, pool: BlockingQueryPool) -> None:
        self._shared = shared
        self._pool = pool

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the shared part has
        return getattr(self._shared, name)

    @asynccontextmanager
    async def dedicated(self) -> AsyncIterator[ConsulClient]:
        with self._pool.registered():
            yield cast("ConsulClient", _Lists(self._pool))


class _Lists:
    """The lists of one namespace: there may be more namespaces than connections."""

    def __init__(self, pool: BlockingQueryPool) -> None:
        self._pool = pool

    async def service_names(self, cursor: Cursor) -> Page[tuple[str, ...]]:
        async with self._pool.slot(cursor) as (reader, turn):
            return await reader.service_names(turn)

    async def resolvers(self, cursor: Cursor) -> Page[tuple[Resolver, ...]]:
        async with self._pool.slot(cursor) as (reader, turn):
            return await reader.resolvers(turn)
