"""What the gateway's partition exports, and where the discovery chain of each exported service leads.

Consul 1.17.3 and later say which services are exported to whom. Older ones are asked for the config entry as it was
written: `*` in it is resolved here against the services that are known, and sameness groups by their own entries (see
`sameness`). Chains are watched for services that are exported to peers; between partitions nothing depends on them.
"""

from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final

import trio

from meshgate.core.catalog import Export, SamenessGroup, Service, in_namespace
from meshgate.core.sni import DEFAULT

from .api import Chain, Cursor, Exported, NotFoundError, Page, Tenant
from .blocking_query_pool import BlockingQueryPool
from .initial_sync import InitialSync, KeyedTasks
from .sameness import SamenessGroups
from .watch import Watch
from .watch_registry import WatchRegistry

EXPORTS: Final = "exported services"
_ANY: Final = "*"
_Key = tuple[str, str]


class LocalExports:
    """Follows the exports, while they are wanted.

    Args:
        registry: shared by all watches.
        pool: connections for all queries.
        partition: the gateway's own.
        enterprise: whether namespaces may be named.
        services: those known now, of the gateway's partition.
        sync: told of each source that is to be waited for at the start.
        changed: called whenever `exports()` may have changed.
    """

    def __init__(
        self,
        registry: WatchRegistry,
        pool: BlockingQueryPool,
        *,
        partition: str,
        enterprise: bool,
        services: Callable[[], Iterable[Service]],
        sync: InitialSync,
        changed: Callable[[], None],
    ) -> None:
        self._registry = registry
        self._pool = pool
        self._partition = partition
        self._enterprise = enterprise
        self._services = services
        self._sync = sync
        self._changed = changed
        self._raw = False
        self._exported: tuple[Exported, ...] = ()
        self._chains: dict[_Key, Chain] = {}
        self._followed: frozenset[_Key] = frozenset()
        self._begun = False
        self._tasks: KeyedTasks[_Key] | None = None
        self._groups = SamenessGroups(registry, pool, partition=partition, sync=sync, changed=changed)

    def begin(self) -> None:
        """Count as expected at the start; before `run`, which may begin late."""
        if not self._begun:
            self._begun = True
            self._sync.add(EXPORTS)

    async def run(self) -> None:
        """Follow until cancelled; then nothing is exported any more."""
        done = partial(self._sync.mark, EXPORTS)
        try:
            async with trio.open_nursery() as nursery:
                self._tasks = KeyedTasks(nursery)
                self._groups.begin(nursery)
                watch = Watch(
                    self._registry,
                    "exports",
                    EXPORTS,
                    self._ask,
                    self._listed,
                    on_error=lambda _: done(),
                    minds_token=True,
                )
                with self._pool.registered():
                    await watch.run()
        finally:
            self._tasks, self._begun = None, False
            self._groups.end()
            self._exported, self._chains, self._followed = (), {}, frozenset()
            done()
            self._changed()

    def exports(self) -> tuple[Export, ...]:
        """What is exported, as far as it is known."""
        return tuple(
            Export(
                row.service,
                row.namespace,
                row.peers,
                row.partitions,
                protocol=chain.protocol if chain else "",
                target=chain.target if chain else None,
                groups=row.groups,
            )
            for row in self._resolved()
            for chain in (self._chains.get((row.namespace, row.service)),)
        )

    def groups(self) -> tuple[SamenessGroup, ...]:
        """The sameness groups that are resolved here, as far as their members are known."""
        return self._groups.known()

    def behind(self, services: Collection[str]) -> set[str]:
        """The services to which the chains of these exported ones lead; lower-case names without namespaces."""
        return {
            chain.target.service.lower()
            for (_, service), chain in self._chains.items()
            if chain.target is not None and service.lower() in services
        }

    def reconcile(self) -> None:
        """Watch the chains of what is exported now; to be called when services or `exports()` have changed."""
        if self._tasks is None:
            return
        # There may be peers in a group that is not known.
        wanted = frozenset((row.namespace, row.service) for row in self._resolved() if row.peers or row.groups)
        for key in self._followed - wanted:
            self._chains.pop(key, None)
            self._sync.mark(_source(key))
        for key in wanted - self._followed:
            self._sync.add(_source(key))
        self._followed = wanted
        self._tasks.keep(wanted, self._follow)

    def _resolved(self) -> tuple[Exported, ...]:
        """The exports to anybody, without wildcards; what several rows say of one service is one row."""
        merged: dict[_Key, Exported] = {}
        for row in map(self._groups.resolved, self._exported):
            for one in self._spelled_out(row) if self._raw else (row,):
                key = one.namespace, one.service
                before = merged.get(key, replace(one, peers=(), partitions=(), groups=()))
                merged[key] = replace(
                    one,
                    peers=tuple(sorted({*before.peers, *one.peers})),
                    partitions=tuple(sorted({*before.partitions, *one.partitions})),
                    groups=tuple(sorted({*before.groups, *one.groups})),
                )
        rows = (merged[key] for key in sorted(merged))
        return tuple(row for row in rows if row.peers or row.partitions or row.groups)

    def _spelled_out(self, row: Exported) -> Iterable[Exported]:
        if _ANY not in (row.service, row.namespace):
            return (row,)
        return (
            replace(row, service=service.name, namespace=service.namespace)
            for service in self._services()
            if row.service in (_ANY, service.name) and row.namespace in (_ANY, service.namespace)
        )

    async def _ask(self, cursor: Cursor) -> Page[tuple[Exported, ...]]:
        async with self._pool.slot(cursor) as (pooled, turn):
            reader = pooled
            # At a first read, or one after a failure, Consul may have been upgraded meanwhile.
            if not self._raw or not cursor.blocks:
                with suppress(NotFoundError):
                    page = await reader.exported_services(turn)
                    self._raw = False
                    return page
            page = await reader.exported_entry(turn, self._partition)
            self._raw = True
            return page

    def _listed(self, exported: tuple[Exported, ...]) -> None:
        self._exported = exported
        self._groups.keep(exported)
        self.reconcile()
        self._sync.mark(EXPORTS)
        self._changed()

    async def _follow(self, key: _Key) -> None:
        namespace, service = key
        tenant = Tenant(namespace=namespace if self._enterprise else "")

        async def ask(cursor: Cursor) -> Page[Chain]:
            async with self._pool.slot(cursor) as (reader, turn):
                return await reader.at(tenant).discovery_chain(service, turn)

        def answered(chain: Chain) -> None:
            self._chains[key] = chain
            self._sync.mark(_source(key))
            self._changed()

        with self._pool.registered():
            name = in_namespace(namespace, service)
            done = _source(key)
            await Watch(self._registry, "chain", name, ask, answered, on_error=lambda _: self._sync.mark(done)).run()


def _source(key: _Key) -> str:
    return f"chain of {in_namespace(key[0] or DEFAULT, key[1])}"
