"""Records for the tests of the core: one instance, endpoint or route with everything ordinary but what is said."""

from typing import Any

from meshgate.core.catalog import Instance, Snapshot
from meshgate.core.planner import Planner
from meshgate.core.routes import Endpoint, Route, RouteKind, RouteTable

TD1 = "5fcd4b81-a2ca-405a-ac62-0fac602c1949.consul"
TD2 = "d2e1a32e-5733-47f2-a9dd-6cf271aab5b7.consul"
TD3 = "11111111-2222-3333-4444-555555555555.consul"


def instance(address: str = "172.16.1.3", **fields: Any) -> Instance:
    """A sidecar in dc1 on port 8080."""
    ordinary: dict[str, Any] = {
        "node": f"node-{address}",
        "datacenter": "dc1",
        "id": "web-sidecar-proxy",
        "service": "web-sidecar-proxy",
        "port": 8080,
        "node_address": "10.10.1.1",
    }
    return Instance(address=address, **(ordinary | fields))


def endpoint(address: str = "172.16.1.3", **fields: Any) -> Endpoint:
    """A healthy one of weight 1 on port 8080."""
    ordinary: dict[str, Any] = {"port": 8080, "healthy": True, "weight": 1, "node": "n1", "instance": "web-1"}
    return Endpoint(address=address, **(ordinary | fields))


def unhealthy(address: str = "172.16.1.9", cause: str = "check serfHealth is critical", **fields: Any) -> Endpoint:
    return endpoint(address, healthy=False, cause=cause, **fields)


def exact(name: str, *endpoints: Endpoint, **fields: Any) -> Route:
    ordinary: dict[str, Any] = {"kind": RouteKind.SERVICE, "destination": name.partition(".")[0]}
    return Route(name=name, endpoints=endpoints or (endpoint(),), **(ordinary | fields))


def suffix(name: str, *endpoints: Endpoint, **fields: Any) -> Route:
    return exact(name, *endpoints, **({"kind": RouteKind.DATACENTER, "suffix": True} | fields))


def table(*routes: Route, **fields: str) -> RouteTable:
    """The table of a gateway in dc1 of TD3."""
    place: dict[str, Any] = {"datacenter": "dc1", "trust_domain": TD3, "partition": "default"} | fields
    return RouteTable.of(**place, routes=iter(routes))


def plan(snapshot: Snapshot, **options: Any) -> RouteTable:
    """The table of a first snapshot."""
    return Planner().plan(snapshot, **options)


def host_names(snapshot: Snapshot) -> frozenset[str]:
    """The host names that the routes of a first snapshot would dial."""
    planner = Planner()
    planner.plan(snapshot)
    return planner.host_names
