from typing import Any

import msgspec
import pytest

from meshgate.adapters.admin.http_server import json_response
from meshgate.app.admin.views import explain_view, routes_view
from meshgate.core.explain import Explanation, Step, explain
from meshgate.core.reasons import Reason
from meshgate.core.routes import Endpoint, Route, RouteKind, RouteTable

DOMAIN = "11111111-2222-3333-4444-555555555555.consul"
WEB = f"web.default.dc1.internal.{DOMAIN}"
HEALTHY = Endpoint("10.0.0.7", 21000, True, 1, "n1", "web-sidecar-proxy")
SICK = Endpoint("10.0.0.8", 21000, False, 5, "n2", "web-sidecar-proxy", "check x is critical")
GATEWAY = Endpoint("2001:db8::7", 443, True, 1, "gw", "mesh-gateway")


@pytest.fixture
def table() -> Any:
    routes = [
        Route(f"dc2.internal.{DOMAIN}", RouteKind.DATACENTER, "dc2", (GATEWAY,), suffix=True),
        Route(WEB, RouteKind.SERVICE, "web", (HEALTHY, SICK)),
        Route(f"dead.default.dc1.internal.{DOMAIN}", RouteKind.SERVICE, "dead", (SICK,)),
    ]
    return RouteTable.of("dc1", DOMAIN, "default", iter(routes))


def as_json(view: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(view))


def test_routes_have_the_promised_shape(table: RouteTable) -> None:
    view = as_json(routes_view(table))
    assert {key: view[key] for key in ("datacenter", "partition", "trust_domain")} == {
        "datacenter": "dc1",
        "partition": "default",
        "trust_domain": DOMAIN,
    }
    dead, web, dc2 = view["routes"]
    assert web == {
        "sni": WEB,
        "match": "exact",
        "kind": "service",
        "destination": "web",
        "endpoints": [
            {
                "address": "10.0.0.7",
                "port": 21000,
                "healthy": True,
                "cause": None,
                "weight": 1,
                "node": "n1",
                "instance": "web-sidecar-proxy",
            },
            {
                "address": "10.0.0.8",
                "port": 21000,
                "healthy": False,
                "cause": "check x is critical",
                "weight": 5,
                "node": "n2",
                "instance": "web-sidecar-proxy",
            },
        ],
    }
    assert (dead["sni"], dead["endpoints"][0]["healthy"]) == (f"dead.default.dc1.internal.{DOMAIN}", False)
    assert (dc2["sni"], dc2["match"], dc2["kind"]) == (f"*.dc2.internal.{DOMAIN}", "suffix", "datacenter")


def test_an_empty_table_has_no_routes() -> None:
    view = as_json(routes_view(RouteTable.of("", "", "default", iter(()), {"b": "why\nb", "a": "why a"})))
    assert view["routes"] == []
    assert [each["sni"] for each in view["unroutable"]] == ["a", "b"]
    assert "\n" not in view["unroutable"][1]["reason"]


def test_a_routed_name_is_explained(table: RouteTable) -> None:
    view = as_json(explain_view(explain(table, WEB.upper())))
    assert list(view) == ["sni", "decision", "reason", "route", "kind", "endpoints", "steps"]
    assert (view["sni"], view["decision"], view["reason"]) == (WEB.upper(), "routed", None)
    assert (view["route"], view["kind"]) == (WEB, "service")
    assert [endpoint["healthy"] for endpoint in view["endpoints"]] == [True, False]
    assert view["steps"]
    assert all(set(step) == {"rule", "outcome"} for step in view["steps"])


def test_a_refusal_keeps_the_route_it_found(table: RouteTable) -> None:
    view = as_json(explain_view(explain(table, f"dead.default.dc1.internal.{DOMAIN}")))
    assert (view["decision"], view["reason"], view["kind"]) == ("refused", "no_healthy_endpoint", "service")


def test_an_unknown_name_has_no_route(table: RouteTable) -> None:
    view = as_json(explain_view(explain(table, "nobody.example")))
    assert (view["decision"], view["reason"]) == ("refused", "unknown_sni")
    assert (view["route"], view["kind"], view["endpoints"]) == (None, None, [])


def test_any_text_of_a_stranger_fits_into_json() -> None:
    hostile = 'a"\\\n\x00\x1b\u202e\ud800</script>'
    explanation = Explanation(hostile, "refused", Reason.UNKNOWN_SNI, None, (Step("x", hostile),))
    body = json_response(explain_view(explanation)).body.rstrip(b"\n")
    assert b"\n" not in body
    assert b"\x1b" not in body
    assert msgspec.json.decode(body)["sni"] == hostile.replace("\ud800", "\\ud800")
