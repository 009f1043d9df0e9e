"""Routes to the services of the gateway's own datacenter and partition, and to their subsets.

Sources: `agent/xds` makeMeshGatewayListener, clustersFromSnapshotMeshGateway and endpointsFromServicesAndResolvers.
"""

from collections.abc import Iterable, Iterator

from .catalog import Instance, Service, Snapshot, Subset, in_namespace
from .endpoint_maker import EndpointMaker
from .routes import Route, RouteKind
from .sni import ServiceSni


def service_routes(service: Service, snapshot: Snapshot, maker: EndpointMaker) -> Iterator[Route]:
    """Those of a service and its subsets; none without instances."""

    def route(kind: RouteKind, subset: str, only_passing: bool, instances: Iterable[Instance]) -> Route:
        place = (snapshot.datacenter, snapshot.trust_domain, service.namespace, snapshot.partition)
        return Route(
            name=str(ServiceSni(service.name, *place, subset=subset)).lower(),
            kind=kind,
            destination=in_namespace(service.namespace, f"{subset}.{service.name}" if subset else service.name),
            endpoints=maker.of_services(instances, only_passing=only_passing),
            connect_timeout=service.connect_timeout,
            policy=service.policy,
            choice_count=service.choices,
            panic_threshold=maker.view.panic_threshold,
            stale=service.cold,
            service=service.name,
            namespace=service.namespace,
        )

    if not service.instances:
        return
    default = subset_named(service, service.default_subset)
    unnamed = Subset("", instances=service.instances) if default is None else default
    if unnamed.instances is not None:
        yield route(RouteKind.SERVICE, "", unnamed.only_passing, unnamed.instances)
    for subset in service.subsets:
        if subset.instances is not None:
            yield route(RouteKind.SUBSET, subset.name, subset.only_passing, subset.instances)


def subset_named(service: Service, name: str) -> Subset | None:
    """A service's subset of that name; None for the empty name, too."""
    return next((subset for subset in service.subsets if name and subset.name == name), None)
