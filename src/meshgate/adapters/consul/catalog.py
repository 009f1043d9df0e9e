"""Consul's catalog as a stream of snapshots: all that routing depends on, each complete and consistent in itself.

What always holds: a snapshot is published only if it differs from the last one; nothing is published before the trust
domain and the list of services are known; after that the first one waits until each source has answered or failed
once, as long as one does within `start_deadline` seconds; and once published, nothing is taken back because Consul is
unreachable, refuses the token, or shows less to it than before.

Sources: Consul's `agent/proxycfg` (what its own gateway watches, and when it counts as valid).
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

import structlog
import trio

from meshgate.core.catalog import Snapshot
from meshgate.core.sni import DEFAULT

from .acl_visibility import AclVisibility
from .api import GATEWAY_KIND, CaRoots, ConsulClient, Tenant
from .blocking_query_pool import BlockingQueryPool
from .exports import LocalExports
from .initial_sync import InitialSync, KeyedTasks
from .lookups import Explainer
from .namespaces import LocalCatalog
from .partitions import Partitions
from .peerings import Peerings
from .publisher import Publisher
from .remotes import RemoteGateways
from .servers import LocalServers
from .services import NAMES
from .subsets import RESOLVERS
from .tenancy import visibility_in_partition
from .watch import Watch
from .watch_registry import WatchRegistry, WatchState

log = structlog.get_logger(module="meshgate.consul")

# Seconds that an essential watch may fail before the catalog counts as stale.
STALE_AFTER: Final = 10.0
# Seconds that the first snapshot waits however many sources there are.
LONGEST_START: Final = 300.0
ROOTS: Final = "CA roots"
_SERVERS: Final = "servers"
_EXPORTS: Final = "exports"

# While one of these fails, what is served may be old as a whole; those of a single namespace have other names.
_ESSENTIAL: Final = frozenset((ROOTS, NAMES, RESOLVERS))
# What one line can say for every watch that it hits.
_COMMON: Final = frozenset(("403", "429", "unreachable", "timeout"))


class CatalogWatcher:
    """Follows the catalog and publishes snapshots of it.

    Args:
        client: Consul.
        registry: shared by all watches of the process.
        publish: gets each new snapshot, in trio's thread; it must not block.
        datacenter: the gateway's own.
        partition: the gateway's own.
        gateway_service: the name under which the gateway is registered.
        catalog_watches: how many blocking queries the gateway may hold at once (see `pool`).
        enterprise: whether Consul has namespaces and partitions; the community edition refuses to be asked for them.
        enforce_exports: whether exports decide what is routed, so that they are followed without a peering too.
        start_deadline: seconds that the first snapshot waits for slow sources, since the last one that was not.
    """

    def __init__(  # noqa: PLR0913 - most by keyword
        self,
        client: ConsulClient,
        registry: WatchRegistry,
        publish: Callable[[Snapshot], None],
        *,
        datacenter: str,
        partition: str = DEFAULT,
        gateway_service: str = GATEWAY_KIND,
        catalog_watches: int = 100,
        start_deadline: float = 5.0,
        enterprise: bool = False,
        enforce_exports: bool = False,
    ) -> None:
        # A gateway is in the namespace default, whatever namespace its token would make Consul assume.
        self._client = client.at(Tenant(namespace=DEFAULT)) if enterprise else client
        self._registry = registry
        self._publisher = Publisher(self._made, publish)
        self._datacenter = datacenter
        self._partition = partition
        self._start_deadline = start_deadline
        self._domain = "consul"
        self._expose_servers = False
        self._enforce_exports = enforce_exports
        visibility = AclVisibility(client, gateway_service)
        self._visibility = visibility if partition == DEFAULT else visibility_in_partition(visibility, client)
        self._servers: LocalServers | None = None
        self._roots: CaRoots | None = None
        self._sync = InitialSync()
        self._tasks: KeyedTasks[str] | None = None
        self._pool = BlockingQueryPool(self._client, catalog_watches)
        self._explainer = Explainer(self._client, enterprise=enterprise)
        shared = (self._client, registry, self._pool, self._visibility)
        account: dict[str, Any] = {"sync": self._sync, "changed": self._changed}
        gateways = {"gateway_service": gateway_service} | account
        central = partition == DEFAULT
        self._services = LocalCatalog(*shared, enterprise=enterprise, **account)
        # Only gateways of the default partition look into other datacenters.
        self._remotes = RemoteGateways(*shared, datacenter=datacenter, **gateways) if central else None
        self._partitions = Partitions(*shared, partition=partition, **gateways) if enterprise else None
        self._peerings = Peerings(
            *shared,
            enterprise=enterprise,
            control_plane=central,
            sync=self._sync,
            changed=self._peerings_changed,
        )
        self._exports = LocalExports(
            registry,
            self._pool,
            partition=partition,
            enterprise=enterprise,
            services=self._services.services,
            **account,
        )

    def name_servers(self, domain: str, *, expose: bool) -> None:
        """Say how Consul's servers are named, and whether this gateway is to carry their traffic; before `run`.

        Servers are only watched if it is, and if it is in the default partition: no other one has servers.

        Args:
            domain: the agents' DNS domain.
            expose: whether the gateway is registered for servers (WAN federation through gateways).
        """
        self._domain = domain
        self._expose_servers = expose and self._partition == DEFAULT
        self._want_servers()

    async def run(self) -> None:
        """Watch and publish until cancelled."""
        async with self._pool, trio.open_nursery() as nursery:
            self._tasks = KeyedTasks(nursery)
            nursery.start_soon(self._follow_roots)
            nursery.start_soon(self._services.run)
            nursery.start_soon(self._peerings.run)
            if self._remotes is not None:
                nursery.start_soon(self._remotes.run)
            if self._partitions is not None:
                nursery.start_soon(self._partitions.run)
            self._adjust()
            await self._publish_changes()

    def used(self, services: Iterable[str]) -> None:
        """Streams were placed for these services: they are to be followed closely (see `watch_scheduler`).

        Lower-case names; unknown ones are ignored.
        """
        names = set(services)
        self._services.used(names | self._exports.behind(names))

    async def learn(self, services: Iterable[str], namespace: str = "") -> None:
        """Have services published as Consul has them now; return when that is done or cannot be.

        Takes as long as a request to Consul; a caller with less patience cancels it. Lower-case names; with a namespace
        those that nobody has heard of are looked for in it, without one they are ignored.
        """
        names = set(services)
        if await self._services.learn(names | self._exports.behind(names), namespace):
            await self._publisher.hurry()

    @property
    def snapshot(self) -> Snapshot | None:
        """The last one that was published."""
        return self._publisher.snapshot

    def states(self) -> list[WatchState]:
        """How each watch is doing, those of the registry's other users included."""
        return self._registry.states()

    def problems(self) -> list[str]:
        """What is missing or failing, a line each; with the ACL rule to add where one is missing."""
        failing = (state for state in self._registry.states() if state.error and not _needless(state))
        lines = [
            state.error if state.status in _COMMON else f"{state.kind} {state.name}: {state.error}" for state in failing
        ]
        lines += [*self._services.problems(), *self._peerings.problems()]
        lines += [] if self._remotes is None else self._remotes.problems()
        return list(dict.fromkeys(lines))

    @property
    def stale(self) -> bool:
        """Whether what is served is only the last that was known: an essential watch has been failing for long."""
        limit = trio.current_time() - STALE_AFTER
        return any(
            state.failing_since is not None and state.failing_since <= limit
            for state in self._registry.named(_ESSENTIAL)
        )

    @property
    def ca_root_expiry(self) -> float | None:
        """Unix time at which the active root certificate of the mesh ends."""
        return None if self._roots is None else self._roots.expires

    @property
    def ca_intermediate_expiry(self) -> float | None:
        """Unix time at which the intermediate certificate that signs leaves ends; None where the root signs."""
        return None if self._roots is None else self._roots.intermediate_expires

    async def why_missing(self, service: str) -> str | None:
        """Why a service of this datacenter is not routed, asked of Consul now; None where nothing is missing.

        Few questions reach Consul however often this is called.
        """
        return await self._explainer.why_missing(service)

    async def _follow_roots(self) -> None:
        async with self._pool.dedicated() as reader:
            await Watch(self._registry, "roots", ROOTS, reader.ca_roots, self._roots_changed).run()

    def _roots_changed(self, roots: CaRoots) -> None:
        self._roots = roots
        self._changed()

    def _changed(self) -> None:
        self._publisher.changed()

    def _peerings_changed(self) -> None:
        self._adjust()
        self._changed()

    def _adjust(self) -> None:
        """Follow what is needed now: servers and exports depend on what else is found."""
        if self._tasks is None:
            return
        self._want_servers()
        wanted = {_SERVERS} if self._servers is not None else set()
        if self._peerings.any or self._enforce_exports:
            self._exports.begin()
            wanted.add(_EXPORTS)
        self._tasks.keep(wanted, self._follow)

    def _want_servers(self) -> None:
        if self._servers is None and (self._expose_servers or self._peerings.through):
            self._servers = LocalServers(
                self._pool, self._registry, self._visibility, sync=self._sync, changed=self._changed
            )

    async def _follow(self, what: str) -> None:
        if what == _EXPORTS:
            await self._exports.run()
        elif self._servers is not None:
            await self._servers.run()

    async def _publish_changes(self) -> None:
        while self._roots is None or not self._services.known:
            await self._publisher.change()
        with trio.move_on_after(LONGEST_START):
            await self._sync.wait(self._start_deadline)
            if not self._sync.missing:
                # A wildcard may export what became known after the exports did.
                self._exports.reconcile()
                await self._sync.wait(self._start_deadline)
        if missing := self._sync.missing:
            log.warning("catalog is incomplete at the start", waited_for=missing[:5], more=len(missing[5:]))
        self._sync.close()
        await self._publisher.run(self._exports.reconcile)

    def _made(self) -> Snapshot:
        return Snapshot(
            self._datacenter,
            "" if self._roots is None else self._roots.trust_domain,
            self._partition,
            services=self._services.services(),
            remotes=() if self._remotes is None else self._remotes.remotes(),
            servers=() if self._servers is None else self._servers.instances(),
            domain=self._domain,
            expose_servers=self._expose_servers,
            partitions=() if self._partitions is None else self._partitions.partitions(),
            exports=self._exports.exports(),
            imports=self._peerings.imports(),
            peer_servers=self._peerings.servers(),
            peer_through=self._peerings.through,
            groups=self._exports.groups(),
        )


def _needless(state: WatchState) -> bool:
    """Whether a watch fails only because this Consul is too old for what it watches, or waits for older servers."""
    absent = state.status == "404" or "currently disabled" in state.error
    return absent and state.kind in ("federation-states", "gateway-names", "summaries")
