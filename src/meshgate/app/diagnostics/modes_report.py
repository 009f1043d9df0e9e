"""`meshgate modes`: for each sidecar of the local agent and each of its upstreams, the mode and the way of the traffic.

Everything is read from the agent: registrations (merged with central configuration, as it shows them), configuration
entries, the compiled discovery chain of each upstream, and who is registered where. The rules are in `core.modes`.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from meshgate.adapters.consul.api import (
    GATEWAY_KIND,
    AgentFacts,
    ConsulClient,
    ConsulError,
    Cursor,
    Instances,
    ServiceDefaults,
    Sidecar,
    Tenant,
    UpstreamDefinition,
)
from meshgate.app.diagnostics.inspection import HOW_TO_GIVE_ONE, NONE_GIVEN, gateways_in, healthy, refusal
from meshgate.core.addresses import HostPort
from meshgate.core.catalog import Export
from meshgate.core.endpoint_maker import best_address
from meshgate.core.modes import (
    Effective,
    Hop,
    Modes,
    Place,
    Surroundings,
    Target,
    effective_mode,
    obstacles,
    path,
    told_apart,
    without_effect,
)
from meshgate.core.sni import DEFAULT, ServiceSni

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Leg:
    """Who is dialed, and at which addresses; none where they cannot be known from here."""

    hop: Hop
    addresses: tuple[HostPort, ...]


@dataclass(frozen=True, slots=True)
class Way:
    """How traffic for one target goes. The sidecar dials the first leg, whoever is there the next."""

    target: Target
    legs: tuple[Leg, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UpstreamReport:
    """An upstream: the mode in force and where its traffic goes. `notes` are about the upstream as a whole."""

    upstream: UpstreamDefinition
    effective: Effective
    ways: tuple[Way, ...]
    notes: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        return not self.notes and not any(way.problems for way in self.ways)


@dataclass(frozen=True, slots=True)
class SidecarReport:
    sidecar: Sidecar
    upstreams: tuple[UpstreamReport, ...]


@dataclass(frozen=True, slots=True)
class ModesReport:
    """The answer. `notes` are about all of it: what could not be read."""

    own: Place
    central_config: bool | None
    sidecars: tuple[SidecarReport, ...]
    notes: tuple[str, ...]

    @property
    def sound(self) -> bool:
        return all(upstream.sound for sidecar in self.sidecars for upstream in sidecar.upstreams)


class ModesReader:
    """Reads the report; each thing that several upstreams need is asked for once."""

    def __init__(self, client: ConsulClient, gateway_service: str = GATEWAY_KIND) -> None:
        self._client = client
        self._gateway_service = gateway_service
        self._agent = AgentFacts("")
        self._trust_domain = ""
        self._proxy_defaults = ""
        self._notes: list[str] = []
        self._known: dict[object, object] = {}

    async def read(self, text: str = "") -> ModesReport:
        """The report about all sidecars, or those in whose ID or service `text` occurs.

        Raises:
            ConsulError: the agent does not tell who it is, or which services it holds.
        """
        self._agent = agent = await self._client.agent_self()
        self._trust_domain = (await self._client.ca_roots()).value.trust_domain
        self._proxy_defaults = await self._try(("proxy-defaults",), self._client.proxy_defaults_mode) or ""
        chosen = [each for each in await self._client.sidecars() if text in each.id or text in each.service]
        sidecars = [await self._sidecar(sidecar) for sidecar in chosen]
        if not chosen and agent.acls is not False and not self._client.token.given:
            self._notes.append(f"{NONE_GIVEN}, so this is what anybody may see: {HOW_TO_GIVE_ONE}")
        own, notes = Place(agent.datacenter, agent.partition), tuple(dict.fromkeys(self._notes))
        return ModesReport(own, agent.central_config, tuple(sidecars), notes)

    async def _sidecar(self, sidecar: Sidecar) -> SidecarReport:
        caller = await self._defaults(sidecar.service, sidecar.namespace, sidecar.partition)
        return SidecarReport(
            sidecar, tuple([await self._upstream(sidecar, caller, upstream) for upstream in sidecar.upstreams])
        )

    async def _upstream(
        self, sidecar: Sidecar, caller: ServiceDefaults, upstream: UpstreamDefinition
    ) -> UpstreamReport:
        if upstream.prepared_query:
            note = "a prepared query dials what it finds directly: no mode applies to it"
            return UpstreamReport(upstream, Effective("none", None), (), (note,) if upstream.mode else ())
        namespace = upstream.namespace or sidecar.namespace
        partition = upstream.partition or sidecar.partition
        destination = ServiceDefaults()
        if not upstream.peer:
            destination = await self._defaults(upstream.name, namespace, partition)
        configured = Modes(
            destination=destination.mode,
            proxy_defaults=self._proxy_defaults,
            service_defaults=caller.mode,
            upstream_defaults=caller.upstream_defaults.mode,
            override=_override(sidecar, caller, upstream),
        )
        central = self._agent.central_config is not False
        modes = told_apart(configured, sidecar.mode, upstream.mode, central=central)
        effective = effective_mode(modes, central=central)
        targets = await self._targets(upstream, namespace, partition)
        own = Place(self._agent.datacenter, sidecar.partition)
        notes = without_effect(modes, effective, own, targets, central=central)
        ways = [await self._way(own, effective.mode, target) for target in targets]
        return UpstreamReport(upstream, effective, tuple(ways), tuple(notes))

    async def _targets(self, upstream: UpstreamDefinition, namespace: str, partition: str) -> Sequence[Target]:
        datacenter = upstream.datacenter or self._agent.datacenter
        if upstream.peer:
            return [Target(upstream.name, "", "", namespace, peer=upstream.peer)]
        found = await self._try(
            ("chain", upstream.name, datacenter, namespace, partition),
            lambda: self._at(namespace, partition).discovery_chain(upstream.name, datacenter=datacenter),
        )
        sni = ServiceSni(upstream.name, datacenter, self._trust_domain, namespace, partition)
        return (found.value.targets if found else ()) or [
            Target(upstream.name, datacenter, str(sni), namespace, partition)
        ]

    # --- where the traffic goes ----------------------------------------------------------------------------------

    async def _way(self, own: Place, mode: str, target: Target) -> Way:
        hops = path(mode, own, target)
        local = await self._gateways(own.datacenter, own.partition) if Hop.LOCAL_GATEWAY in hops else None
        remote = await self._gateways(target.datacenter, target.partition) if Hop.REMOTE_GATEWAY in hops else None
        instances = None if target.external else await self._instances(target)
        around = Surroundings(
            local_gateways=_count(local),
            remote_gateways=_count(remote),
            instances=None if instances is None else len(instances),
            exported=await self._exported(own, target),
        )
        # A peer's instances are shown with the address of its gateways.
        behind = None if target.peer else instances
        legs = {
            Hop.LOCAL_GATEWAY: _addresses(local, wan=False),
            Hop.REMOTE_GATEWAY: _addresses(remote, wan=True),
            Hop.PEER_GATEWAY: _addresses(instances, wan=True),
            Hop.SIDECAR: _addresses(behind, wan=False),
            Hop.REMOTE_SIDECAR: _addresses(behind, wan=True),
            Hop.EXTERNAL: (),
        }
        problems = obstacles(mode, own, target, around)
        return Way(target, tuple(Leg(hop, legs[hop]) for hop in hops), tuple(problems))

    async def _gateways(self, datacenter: str, partition: str) -> Instances | None:
        tenant = Tenant(DEFAULT, partition) if self._agent.enterprise else None
        return await self._try(
            ("gateways", datacenter, partition),
            lambda: gateways_in(self._client, datacenter, guess=self._gateway_service, tenant=tenant),
        )

    async def _instances(self, target: Target) -> Instances | None:
        datacenter = "" if target.datacenter == self._agent.datacenter else target.datacenter
        # What was imported from a peer is found in the partition that imported it.
        there = self._at(target.namespace, self._agent.partition if target.peer else target.partition, target.peer)
        found = await self._try(
            ("instances", target.service, target.datacenter, target.namespace, target.partition, target.peer),
            lambda: there.connect_instances(target.service, datacenter=datacenter),
        )
        return found.value if found else None

    async def _exported(self, own: Place, target: Target) -> bool | None:
        if target.peer or target.partition == own.partition or target.datacenter != self._agent.datacenter:
            return None
        # Its own entries: each partition has one for each group, too.
        there = self._at("", target.partition)
        asked = partial(there.exported_entry, Cursor(), target.partition)
        exports = await self._try(("exports", target.partition), asked)
        if exports is None:
            self._unknown_export(own, target, f"exported-services/{target.partition}")
            return None
        rows = [export for export in exports.value if _is_of(export, target)]
        if any(partition in ("*", own.partition) for row in rows for partition in row.partitions):
            return True
        unread = []
        for name in sorted({name for row in rows for name in row.groups}):
            group = await self._try(("group", name, target.partition), partial(there.sameness_group, name))
            if group is None:
                unread.append(f"sameness-group/{name}")
            elif own.partition in group.value.partitions:
                return True
        if unread:
            self._unknown_export(own, target, ", ".join(unread))
        return None if unread else False

    def _unknown_export(self, own: Place, target: Target, unread: str) -> None:
        self._notes.append(
            f"whether partition {target.partition} exports {target.service} to {own.partition} is unknown: "
            f"{unread} could not be read"
        )

    async def _defaults(self, service: str, namespace: str, partition: str) -> ServiceDefaults:
        found = await self._try(
            ("defaults", service, namespace, partition),
            lambda: self._at(namespace, partition).service_defaults(service),
        )
        return found or ServiceDefaults()

    def _at(self, namespace: str, partition: str, peer: str = "") -> ConsulClient:
        """The client at a place. Only Enterprise may be told one, and has to be: the agent has a place of its own."""
        return self._client.at(Tenant(namespace, partition, peer) if self._agent.enterprise else Tenant(peer=peer))

    async def _try(self, key: object, ask: Callable[[], Awaitable[T]]) -> T | None:
        """What `ask` gives, or None and a note; asked once for each `key`."""
        if key not in self._known:
            try:
                self._known[key] = await ask()
            except ConsulError as error:
                self._known[key] = None
                self._notes.append(refusal(self._client, error))
        return self._known[key]  # type: ignore[return-value]  # what `ask` of this key gave


def _override(sidecar: Sidecar, caller: ServiceDefaults, upstream: UpstreamDefinition) -> str:
    """The mode of the entry of `UpstreamConfig.Overrides` for an upstream; its empty fields mean the caller's own."""
    wanted = (
        upstream.name,
        upstream.namespace or sidecar.namespace,
        upstream.partition or sidecar.partition,
        upstream.peer,
    )
    for each in caller.overrides:
        here = (each.name, each.namespace or sidecar.namespace, each.partition or sidecar.partition, each.peer)
        if here == wanted:
            return each.mode
    return ""


def _is_of(export: Export, target: Target) -> bool:
    return export.service in ("*", target.service) and export.namespace in ("*", target.namespace)


def _count(instances: Instances | None) -> int | None:
    return None if instances is None else sum(map(healthy, instances))


def _addresses(instances: Instances | None, *, wan: bool) -> tuple[HostPort, ...]:
    """Those of healthy instances; of all where none is healthy."""
    known = instances or ()
    chosen = [instance for instance in known if healthy(instance)] or known
    return tuple(dict.fromkeys(HostPort(*best_address(instance, wan=wan)) for instance in chosen))
