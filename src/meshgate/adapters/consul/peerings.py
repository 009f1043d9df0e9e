"""The peered clusters: what is imported from them, and how their servers are reached.

The list of peerings is polled. It could be held since 1.14.8, but what a peering imports moves no index. Consul without
cluster peering (before 1.13, or told not to peer) has no such list: that is no failure, and is looked at again only
now and then. A token that may not read peerings is a notice and no failure either, as long as none is known.

Consul's leader forgets after an election what was imported until the peers have told it again, and goes on serving it.
So a name stays until its own watch says that nothing answers for it, or its peering is gone.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import trio

from meshgate.core.catalog import ImportedService, PeerServers
from meshgate.core.sni import DEFAULT

from .acl_visibility import AclVisibility, VerifiedInstances
from .api import ConsulClient, ConsulError, Cursor, Instances, Page, Peering, PermissionDeniedError, Tenant
from .blocking_query_pool import BlockingQueryPool
from .initial_sync import InitialSync, KeyedTasks
from .watch import Watch
from .watch_registry import WatchRegistry

PEERINGS: Final = "peerings"
MESH_ENTRY: Final = "mesh entry"
# Seconds between two looks at the list, and at whether there is one at all.
POLL: Final = 10.0
RARELY: Final = 300.0
# Seconds after which a list that could not be had is asked for again, before it was had once.
_AGAIN: Final = 5.0

# Peer, namespace and name.
_Key = tuple[str, str, str]


class Peerings:
    """Follows the peerings.

    Args:
        client: for short requests.
        registry: shared by all watches.
        pool: connections for all queries that are held.
        visibility: decides whether a shorter answer is believed.
        enterprise: whether namespaces may be named.
        control_plane: whether this gateway may carry the control plane, as those of the default partition may.
        sync: told of each source that is to be waited for at the start.
        changed: called whenever anything here may have changed.
    """

    def __init__(
        self,
        client: ConsulClient,
        registry: WatchRegistry,
        pool: BlockingQueryPool,
        visibility: AclVisibility,
        *,
        enterprise: bool,
        control_plane: bool,
        sync: InitialSync,
        changed: Callable[[], None],
    ) -> None:
        self._client = client
        self._registry = registry
        self._pool = pool
        self._visibility = visibility
        self._enterprise = enterprise
        self._control_plane = control_plane
        self._sync = sync
        self._changed = changed
        self._denied = ""
        self._peerings: tuple[Peering, ...] = ()
        self._held: dict[_Key, VerifiedInstances] = {}
        self._tasks: KeyedTasks[_Key]
        self.through = False
        sync.add(PEERINGS)

    async def run(self) -> None:
        """Follow until cancelled."""
        while (pause := await self._look()) is not None:
            self._sync.mark(PEERINGS)
            with trio.move_on_after(pause):
                await self._registry.recovery()
        async with trio.open_nursery() as nursery:
            self._tasks = KeyedTasks(nursery)
            if self._control_plane:
                nursery.start_soon(self._follow_mesh_entry)
            await Watch(self._registry, "peerings", PEERINGS, self._ask, self._listed, interval=POLL).run()

    @property
    def any(self) -> bool:
        """Whether there is a peering that exports may be for."""
        return any(peering.active for peering in self._peerings)

    def imports(self) -> tuple[ImportedService, ...]:
        """The imported services that something answers for."""
        return tuple(
            ImportedService(name, peer, self._held[peer, namespace, name].value, namespace)
            for peer, namespace, name in sorted(self._held)
            if self._held[peer, namespace, name].value
        )

    def servers(self) -> tuple[PeerServers, ...]:
        """The servers of each peer that this cluster dials."""
        return tuple(
            PeerServers(peering.name, peering.server_name, peering.addresses, peering.modify_index)
            for peering in self._peerings
            if peering.active and peering.server_name and peering.addresses
        )

    def problems(self) -> list[str]:
        """What the token is known not to see."""
        return [self._denied] if self._denied else []

    async def _look(self) -> float | None:
        """Seconds until the next look; None where there is a list."""
        self._denied = ""
        try:
            return RARELY if (await self._client.peerings()).value is None else None
        except PermissionDeniedError as error:
            self._denied = f"peered clusters are not looked for: {error}"
            return POLL
        except ConsulError:
            return _AGAIN

    async def _ask(self, _: Cursor) -> Page[tuple[Peering, ...]]:
        return Page((await self._client.peerings()).value or ())

    def _listed(self, peerings: tuple[Peering, ...]) -> None:
        self._peerings = peerings
        self._reconcile()
        # First the others hear of it: what they then expect belongs to the start as well.
        self._changed()
        self._sync.mark(PEERINGS)

    def _reconcile(self) -> None:
        active = {peering.name for peering in self._peerings if peering.active}
        named = {key for peering in self._peerings if peering.active for key in self._imported(peering)}
        wanted = named | {key for key, held in self._held.items() if held.value and key[0] in active}
        for key in self._held.keys() - wanted:
            del self._held[key]
            self._sync.mark(_source(key))
        for key in wanted - self._held.keys():
            self._held[key] = VerifiedInstances(self._visibility, key[2])
            self._sync.add(_source(key))
        self._tasks.keep(wanted, self._follow)

    def _imported(self, peering: Peering) -> Iterator[_Key]:
        for text in peering.imported:
            *rest, name = text.split("/") if self._enterprise else [text]
            if name:
                yield peering.name, rest[-1] if rest else DEFAULT, name

    async def _follow(self, key: _Key) -> None:
        peer, namespace, name = key
        held = self._held[key]
        tenant = Tenant(namespace=namespace if self._enterprise else "", peer=peer)

        async def ask(cursor: Cursor) -> Page[Instances]:
            async with self._pool.slot(cursor) as (reader, turn):
                page = await reader.at(tenant).connect_instances(name, turn)
            await held.accept(page)
            return page

        def answered(instances: Instances) -> None:
            if not instances:
                self._reconcile()
            self._sync.mark(_source(key))
            self._changed()

        with self._pool.registered():
            done = partial(self._sync.mark, _source(key))
            await Watch(self._registry, "imports", _name(key), ask, answered, on_error=lambda _: done()).run()

    async def _follow_mesh_entry(self) -> None:
        async def ask(cursor: Cursor) -> Page[bool]:
            async with self._pool.slot(cursor) as (reader, turn):
                return await reader.peer_through(turn)

        def answered(through: bool) -> None:
            self.through = through
            self._changed()
            self._sync.mark(MESH_ENTRY)

        self._sync.add(MESH_ENTRY)
        with self._pool.registered():
            done = partial(self._sync.mark, MESH_ENTRY)
            await Watch(self._registry, "mesh-entry", MESH_ENTRY, ask, answered, on_error=lambda _: done()).run()


def _name(key: _Key) -> str:
    peer, namespace, name = key
    return ImportedService(name, peer, (), namespace).key


def _source(key: _Key) -> str:
    return f"imports: {_name(key)}"
