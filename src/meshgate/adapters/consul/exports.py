"""What the gateway's partition exports, and where the discovery chain of each exported service leads.

Consul 1.17.3 and later say which services are exported to whom. Older ones are asked for the config entry as it was
written: `*` in it is resolved here against the services that are known, and sameness groups by their own entries.
Chains are watched for services that are exported to peers; between partitions nothing depends on them.

A consumer `{SamenessGroup: name}` stands for the members of the config entry `sameness-group/<name>` of the same
partition: other partitions of the datacenter, and peers. The own partition is commonly the first member, for failover,
and is no consumer of its own services. Only Enterprise has groups, since 1.16; nothing is asked for that no entry
names. A group that cannot be read stays named as one whose members are not known, or keeps those that it had; in a
Consul that knows no groups it has none.
"""

from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final

from meshgate.core.catalog import ChainTarget, Export, SamenessGroup, Service, in_namespace
from meshgate.core.sni import PeeredServiceSni

from .api import NOW, BadRequestError, Chain, ConsulClient, ConsulError, Cursor, NotFoundError, Page, Tenant
from .scope import KeyedWatches, Latest, Scope
from .watch import WatchKey, ignore

EXPORTS: Final = WatchKey("exports", "exported services")
_ANY: Final = "*"
# Namespace and name.
_Key = tuple[str, str]


class LocalExports:
    """Follows the exports, while they are wanted; `services` tells those that are known now."""

    def __init__(self, scope: Scope, services: Callable[[], Iterable[Service]]) -> None:
        self._scope = scope
        self._services = services
        self._raw = False
        self._exported: tuple[Export, ...] = ()
        self._chains: KeyedWatches[_Key, Latest[Chain]] = KeyedWatches(
            scope.sync, self._chain_key, lambda _: Latest(), self._follow_chain
        )
        self._groups: KeyedWatches[str, Latest[SamenessGroup]] = KeyedWatches(
            scope.sync, self._group_key, lambda _: Latest(), self._follow_group
        )

    async def run(self) -> None:
        """Follow until cancelled; then nothing is exported any more."""
        try:
            async with self._chains.followed(), self._groups.followed():
                await self._scope.watch(EXPORTS, self._ask, ignore, minds_token=True)
        finally:
            self._exported = ()
            self._chains.keep(())
            self._groups.keep(())
            self._scope.changed()

    def exports(self) -> tuple[Export, ...]:
        return tuple(
            replace(row, protocol=chain.protocol, target=chain.target) if (chain := self._chain(row)) else row
            for row in self._resolved()
        )

    def groups(self) -> tuple[SamenessGroup, ...]:
        """The sameness groups that are resolved here, as far as their members are known."""
        return tuple(group for name in sorted(self._groups) if (group := self._groups[name].value))

    def behind(self, services: Collection[str]) -> set[str]:
        """The services to which the chains of these exported ones lead; lower-case names without namespaces."""
        return {
            chain.value.target.service.lower()
            for (_, service), chain in self._chains.items()
            if chain.value and chain.value.target and service.lower() in services
        }

    async def lookup(self, name: PeeredServiceSni) -> ChainTarget | None:
        """Wait until what this cluster exports by a name is known as Consul has it now, or cannot be had.

        Returns where its discovery chain leads, here; None where nothing is exported so.
        """
        with suppress(ConsulError):
            await self._ask(self._scope.client, NOW)
            for row in self._resolved():
                if (row.namespace, row.service.lower()) == (name.namespace, name.service) and name.peer in map(
                    str.lower, row.peers
                ):
                    key = row.namespace, row.service
                    latest = self._chains.get(key) or Latest()
                    page = await self._ask_chain(key, latest, self._in(row.namespace).client, NOW)
                    return page.value.target
        return None

    def pending_chains(self) -> frozenset[str]:
        answered = self._scope.registry.answered
        return frozenset(in_namespace(*key) for key in self._chains if not answered(self._chain_key(key)))

    def reconcile(self) -> None:
        """Watch the chains of what is exported now; to be called when services or `exports()` have changed."""
        # There may be peers in a group that is not known.
        self._chains.keep((row.namespace, row.service) for row in self._resolved() if row.peers or row.groups)

    def _chain(self, row: Export) -> Chain | None:
        found = self._chains.get((row.namespace, row.service))
        return found.value if found else None

    # --- who gets what -------------------------------------------------------------------------------------------

    def _resolved(self) -> tuple[Export, ...]:
        """The exports to anybody, without wildcards; what several rows say of one service is one row."""
        merged: dict[_Key, Export] = {}
        for row in map(self._to_members, self._exported):
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

    def _to_members(self, row: Export) -> Export:
        """An export to members instead of groups, as far as those are known; `groups` are the others."""
        known = [group for name in row.groups if name in self._groups and (group := self._groups[name].value)]
        left = [name for name in row.groups if name not in {group.name for group in known}]
        return replace(row.opened_to(known), groups=tuple(left)) if known else row

    def _spelled_out(self, row: Export) -> Iterable[Export]:
        if _ANY not in (row.service, row.namespace):
            return (row,)
        return (
            replace(row, service=service.name, namespace=service.namespace)
            for service in self._services()
            if row.service in (_ANY, service.name) and row.namespace in (_ANY, service.namespace)
        )

    # --- what is asked -------------------------------------------------------------------------------------------

    async def _ask(self, reader: ConsulClient, cursor: Cursor) -> Page[tuple[Export, ...]]:
        page = await self._ask_as_known(reader, cursor)
        # Not by the watch, which compares with its own last answer: a lookup may have had a newer one meanwhile.
        if page.value != self._exported:
            self._exported = page.value
            self._groups.keep(name for row in page.value for name in row.groups)
            self.reconcile()
            self._scope.changed()
        return page

    async def _ask_as_known(self, reader: ConsulClient, cursor: Cursor) -> Page[tuple[Export, ...]]:
        # At a first read, or one after a failure, Consul may have been upgraded meanwhile.
        if not self._raw or not cursor.blocks:
            with suppress(NotFoundError):
                page = await reader.exported_services(cursor)
                self._raw = False
                return page
        page = await reader.exported_entry(cursor, self._scope.home.partition)
        self._raw = True
        return page

    def _in(self, namespace: str) -> Scope:
        return self._scope.at(Tenant(namespace=namespace if self._scope.home.enterprise else ""))

    def _chain_key(self, key: _Key) -> WatchKey:
        return WatchKey("chain", key[1], namespace=key[0])

    async def _follow_chain(self, key: _Key, chain: Latest[Chain]) -> None:
        await self._in(key[0]).watch(self._chain_key(key), partial(self._ask_chain, key, chain), ignore)

    async def _ask_chain(self, key: _Key, chain: Latest[Chain], reader: ConsulClient, cursor: Cursor) -> Page[Chain]:
        page = await reader.discovery_chain(key[1], cursor)
        if page.value != chain.value:
            chain.set(page.value)
            self._scope.changed()
        return page

    def _group_key(self, name: str) -> WatchKey:
        return self._scope.key("exports", f"sameness group {name}")

    async def _follow_group(self, name: str, latest: Latest[SamenessGroup]) -> None:
        def answered(group: SamenessGroup) -> None:
            others = tuple(partition for partition in group.partitions if partition != self._scope.home.partition)
            latest.set(replace(group, name=name, partitions=others))

        def failed(error: ConsulError) -> None:
            if isinstance(error, BadRequestError) and latest.value is None:
                answered(SamenessGroup(name))
                self._scope.changed()

        await self._scope.watch(
            self._group_key(name),
            lambda reader, cursor: reader.sameness_group(name, cursor),
            answered,
            on_error=failed,
        )
