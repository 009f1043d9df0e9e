"""What `/explain` says beside the decision: which check failed, since when, what it said, how old all of that is."""

import json
import re
import time
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from meshgate.adapters.admin.http_server import Request
from meshgate.adapters.consul import WatchKey, WatchState
from meshgate.adapters.consul.api import ConsulAddress, ConsulClient, ConsulUnreachableError, HealthCheck
from meshgate.adapters.sd_notify import Notifier
from meshgate.app.admin.answers import Ejection, EndpointFacts
from meshgate.app.admin.explain_page import ExplainPage
from meshgate.app.admin.gateway_view import GatewayView
from meshgate.app.gateway.gateway import Gateway
from meshgate.app.settings.settings import Settings
from meshgate.core.catalog import Snapshot
from meshgate.core.explain import Explanation, explain
from meshgate.core.hello import Offer
from meshgate.core.reasons import Alert
from meshgate.core.routes import Endpoint, Route, RouteKind, RouteTable

from .gateway_double import TRUST_DOMAIN, GatewayDouble, refused, table_of

WEB = f"web.default.dc1.internal.{TRUST_DOMAIN}"
DC2 = f"web.default.dc2.internal.{TRUST_DOMAIN}"
SICK = Endpoint("10.0.0.7", 21000, False, 1, "n1", "web-1", "check service:web-1 is critical")
WELL = Endpoint("10.0.0.8", 21000, True, 1, "n2", "web-2")
OUTPUT = "dial tcp 10.0.0.7:21000: connect: connection refused"
CHECKS = (
    HealthCheck("serfHealth", "Serf Health Status", "passing", "Agent alive"),
    HealthCheck("slow", "Slow", "warning", "", "web-1"),
    HealthCheck("service:web-1", "Web TCP", "critical", OUTPUT, "web-1"),
    HealthCheck("service:api-1", "Api", "critical", "not of this service", "api-1"),
)


def routes_of(*endpoints: Endpoint) -> list[Route]:
    return [
        Route(WEB, RouteKind.SERVICE, "web", endpoints),
        Route(f"dc2.internal.{TRUST_DOMAIN}", RouteKind.DATACENTER, "dc2", endpoints, suffix=True),
    ]


def gateway_with(*endpoints: Endpoint, checks: tuple[HealthCheck, ...] | Exception = CHECKS) -> GatewayDouble:
    now = trio.current_time()
    states = [
        WatchState(WatchKey("health", "web"), now - 100, last_success=now - 42),
        WatchState(WatchKey("health", "api"), now - 100, last_success=now),
        WatchState(WatchKey("gateways", "mesh-gateway", "dc2"), now - 100, last_success=now - 7),
    ]
    return GatewayDouble(*routes_of(*endpoints), states=states, checks=checks)


async def told(gateway: GatewayDouble, sni: str) -> list[tuple[str, str]]:
    """The steps that came to those of the core."""
    explanation: Explanation = explain(gateway.table(), sni)
    more = await ExplainPage(gateway).completed(explanation)
    assert more.steps[: len(explanation.steps)] == explanation.steps
    return [(step.rule, step.outcome) for step in more.steps[len(explanation.steps) :]]


async def test_an_unhealthy_endpoint_is_told_with_its_check_and_what_it_said(autojump_clock: MockClock) -> None:
    gateway = gateway_with(Endpoint(SICK.address, SICK.port, True, 1, SICK.node, SICK.instance), WELL)
    await trio.sleep(30)
    gateway.use(table_of(*routes_of(SICK, WELL)))
    await trio.sleep(90)
    assert await told(gateway, WEB) == [
        (
            "why unhealthy",
            (
                f'web-1 on n1 for 1m30s: check service:web-1 (Web TCP) is critical, it says "{OUTPUT}"; '
                "check slow (Slow) is warning, it says nothing"
            ),
        ),
        ("data age", "2m42s; a blocking query is open, changes arrive at once"),
    ]
    assert gateway.asked == [("n1", "")]


async def test_what_was_unhealthy_from_the_start_is_so_for_an_unknown_time(autojump_clock: MockClock) -> None:
    gateway = gateway_with(SICK)
    await trio.sleep(5)
    ((_, why), _) = await told(gateway, WEB)
    assert why.startswith("web-1 on n1 for 5s or longer (it already was when this gateway first saw it): check")


async def test_another_datacenter_is_asked_for_its_checks_and_decides_the_rest(autojump_clock: MockClock) -> None:
    gateway = gateway_with(SICK, WELL)
    steps = await told(gateway, DC2)
    assert gateway.asked == [("n1", "dc2")]
    assert [rule for rule, _ in steps] == ["why unhealthy", "data age", "next"]
    assert steps[1][1].startswith("7s; a blocking query is open")
    assert "ask a gateway of datacenter dc2" in steps[2][1]


async def test_of_a_service_without_an_open_query_none_is_claimed(autojump_clock: MockClock) -> None:
    gateway = gateway_with(WELL)
    gateway.states[0].swept = True
    ((rule, outcome),) = await told(gateway, WEB)
    assert rule == "data age"
    assert outcome.startswith("42s; no blocking query is open for lack of connections: ")


@pytest.mark.parametrize(
    ("kind", "there"),
    [
        (RouteKind.PARTITION, "partition p1"),
        (RouteKind.PEER_IMPORT, "the peer that exports p1"),
        (RouteKind.SERVER, ""),
    ],
)
async def test_nodes_that_the_agent_does_not_know_are_not_asked_for(
    kind: RouteKind, there: str, autojump_clock: MockClock
) -> None:
    gateway = GatewayDouble(Route(f"p1.{TRUST_DOMAIN}", kind, "p1", (SICK,), suffix=True), checks=CHECKS)
    steps = dict(await told(gateway, f"web.p1.{TRUST_DOMAIN}"))
    assert gateway.asked == []
    assert steps["why unhealthy"].endswith(": check service:web-1 is critical")
    assert steps.get("next", "").startswith(f"ask a gateway of {there}," if there else "")


async def test_a_hostile_output_stays_one_line_and_short(autojump_clock: MockClock) -> None:
    hostile = "\x1b[31mred\n\n\u202eevil\udcff " + "x" * 5000
    gateway = gateway_with(SICK, checks=(HealthCheck("c", "C\x07", "critical", hostile, "web-1"),))
    ((_, why), _) = await told(gateway, WEB)
    assert why.isascii()
    assert why.isprintable()
    assert "\\x1b[31mred \\u202eevil\\udcff" in why
    assert len(why) < 500


async def test_many_unhealthy_endpoints_and_checks_are_counted_and_not_all_told(autojump_clock: MockClock) -> None:
    sick = [Endpoint("10.0.0.7", port, False, 1, f"n{port}", "web-1", "x") for port in range(1, 9)]
    checks = tuple(HealthCheck(f"c{number}", "C", "critical", "", "web-1") for number in range(5))
    gateway = gateway_with(*sick, checks=checks)
    steps = await told(gateway, WEB)
    assert len(gateway.asked) == 5
    assert [outcome for rule, outcome in steps if rule == "why unhealthy"][-1] == "3 more endpoints are not asked about"
    assert steps[0][1].endswith("; 2 more checks fail")


@pytest.mark.parametrize(
    ("checks", "said"),
    [
        (ConsulUnreachableError("cannot reach Consul", "unreachable"), "its checks are not known: cannot reach Consul"),
        ((), "check service:web-1 is critical; Consul shows no failing check at this moment"),
    ],
)
async def test_where_consul_shows_no_check_the_tables_cause_stands(
    checks: Any, said: str, autojump_clock: MockClock
) -> None:
    ((_, why), _) = await told(gateway_with(SICK, checks=checks), WEB)
    assert why.endswith(said)


async def test_data_that_grows_old_says_why(autojump_clock: MockClock) -> None:
    gateway = gateway_with(WELL)
    gateway.states[0].error = "cannot reach Consul"
    assert await told(gateway, WEB) == [
        ("data age", "42s; Consul has not answered since: cannot reach Consul"),
        ("failing watches", "1, the oldest answer is 42 s old"),
    ]


async def test_a_missing_service_of_this_datacenter_is_asked_for(autojump_clock: MockClock) -> None:
    gateway = gateway_with(WELL)
    assert await told(gateway, f"nope.default.dc1.internal.{TRUST_DOMAIN}") == [
        ("consul", "no such service registered: nope"),
    ]
    assert await told(gateway, f"nope.default.dc9.internal.{TRUST_DOMAIN}") == []
    assert await told(gateway, "not a host name") == []


async def test_before_consul_has_answered_that_is_said(autojump_clock: MockClock) -> None:
    gateway = gateway_with(SICK)
    gateway.consul_found = False
    assert await told(gateway, WEB) == [("catalog", "not known yet: Consul has not answered")]
    gateway.from_disk = 61.0
    assert await told(gateway, WEB) == [("catalog", "from disk, 61 s old: Consul has not answered yet")]


async def asked(gateway: GatewayDouble, **query: str) -> dict[str, Any]:
    page = ExplainPage(gateway)
    response = await (page.of_sni if "sni" in query else page.of_name)(Request("GET", "/explain", query, {}))
    answer: dict[str, Any] = json.loads(response.body)
    return answer


async def test_a_services_name_is_enough() -> None:
    gateway = gateway_with(WELL)
    answer = await asked(gateway, name="Web")
    assert (answer["decision"], answer["sni"]) == ("routed", WEB)
    said = f"Web stands for {WEB}; a client that sends Web is refused"
    assert answer["steps"][0] == {"rule": "service", "outcome": said}
    assert (await asked(gateway, name="web", dc="dc2"))["route"] == f"*.dc2.internal.{TRUST_DOMAIN}"
    assert (await asked(gateway, name="team/web"))["sni"] == f"web.team.dc1.internal.{TRUST_DOMAIN}"
    missing = await asked(gateway, name="nosuch")
    assert (missing["decision"], missing["reason"]) == ("refused", "unknown_sni")
    assert {"rule": "consul", "outcome": "no such service registered: nosuch"} in missing["steps"]


async def test_a_partition_and_a_datacenter_are_the_same_in_any_case() -> None:
    gateway = gateway_with(WELL)
    gateway.use(RouteTable.of("dc1", TRUST_DOMAIN, "Ap1", iter(())))
    answer = await asked(gateway, name="nosuch", dc="DC1")
    assert answer["sni"] == (await asked(gateway, name="nosuch"))["sni"]
    assert {"rule": "consul", "outcome": "no such service registered: nosuch"} in answer["steps"]


async def test_a_services_name_makes_no_server_name_before_the_catalog_is_known() -> None:
    gateway = GatewayDouble(catalog_known=False, consul_found=False)
    gateway.use(RouteTable.of("", "", "default", iter(())))
    for asked_for in ({"name": "web"}, {"name": "web", "dc": "dc2"}):
        answer = await asked(gateway, **asked_for)
        assert (answer["sni"], answer["reason"]) == ("web", "unknown_sni")
        assert answer["steps"][0] == {
            "rule": "service",
            "outcome": "server names are not known before the catalog is",
        }
        assert {"rule": "catalog", "outcome": "not known yet: Consul has not answered"} in answer["steps"]


@pytest.mark.parametrize("name", [WEB, "nobody.example", "", "two words", "*.example"])
async def test_what_cannot_be_a_service_is_what_a_client_sends(name: str) -> None:
    answer = await asked(gateway_with(WELL), name=name)
    assert answer["sni"] == name
    assert "service" not in [step["rule"] for step in answer["steps"]]


async def test_what_a_client_sends_is_asked_for_to_the_letter() -> None:
    assert (await asked(gateway_with(WELL), sni="web"))["reason"] == "unknown_sni"


async def test_names_that_were_refused_lately_are_offered_each_once_and_none_that_a_terminal_would_obey() -> None:
    now = time.time()
    names = ["web.old", "WEB.example", "web.new", "web.\x1b[2J", "web.new"]
    gateway = GatewayDouble(
        *routes_of(WELL), recent=[(now - (names.index(it) == 0) * 4000, refused(it)) for it in names]
    )
    response = await ExplainPage(gateway).names(Request("GET", "/names", {"text": "web"}, {}))
    found = json.loads(response.body)
    assert found == {"refused": ["web.new", "WEB.example"], "services": ["web"], "datacenters": [], "snis": [WEB]}


async def test_an_endpoint_that_connections_cannot_reach_is_told(autojump_clock: MockClock) -> None:
    gateway = gateway_with(WELL)
    now = time.time()
    met = EndpointFacts(ejected=Ejection(3, now - 95, "connection\x1brefused"))
    gateway.facts = {(WELL.address, WELL.port): met}
    steps = dict(await told(gateway, WEB))
    assert re.match(
        rf"{WELL.instance} on {WELL.node} for 1m3\ds: 3 failed connections in a row, "
        r"the first: connection\\x1brefused; others are tried",
        steps["ejected"],
    )
    assert "endpoint" not in steps


async def test_what_is_known_of_its_streams_without_their_keys_is_told(autojump_clock: MockClock) -> None:
    gateway, key = gateway_with(WELL), (RouteKind.SERVICE, "web")
    assert {rule for rule, _ in await told(gateway, WEB)}.isdisjoint(("streams", "tls"))
    numbers = gateway.numbers
    for seconds in (*[0.004] * 98, 0.09, 60.0):
        numbers.count_first_byte(key, (WELL.address, WELL.port), seconds)
    for _ in range(25):
        numbers.count_unanswered(key, (WELL.address, WELL.port))
    numbers.count_hello(key, Offer("TLSv1.2", resumption=False))
    steps = dict(await told(gateway, WEB))
    assert steps["tls"] == "clients offer TLSv1.2 100%; 0% offer to resume a session"
    for _ in range(2):
        numbers.count_hello(key, Offer("TLSv1.3", resumption=True))
    numbers.count_alert(key, "endpoint", Alert.UNKNOWN_CA)
    steps = dict(await told(gateway, WEB))
    assert steps["streams"] == (
        "125 streams since the start, 20% ended without a byte from an endpoint, half had their first byte within 5ms, "
        "99 of 100 within 100ms"
    )
    assert steps["tls"] == (
        "clients offer TLSv1.2 33.3%, TLSv1.3 66.7%; 66.7% offer to resume a session; "
        "alerts in the clear: 1 unknown_ca from endpoints"
    )


async def test_what_was_met_of_the_endpoints_is_told_those_that_fail_first(autojump_clock: MockClock) -> None:
    now = time.time()
    many = [Endpoint("10.0.0.9", port, True, 1, "n9", f"web-{port}") for port in range(1, 8)]
    gateway = gateway_with(*many)
    gateway.facts = {("10.0.0.9", port): EndpointFacts(streams=1) for port in range(1, 7)}
    gateway.facts[("10.0.0.9", 5)] = EndpointFacts(
        streams=40,
        unanswered=2,
        failures=1,
        first_byte_seconds=0.00312,
        last_success=now - 2,
        last_failure=now - 7200,
        last_error="timed out",
    )
    steps = [outcome for rule, outcome in await told(gateway, WEB) if rule == "endpoint"]
    assert re.fullmatch(
        r"web-5 on n9: 42 streams, 2 without a byte from it, first byte in 3.12 ms lately, last answered [23]s ago, "
        r"1 failed connection, the last 2h\d?s? ?ago: timed out",
        steps[0],
    )
    assert steps[1:] == [
        *(f"web-{port} on n9: 1 stream" for port in (1, 2, 3, 4)),
        "1 more endpoint: /clusters has all",
    ]


async def test_servers_are_known_by_the_domain_of_the_catalog_in_use_even_if_consul_has_not_answered_yet() -> None:
    settings = Settings.load(
        {}, environ={"MESHGATE_WORKERS": "1", "MESHGATE_ADDRESS": "127.0.0.1:1", "MESHGATE_ADMIN_BIND": "off"}
    )
    async with ConsulClient(ConsulAddress.from_settings({})) as client, trio.open_nursery() as nursery:
        gateway = Gateway(settings, client, Notifier())
        nursery.start_soon(gateway.relay.run)
        gateway.tables.use(Snapshot("dc1", TRUST_DOMAIN, domain="mesh.example"))
        answer = await ExplainPage(GatewayView(gateway)).of_sni(
            Request("GET", "/explain", {"sni": "node1.server.dc2.mesh.example"}, {})
        )
        nursery.cancel_scope.cancel()
    assert "Consul server node1, datacenter dc2" in answer.body.decode()
