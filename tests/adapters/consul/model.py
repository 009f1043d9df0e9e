"""A model of Consul in the place of the client: no sockets, so that trio's mock clock can jump.

It follows what was seen of Consul 1.8 and what its source says of later versions:

- one index for everything, so any change wakes every held query, as an empty answer's index does;
- `catalog/services` and all rows are filtered silently by what the token may see;
- names are looked up without regard to case, and listed as they are spelled;
- a connect query for a service that the token may not read is refused;
- a query of an unknown datacenter is a ServerError, `No path to datacenter`.
"""

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import trio

from meshgate.adapters.consul.api import (
    NOW,
    AgentFacts,
    BadRequestError,
    CaRoots,
    Chain,
    ConsulAddress,
    ConsulClient,
    ConsulError,
    ConsulUnreachableError,
    Cursor,
    HealthCheck,
    Instances,
    NotFoundError,
    NotReadyError,
    OwnInstance,
    OwnRegistration,
    Page,
    Peering,
    PermissionDeniedError,
    Resolver,
    Rule,
    ServerError,
    Tenant,
)
from meshgate.core.catalog import Check, Export, Instance, SamenessGroup
from meshgate.core.proxy_config import NO_LIMITS, DestinationLimits

OWN = "dc1"


def sidecar(service: str, number: int = 1, *, port: int = 21000, **fields: Any) -> Instance:
    """A sidecar for a service, on the node n<number>."""
    name = f"{service}-sidecar-proxy"
    ordinary: dict[str, Any] = {
        "node": f"n{number}",
        "datacenter": OWN,
        "id": f"{name}-{number}",
        "service": name,
        "address": f"10.0.0.{number}",
        "port": port,
        "node_address": f"10.0.0.{number}",
        "kind": "connect-proxy",
        "modify_index": 7,
    }
    return Instance(**(ordinary | fields))


def gateway(datacenter: str, number: int = 1, *, name: str = "mesh-gateway", **fields: Any) -> Instance:
    """A mesh gateway."""
    ordinary: dict[str, Any] = {
        "node": f"{datacenter}-n{number}",
        "datacenter": datacenter,
        "id": f"{name}-{number}",
        "service": name,
        "address": f"10.1.0.{number}",
        "port": 8443,
        "node_address": f"10.1.0.{number}",
        "kind": "mesh-gateway",
        "modify_index": 7,
    }
    return Instance(**(ordinary | fields))


def server(datacenter: str = OWN) -> Instance:
    """One of Consul's servers."""
    checks = (Check("serfHealth", "passing"),)
    return gateway(datacenter, 99, name="consul", kind="", port=8300, checks=checks)


def _hash(registration: OwnRegistration) -> str:
    """What the agent tells as the content hash of a registration."""
    return str(hash(repr(registration)))


@dataclass(repr=False)
class Model(ConsulClient):
    """The state of the world, and a client of it. Change it, then call `change()`."""

    trust_domain: str = "td.consul"
    connect: dict[str, Instances] = field(default_factory=dict)
    plain: dict[str, Instances] = field(default_factory=lambda: {"consul": (server(),)})
    filters: dict[tuple[str, str], Instances | None] = field(default_factory=dict)
    entries: tuple[Resolver, ...] = ()
    wan: tuple[str, ...] = (OWN,)
    remote: dict[str, dict[str, Instances]] = field(default_factory=dict)
    federation: dict[str, Instances] | None = field(default_factory=dict)
    agent: dict[str, OwnRegistration] = field(default_factory=dict)
    # Registrations that no agent holds, or another one, and nodes beside the agent's.
    catalog: list[OwnInstance] = field(default_factory=list)
    nodes: set[str] = field(default_factory=set)
    # The checks of the agent by ID, of services and of its node.
    checks: dict[str, HealthCheck] = field(default_factory=dict)
    # What the token lacks: service names it may not read ("*" for all), and whether it sees nodes.
    denied: set[str] = field(default_factory=set)
    sees_nodes: bool = True
    # Services that have instances in the mesh without being registered under their own name.
    unlisted: set[str] = field(default_factory=set)
    reports_filtering: bool = False
    # Whether it has the list that Consul's web pages are made of.
    summarizes: bool = True
    # Whether it filters the public list of services (1.15 and later).
    filters_lists: bool = True
    token_known: bool = True
    # Failures: of everything, or of one method (its name, or "name:argument").
    down: ConsulError | None = None
    broken: dict[str, ConsulError] = field(default_factory=dict)
    hanging: set[str] = field(default_factory=set)
    # Calls that Consul never holds, as a broken proxy would.
    instant: set[str] = field(default_factory=set)
    calls: list[tuple[float, str]] = field(default_factory=list)
    index: int = 10
    held: int = 0
    most_held: int = 0
    # Queries that were given up while they were held.
    abandoned: int = 0
    waits: list[float] = field(default_factory=list)
    connections: int = 0
    most_connections: int = 0
    limits_of: dict[str, DestinationLimits] = field(default_factory=dict)
    facts: AgentFacts = field(default_factory=lambda: AgentFacts(OWN))
    registered: list[Mapping[str, Any]] = field(default_factory=list)
    deregistered: list[str] = field(default_factory=list)
    changed: trio.Event = field(default_factory=trio.Event)

    def __post_init__(self) -> None:
        super().__init__(ConsulAddress())

    def change(self) -> None:
        """Wake every held query."""
        self.index += 1
        self.changed.set()
        self.changed = trio.Event()

    def fail(self, error: ConsulError | None) -> None:
        """Break every connection with this error, or be well again."""
        self.down = error
        self.changed.set()
        self.changed = trio.Event()

    def count(self, call: str) -> int:
        return sum(name == call or name.partition(":")[0] == call for _, name in self.calls)

    def times(self, call: str) -> list[float]:
        return [at for at, name in self.calls if name == call]

    # --- the client --------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def dedicated(self) -> AsyncIterator[Self]:
        self.connections += 1
        self.most_connections = max(self.connections, self.most_connections)
        try:
            yield self
        finally:
            self.connections -= 1

    async def ca_roots(self, cursor: Cursor = NOW, *, datacenter: str = "") -> Page[CaRoots]:
        await self._turn("ca_roots", cursor)
        if not self.trust_domain:
            raise NotReadyError("no trust domain yet", "not_ready")
        return Page(CaRoots(self.trust_domain, 2e9), self.index)

    async def service_names(self, cursor: Cursor = NOW) -> Page[tuple[str, ...]]:
        await self._turn("service_names", cursor)
        names = tuple(sorted({*self.connect, *self.plain} - self.unlisted))
        seen = tuple(name for name in names if self._may_read(name) and self.sees_nodes)
        return Page(seen, self.index, filtered=self.reports_filtering and seen != names)

    async def connect_instances(
        self, service: str, cursor: Cursor = NOW, *, datacenter: str = "", subset_filter: str = ""
    ) -> Page[Instances]:
        await self._turn(f"connect_instances:{service}", cursor)
        if not self._may_read(service):
            raise PermissionDeniedError("Permission denied", Rule("service", service))
        alike = (rows for name, rows in self.connect.items() if name.lower() == service.lower())
        rows = tuple(row for rows in alike for row in rows)
        if subset_filter:
            filtered = self.filters.get((service, subset_filter))
            if filtered is None:
                raise BadRequestError("the filter does not compile", "400")
            rows = filtered
        return self._visible(rows)

    async def instances(
        self, service: str, cursor: Cursor = NOW, *, datacenter: str = "", kind: str = ""
    ) -> Page[Instances]:
        place = f" in {datacenter}" if datacenter else ""
        await self._turn(f"instances:{service}{place}", cursor, datacenter)
        world = self.remote[datacenter] if datacenter else self.plain
        rows = world.get(service, ()) if self._may_read(service) else ()
        chosen = (row for row in rows if not kind or row.kind == kind)
        return self._visible(tuple(sorted(chosen, key=lambda row: (row.node, row.id))))

    async def summaries(self, cursor: Cursor = NOW) -> Page[Mapping[str, int]]:
        await self._turn("summaries", cursor)
        if not self.summarizes:
            raise NotFoundError("no such endpoint", "404")
        registered = {name: hash(rows) for name, rows in self.plain.items()}
        for rows in self.connect.values():
            for row in rows:
                registered[row.service] = hash((registered.get(row.service), row.node, row.checks))
        return Page(registered, self.index)

    async def resolvers(self, cursor: Cursor = NOW) -> Page[tuple[Resolver, ...]]:
        await self._turn("resolvers", cursor)
        return Page(tuple(entry for entry in self.entries if self._may_read(entry.name)), self.index)

    async def confirm_readable(self, service: str, *, datacenter: str = "") -> None:
        await self._turn(f"readable:{service}", Cursor(), datacenter)
        if not self._may_read(service):
            raise PermissionDeniedError("Permission denied", Rule("service", service))

    async def datacenters(self) -> Page[tuple[str, ...]]:
        await self._turn("datacenters", Cursor())
        return Page(tuple(sorted(self.wan)))

    async def federated_gateways(self, cursor: Cursor = NOW) -> Page[Mapping[str, Instances]]:
        await self._turn("federated_gateways", cursor)
        if self.federation is None:
            raise NotFoundError("no such endpoint", "404")
        seen = {
            name: tuple(row for row in rows if self._may_read(row.service) and self.sees_nodes)
            for name, rows in self.federation.items()
        }
        return Page(seen, self.index)

    async def gateway_names(self, datacenter: str = "") -> Page[tuple[str, ...]]:
        await self._turn(f"gateway_names:{datacenter}", Cursor(), datacenter)
        return self._gateway_names(datacenter)

    def _gateway_names(self, datacenter: str) -> Page[tuple[str, ...]]:
        found = (name for name, rows in self.remote[datacenter].items() if any(row.kind for row in rows))
        return Page(tuple(name for name in found if self._may_read(name)))

    async def agent_facts(self) -> AgentFacts:
        await self._turn("agent_facts", Cursor())
        return self.facts

    async def agent_service(self, service_id: str, cursor: Cursor = NOW) -> Page[OwnRegistration]:
        held = self.agent.get(service_id)
        if held is None or _hash(held) == cursor.content_hash:
            await self._turn("agent_service", cursor)
        else:
            await self._turn("agent_service", Cursor())
        if service_id not in self.agent:
            raise NotFoundError(f"unknown service ID: {service_id}", "404")
        return Page(self.agent[service_id], content_hash=_hash(self.agent[service_id]))

    async def agent_registration(self, service_id: str) -> OwnRegistration | None:
        await self._turn("agent_registration", Cursor())
        return self.agent.get(service_id) if self._may_read(service_id) else None

    async def own_instances(self, service: str, service_id: str, cursor: Cursor = NOW) -> Page[tuple[OwnInstance, ...]]:
        await self._turn(f"own_instances:{service}", cursor)
        held = [self.agent[service_id]] if service_id in self.agent else []
        checks = tuple(check for check in self.checks.values() if check.service_id in ("", service_id))
        rows = (*(OwnInstance(self.facts.node, each, checks) for each in held), *self.catalog)
        return Page(tuple(row for row in rows if row.registration.id == service_id), index=self.index)

    async def node_checks(self, node: str, *, datacenter: str = "") -> tuple[HealthCheck, ...]:
        await self._turn(f"node_checks:{node}", Cursor())
        return (HealthCheck("serfHealth"),) if node in self.nodes else ()

    async def destination_limits(self, service: str, cursor: Cursor = NOW) -> Page[DestinationLimits]:
        await self._turn(f"destination_limits:{service}", cursor)
        return Page(self.limits_of.get(service, NO_LIMITS), index=self.index)

    async def agent_checks(self, service_id: str) -> tuple[HealthCheck, ...]:
        await self._turn("agent_checks", Cursor())
        return tuple(check for check in self.checks.values() if check.service_id in ("", service_id))

    async def register(self, payload: Mapping[str, Any]) -> None:
        await self._turn("register", Cursor())
        if not self._may_read(payload["Name"]):
            raise PermissionDeniedError(f"Permission denied: Missing service:write on {payload['Name']}")
        self.registered.append(payload)
        name = payload["Name"]
        check = payload["Check"].get("CheckID", f"service:{payload['ID']}")
        self.checks[check] = HealthCheck(check, service_id=payload["ID"])
        self.agent[payload["ID"]] = OwnRegistration(payload["ID"], name, payload.get("Address", ""), payload["Port"])
        self.plain[name] = (gateway(OWN, name=name),)
        self.change()

    async def deregister(self, service_id: str) -> None:
        await self._turn("deregister", Cursor())
        self.deregistered.append(service_id)
        self.agent.pop(service_id, None)
        self._drop_checks(service_id)
        self.change()

    async def deregister_check(self, check_id: str) -> None:
        await self._turn("deregister_check", Cursor())
        del self.checks[check_id]

    def _drop_checks(self, service_id: str) -> None:
        self.checks = {name: check for name, check in self.checks.items() if check.service_id != service_id}

    # --- Enterprise and peering, of which this model has none: see `mesh_double` for a double that has ----------------

    def at(self, tenant: Tenant) -> Self:
        assert tenant == Tenant(), "the community edition is asked for nothing of Enterprise"
        return self

    async def namespaces(self, cursor: Cursor = NOW) -> Page[tuple[str, ...]]:
        raise AssertionError("the community edition has no namespaces")

    async def partitions(self) -> Page[tuple[str, ...]]:
        raise AssertionError("the community edition has no partitions")

    async def visible_nodes(self, datacenter: str = "") -> Page[int]:
        await self._turn(f"nodes:{datacenter}", NOW, datacenter)
        return Page(int(self.sees_nodes), filtered=self.reports_filtering and not self.sees_nodes)

    async def gateway_names_by_catalog(self, datacenter: str = "") -> Page[tuple[str, ...]] | None:
        await self._turn(f"gateway_names_by_catalog:{datacenter}", NOW, datacenter)
        return self._gateway_names(datacenter) if self.filters_lists else None

    async def peerings(self, cursor: Cursor = NOW) -> Page[tuple[Peering, ...] | None]:
        await self._turn("peerings", Cursor())
        return Page(None)

    async def peer_through(self, cursor: Cursor = NOW) -> Page[bool]:
        raise AssertionError("there is no peering")

    async def exported_services(self, cursor: Cursor = NOW) -> Page[tuple[Export, ...]]:
        raise AssertionError("there is no peering")

    async def exported_entry(self, cursor: Cursor, partition: str) -> Page[tuple[Export, ...]]:
        raise AssertionError("there is no peering")

    async def sameness_group(self, name: str, cursor: Cursor = NOW) -> Page[SamenessGroup]:
        raise AssertionError("there is no peering")

    async def discovery_chain(self, service: str, cursor: Cursor = NOW, *, datacenter: str = "") -> Page[Chain]:
        raise AssertionError("there is no peering")

    # --- how it answers ------------------------------------------------------------------------------------------

    async def _turn(self, call: str, cursor: Cursor, datacenter: str = "") -> None:
        self.calls.append((trio.current_time(), call))
        self._raise(call, datacenter)
        if call in self.hanging:
            await trio.sleep_forever()
        held_at_once = cursor.index >= self.index or (cursor.content_hash and not cursor.index)
        if cursor.blocks and held_at_once and call not in self.instant:
            self.held += 1
            self.most_held = max(self.held, self.most_held)
            self.waits.append(cursor.wait)
            try:
                with trio.move_on_after(cursor.wait):
                    await self.changed.wait()
            except trio.Cancelled:
                self.abandoned += 1
                raise
            finally:
                self.held -= 1
            self._raise(call, datacenter)
        await trio.sleep(0.001)

    def _raise(self, call: str, datacenter: str) -> None:
        error = self.down or self.broken.get(call) or self.broken.get(call.partition(":")[0])
        if error is not None:
            raise error
        if not self.token_known:
            raise PermissionDeniedError("ACL not found")
        if datacenter and datacenter not in self.remote:
            raise ServerError("Consul failed: 500 No path to datacenter", "500")

    def _may_read(self, service: str) -> bool:
        return service not in self.denied and "*" not in self.denied

    def _visible(self, rows: Instances) -> Page[Instances]:
        seen = tuple(row for row in rows if self.sees_nodes and self._may_read(row.service))
        return Page(seen, self.index, filtered=self.reports_filtering and seen != rows)


def unreachable() -> ConsulUnreachableError:
    return ConsulUnreachableError("cannot reach Consul", "unreachable")


def calls_by_name(model: Model) -> Counter[str]:
    return Counter(name for _, name in model.calls)
