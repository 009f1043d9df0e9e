import msgspec

from meshgate.adapters.relay import Counters
from meshgate.app.admin.answers import Ejection, EndpointFacts
from meshgate.app.admin.views import clusters_text, clusters_view
from meshgate.core.outlier_detection import Address
from meshgate.core.reasons import Reason
from meshgate.core.routes import Endpoint, Route, RouteKind, RouteTable

WEB = "web.default.dc1.internal.td.consul"
TABLE = RouteTable.of(
    "dc1",
    "td.consul",
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
            Route("dc2.internal.td.consul", RouteKind.DATACENTER, "dc2", (), suffix=True),
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
ACTIVE = {(WEB, "10.0.0.7:21000"): 4, ("*.dc2.internal.td.consul", "10.0.0.7:21000"): 9}


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


def test_the_text_has_envoys_lines() -> None:
    assert clusters_text(TABLE, ACTIVE, met, COUNTERS).splitlines() == [
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
        "dc2.internal.td.consul::observability_name::dc2.internal.td.consul",
        "dc2.internal.td.consul::added_via_api::true",
        "dc2.internal.td.consul::cx_active::0",
        "dc2.internal.td.consul::cx_connect_fail::0",
        "dc2.internal.td.consul::cx_total::0",
        "dc2.internal.td.consul::refused::0",
        "dc2.internal.td.consul::unanswered::0",
    ]


def test_the_json_answers_what_scripts_ask_of_envoy() -> None:
    """The query of Consul's own integration tests: the EDS health of the hosts of a cluster."""
    view = msgspec.to_builtins(clusters_view(TABLE, ACTIVE, met, COUNTERS))
    clusters = {each["name"]: each["host_statuses"] for each in view["cluster_statuses"]}
    assert list(clusters) == [WEB, "dc2.internal.td.consul"]
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


def test_the_json_has_each_destinations_figures_too() -> None:
    view = msgspec.to_builtins(clusters_view(TABLE, ACTIVE, met, COUNTERS))
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


def test_an_empty_table_is_an_empty_answer() -> None:
    empty = RouteTable.of("", "", "default", iter(()))
    assert clusters_text(empty, {}, met, COUNTERS) == ""
    assert clusters_view(empty, {}, met, COUNTERS).cluster_statuses == []
