"""Consul's catalog as a stream of snapshots: all that routing depends on, each complete and consistent in itself.

What always holds: a snapshot is published only if it differs from the last one, once for changes that come close
together, and at once where a stream waits for one; nothing is published before the trust domain and the list of
services are known; after that the first one waits until each source has answered or failed once, as long as one does
within `START_DEADLINE` seconds; and once published, nothing is taken back because Consul is unreachable, refuses the
token, or shows less to it than before.

Sources: Consul's `agent/proxycfg` (what its own gateway watches, and when it counts as valid).
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

import structlog
import trio

from meshgate.core.catalog import Snapshot
from meshgate.core.sni import DEFAULT, PeeredServiceSni
from meshgate.core.warm_start import PendingSources

from .acl_visibility import SERVERS, AclVisibility, VerifiedInstances
from .api import CaRoots, ConsulClient, Cursor, Instances, Page, PermissionDeniedError, Rule, Tenant
from .blocking_query_pool import BlockingQueryPool
from .exports import EXPORTS, LocalExports
from .local_services import NAMES, RESOLVERS, LocalServices
from .lookups import Explainer
from .peerings import Peerings
from .remote_gateways import Partitions, RemoteGateways
from .scope import Home, InitialSync, KeyedWatches, Latest, Scope
from .watch import WatchKey, WatchRegistry, WatchState, ignore

log = structlog.get_logger(module="meshgate.consul")

# Seconds that the first snapshot waits for slow sources, since the last one that was not.
START_DEADLINE: Final = 5.0
# Seconds that it waits however many sources there are.
LONGEST_START: Final = 300.0
# Seconds from the first change to the snapshot, in which further changes are gathered. Not prolonged by them.
COALESCE: Final = 0.1
# Seconds between two snapshots that nobody gathers changes for: where services are many, each costs milliseconds.
APART: Final = 0.05
ROOTS: Final = WatchKey("roots", "CA roots")
LOCAL_SERVERS: Final = WatchKey("servers", "local servers")

# While one of these fails, what is served may be old as a whole, and counts as old after so many seconds.
STALE_AFTER: Final = 10.0
_ESSENTIAL: Final = (ROOTS, NAMES, RESOLVERS)
# What one line can say for every watch that it hits.
_COMMON: Final = frozenset(("403", "429", "unreachable", "timeout"))
# Watches of endpoints that an agent may block (`http_config.block_endpoints`): their lines say what is missing then.
_INTERNAL: Final = frozenset(("federation-states", "gateway-names", "summaries"))


class Publisher:
    """Publishes what `make` makes of the present catalog; `publish` must not block. `snapshot` is the last one."""

    def __init__(self, make: Callable[[], Snapshot], publish: Callable[[Snapshot], None]) -> None:
        self.snapshot: Snapshot | None = None
        self._make = make
        self._publish = publish
        self._change = trio.Event()
        self._unpublished = False
        self._published = float("-inf")

    def changed(self) -> None:
        self._unpublished = True
        self._change.set()

    async def change(self) -> None:
        self._change = trio.Event()
        await self._change.wait()

    async def run(self, prepare: Callable[[], None]) -> None:
        """Publish now and after changes until cancelled; `prepare` is called each time before."""
        while True:
            self._change = trio.Event()
            prepare()
            self._publish_if_new()
            await self._change.wait()
            await trio.sleep(COALESCE)

    async def hurry(self) -> None:
        """Publish what has changed, without gathering more. Who does so at the same time shares a snapshot."""
        if self.snapshot is not None and self._unpublished:
            await trio.sleep_until(self._published + APART)
            if self._unpublished:
                self._publish_if_new()

    def _publish_if_new(self) -> None:
        self._unpublished, self._published = False, trio.current_time()
        snapshot = self._make()
        if snapshot != self.snapshot:
            self.snapshot = snapshot
            self._publish(snapshot)


class LocalServers:
    """Follows Consul's own servers of the datacenter, which a gateway for WAN federation offers to other ones.

    They are in the catalog as the service `consul`, one instance a server. A datacenter without servers answers
    nothing, so an empty list always means that the token may not see them, and is an error of the watch.
    """

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        # One instance a server; their checks are as Consul has them.
        self.held = VerifiedInstances(scope.visibility, SERVERS)

    async def run(self) -> None:
        await self._scope.watch(LOCAL_SERVERS, self._ask, ignore, dedicated=True)

    async def _ask(self, reader: ConsulClient, cursor: Cursor) -> Page[Instances]:
        page = await reader.instances(SERVERS, cursor)
        if not page.value:
            raise PermissionDeniedError("Consul shows none of its own servers", Rule("service", SERVERS))
        await self.held.accept(page, cursor)
        return page


class CatalogWatcher:
    """Follows the catalog and publishes snapshots of it.

    Args:
        client: Consul.
        registry: shared by all watches of the process.
        publish: gets each new snapshot, in trio's thread; it must not block.
        home: where the gateway is.
        catalog_watches: how many blocking queries the gateway may hold at once (see `blocking_query_pool`).
        enforce_exports: exports decide what is routed, so they are followed without a peering too.
    """

    def __init__(
        self,
        client: ConsulClient,
        registry: WatchRegistry,
        publish: Callable[[Snapshot], None],
        home: Home,
        *,
        catalog_watches: int = 100,
        enforce_exports: bool = False,
    ) -> None:
        # A gateway is in the namespace default, whatever namespace its token would make Consul assume.
        client = client.at(Tenant(namespace=DEFAULT)) if home.enterprise else client
        self._registry = registry
        self._publisher = Publisher(self._made, publish)
        self._home = home
        self._enforce_exports = enforce_exports
        self._roots: Latest[CaRoots] = Latest()
        self._sync = InitialSync()
        self._pool = BlockingQueryPool(client, catalog_watches)
        self._explainer = Explainer(client, enterprise=home.enterprise)
        visibility = AclVisibility(client, home.gateway_service, partition=not home.central)
        scope = Scope(client, registry, self._pool, visibility, self._sync, self._publisher.changed, home)
        self._scope = scope
        self._services = LocalServices(scope)
        self._remotes = RemoteGateways(scope)
        self._partitions = Partitions(scope)
        self._peerings = Peerings(scope, self._peerings_changed)
        self._servers = LocalServers(scope)
        self._exports = LocalExports(scope, self._services.services)
        by_need: dict[WatchKey, LocalServers | LocalExports] = {LOCAL_SERVERS: self._servers, EXPORTS: self._exports}
        self._by_need = KeyedWatches(self._sync, lambda key: key, by_need.__getitem__, lambda _, it: it.run())
        self._follow_by_need()

    async def run(self) -> None:
        async with self._pool, self._by_need.followed(), trio.open_nursery() as nursery:
            roots = partial(self._scope.watch, dedicated=True)
            nursery.start_soon(roots, ROOTS, lambda reader, cursor: reader.ca_roots(cursor), self._roots.set)
            elsewhere = [self._remotes] * self._home.central + [self._partitions] * self._home.enterprise
            for follower in (self._services, self._peerings, *elsewhere):
                nursery.start_soon(follower.run)
            await self._publish_changes()

    def used(self, services: Iterable[str]) -> None:
        """These services have streams, so they are followed closely. Lower-case names; unknown ones are ignored."""
        names = set(services)
        self._services.used(names | self._exports.behind(names))

    def hurry_names(self) -> None:
        """A stream waits for a name that nobody may ask for: learn of new services as soon as Consul tells of them."""
        self._services.hurry_names()

    async def lookup(self, services: Iterable[str], namespace: str = "") -> None:
        """Have services published as Consul has them now; return when that is done or cannot be.

        Takes as long as a request to Consul; a caller with less patience cancels it. Lower-case names; with a namespace
        those that nobody has heard of are looked for in it, without one they are ignored.
        """
        names = set(services)
        if await self._services.lookup(names | self._exports.behind(names), namespace):
            await self._publisher.hurry()

    async def lookup_peered(self, name: PeeredServiceSni) -> None:
        """The same for a name that a peer is to know: of a service that this cluster exports, or imports."""
        if name.trust_domain == (self._roots.value.trust_domain.lower() if self._roots.value else ""):
            target = await self._exports.lookup(name) if await self._peerings.has(name.peer) else None
            found = target is not None
            if target is not None:
                await self._services.lookup([target.service.lower()], target.namespace)
        else:
            found = await self._peerings.lookup(name)
        if found:
            await self._publisher.hurry()

    @property
    def snapshot(self) -> Snapshot | None:
        return self._publisher.snapshot

    def states(self) -> list[WatchState]:
        return self._registry.states()

    def problems(self) -> list[str]:
        """What is missing or failing, a line each; with the ACL rule to add where one is missing."""
        # What this Consul is too old for, or keeps switched off as long as older servers are about, is not missing.
        failing = (
            state
            for state in self._registry.states()
            if state.error and not (state.key.kind in _INTERNAL and state.status in ("404", "disabled"))
        )
        lines = [
            state.error
            if state.status in _COMMON and (state.key.kind not in _INTERNAL or state.status == "unreachable")
            else f"{state.key.kind} {state.key}: {state.error}"
            for state in failing
        ]
        lines += [*self._services.problems(), *self._peerings.problems(), *self._remotes.problems()]
        return list(dict.fromkeys(lines))

    @property
    def stale(self) -> bool:
        """Whether what is served is only the last that was known: an essential watch has been failing for long."""
        limit = trio.current_time() - STALE_AFTER
        states = filter(None, map(self._registry.state, _ESSENTIAL))
        return any(state.failing_since is not None and state.failing_since <= limit for state in states)

    def unanswered(self, last: Snapshot, *, early: bool) -> PendingSources:
        """What of the last known catalog is still to be carried over, since Consul has not said anything of it.

        `early`: Consul itself may have begun so lately that what it lacks proves nothing. Its leader learns by gossip
        of other datacenters, and from peers what they export.
        """
        services, subsets = self._services.pending()
        # Without peering there is no such list, and with it not at once.
        unpeered = early and not self._peerings.known

        def silent(key: WatchKey) -> bool:
            return key in self._by_need and not self._registry.answered(key)

        return PendingSources(
            services=services,
            subsets=subsets,
            resolvers=self._services.pending_resolvers,
            remotes=self._remotes.pending(last.remotes, early=early),
            servers=silent(LOCAL_SERVERS) or (unpeered and last.peer_through),
            namespaces=self._services.pending_namespaces(last),
            partitions=self._partitions.pending(last.partitions, early=early),
            imports=self._peerings.pending_imports(last, early=early),
            exports=bool(last.exports) and (silent(EXPORTS) or unpeered),
            chains=self._exports.pending_chains(),
            peers=self._peerings.pending_servers(last, early=early),
        )

    @property
    def ca_roots(self) -> CaRoots | None:
        """The certificates of the mesh; None before Consul has told them."""
        return self._roots.value

    async def why_missing(self, service: str) -> str | None:
        """Why a service of this datacenter is not routed; None where nothing is missing. Few questions reach Consul."""
        return await self._explainer.why_missing(service)

    def _peerings_changed(self) -> None:
        self._follow_by_need()
        self._publisher.changed()

    def _follow_by_need(self) -> None:
        exposed = self._home.expose_servers and self._home.central
        servers = LOCAL_SERVERS in self._by_need or exposed or self._peerings.through
        exports = self._peerings.any or self._enforce_exports
        self._by_need.keep([LOCAL_SERVERS] * servers + [EXPORTS] * exports)

    async def _publish_changes(self) -> None:
        while self._roots.value is None or not self._services.known:
            await self._publisher.change()
        with trio.move_on_after(LONGEST_START):
            await self._sync.wait(START_DEADLINE)
            if not self._sync.missing:
                # A wildcard may export what became known after the exports did.
                self._exports.reconcile()
                await self._sync.wait(START_DEADLINE)
        if missing := self._sync.missing:
            log.warning("catalog is incomplete at the start", waited_for=missing[:5], more=len(missing[5:]))
        self._sync.close()
        await self._publisher.run(self._exports.reconcile)

    def _made(self) -> Snapshot:
        home = self._home
        return Snapshot(
            home.datacenter,
            "" if self._roots.value is None else self._roots.value.trust_domain,
            home.partition,
            services=self._services.services(),
            remotes=self._remotes.remotes(),
            servers=self._servers.held.value,
            domain=home.domain,
            expose_servers=home.expose_servers and home.central,
            partitions=self._partitions.partitions(),
            exports=self._exports.exports(),
            imports=self._peerings.imports(),
            peer_servers=self._peerings.servers(),
            peer_through=self._peerings.through,
            groups=self._exports.groups(),
            node=home.node,
        )
