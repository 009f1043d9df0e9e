from typing import Any

import msgspec
import pytest

from meshgate.adapters.admin.http_server import json_response
from meshgate.adapters.relay import Counters
from meshgate.app.admin.answers import Ejection, EndpointFacts
from meshgate.app.admin.views import clusters_text, clusters_view, explain_view, routes_view
from meshgate.core.explain import Explanation, Step, explain
from meshgate.core.outlier_detection import Address
from meshgate.core.reasons import Reason
from meshgate.core.routes import Endpoint, Route, RouteKind, RouteTable

DOMAIN = "11111111-2222-3333-4444-555555555555.consul"
WEB = f"web.default.dc1.internal.{DOMAIN}"
DC2 = f"dc2.internal.{DOMAIN}"
HEALTHY = Endpoint("10.0.0.7", 21000, True, 1, "n1", "web-sidecar-proxy")
SICK = Endpoint("10.0.0.8", 21000, False, 5, "n2", "web-sidecar-proxy", "check x is critical")
GATEWAY = Endpoint("2001:db8::7", 443, True, 1, "gw", "mesh-gateway")


@pytest.fixture
def table() -> Any:
    routes = [
        Route(DC2, RouteKind.DATACENTER, "dc2", (GATEWAY,), suffix=True),
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
    assert (dc2["sni"], dc2["match"], dc2["kind"]) == (f"*.{DC2}", "suffix", "datacenter")


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


# --- /clusters ---

CLUSTERS = RouteTable.of(
    "dc1",
    DOMAIN,
    "default",
    iter(
        [
            Route(
                WEB,
                RouteKind.SERVICE,
                "web",
                (
                    Endpoint("10.0.0.7", 21000, True, 3, "n1", "web-1"),
                    Endpoint("2001:db8::8", 21000, False, 1, "n2\n", "web-2", "check x is critical"),
                ),
            ),
            Route(DC2, RouteKind.DATACENTER, "dc2", (), suffix=True),
        ]
    ),
)
KEY = (RouteKind.SERVICE, "web")
COUNTERS = Counters(
    connections={KEY: 17},
    open={KEY: 4},
    connect_failures={KEY: 3},
    failed={(*KEY, Reason.CONNECT_FAILED): 2, (*KEY, Reason.MAX_CONNECTIONS): 1},
    unanswered={KEY: 2},
)
for seconds in (*[0.004] * 5, *[0.04] * 6):
    COUNTERS.count_first_byte(KEY, ("10.0.0.7", 21000), seconds)
ACTIVE = {(WEB, "10.0.0.7:21000"): 4, (f"*.{DC2}", "10.0.0.7:21000"): 9}


def met(address: Address) -> EndpointFacts:
    """The second one fails."""
    if address[0] == "10.0.0.7":
        return EndpointFacts()
    return EndpointFacts(
        streams=5,
        unanswered=2,
        failures=3,
        first_byte_seconds=0.012346,
        last_success=1e9 + 5,
        last_failure=1e9 + 10,
        last_error="timed\nout",
        ejected=Ejection(3, 1e9, "connection refused"),
    )


def test_clusters_have_envoys_lines() -> None:
    assert clusters_text(clusters_view(CLUSTERS, ACTIVE, met, COUNTERS)).splitlines() == [
        f"{WEB}::observability_name::{WEB}",
        f"{WEB}::added_via_api::true",
        f"{WEB}::cx_active::4",
        f"{WEB}::cx_connect_fail::3",
        f"{WEB}::cx_total::17",
        f"{WEB}::refused::3",
        f"{WEB}::unanswered::2",
        f"{WEB}::first_byte_p50_ms::50",
        f"{WEB}::first_byte_p99_ms::50",
        f"{WEB}::10.0.0.7:21000::cx_active::4",
        f"{WEB}::10.0.0.7:21000::cx_connect_fail::0",
        f"{WEB}::10.0.0.7:21000::cx_total::0",
        f"{WEB}::10.0.0.7:21000::hostname::n1",
        f"{WEB}::10.0.0.7:21000::health_flags::healthy",
        f"{WEB}::10.0.0.7:21000::weight::3",
        f"{WEB}::10.0.0.7:21000::unanswered::0",
        f"{WEB}::[2001:db8::8]:21000::cx_active::0",
        f"{WEB}::[2001:db8::8]:21000::cx_connect_fail::3",
        f"{WEB}::[2001:db8::8]:21000::cx_total::10",
        f"{WEB}::[2001:db8::8]:21000::hostname::n2\\n",
        f"{WEB}::[2001:db8::8]:21000::health_flags::/failed_eds_health/failed_outlier_check",
        f"{WEB}::[2001:db8::8]:21000::weight::1",
        f"{WEB}::[2001:db8::8]:21000::unanswered::2",
        f"{WEB}::[2001:db8::8]:21000::first_byte_ms::12.346",
        f"{WEB}::[2001:db8::8]:21000::last_success::2001-09-09T01:46:45Z",
        f"{WEB}::[2001:db8::8]:21000::last_failure::2001-09-09T01:46:50Z timed\\nout",
        f"{WEB}::[2001:db8::8]:21000::ejected_since::2001-09-09T01:46:40Z connection refused",
        f"{DC2}::observability_name::{DC2}",
        f"{DC2}::added_via_api::true",
        f"{DC2}::cx_active::0",
        f"{DC2}::cx_connect_fail::0",
        f"{DC2}::cx_total::0",
        f"{DC2}::refused::0",
        f"{DC2}::unanswered::0",
    ]


def test_clusters_as_json_answer_what_scripts_ask_of_envoy() -> None:
    """The query of Consul's own integration tests: the EDS health of the hosts of a cluster."""
    view = as_json(clusters_view(CLUSTERS, ACTIVE, met, COUNTERS))
    clusters = {each["name"]: each["host_statuses"] for each in view["cluster_statuses"]}
    assert list(clusters) == [WEB, DC2]
    assert [host["health_status"]["eds_health_status"] for host in clusters[WEB]] == ["HEALTHY", "UNHEALTHY"]
    assert [host["health_status"].get("failed_eds_health", False) for host in clusters[WEB]] == [False, True]
    assert [host["address"]["socket_address"] for host in clusters[WEB]] == [
        {"address": "10.0.0.7", "port_value": 21000},
        {"address": "2001:db8::8", "port_value": 21000},
    ]
    assert clusters[WEB][0]["stats"] == [
        {"name": "cx_active", "value": "4", "type": "GAUGE"},
        {"name": "cx_connect_fail", "value": "0", "type": "COUNTER"},
        {"name": "cx_total", "value": "0", "type": "COUNTER"},
    ]
    assert [host["health_status"].get("failed_outlier_check", False) for host in clusters[WEB]] == [False, True]
    assert clusters[WEB][1]["meshgate"] == {
        "streams": 5,
        "unanswered": 2,
        "failures": 3,
        "first_byte_seconds": 0.012346,
        "last_success": 1e9 + 5,
        "last_failure": 1e9 + 10,
        "last_error": "timed\nout",
        "ejected": {"failures": 3, "since": 1e9, "why": "connection refused"},
    }


def test_clusters_as_json_have_each_destinations_figures_too() -> None:
    view = as_json(clusters_view(CLUSTERS, ACTIVE, met, COUNTERS))
    assert [each["meshgate"]["streams"] for each in view["cluster_statuses"]] == [17, 0]
    assert view["cluster_statuses"][0]["meshgate"] == {
        "streams": 17,
        "open": 4,
        "refused": 3,
        "connect_failures": 3,
        "answered": 11,
        "unanswered": 2,
        "first_byte_p50": 0.05,
        "first_byte_p99": 0.05,
    }


def test_an_empty_table_has_no_clusters() -> None:
    empty = RouteTable.of("", "", "default", iter(()))
    view = clusters_view(empty, {}, met, COUNTERS)
    assert (view.cluster_statuses, clusters_text(view)) == ([], "")
