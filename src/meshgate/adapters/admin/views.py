"""What the admin address says about core's types: pure functions to JSON-able values in the promised shapes.

`/clusters` is the route table as Envoy's admin page shows clusters, for scripts that read that of a gateway. A route is
a cluster under the name that Consul gives it: the SNI, without `*.` for a whole datacenter. What Envoy counts for each
host and this product does not is left out, not made up; what only this product knows has names that Envoy does not use.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from meshgate.core.addresses import host_port
from meshgate.core.explain import Explanation
from meshgate.core.outlier_detection import Address
from meshgate.core.routes import Endpoint, Route, RouteTable
from meshgate.core.text import printable


class EndpointFacts(NamedTuple):
    """What the gateway has met of an endpoint, whatever routes it has; times are Unix time.

    `streams` have got a byte of it, `unanswered` ended without one, `failures` are connections that could not be had,
    the last of them at `last_failure`, because of `last_error`. `first_byte` is how long it lately took to the first
    byte, in seconds. `ejected` counts the failures in a row of one that is ejected since `ejected_since`, because of
    `ejected_why`; 0 where it is not.
    """

    streams: int = 0
    unanswered: int = 0
    failures: int = 0
    first_byte: float | None = None
    last_success: float | None = None
    last_failure: float | None = None
    last_error: str = ""
    ejected: int = 0
    ejected_since: float = 0.0
    ejected_why: str = ""


Facts = Callable[[Address], EndpointFacts]
"""What the gateway has met of the endpoint at an address."""


def facts_view(facts: EndpointFacts) -> dict[str, Any]:
    """The facts of an endpoint as `/clusters?format=json` and the dashboard have them."""
    return {
        "streams": facts.streams,
        "unanswered": facts.unanswered,
        "failures": facts.failures,
        "first_byte_seconds": None if facts.first_byte is None else round(facts.first_byte, 6),
        "last_success": facts.last_success,
        "last_failure": facts.last_failure,
        "last_error": printable(facts.last_error) or None,
        "ejected": {
            "failures": facts.ejected,
            "since": facts.ejected_since,
            "why": printable(facts.ejected_why) or None,
        }
        if facts.ejected
        else None,
    }


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


def caller_view(client: str, names: Callable[[str], str]) -> str | None:
    """Who a client is, an address with a port or without, by what Consul has at an address; None if unknown."""
    host = client if client.count(":") > 1 and not client.startswith("[") else client.rpartition(":")[0] or client
    return safe_text(names(host.strip("[]"))) or None


def safe_text(text: str) -> str:
    """`text`, with what UTF-8 cannot carry (half a surrogate pair) escaped; JSON takes care of all else."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


Active = Mapping[tuple[str, str], int]
"""Open streams by the `sni` of their route and their endpoint (`host_port`)."""


def clusters_text(table: RouteTable, active: Active, facts: Facts) -> str:
    """`/clusters`: lines of `name::address::metric::value`."""
    return "".join(f"{line}\n" for route in table for line in _lines(route, active, facts))


def clusters_view(table: RouteTable, active: Active, facts: Facts) -> dict[str, Any]:
    """`/clusters?format=json`, in the shape of Envoy's `envoy.admin.v3.Clusters`, with `meshgate` for each host."""
    return {
        "cluster_statuses": [
            {
                "name": safe_text(route.name),
                "observability_name": safe_text(route.name),
                "added_via_api": True,
                "host_statuses": [
                    _host(endpoint, _active(route, endpoint, active), facts((endpoint.address, endpoint.port)))
                    for endpoint in route.endpoints
                ],
            }
            for route in table
        ]
    }


def _lines(route: Route, active: Active, facts: Facts) -> Iterator[str]:
    name = printable(route.name)
    yield f"{name}::observability_name::{name}"
    yield f"{name}::added_via_api::true"
    for endpoint in route.endpoints:
        host = f"{name}::{printable(host_port(endpoint.address, endpoint.port))}"
        met = facts((endpoint.address, endpoint.port))
        for stat, value in _stats(_active(route, endpoint, active), met):
            yield f"{host}::{stat}::{value}"
        yield f"{host}::hostname::{printable(endpoint.node)}"
        flags = "" if endpoint.healthy else "/failed_eds_health"
        flags += "/failed_outlier_check" if met.ejected else ""
        yield f"{host}::health_flags::{flags or 'healthy'}"
        yield f"{host}::weight::{endpoint.weight}"
        yield f"{host}::unanswered::{met.unanswered}"
        if met.first_byte is not None:
            yield f"{host}::first_byte_ms::{met.first_byte * 1000:.3f}"
        if met.last_success is not None:
            yield f"{host}::last_success::{_utc(met.last_success)}"
        if met.last_failure is not None:
            yield f"{host}::last_failure::{_utc(met.last_failure)} {printable(met.last_error)}"
        if met.ejected:
            yield f"{host}::ejected_since::{_utc(met.ejected_since)} {printable(met.ejected_why)}"


def _stats(active: int, facts: EndpointFacts) -> tuple[tuple[str, int], ...]:
    """Under Envoy's names. As there, an attempt that failed is a connection, too."""
    total = facts.streams + facts.unanswered + facts.failures
    return ("cx_active", active), ("cx_connect_fail", facts.failures), ("cx_total", total)


def _utc(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _host(endpoint: Endpoint, active: int, facts: EndpointFacts) -> dict[str, Any]:
    health: dict[str, Any] = {"eds_health_status": "HEALTHY" if endpoint.healthy else "UNHEALTHY"}
    if not endpoint.healthy:
        health["failed_eds_health"] = True
    if facts.ejected:
        health["failed_outlier_check"] = True
    stats = _stats(active, facts)
    return {
        "address": {"socket_address": {"address": safe_text(endpoint.address), "port_value": endpoint.port}},
        "stats": [
            {"name": name, "value": str(value), "type": "GAUGE" if name == "cx_active" else "COUNTER"}
            for name, value in stats
        ],
        "health_status": health,
        "weight": endpoint.weight,
        "hostname": safe_text(endpoint.node),
        "meshgate": facts_view(facts),
    }


def _active(route: Route, endpoint: Endpoint, active: Active) -> int:
    return active.get((route.sni, host_port(endpoint.address, endpoint.port)), 0)
