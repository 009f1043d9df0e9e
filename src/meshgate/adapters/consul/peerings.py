"""The peered clusters: what is imported from them, and how their servers are reached.

A new peering moves the index of the list of peerings (1.14.8 and later), but what a peering imports does not; so the
list is held only while no peering is known, and else polled. Consul without cluster peering (before 1.13, or told not
to peer) has no such list: that is no failure, and is looked at again only now and then. A token that may not read
peerings is a notice and no failure either, as long as none is known.

Consul's leader forgets after an election what was imported until the peers have told it again, and goes on serving it.
So a name stays until its own watch says that nothing answers for it, or its peering is gone.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

import trio

from meshgate.core.catalog import ImportedService, PeerServers, Snapshot
from meshgate.core.sni import DEFAULT

from .acl_visibility import VerifiedInstances
from .api import ConsulClient, Cursor, Instances, Page, Peering, PermissionDeniedError, Tenant
from .scope import KeyedWatches, Latest, Scope
from .watch_registry import WatchKey

PEERINGS: Final = WatchKey("peerings", "peerings")
MESH_ENTRY: Final = WatchKey("mesh-entry", "mesh entry")
# Seconds between two looks at the list, and at whether there is one at all.
POLL: Final = 10.0
RARELY: Final = 300.0

# Peer, namespace and name.
_Key = tuple[str, str, str]


class Peerings:
    """Follows the peerings.

    Args:
        scope: where Consul is asked.
        enterprise: whether namespaces may be named.
        control_plane: whether this gateway may carry the control plane, as those of the default partition may.
        changed: called, too, when there may be other peerings, or another mesh entry.
    """

    def __init__(self, scope: Scope, *, enterprise: bool, control_plane: bool, changed: Callable[[], None]) -> None:
        self._scope = scope
        self._own = replace(scope, changed=changed)
        self._enterprise = enterprise
        self._control_plane = control_plane
        self._denied = ""
        self._peerings: tuple[Peering, ...] | None = None
        self._imports = KeyedWatches(scope.sync, self._source, self._make, self._follow)
        self._mesh_entry: KeyedWatches[WatchKey, Latest[bool]] = KeyedWatches(
            scope.sync, lambda key: key, lambda _: Latest(), self._follow_mesh_entry
        )

    async def run(self) -> None:
        """Follow until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._imports.run)
            nursery.start_soon(self._mesh_entry.run)
            await self._own.poll(PEERINGS, self._ask, self._listed, interval=self._interval)

    @property
    def any(self) -> bool:
        """Whether there is a peering that exports may be for."""
        return any(peering.active for peering in self._peerings or ())

    @property
    def known(self) -> bool:
        """Whether Consul has told which peerings there are."""
        return self._peerings is not None

    @property
    def through(self) -> bool:
        """Whether the peering control plane goes through mesh gateways."""
        return any(entry.value for entry in self._mesh_entry.values())

    def imports(self) -> tuple[ImportedService, ...]:
        """The imported services that something answers for."""
        return tuple(
            ImportedService(name, peer, self._imports[peer, namespace, name].value, namespace)
            for peer, namespace, name in sorted(self._imports)
            if self._imports[peer, namespace, name].value
        )

    def servers(self) -> tuple[PeerServers, ...]:
        """The servers of each peer that this cluster dials."""
        return tuple(
            PeerServers(peering.name, peering.server_name, peering.addresses, peering.modify_index)
            for peering in self._peerings or ()
            if peering.active and peering.server_name and peering.addresses
        )

    def problems(self) -> list[str]:
        """What the token is known not to see."""
        return [self._denied] if self._denied else []

    def pending_imports(self, last: Snapshot, *, early: bool) -> frozenset[str]:
        """The imported services that Consul has not answered for yet; see `PendingSources`."""
        if early:
            return frozenset(service.key for service in last.imports)
        silent = {key for key in self._imports if not self._scope.registry.answered(self._source(key))}
        return frozenset(it.key for it in last.imports if (it.peer, it.namespace, it.name) in silent)

    def pending_servers(self, last: Snapshot, *, early: bool) -> bool:
        """Whether Consul has not told yet how the servers of peers are reached; see `PendingSources`."""
        known = self.known and self._scope.registry.answered(MESH_ENTRY)
        return early and not known and bool(last.peer_servers or last.peer_through)

    def _interval(self) -> float:
        return POLL if self.known or self._denied else RARELY

    async def _ask(self) -> Page[tuple[Peering, ...] | None]:
        self._denied = ""
        try:
            page = await self._scope.client.peerings()
        except PermissionDeniedError as error:
            if self.known:
                raise
            self._denied = f"peered clusters are not looked for: {error}"
            page = Page(None)
        # What is not there does not get old.
        if state := self._scope.registry.state(PEERINGS):
            state.swept = page.value is None
        return page

    def _listed(self, peerings: tuple[Peering, ...] | None) -> None:
        if peerings is None and not self.known:
            return
        self._peerings = peerings or ()
        self._reconcile()
        self._mesh_entry.keep([MESH_ENTRY] if self._control_plane else [])

    def _reconcile(self) -> None:
        active = [peering for peering in self._peerings or () if peering.active]
        names = {peering.name for peering in active}
        named = {key for peering in active for key in self._imported(peering)}
        self._imports.keep(named | {key for key, held in self._imports.items() if held.value and key[0] in names})

    def _imported(self, peering: Peering) -> Iterator[_Key]:
        for text in peering.imported:
            *rest, name = text.split("/") if self._enterprise else [text]
            if name:
                yield peering.name, rest[-1] if rest else DEFAULT, name

    def _of(self, key: _Key) -> Scope:
        peer, namespace, _ = key
        return self._scope.at(Tenant(namespace=namespace if self._enterprise else "", peer=peer))

    def _source(self, key: _Key) -> WatchKey:
        peer, namespace, name = key
        return WatchKey("imports", name, f"peer {peer}", namespace)

    def _make(self, key: _Key) -> VerifiedInstances:
        return VerifiedInstances(self._scope.visibility, key[2])

    async def _follow(self, key: _Key, held: VerifiedInstances) -> None:
        async def ask(reader: ConsulClient, cursor: Cursor) -> Page[Instances]:
            page = await reader.connect_instances(key[2], cursor)
            await held.accept(page, cursor)
            return page

        def answered(instances: Instances) -> None:
            if not instances:
                self._reconcile()

        await self._of(key).watch(self._source(key), ask, answered)

    async def _follow_mesh_entry(self, key: WatchKey, entry: Latest[bool]) -> None:
        await self._own.watch(key, lambda reader, cursor: reader.peer_through(cursor), entry.set)
