"""Consul's catalog as a stream of snapshots: all that routing depends on, each complete and consistent in itself.

What always holds: a snapshot is published only if it differs from the last one; nothing is published before the trust
domain and the list of services are known; after that the first one waits until each source has answered or failed
once, but not longer than `start_deadline`; and once published, nothing is taken back because Consul is unreachable,
refuses the token, or shows less to it than before.

Sources: Consul's `agent/proxycfg` (what its own gateway watches, and when it counts as valid).
"""

from collections.abc import Callable
from typing import Final

import structlog
import trio

from meshgate.core.catalog import Snapshot
from meshgate.core.sni import DEFAULT

from .explain import Explainer
from .hub import WatchHub, WatchState
from .pool import ReaderPool
from .records import GATEWAY_KIND, CaRoots, Client
from .remotes import DATACENTERS, FEDERATION, RemoteGateways
from .servers import LocalServers
from .services import LocalServices
from .sight import Sight
from .subsets import RESOLVERS, Subsets
from .tasks import Progress
from .watch import Watch

log = structlog.get_logger(module="meshgate.consul")

# Seconds from the first change to the snapshot, in which further changes are gathered. Not prolonged by them.
COALESCE: Final = 0.1
# Seconds that an essential watch may fail before the catalog counts as stale.
STALE_AFTER: Final = 10.0
ROOTS: Final = "CA roots"

# While one of these fails, what is served may be old as a whole.
_ESSENTIAL: Final = frozenset(("roots", "services", "resolvers"))
# What one line can say for every watch that it hits.
_COMMON: Final = frozenset(("403", "429", "unreachable", "timeout"))


class CatalogWatcher:
    """Follows the catalog and publishes snapshots of it.

    Args:
        client: Consul.
        hub: shared by all watches of the process.
        publish: gets each new snapshot, in trio's thread; it must not block.
        datacenter: the gateway's own.
        partition: the gateway's own.
        gateway_service: the name under which the gateway is registered.
        catalog_watches: how many blocking queries the gateway may hold at once (see `pool`).
        start_deadline: seconds that the first snapshot waits for slow sources.
    """

    def __init__(
        self,
        client: Client,
        hub: WatchHub,
        publish: Callable[[Snapshot], None],
        *,
        datacenter: str,
        partition: str = DEFAULT,
        gateway_service: str = GATEWAY_KIND,
        catalog_watches: int = 100,
        start_deadline: float = 5.0,
    ) -> None:
        self.snapshot: Snapshot | None = None
        self._client = client
        self._hub = hub
        self._publish = publish
        self._datacenter = datacenter
        self._partition = partition
        self._start_deadline = start_deadline
        self._domain = "consul"
        self._sight = Sight(client, gateway_service)
        self._servers: LocalServers | None = None
        self._roots: CaRoots | None = None
        self._progress = Progress(RESOLVERS, DATACENTERS, FEDERATION)
        self._change = trio.Event()
        self._pool = ReaderPool(client, catalog_watches)
        self._explainer = Explainer(client)
        shared = (client, hub, self._pool, self._sight)
        self._subsets = Subsets(*shared, progress=self._progress, changed=self._changed)
        self._services = LocalServices(*shared, self._subsets, progress=self._progress, changed=self._changed)
        self._remotes = RemoteGateways(
            *shared,
            datacenter=datacenter,
            gateway_service=gateway_service,
            progress=self._progress,
            changed=self._changed,
        )

    def name_servers(self, domain: str, *, expose: bool) -> None:
        """Say how Consul's servers are named, and whether this gateway is to carry their traffic; before `run`.

        Servers are only watched if it is, and if it is in the default partition: no other one has servers.

        Args:
            domain: the agents' DNS domain.
            expose: whether the gateway is registered for servers (WAN federation through gateways).
        """
        self._domain = domain
        if expose and self._partition == DEFAULT:
            self._servers = LocalServers(
                self._client, self._hub, self._sight, progress=self._progress, changed=self._changed
            )

    async def run(self) -> None:
        """Watch and publish until cancelled."""
        async with self._pool, trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_roots)
            nursery.start_soon(self._subsets.run)
            nursery.start_soon(self._services.run)
            nursery.start_soon(self._remotes.run)
            if self._servers is not None:
                nursery.start_soon(self._servers.run)
            await self._publish_changes()

    def states(self) -> list[WatchState]:
        """How each watch is doing, those of the hub's other users included."""
        return self._hub.states()

    def problems(self) -> list[str]:
        """What is missing or failing, a line each; with the ACL rule to add where one is missing."""
        failing = (state for state in self._hub.states() if state.error and not _needless(state))
        lines = [
            state.error if state.status in _COMMON else f"{state.kind} {state.name}: {state.error}" for state in failing
        ]
        lines += [*self._services.problems(), *self._subsets.problems(), *self._remotes.problems()]
        return list(dict.fromkeys(lines))

    @property
    def stale(self) -> bool:
        """Whether what is served is only the last that was known: an essential watch has been failing for long."""
        limit = trio.current_time() - STALE_AFTER
        return any(
            state.kind in _ESSENTIAL and state.failing_since is not None and state.failing_since <= limit
            for state in self._hub.states()
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
        async with self._client.dedicated() as reader:
            await Watch(self._hub, "roots", ROOTS, reader.ca_roots, self._roots_changed).run()

    def _roots_changed(self, roots: CaRoots) -> None:
        self._roots = roots
        self._changed()

    def _changed(self) -> None:
        self._change.set()

    async def _publish_changes(self) -> None:
        while self._roots is None or not self._services.known:
            self._change = trio.Event()
            await self._change.wait()
        with trio.move_on_after(self._start_deadline):
            await self._progress.settled()
        if missing := self._progress.missing:
            log.warning("catalog is incomplete at the start", waited_for=missing[:5], more=len(missing[5:]))
        self._progress.close()
        while True:
            self._change = trio.Event()
            self._publish_if_new(self._roots.trust_domain)
            await self._change.wait()
            await trio.sleep(COALESCE)

    def _publish_if_new(self, trust_domain: str) -> None:
        snapshot = Snapshot(
            self._datacenter,
            trust_domain,
            self._partition,
            services=tuple(self._subsets.apply(*service) for service in sorted(self._services.instances().items())),
            remotes=self._remotes.remotes(),
            servers=() if self._servers is None else self._servers.instances(),
            domain=self._domain,
            expose_servers=self._servers is not None,
        )
        if snapshot != self.snapshot:
            self.snapshot = snapshot
            self._publish(snapshot)


def _needless(state: WatchState) -> bool:
    """Whether a watch fails only because this Consul is too old for what it watches, or waits for older servers."""
    absent = state.status == "404" or "currently disabled" in state.error
    return absent and state.kind in ("federation-states", "gateway-names")
