"""From a snapshot of the catalog to the route table: what Consul's own gateway would route, and nothing else.

Sources: `agent/xds` makeMeshGatewayListener, clustersFromSnapshotMeshGateway and endpointsFromServicesAndResolvers. A
gateway has exact names for the services and subsets of its own datacenter and a suffix for each other datacenter; it
never has a suffix for its own, so a stream can cross at most from here to there. The names of Consul's own servers are
made in `servers`.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from ipaddress import ip_address
from types import MappingProxyType
from typing import Final

from .catalog import Instance, RemoteDatacenter, Service, Snapshot, Subset
from .health import assess, best_address
from .routes import Endpoint, Route, RouteKind, RouteTable
from .servers import server_routes
from .sni import GatewaySni, ServiceSni

Addresses = Mapping[str, tuple[str, ...]]
_PORTS: Final = 1 << 16
NO_ADDRESSES: Addresses = MappingProxyType({})


def plan(snapshot: Snapshot, *, panic_threshold: int = 0, addresses: Addresses = NO_ADDRESSES) -> RouteTable:
    """Make the route table of a snapshot.

    Args:
        snapshot: the catalog. Without a trust domain there is no name to route, and the table is empty.
        panic_threshold: percent of healthy endpoints under which all are tried, 0 for never. Applies to services and
            remote datacenters, as Envoy's does.
        addresses: what the host names in the catalog stand for. Every address of a name is an endpoint of its own;
            a name that is missing here makes an endpoint that is not healthy.
    """
    return RouteTable.of(
        snapshot.datacenter,
        snapshot.trust_domain,
        snapshot.partition,
        _Planner(snapshot, panic_threshold, addresses).routes() if snapshot.trust_domain else iter(()),
    )


def host_names(snapshot: Snapshot) -> frozenset[str]:
    """The host names among the addresses that a snapshot's routes would dial: what `plan` needs addresses for."""
    planner = _Planner(snapshot, 0, NO_ADDRESSES)
    return frozenset(
        endpoint.address
        for route in planner.routes()
        for endpoint in route.endpoints
        if not _is_numeric(endpoint.address)
    )


class _Planner:
    def __init__(self, snapshot: Snapshot, panic_threshold: int, addresses: Addresses) -> None:
        self._snapshot = snapshot
        self._panic_threshold = panic_threshold
        self._addresses = addresses

    def routes(self) -> Iterator[Route]:
        # A service whose name holds a dot can spell another one's subset ("v2.web"). Names without dots come first,
        # and the first claim to a name wins: the odd one out is reported and not routed.
        services = sorted(self._snapshot.services, key=lambda service: ("." in service.name, service.name))
        for service in services:
            yield from self._service(service)
        for remote in self._snapshot.remotes:
            yield from self._datacenter(remote)
        yield from server_routes(self._snapshot, self._endpoints, self._panic_threshold)

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
            destination=f"{subset}.{service.name}" if subset else service.name,
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
        known = (address,) if _is_numeric(address) else self._addresses.get(address, ())
        for numeric in known:
            yield Endpoint(numeric, port, verdict.healthy, verdict.weight, instance.node, instance.id, verdict.cause)
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
