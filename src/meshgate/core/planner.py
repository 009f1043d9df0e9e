"""From a snapshot of the catalog to the route table: what Consul's own gateway would route, and nothing else.

Sources: `agent/xds` makeMeshGatewayListener, clustersFromSnapshotMeshGateway and endpointsFromServicesAndResolvers. A
gateway has exact names for the services and subsets of its own datacenter and partition, and a suffix for each other
datacenter and each other partition; it never has a suffix for its own, so a stream can cross at most from here to
there. The names of Consul's own servers are made in `servers`, those of peered clusters in `peering` and `exports`.

A catalog is large and its changes are small, so a `Planner` keeps the routes of each service and makes them again only
where the record of the service is another one. What did not change is the same object in the next table.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from operator import attrgetter
from types import MappingProxyType
from typing import Final

from .catalog import Instance, RemoteDatacenter, RemotePartition, Service, Snapshot, Subset, in_namespace
from .exports import AS_CONSUL, ExportRules, Exports
from .health import assess, best_address
from .own_addresses import LEADS_BACK, UNKNOWN, OwnAddresses
from .peering import peering_routes
from .routes import Endpoint, Route, RouteKind, RouteTable
from .servers import server_routes
from .sni import GatewaySni, ServiceSni

Addresses = Mapping[str, tuple[str, ...]]
_PORTS: Final = 1 << 16
NO_ADDRESSES: Addresses = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class _Made:
    """The routes of a service, and what the host names in them stood for when they were made."""

    service: Service
    routes: tuple[Route, ...]
    hosts: tuple[tuple[str, tuple[str, ...]], ...]

    def holds_for(self, addresses: Addresses) -> bool:
        return all(addresses.get(name, ()) == known for name, known in self.hosts)


class Planner:
    """Plans one snapshot after the other. `host_names` are those that the last one's routes would dial."""

    def __init__(self) -> None:
        self.host_names: frozenset[str] = frozenset()
        # By the identity of the service's record, which lives on in what was made of it.
        self._made: dict[int, _Made] = {}
        self._world: tuple[object, ...] = ()

    def plan(
        self,
        snapshot: Snapshot,
        *,
        panic_threshold: int = 0,
        addresses: Addresses = NO_ADDRESSES,
        rules: ExportRules = AS_CONSUL,
        own: OwnAddresses = UNKNOWN,
    ) -> RouteTable:
        """Make the route table of a snapshot; the arguments are those of the function `plan`."""
        # All but the service itself that its routes depend on.
        world = (snapshot.datacenter, snapshot.trust_domain, snapshot.partition, panic_threshold, own)
        exports = Exports(snapshot, rules)
        work = _Planner(snapshot, panic_threshold, addresses, exports, self._made if world == self._world else {}, own)
        routes = list(work.routes())
        self._made, self._world, self.host_names = work.made, world, work.host_names()
        return RouteTable.of(
            snapshot.datacenter,
            snapshot.trust_domain,
            snapshot.partition,
            iter(routes if snapshot.trust_domain else ()),
            exports.withheld(),
        )


def plan(
    snapshot: Snapshot,
    *,
    panic_threshold: int = 0,
    addresses: Addresses = NO_ADDRESSES,
    rules: ExportRules = AS_CONSUL,
    own: OwnAddresses = UNKNOWN,
) -> RouteTable:
    """Make the route table of a snapshot.

    Args:
        snapshot: the catalog. Without a trust domain there is no name to route, and the table is empty.
        panic_threshold: percent of healthy endpoints under which all are tried, 0 for never. Applies to services and
            remote datacenters, as Envoy's does.
        addresses: what the host names in the catalog stand for. Every address of a name is an endpoint of its own;
            a name that is missing here makes an endpoint that is not healthy.
        rules: what the operator wants of exported services.
        own: addresses that lead back to this gateway. An endpoint with one of them never gets a stream.
    """
    return Planner().plan(snapshot, panic_threshold=panic_threshold, addresses=addresses, rules=rules, own=own)


def host_names(snapshot: Snapshot) -> frozenset[str]:
    """The host names among the addresses that a snapshot's routes would dial: what `plan` needs addresses for."""
    planner = Planner()
    planner.plan(snapshot)
    return planner.host_names


class _Planner:
    def __init__(
        self,
        snapshot: Snapshot,
        panic_threshold: int,
        addresses: Addresses,
        exports: Exports,
        before: Mapping[int, _Made],
        own: OwnAddresses,
    ) -> None:
        self.made: dict[int, _Made] = {}
        self._snapshot = snapshot
        self._panic_threshold = panic_threshold
        self._addresses = addresses
        self._exports = exports
        self._before = before
        self._own = own
        # Host names seen while routes are made: of the service at hand, and then of what has no service.
        self._hosts: dict[str, tuple[str, ...]] = {}

    def routes(self) -> Iterator[Route]:
        # A service whose name holds a dot can spell another one's subset ("v2.web"). Names without dots come first,
        # and the first claim to a name wins: the odd one out is reported and not routed.
        services = sorted(self._snapshot.services, key=attrgetter("name"))
        for service in [it for it in services if "." not in it.name] + [it for it in services if "." in it.name]:
            if self._exports.admits(service):
                yield from self._kept(service)
        for remote in self._snapshot.remotes:
            yield from self._datacenter(remote)
        for partition in self._snapshot.partitions:
            yield from self._partition(partition)
        yield from server_routes(self._snapshot, self._endpoints, self._panic_threshold)
        yield from self._exports.routes(self._endpoints)
        yield from peering_routes(self._snapshot, self._endpoints, self._panic_threshold)

    def host_names(self) -> frozenset[str]:
        """To be asked when the routes were made."""
        return frozenset(self._hosts).union(*(dict(made.hosts) for made in self.made.values() if made.hosts))

    def _kept(self, service: Service) -> tuple[Route, ...]:
        """The routes of a service, made anew only if they have to."""
        made = self._before.get(id(service))
        if made is None or (made.hosts and not made.holds_for(self._addresses)):
            routes = tuple(self._service(service))
            made = _Made(service, routes, tuple(self._hosts.items()))
            self._hosts.clear()
        self.made[id(service)] = made
        return made.routes

    def _service(self, service: Service) -> Iterator[Route]:
        if not service.instances:
            return
        default = _subset_named(service, service.default_subset)
        unnamed = Subset("", instances=service.instances) if default is None else default
        if unnamed.instances is not None:
            yield self._local(service, RouteKind.SERVICE, "", unnamed.only_passing, unnamed.instances)
        for subset in service.subsets:
            if subset.instances is not None:
                yield self._local(service, RouteKind.SUBSET, subset.name, subset.only_passing, subset.instances)

    def _local(
        self, service: Service, kind: RouteKind, subset: str, only_passing: bool, instances: Iterable[Instance]
    ) -> Route:
        here = self._snapshot
        name = ServiceSni(
            service.name, here.datacenter, here.trust_domain, service.namespace, here.partition, subset=subset
        )
        return Route(
            name=str(name).lower(),
            kind=kind,
            destination=in_namespace(service.namespace, f"{subset}.{service.name}" if subset else service.name),
            endpoints=self._endpoints(instances, only_passing=only_passing),
            connect_timeout=service.connect_timeout,
            policy=service.policy,
            choices=service.choices,
            panic_threshold=self._panic_threshold,
        )

    def _datacenter(self, remote: RemoteDatacenter) -> Iterator[Route]:
        if remote.name.lower() == self._snapshot.datacenter.lower() or not remote.gateways:
            return
        yield Route(
            name=str(GatewaySni(remote.name, self._snapshot.trust_domain)).lower(),
            kind=RouteKind.DATACENTER,
            destination=remote.name,
            endpoints=self._endpoints(remote.gateways),
            suffix=True,
            panic_threshold=self._panic_threshold,
        )

    def _partition(self, remote: RemotePartition) -> Iterator[Route]:
        here = self._snapshot
        if remote.name.lower() == here.partition.lower() or not remote.gateways:
            return
        yield Route(
            name=str(GatewaySni(here.datacenter, here.trust_domain, remote.name)).lower(),
            kind=RouteKind.PARTITION,
            destination=remote.name,
            endpoints=self._endpoints(remote.gateways),
            suffix=True,
            panic_threshold=self._panic_threshold,
        )

    def _endpoints(self, instances: Iterable[Instance], *, only_passing: bool = False) -> tuple[Endpoint, ...]:
        """Endpoints in a stable order, so that equal catalogs make equal tables."""
        return tuple(
            sorted(
                (
                    endpoint
                    for instance in instances
                    for endpoint in self._endpoints_of(instance, only_passing=only_passing)
                ),
                key=lambda endpoint: (endpoint.address, endpoint.port, endpoint.node, endpoint.instance),
            )
        )

    def _endpoints_of(self, instance: Instance, *, only_passing: bool) -> Iterator[Endpoint]:
        here = self._snapshot
        elsewhere = (instance.datacenter, instance.partition) != (here.datacenter, here.partition)
        address, port = best_address(instance, wan=elsewhere)
        verdict = assess(instance, only_passing=only_passing)
        if not 0 < port < _PORTS:
            cause = verdict.cause or f"{port} is no port"
            yield Endpoint(address, port, False, verdict.weight, instance.node, instance.id, cause)
            return
        known: tuple[str, ...] = (address,)
        if not _is_numeric(address):
            known = self._hosts[address] = self._addresses.get(address, ())
        for numeric in known:
            if self._own.leads_back(numeric, port, elsewhere=elsewhere):
                yield Endpoint(numeric, port, False, 0, instance.node, instance.id, LEADS_BACK)
                continue
            yield Endpoint(
                numeric,
                port,
                verdict.healthy,
                verdict.weight,
                instance.node,
                instance.id,
                verdict.cause,
                instance.distance,
            )
        if not known:
            cause = verdict.cause or f"no address is known for the host name {address}"
            yield Endpoint(address, port, False, verdict.weight, instance.node, instance.id, cause)


@lru_cache(maxsize=1 << 16)
def _is_numeric(address: str) -> bool:
    try:
        ip_address(address)
    except ValueError:
        return False
    return True


def _subset_named(service: Service, name: str) -> Subset | None:
    return next((subset for subset in service.subsets if name and subset.name == name), None)
