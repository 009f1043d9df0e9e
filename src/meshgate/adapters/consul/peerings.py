"""The peered clusters: what is imported from them, and how their servers are reached.

A new peering moves the index of the list of peerings (1.14.8 and later), but what a peering imports does not; so the
list is held only while no peering is known, and else polled. Consul without cluster peering (before 1.13, or told not
to peer) has no such list: that is no failure, and is looked at again only now and then. A token that may not read
peerings is a notice and no failure either, as long as none is known.

Consul's leader forgets after an election what was imported until the peers have told it again, and goes on serving it.
So a name stays until its own watch says that nothing answers for it, or its peering is gone.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final

import trio

from meshgate.core.catalog import ImportedService, PeerServers, Snapshot
from meshgate.core.sni import DEFAULT, PeeredServiceSni, PeeringServerSni, parse

from .acl_visibility import VerifiedInstances
from .api import ConsulClient, ConsulError, Cursor, Instances, Page, Peering, PermissionDeniedError, Tenant
from .scope import KeyedWatches, Latest, Scope
from .watch import WatchKey, ignore

PEERINGS: Final = WatchKey("peerings", "peerings")
MESH_ENTRY: Final = WatchKey("mesh-entry", "mesh entry")
# Seconds between two requests for the list: as a rule, while the token may not see it, and while there is none.
POLL: Final = 1.0
DENIED_POLL: Final = 10.0
ABSENT_POLL: Final = 300.0
# Where the list takes long, so many times as long lie between two looks.
TIMES: Final = 20.0
# A list of that many seconds is as good as a new one.
_FRESH: Final = 0.2
# Peerings that are asked for an unknown name: those whose trust domain is not known are asked, too.
_MOST_ASKED: Final = 8

# Peer, namespace and name.
_Key = tuple[str, str, str]


class Peerings:
    """Follows the peerings; `changed` is called, too, when there may be other ones, or another mesh entry."""

    def __init__(self, scope: Scope, changed: Callable[[], None]) -> None:
        self._scope = scope
        self._own = replace(scope, changed=changed)
        self._denied = ""
        self._peerings: tuple[Peering, ...] | None = None
        self._looked = float("-inf")
        self._took = 0.0
        self._held = False
        self._imports = KeyedWatches(scope.sync, self._source, self._make, self._follow)
        self._mesh_entry: KeyedWatches[WatchKey, Latest[bool]] = KeyedWatches(
            scope.sync, lambda key: key, lambda _: Latest(), self._follow_mesh_entry
        )

    async def run(self) -> None:
        async with self._imports.followed(), self._mesh_entry.followed():
            await self._own.watch(PEERINGS, self._ask, ignore, interval=self._interval)

    @property
    def any(self) -> bool:
        """Whether there is a peering that exports may be for."""
        return any(peering.active for peering in self._peerings or ())

    @property
    def known(self) -> bool:
        return self._peerings is not None

    @property
    def through(self) -> bool:
        return any(entry.value for entry in self._mesh_entry.values())

    def imports(self) -> tuple[ImportedService, ...]:
        """The imported services that something answers for."""
        return tuple(
            ImportedService(name, peer, self._imports[peer, namespace, name].value, namespace)
            for peer, namespace, name in sorted(self._imports)
            if self._imports[peer, namespace, name].value
        )

    def servers(self) -> tuple[PeerServers, ...]:
        return tuple(
            PeerServers(peering.name, peering.server_name, peering.addresses, peering.modify_index)
            for peering in self._peerings or ()
            if peering.active and peering.server_name and peering.addresses
        )

    def problems(self) -> list[str]:
        return [self._denied] if self._denied else []

    def pending_imports(self, last: Snapshot, *, early: bool) -> frozenset[str]:
        if early:
            return frozenset(service.key for service in last.imports)
        silent = {key for key in self._imports if not self._scope.registry.answered(self._source(key))}
        return frozenset(it.key for it in last.imports if (it.peer, it.namespace, it.name) in silent)

    def pending_servers(self, last: Snapshot, *, early: bool) -> bool:
        known = self.known and self._scope.registry.answered(MESH_ENTRY)
        return early and not known and bool(last.peer_servers or last.peer_through)

    async def has(self, peer: str) -> bool:
        """Whether there is a peering of this lower-case name, looked for now if it is not known."""

        def known() -> bool:
            return any(peering.active and peering.name.lower() == peer for peering in self._peerings or ())

        if not known():
            await self._refresh()
        return known()

    async def lookup(self, name: PeeredServiceSni) -> bool:
        """Return when a service of a peer is known as Consul has it now, or cannot be had; whether there is one."""
        if not self._of_trust_domain(name.trust_domain):
            await self._refresh()
        found: list[bool] = []

        async def look(peering: Peering) -> None:
            with suppress(ConsulError):
                found.append(await self._look_for(peering.name, name))

        async with trio.open_nursery() as nursery:
            for peering in self._of_trust_domain(name.trust_domain)[:_MOST_ASKED]:
                nursery.start_soon(look, peering)
        return any(found)

    async def _look_for(self, peer: str, name: PeeredServiceSni) -> bool:
        key = peer, name.namespace, name.service
        page = await self._of(key).client.connect_instances(name.service)
        if not any(str(name) == sni.lower() for instance in page.value for sni in instance.peer_sni):
            return False
        alike = [known for known in self._imports if _folded(known) == _folded(key)]
        if not alike:
            # It stays as what Consul's leader has forgotten does: until nothing answers for it, or it is listed.
            self._imports.keep([*self._imports, key])
        await self._imports[alike[0] if alike else key].accept(page)
        self._scope.changed()
        return True

    def _of_trust_domain(self, trust_domain: str) -> list[Peering]:
        """The peerings of a trust domain; if there are none, those of which it is not known. Lower case."""
        said = {peering: self._trust_domain(peering) for peering in self._peerings or () if peering.active}
        return [it for it in said if said[it] == trust_domain] or [it for it in said if not said[it]]

    def _trust_domain(self, peering: Peering) -> str:
        """As the names say that a peer uses; "" where it has used none yet."""
        if isinstance(said := parse(peering.server_name.lower()), PeeringServerSni):
            return said.trust_domain
        instances = (
            instance for key, held in self._imports.items() if key[0] == peering.name for instance in held.value
        )
        names = (parse(sni.lower()) for instance in instances for sni in instance.peer_sni)
        return next((it.trust_domain for it in names if isinstance(it, PeeredServiceSni)), "")

    async def _refresh(self) -> None:
        if self.known and trio.current_time() > self._looked + _FRESH:
            with suppress(ConsulError):
                self._listed((await self._list()).value)

    # --- the list ------------------------------------------------------------------------------------------------

    def _interval(self) -> float:
        if not self.known:
            return DENIED_POLL if self._denied else ABSENT_POLL
        return 0.0 if self._held and not self.any else max(POLL, TIMES * self._took)

    async def _ask(self, reader: ConsulClient, cursor: Cursor) -> Page[tuple[Peering, ...] | None]:
        self._denied = ""
        polled = self.any or not cursor.blocks
        try:
            page = await (self._list() if polled else reader.peerings(cursor))
        except PermissionDeniedError as error:
            if self.known:
                raise
            self._denied = f"peered clusters are not looked for: {error}"
            page = Page(None)
        # What is not there does not get old.
        if state := self._scope.registry.state(PEERINGS):
            state.swept = page.value is None
        self._held = page.value is not None and page.index is not None
        self._listed(page.value)
        return replace(page, index=None) if any(peering.active for peering in page.value or ()) else page

    async def _list(self) -> Page[tuple[Peering, ...] | None]:
        begun = trio.current_time()
        page = await self._scope.client.peerings()
        self._looked, self._took = trio.current_time(), trio.current_time() - begun
        return page

    def _listed(self, peerings: tuple[Peering, ...] | None) -> None:
        # Not by the watch, which compares with its own last answer: a lookup may have had a newer one meanwhile.
        if (peerings is None and not self.known) or self._peerings == (peerings or ()):
            return
        self._peerings = peerings or ()
        self._reconcile()
        # Gateways of the default partition carry the control plane.
        self._mesh_entry.keep([MESH_ENTRY] if self._scope.home.central else [])
        self._own.changed()

    def _reconcile(self) -> None:
        active = [peering for peering in self._peerings or () if peering.active]
        names = {peering.name for peering in active}
        named = {key for peering in active for key in self._imported(peering)}
        spelled = {_folded(key) for key in named}
        # What was found by its lower-case name gives way to what is listed, and leaves what it knows.
        before = {_folded(key): held.value for key, held in self._imports.items()}
        self._imports.keep(
            named
            | {
                key
                for key, held in self._imports.items()
                if held.value and key[0] in names and _folded(key) not in spelled
            }
        )
        for key, held in self._imports.items():
            held.value = held.value or before.get(_folded(key), ())

    def _imported(self, peering: Peering) -> Iterator[_Key]:
        for text in peering.imported:
            *rest, name = text.split("/") if self._scope.home.enterprise else [text]
            if name:
                yield peering.name, rest[-1] if rest else DEFAULT, name

    def _of(self, key: _Key) -> Scope:
        peer, namespace, _ = key
        return self._scope.at(Tenant(namespace=namespace if self._scope.home.enterprise else "", peer=peer))

    def _source(self, key: _Key) -> WatchKey:
        peer, namespace, name = key
        return WatchKey("imports", name, f"peer {peer}", namespace)

    def _make(self, key: _Key) -> VerifiedInstances:
        return VerifiedInstances(self._scope.visibility, key[2])

    async def _follow(self, key: _Key, held: VerifiedInstances) -> None:
        async def ask(reader: ConsulClient, cursor: Cursor) -> Page[Instances]:
            page = await reader.connect_instances(key[2], cursor)
            await held.accept(page, cursor, again=partial(self._of(key).client.connect_instances, key[2]))
            return page

        def answered(instances: Instances) -> None:
            if not instances:
                self._reconcile()

        await self._of(key).watch(self._source(key), ask, answered)

    async def _follow_mesh_entry(self, key: WatchKey, entry: Latest[bool]) -> None:
        await self._own.watch(key, lambda reader, cursor: reader.peer_through(cursor), entry.set)


def _folded(key: _Key) -> _Key:
    peer, namespace, name = key
    return peer, namespace, name.lower()
