"""The routes of what a catalog has: services and their subsets, other datacenters and partitions.

Sources: `agent/xds` makeMeshGatewayListener, clustersFromSnapshotMeshGateway and endpointsFromServicesAndResolvers. A
gateway has exact names for the services and subsets of its own datacenter and partition, and a suffix for each other
datacenter and each other partition; it never has a suffix for its own, so a stream can cross at most from here to
there. The names of Consul's own servers are made in `servers`, those of peered clusters in `peering` and `exports`.
"""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

from .catalog import Instance, RemoteDatacenter, RemotePartition, Service, Snapshot, Subset, in_namespace
from .health import assess, best_address, is_numeric
from .own_addresses import LEADS_BACK, OwnAddresses
from .peering import peering_routes
from .routes import Endpoint, Route, RouteKind
from .servers import server_routes
from .sni import GatewaySni, ServiceSni

Addresses = Mapping[str, tuple[str, ...]]
Hosts = tuple[tuple[str, tuple[str, ...]], ...]
"""Host names, and what they stood for when routes were made."""

NO_ADDRESSES: Addresses = MappingProxyType({})
_PORTS: Final = 1 << 16


class RouteMaker:
    """Makes the routes of one snapshot.

    Args:
        snapshot: the catalog.
        panic_threshold: percent of healthy endpoints under which all are tried, 0 for never.
        addresses: what the host names in the catalog stand for.
        own: addresses that lead back to this gateway.
    """

    def __init__(self, snapshot: Snapshot, panic_threshold: int, addresses: Addresses, own: OwnAddresses) -> None:
        self._snapshot = snapshot
        self._panic_threshold = panic_threshold
        self._addresses = addresses
        self._own = own
        self._hosts: dict[str, tuple[str, ...]] = {}

    def hosts(self) -> Hosts:
        """The host names that were met since this was asked last, and what they stand for."""
        hosts = tuple(self._hosts.items())
        self._hosts.clear()
        return hosts

    def service(self, service: Service) -> Iterator[Route]:
        """Those of a service and its subsets; none without instances."""
        if not service.instances:
            return
        default = _subset_named(service, service.default_subset)
        unnamed = Subset("", instances=service.instances) if default is None else default
        if unnamed.instances is not None:
            yield self._local(service, RouteKind.SERVICE, "", unnamed.only_passing, unnamed.instances)
        for subset in service.subsets:
            if subset.instances is not None:
                yield self._local(service, RouteKind.SUBSET, subset.name, subset.only_passing, subset.instances)

    def elsewhere(self) -> Iterator[Route]:
        """Those of other datacenters and partitions, and of Consul's own servers."""
        for remote in self._snapshot.remotes:
            yield from self._datacenter(remote)
        for partition in self._snapshot.partitions:
            yield from self._partition(partition)
        yield from server_routes(self._snapshot, self.endpoints, self._panic_threshold)

    def peering(self) -> Iterator[Route]:
        """Those of what peers have."""
        yield from peering_routes(self._snapshot, self.endpoints, self._panic_threshold)

    def endpoints(self, instances: Iterable[Instance], *, only_passing: bool = False) -> tuple[Endpoint, ...]:
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
            endpoints=self.endpoints(instances, only_passing=only_passing),
            connect_timeout=service.connect_timeout,
            policy=service.policy,
            choices=service.choices,
            panic_threshold=self._panic_threshold,
            cold=service.cold,
        )

    def _datacenter(self, remote: RemoteDatacenter) -> Iterator[Route]:
        if remote.name.lower() == self._snapshot.datacenter.lower() or not remote.gateways:
            return
        yield Route(
            name=str(GatewaySni(remote.name, self._snapshot.trust_domain)).lower(),
            kind=RouteKind.DATACENTER,
            destination=remote.name,
            endpoints=self.endpoints(remote.gateways),
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
            endpoints=self.endpoints(remote.gateways),
            suffix=True,
            panic_threshold=self._panic_threshold,
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
        if not is_numeric(address):
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


def _subset_named(service: Service, name: str) -> Subset | None:
    return next((subset for subset in service.subsets if name and subset.name == name), None)
