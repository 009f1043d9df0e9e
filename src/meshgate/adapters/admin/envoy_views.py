"""The route table as Envoy's admin page shows clusters, for scripts that read `/clusters` of a gateway.

A route is a cluster under the name that Consul gives it: the SNI, without `*.` for a whole datacenter. Only what the
gateway knows is shown: what Envoy counts for each host and this product does not is left out, not made up.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from meshgate.core.host_port import host_port
from meshgate.core.routes import Endpoint, Route, RouteTable

from .views import safe_text

Active = Mapping[tuple[str, str], int]
"""Open streams by the `sni` of their route and their endpoint (`host_port`)."""


def clusters_text(table: RouteTable, active: Active) -> str:
    """`/clusters`: lines of `name::address::metric::value`."""
    return "".join(f"{line}\n" for route in table for line in _lines(route, active))


def clusters_view(table: RouteTable, active: Active) -> dict[str, Any]:
    """`/clusters?format=json`, in the shape of Envoy's `envoy.admin.v3.Clusters`."""
    return {
        "cluster_statuses": [
            {
                "name": safe_text(route.name),
                "observability_name": safe_text(route.name),
                "added_via_api": True,
                "host_statuses": [_host(endpoint, _active(route, endpoint, active)) for endpoint in route.endpoints],
            }
            for route in table
        ]
    }


def _lines(route: Route, active: Active) -> Iterator[str]:
    name = _one_line(route.name)
    yield f"{name}::observability_name::{name}"
    yield f"{name}::added_via_api::true"
    for endpoint in route.endpoints:
        host = f"{name}::{_one_line(host_port(endpoint.address, endpoint.port))}"
        yield f"{host}::cx_active::{_active(route, endpoint, active)}"
        yield f"{host}::hostname::{_one_line(endpoint.node)}"
        yield f"{host}::health_flags::{'healthy' if endpoint.healthy else '/failed_eds_health'}"
        yield f"{host}::weight::{endpoint.weight}"


def _host(endpoint: Endpoint, active: int) -> dict[str, Any]:
    health: dict[str, Any] = {"eds_health_status": "HEALTHY" if endpoint.healthy else "UNHEALTHY"}
    if not endpoint.healthy:
        health["failed_eds_health"] = True
    return {
        "address": {"socket_address": {"address": safe_text(endpoint.address), "port_value": endpoint.port}},
        "stats": [{"name": "cx_active", "value": str(active), "type": "GAUGE"}],
        "health_status": health,
        "weight": endpoint.weight,
        "hostname": safe_text(endpoint.node),
    }


def _active(route: Route, endpoint: Endpoint, active: Active) -> int:
    return active.get((route.sni, host_port(endpoint.address, endpoint.port)), 0)


def _one_line(text: str) -> str:
    """A name as one field of a line: what is not printable is escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
