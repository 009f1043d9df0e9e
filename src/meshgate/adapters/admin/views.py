"""What the admin address says about core's types: pure functions to JSON-able values in the promised shapes."""

from typing import Any

from meshgate.core.explain import Explanation
from meshgate.core.routes import Endpoint, Route, RouteTable


def routes_view(table: RouteTable) -> dict[str, Any]:
    """The answer to `/routes`: all routes with all known endpoints, exact names first."""
    return {
        "datacenter": safe_text(table.datacenter),
        "partition": safe_text(table.partition),
        "trust_domain": safe_text(table.trust_domain),
        "routes": [_route(route) for route in table],
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
        "match": route.match,
        "kind": route.kind,
        "endpoints": [endpoint_view(endpoint) for endpoint in route.endpoints],
    }


def endpoint_view(endpoint: Endpoint) -> dict[str, Any]:
    """An endpoint as `/routes` lists it."""
    return {
        "address": safe_text(endpoint.address),
        "port": endpoint.port,
        "healthy": endpoint.healthy,
        "weight": endpoint.weight,
        "node": safe_text(endpoint.node),
        "instance": safe_text(endpoint.instance),
    }


def safe_text(text: str) -> str:
    """`text`, with what UTF-8 cannot carry (half a surrogate pair) escaped; JSON takes care of all else."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
