"""`/whatif` and `meshgate whatif`: what breaks, what ends, what fills up, and what is not known."""

import json
import os
import time
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from meshgate.adapters.admin.http_server import Request
from meshgate.adapters.consul import WatchKey, WatchState
from meshgate.adapters.consul.api import ConsulUnreachableError
from meshgate.adapters.relay import Counters
from meshgate.app.admin.openapi import openapi_document
from meshgate.app.admin.whatif_page import MAX_ROWS, WhatIfPage
from meshgate.app.cli.main import execute
from meshgate.core.catalog import Check, Instance
from meshgate.core.routes import Endpoint, Route, RouteKind

from .gateway_double import TRUST_DOMAIN, GatewayDouble, route

OTHER = Instance("n9", "dc1", "mesh-gateway", "mesh-gateway", "10.0.0.99", 8443, "10.0.0.99", kind="mesh-gateway")
SICK = replace(OTHER, node="n8", checks=(Check("serfHealth", "critical"),))
DOWN = ConsulUnreachableError("cannot reach Consul", "unreachable")
DC2 = Route(
    f"dc2.internal.{TRUST_DOMAIN}",
    RouteKind.DATACENTER,
    "dc2",
    (Endpoint("198.51.100.7", 443, True, 1, "gw-2", "mesh-gateway"),),
    suffix=True,
)


def gateway_of(*routes: Route, **known: object) -> GatewayDouble:
    return GatewayDouble(*(routes or (route("web", healthy=2), route("api"), DC2)), **known)


async def told(gateway: GatewayDouble, status: int = 200, **query: str) -> Any:
    response = await WhatIfPage(gateway).answer(Request("GET", "/whatif", query, {}))
    assert response.status == status
    return json.loads(response.body)


def named(listing: Any) -> list[str]:
    return [row["destination"] for row in listing["rows"]]


async def test_without_a_question_all_is_told() -> None:
    answer = await told(gateway_of(others=(OTHER, SICK), numbers=Counters(active=7)))
    assert (answer["datacenter"], answer["destinations"]) == ("dc1", 3)
    assert named(answer["single"]) == ["api", "dc2"]
    assert [(it["name"], named(it["cut"])) for it in answer["gone"]] == [("dc2", ["dc2"])]
    assert answer["gateway"] == {"streams": 7, "others": {"total": 2, "healthy": 1}, "cut": 0}
    # Both endpoints of web are on one node.
    assert answer["nodes"] == [
        {"datacenter": "dc1", "node": "n1", "cut": 2},
        {"datacenter": "dc2", "node": "gw-2", "cut": 1},
    ]


async def test_the_last_gateway_takes_all_with_it() -> None:
    gateway = gateway_of(route("web"), route("sick", healthy=0, unhealthy=1), others=(SICK,))
    answer = await told(gateway)
    assert answer["gateway"]["cut"] == 1
    assert named(answer["broken"]) == ["sick"]


async def test_what_consul_does_not_tell_is_not_guessed() -> None:
    answer = await told(gateway_of(others=DOWN, token_ends=DOWN, agent_limit=DOWN))
    assert answer["gateway"] == {"streams": 0, "others": None, "cut": None}
    assert answer["ends"][1] == {"what": "ACL token", "known": False, "expires": None, "seconds": None, "near": False}
    assert {it["what"]: it["limit"] for it in answer["limits"]}["agent connections"] is None


async def test_a_consul_that_hangs_does_not_hold_the_answer_up(autojump_clock: MockClock) -> None:
    class Hanging(GatewayDouble):
        async def other_gateways(self) -> tuple[Instance, ...]:
            await trio.sleep_forever()
            raise AssertionError

    started = trio.current_time()
    answer = await told(Hanging(route("web")))
    assert trio.current_time() - started == pytest.approx(3)
    assert answer["gateway"]["others"] is None
    assert answer["ends"][1]["known"]


async def test_one_node_or_one_datacenter_may_be_asked_about() -> None:
    gateway = gateway_of()
    answer = await told(gateway, node="N1")
    assert [(it["what"], it["name"], named(it["cut"])) for it in answer["gone"]] == [("node", "N1", ["api", "web"])]
    assert (answer["gateway"], answer["nodes"]) == (None, [])
    assert named((await told(gateway, node="gw-2", dc="dc2"))["gone"][0]["cut"]) == ["dc2"]
    assert named((await told(gateway, dc="dc1"))["gone"][0]["cut"]) == ["api", "web", "dc2"]


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ({"node": "n7"}, "no endpoint on node n7 of datacenter dc1 is known here"),
        ({"node": "n1", "dc": "dc2"}, "no endpoint on node n1 of datacenter dc2 is known here"),
        ({"dc": "dc9"}, "no gateway of datacenter dc9 is known here"),
    ],
)
async def test_what_is_not_known_is_not_said_to_be_harmless(query: dict[str, str], error: str) -> None:
    assert await told(gateway_of(), 404, **query) == {"error": error}


async def test_ends_are_told_with_the_time_left() -> None:
    now = time.time()
    answer = await told(gateway_of(expiries=(now + 1000, now + 500), token_ends=now - 10))
    root, intermediate, token = answer["ends"]
    assert (root["known"], root["expires"]) == (True, pytest.approx(now + 1000))
    assert 900 < root["seconds"] <= 1000
    assert intermediate["expires"] == pytest.approx(now + 500)
    # Where the root signs there is no intermediate, and nothing is said of one.
    assert [it["what"] for it in (await told(gateway_of(expiries=(None, None))))["ends"]] == ["CA root", "ACL token"]
    assert token["seconds"] < 0
    assert [it["near"] for it in answer["ends"]] == [True, True, True]
    months = now + 100 * 86400
    later = await told(gateway_of(expiries=(months, months), token_ends=months))
    assert not any(it["near"] for it in later["ends"])


async def test_limits_are_told_with_what_is_used() -> None:
    answer = await told(gateway_of(loads=[(os.getpid(), 3)], numbers=Counters(active=3)))
    limits = {it["what"]: (it["used"], it["limit"]) for it in answer["limits"]}
    assert limits["streams"] == (3, 9000)
    assert limits["watches"] == (0, 100)
    assert not any(it["near"] for it in answer["limits"])
    full = await told(gateway_of(numbers=Counters(active=7200), agent_limit=150))
    assert [it["what"] for it in full["limits"] if it["near"]] == ["streams", "agent connections"]
    assert limits["agent connections"] == (120, 200)
    if "descriptors of a worker" in limits:  # a process without a limit has no share of it
        assert 0 < limits["descriptors of a worker"][0] <= limits["descriptors of a worker"][1]


async def test_an_outage_of_consul_is_told_with_its_age(autojump_clock: MockClock) -> None:
    await trio.sleep(100)
    now = trio.current_time()
    failing = WatchState(WatchKey("health", "web"), now - 90, last_success=now - 42, error="cannot reach Consul")
    well = WatchState(WatchKey("health", "api"), now - 90, last_success=now - 80)
    cold = replace(route("web"), stale=True)
    gateway = gateway_of(cold, states=[failing, well], catalog_stale=True, unkept="")
    assert (await told(gateway))["consul"] == {"stale": True, "age_seconds": 42.0, "restart": None, "cold": 1}
    gateway = gateway_of(states=[well])
    unset = "MESHGATE_STATE_DIR is not set"
    assert (await told(gateway))["consul"] == {"stale": False, "age_seconds": 0.0, "restart": unset, "cold": 0}
    assert (await told(gateway_of(from_disk=77.0)))["consul"]["age_seconds"] == 77
    assert (await told(gateway_of(consul_found=False)))["consul"]["age_seconds"] is None
    assert (await told(gateway_of(catalog_known=False)))["consul"]["age_seconds"] is None


async def test_lists_are_cut_and_say_how_long_they_are() -> None:
    answer = await told(gateway_of(*(route(f"web-{number}") for number in range(MAX_ROWS + 5))), node="n1")
    for listing in (answer["single"], answer["gone"][0]["cut"]):
        assert (listing["total"], len(listing["rows"])) == (MAX_ROWS + 5, MAX_ROWS)


async def test_the_answer_has_what_its_description_says() -> None:
    schemas = json.loads(openapi_document())["components"]["schemas"]
    answer = await told(gateway_of())
    for shape, part in (("WhatIf", answer), ("ConsulGone", answer["consul"]), ("Listing", answer["broken"])):
        assert list(part.keys() ^ schemas[shape]["properties"].keys()) == []


# --- the command ----------------------------------------------------------------------------------------------------


def printed(gateway: GatewayDouble, capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    with gateway.serving() as address:
        assert execute(["whatif", f"--admin-bind={address}", *arguments]) == code
    streams = capsys.readouterr()
    return streams.err if code else streams.out


def test_the_command_says_it_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    gateway = gateway_of(route("web", healthy=2), route("sick", healthy=0), DC2, others=(), numbers=Counters(active=7))
    out = printed(gateway, capsys)
    assert out.startswith("3 destinations of datacenter dc1\n  1 without a way now:\n    sick (service)\n")
    assert "  1 with one endpoint and no other way:\n    dc2 (datacenter)\n" in out
    assert "if all gateways of datacenter dc2 go away:\n  1 cut:\n    dc2 (datacenter)\n" in out
    assert "goes away:\n  open streams that end: 7\n  other gateways here that are healthy: 0 of 0; dest" in out
    assert "a restart has no catalog and serves nothing: MESHGATE_STATE_DIR is not set" in out
    assert [line.split() for line in out.splitlines() if line.startswith(("ACL", "agent"))] == [
        ["ACL", "token", "never", "-"],
        ["agent", "connections", "120", "200", "60%"],
    ]


def test_the_command_asks_about_one_node(capsys: pytest.CaptureFixture[str]) -> None:
    both = Route("both.example", RouteKind.SERVICE, "both", (*route("a").endpoints, *DC2.endpoints))
    gateway = gateway_of(both, route("web"))
    out = printed(gateway, capsys, "-node", "n1")
    assert "if node n1 of datacenter dc1 goes away:\n  1 cut:\n    web (service)\n" in out
    assert "  1 with fewer endpoints:\n    both (service, 1 of 2 left)\n" in out
    assert "if this gateway" not in out


def test_the_command_says_when_nothing_is_lost_and_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    gateway = gateway_of(route("sick", healthy=0, unhealthy=1), others=DOWN)
    assert "goes away:\n  nothing is lost\n" in printed(gateway, capsys, "--node=n1")
    assert "whether another gateway is left is not known" in printed(gateway, capsys)
    assert "nothing can be served" in printed(gateway_of(consul_found=False, unkept=""), capsys)
    gateway = gateway_of(from_disk=300.0, catalog_stale=True, unkept="")
    out = printed(gateway, capsys)
    assert "the catalog is 5m old" in out
    assert "a restart serves the catalog of the state folder" in out


def test_what_has_ended_does_not_end_soon(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [line.split() for line in printed(gateway_of(expiries=(1.0, None)), capsys).splitlines()]
    assert ["1970-01-01", "00:00Z", "past"] in [row[-3:] for row in rows]


def test_the_command_as_json_has_the_shape_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    out = json.loads(printed(gateway_of(), capsys, "--json", "--dc=dc2"))
    assert named(out["gone"][0]["cut"]) == ["dc2"]
    assert out["gateway"] is None


def test_what_is_not_known_is_an_error_and_not_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no endpoint on node n7 of datacenter dc1" in printed(gateway_of(), capsys, "--node=n7", code=1)
    assert execute(["whatif", "--node=a\x1b"]) == 2
    assert execute(["whatif", "web"]) == 2
