"""What pages and numbers show of the gateway, in one place. They know nothing else of it.

All of it is read only, but for what stands last. What is awaited and not of the relay asks Consul, and raises
`ConsulError` where Consul does not tell.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import trio

from meshgate.adapters.consul import WatchState
from meshgate.adapters.consul.api import GATEWAY_KIND, HealthCheck
from meshgate.adapters.relay import Counters, Limits, Refused, StreamRecord
from meshgate.adapters.relay.pool import OpenStreams, WorkerLoss
from meshgate.app.admin.answers import Ejection, EndpointFacts
from meshgate.app.admin.history import History
from meshgate.app.gateway.gateway import Gateway
from meshgate.app.gateway.table_keeper import Since
from meshgate.app.gateway.upgrade_record import Upgrade
from meshgate.app.settings.settings import Settings
from meshgate.core.callers import Callers
from meshgate.core.catalog import Instance, Snapshot
from meshgate.core.outlier_detection import Address
from meshgate.core.proxy_config import BindAddress
from meshgate.core.routes import Endpoint, Route, RouteTable

_NO_CATALOG: Final = Snapshot("", "")
_NAMES_SECONDS: Final = 5.0  # Thousands of instances take a tenth of a second, and something changes all the time.


class GatewayView:
    """The gateway as pages see it. Times are in seconds; `started` is Unix time and tells one process from the next.

    `uptime` is that of the process, which an upgrade does not end, and `version_uptime` that of the version.
    """

    def __init__(self, gateway: Gateway) -> None:
        self.started = gateway.started
        self._since = gateway.since
        self._began = time.monotonic()
        self._gateway = gateway
        self._names: tuple[float, Snapshot | None, Callers] = (float("-inf"), None, Callers(_NO_CATALOG))
        self.history = History()

    @property
    def uptime(self) -> float:
        return time.monotonic() - self._since

    @property
    def version_uptime(self) -> float:
        return time.monotonic() - self._began

    @property
    def settings(self) -> Settings:
        return self._gateway.settings

    # --- how it is ---

    @property
    def ready(self) -> bool:
        return self._gateway.ready

    @property
    def listening(self) -> bool:
        return self._gateway.listening

    @property
    def draining(self) -> bool:
        return self._gateway.draining

    @property
    def token_problem(self) -> str:
        """Why the token cannot be used; "" where it can."""
        return self._gateway.client.token.problem

    def problems(self) -> list[str]:
        return self._gateway.problems()

    # --- the catalog ---

    @property
    def catalog_known(self) -> bool:
        return self._gateway.tables.known.is_set()

    @property
    def catalog_stale(self) -> bool:
        """Whether streams are placed by what was last known rather than by what Consul says now."""
        return self._gateway.catalog_stale

    @property
    def from_disk(self) -> float | None:
        """The age of a catalog that came from the state file alone, to a tenth; None while it is Consul's."""
        last_known = self._gateway.last_known
        return round(last_known.age, 1) if last_known.from_disk else None

    @property
    def catalog_age(self) -> float | None:
        """The age of the oldest part of the catalog for which Consul does not answer; 0 while it answers for all of it.

        To a tenth; None before anything is known.
        """
        if self.from_disk is not None:
            return self.from_disk
        if not (self.consul_found and self.catalog_known):
            return None
        now = trio.current_time()
        return round(max((state.age(now) for state in self.watches() if state.error), default=0.0), 1)

    @property
    def consul_found(self) -> bool:
        """Whether the agent has answered since the start."""
        return self._gateway.watcher is not None

    @property
    def domain(self) -> str:
        """The agents' DNS domain, by which servers are named, as the catalog in use has it."""
        return (self._gateway.tables.snapshot or _NO_CATALOG).domain

    def table(self) -> RouteTable:
        """The table in force; an empty one before the catalog is known."""
        return self._gateway.tables.table

    async def caller_names(self) -> Callable[[str], str]:
        """Who calls from an IP address, by the catalog, "" if unknown; up to `_NAMES_SECONDS` behind."""
        snapshot, now = self._gateway.tables.snapshot, time.monotonic()
        known = self._names
        if snapshot is not None and snapshot is not known[1] and now - known[0] > _NAMES_SECONDS:
            known = self._names = now, snapshot, await trio.to_thread.run_sync(Callers, snapshot)
        return known[2].name

    def watches(self) -> list[WatchState]:
        """How each watch of Consul is doing; none before the agent has answered."""
        watcher = self._gateway.watcher
        return [] if watcher is None else watcher.states()

    def ca_expiries(self) -> tuple[float | None, float | None]:
        """When the first CA root and the signing intermediate expire, in Unix time; None where that is not known."""
        watcher = self._gateway.watcher
        roots = None if watcher is None else watcher.ca_roots
        return (None, None) if roots is None else (roots.expires, roots.intermediate_expires)

    def consul_errors(self) -> Mapping[str, int]:
        """Failed requests to Consul, by HTTP status or kind of failure."""
        return self._gateway.client.errors

    @property
    def unkept(self) -> str:
        """Why a restart would have no catalog without Consul; "" where it would have one."""
        return self._gateway.last_known.unkept

    def unhealthy_since(self, route: Route, endpoint: Endpoint) -> Since | None:
        return self._gateway.tables.health.since(route, endpoint)

    # --- the relay ---

    @property
    def limits(self) -> Limits:
        """Those in force, central configuration followed."""
        return self._gateway.relay.limits

    def listeners(self) -> Iterable[BindAddress]:
        return self._gateway.registration.listeners.addresses

    def workers(self) -> list[tuple[int, int]]:
        """For each relay process its id, 0 while it is missing, and the streams open there as last heard."""
        return self._gateway.relay.loads

    def worker_restarts(self) -> Mapping[str, int]:
        return {end.value: count for end, count in self._gateway.relay.restarts.items()}

    def ejected(self) -> Mapping[Address, int]:
        """The endpoints that get no streams while others are left, and how often each has failed in a row."""
        return self._gateway.relay.ejected

    def endpoint_facts(self, address: Address) -> EndpointFacts:
        """What the relay has met of an endpoint; any thread may ask."""
        relay = self._gateway.relay
        facts, record, out = EndpointFacts(), relay.endpoints.of(address), relay.ejection(address)
        if record is not None:
            facts = EndpointFacts(
                streams=record.streams,
                unanswered=record.unanswered,
                failures=record.failures,
                first_byte_seconds=None if record.first_byte is None else round(record.first_byte, 6),
                last_success=record.last_success,
                last_failure=record.last_failure,
                last_error=record.last_error or None,
            )
        if out is not None:
            facts.ejected = Ejection(out.failures, out.since, out.why or None)
        return facts

    def totals(self) -> Counters:
        """The relay's totals as last heard. Not to be changed."""
        return self._gateway.relay.totals

    async def counters(self) -> Counters:
        """The relay's totals; waits up to half a second for the workers."""
        return await self._gateway.relay.counters()

    async def connections(self) -> OpenStreams:
        return await self._gateway.relay.connections()

    def recent_refusals(self) -> list[tuple[float, Refused]]:
        """The last ones with their Unix times, the newest first."""
        return [*reversed(self._gateway.observer.recent)]

    def ended_streams(self) -> list[StreamRecord]:
        """The last streams that did not end in order and were not refused, the newest first."""
        return self._gateway.observer.ended

    def worker_losses(self) -> list[WorkerLoss]:
        """The last relay processes that ended with their streams, the newest first."""
        return [*reversed(self._gateway.relay.losses)]

    def access_lines_dropped(self) -> int | None:
        """Access log lines that were not written; None where no access log was ever wanted."""
        observer, untold = self._gateway.observer, self._gateway.relay.untold
        dropped = observer.dropped + untold
        return dropped if dropped or observer.has_access_log else None

    # --- what asks Consul, and what changes something ---

    async def look_up(self, name: str) -> None:
        """Ask Consul about a name as a stream of that name would; may take as long as Consul does."""
        await self._gateway.discovery.look_up(name)

    async def why_missing(self, service: str) -> str | None:
        """Why a service of this datacenter has no route; None where that is not known."""
        watcher = self._gateway.watcher
        return None if watcher is None else await watcher.why_missing(service)

    async def node_checks(self, node: str, *, datacenter: str = "") -> tuple[HealthCheck, ...]:
        return await self._gateway.client.node_checks(node, datacenter=datacenter)

    async def other_gateways(self) -> tuple[Instance, ...]:
        """The other mesh gateways of this datacenter and partition."""
        gateway, settings = self._gateway, self._gateway.settings
        names = {settings.service, *(await gateway.client.gateway_names()).value}
        answers = [await gateway.client.instances(name, kind=GATEWAY_KIND) for name in sorted(names)]
        found = [each for answer in answers for each in answer.value]
        own = None if gateway.watcher is None or gateway.watcher.snapshot is None else gateway.watcher.snapshot.node
        return tuple(it for it in found if it.id != settings.proxy_id or own not in ("", None, it.node))

    async def token_expiry(self) -> float | None:
        """When the ACL token ends, in Unix time; None for one that never does, and where there is none."""
        client = self._gateway.client
        expires = await client.token_expiry() if client.token.given else None
        return None if expires is None else expires.timestamp()

    async def agent_connections(self) -> int | None:
        """How many connections the agent allows one client, 0 for any number; None where it does not say."""
        return (await self._gateway.client.agent_self()).max_connections

    def log_level_changed(self) -> None:
        """Have the relay tell of each stream at level debug, and no longer above it."""
        self._gateway.want_records()

    def drain(self) -> None:
        self._gateway.drain()

    @property
    def last_upgrade(self) -> Upgrade | None:
        return self._gateway.upgrader.last

    def upgrades(self) -> Mapping[str, int]:
        return self._gateway.upgrader.results

    async def try_upgrade(self, python: str, asked: str) -> Upgrade:
        """As `Upgrader.prepare`."""
        return await self._gateway.upgrader.prepare(python, asked)

    def upgrade(self) -> None:
        """Have the version that was tried go on."""
        self._gateway.upgrader.go()
