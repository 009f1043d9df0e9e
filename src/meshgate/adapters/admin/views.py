"""What the admin address says about core's types: pure functions to JSON-able values in the promised shapes.

`/clusters` is the route table as Envoy's admin page shows clusters, for scripts that read that of a gateway. A route is
a cluster under the name that Consul gives it: the SNI, without `*.` for a whole datacenter. What Envoy counts for each
host and this product does not is left out, not made up.
"""

from collections.abc import Container, Iterator, Mapping
from typing import Any

from meshgate.core.addresses import host_port
from meshgate.core.explain import Explanation
from meshgate.core.outlier_detection import Address
from meshgate.core.routes import Endpoint, Route, RouteTable
from meshgate.core.text import printable


def routes_view(table: RouteTable) -> dict[str, Any]:
    """The answer to `/routes`: all routes with all known endpoints, exact names first, and exports without a route."""
    return {
        "datacenter": safe_text(table.datacenter),
        "partition": safe_text(table.partition),
        "trust_domain": safe_text(table.trust_domain),
        "routes": [_route(route) for route in table],
        "unroutable": [
            {"sni": safe_text(name), "reason": printable(reason)} for name, reason in sorted(table.unroutable.items())
        ],
    }


def explain_view(explanation: Explanation) -> dict[str, Any]:
    """The answer to `/explain`. Without a route, `route` and `kind` are null and `endpoints` is empty."""
    route = explanation.route
    return {
        "sni": safe_text(explanation.sni),
        "decision": explanation.decision,
        "reason": explanation.reason,
        "route": safe_text(route.sni) if route else None,
        "kind": explanation.kind,
        "endpoints": [endpoint_view(endpoint) for endpoint in explanation.endpoints],
        "steps": [{"rule": step.rule, "outcome": safe_text(step.outcome)} for step in explanation.steps],
    }


def _route(route: Route) -> dict[str, Any]:
    return {
        "sni": safe_text(route.sni),
        "match": "suffix" if route.suffix else "exact",
        "kind": route.kind,
        "destination": safe_text(route.destination),
        "endpoints": [endpoint_view(endpoint) for endpoint in route.endpoints],
    }


def endpoint_view(endpoint: Endpoint) -> dict[str, Any]:
    """An endpoint as `/routes` lists it."""
    return {
        "address": safe_text(endpoint.address),
        "port": endpoint.port,
        "healthy": endpoint.healthy,
        "cause": safe_text(endpoint.cause) or None,
        "weight": endpoint.weight,
        "node": safe_text(endpoint.node),
        "instance": safe_text(endpoint.instance),
    }


def safe_text(text: str) -> str:
    """`text`, with what UTF-8 cannot carry (half a surrogate pair) escaped; JSON takes care of all else."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


Active = Mapping[tuple[str, str], int]
"""Open streams by the `sni` of their route and their endpoint (`host_port`)."""


def clusters_text(table: RouteTable, active: Active, ejected: Container[Address] = ()) -> str:
    """`/clusters`: lines of `name::address::metric::value`."""
    return "".join(f"{line}\n" for route in table for line in _lines(route, active, ejected))


def clusters_view(table: RouteTable, active: Active, ejected: Container[Address] = ()) -> dict[str, Any]:
    """`/clusters?format=json`, in the shape of Envoy's `envoy.admin.v3.Clusters`."""
    return {
        "cluster_statuses": [
            {
                "name": safe_text(route.name),
                "observability_name": safe_text(route.name),
                "added_via_api": True,
                "host_statuses": [
                    _host(endpoint, _active(route, endpoint, active), _is_out(endpoint, ejected))
                    for endpoint in route.endpoints
                ],
            }
            for route in table
        ]
    }


def _lines(route: Route, active: Active, ejected: Container[Address]) -> Iterator[str]:
    name = printable(route.name)
    yield f"{name}::observability_name::{name}"
    yield f"{name}::added_via_api::true"
    for endpoint in route.endpoints:
        host = f"{name}::{printable(host_port(endpoint.address, endpoint.port))}"
        yield f"{host}::cx_active::{_active(route, endpoint, active)}"
        yield f"{host}::hostname::{printable(endpoint.node)}"
        flags = "" if endpoint.healthy else "/failed_eds_health"
        flags += "/failed_outlier_check" if _is_out(endpoint, ejected) else ""
        yield f"{host}::health_flags::{flags or 'healthy'}"
        yield f"{host}::weight::{endpoint.weight}"


def _host(endpoint: Endpoint, active: int, ejected: bool) -> dict[str, Any]:
    health: dict[str, Any] = {"eds_health_status": "HEALTHY" if endpoint.healthy else "UNHEALTHY"}
    if not endpoint.healthy:
        health["failed_eds_health"] = True
    if ejected:
        health["failed_outlier_check"] = True
    return {
        "address": {"socket_address": {"address": safe_text(endpoint.address), "port_value": endpoint.port}},
        "stats": [{"name": "cx_active", "value": str(active), "type": "GAUGE"}],
        "health_status": health,
        "weight": endpoint.weight,
        "hostname": safe_text(endpoint.node),
    }


def _is_out(endpoint: Endpoint, ejected: Container[Address]) -> bool:
    return (endpoint.address, endpoint.port) in ejected


def _active(route: Route, endpoint: Endpoint, active: Active) -> int:
    return active.get((route.sni, host_port(endpoint.address, endpoint.port)), 0)
