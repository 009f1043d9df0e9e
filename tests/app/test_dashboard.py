"""What the dashboard asks, and how often the workers are asked for it."""

import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import trio

from meshgate.adapters.admin.http_server import Request, Response
from meshgate.adapters.consul.watch import WatchKey, WatchState
from meshgate.adapters.relay import Counters, OpenStream
from meshgate.adapters.relay.pool import WorkerLoss
from meshgate.adapters.relay.worker_process import WorkerEnd
from meshgate.app.admin.answers import MOST_STREAMS
from meshgate.app.admin.dashboard import FRESH, STALE, DashboardPage, Sampler
from meshgate.app.admin.history import BUSIEST, MINUTES, History, history_view
from meshgate.app.gateway.upgrade_record import Minute
from meshgate.core.reasons import Reason, StreamEnd
from meshgate.core.routes import RouteKind

from .gateway_double import GatewayDouble, refused, route
from .stream_records import RECORD

WEB = (RouteKind.SERVICE, "web")
MAIL = (RouteKind.SERVICE, "mail")


def asking(double: GatewayDouble) -> Callable[..., Awaitable[tuple[int, Any]]]:
    handler = DashboardPage(double).answer

    async def ask(**query: str) -> tuple[int, Any]:
        response: Response = await handler(Request("GET", "/dashboard/state", query, {}))
        return response.status, json.loads(response.body)

    return ask


def stream(number: int, to: str | None) -> OpenStream:
    return OpenStream(number, "192.0.2.1:5", to, to, "10.0.0.7:1", "relaying", 1.0, 5, 6, 0)


async def test_state_tells_the_gateway_its_destinations_and_its_news(autojump_clock: trio.testing.MockClock) -> None:
    double = GatewayDouble(web := route("web", healthy=1, unhealthy=1))
    double.streams = [stream(1, web.sni), stream(2, None)]
    double.numbers.active, double.numbers.open = 2, {WEB: 1}
    double.recent += [(5.0, refused("first")), (6.0, refused(None, Reason.NOT_TLS, "plain text"))]
    now = trio.current_time()
    double.states += [
        WatchState(WatchKey("roots", "CA roots"), now - 9, last_success=now - 4),
        WatchState(WatchKey("health", "web"), now - 9, last_success=now - 2),
        WatchState(WatchKey("health", "mail"), now - 9, error="500 broken", failures=2),
    ]
    ask = asking(double)
    await ask()
    double.numbers.connections = {WEB: 8}
    double.numbers.carried = {WEB: (400, 40)}
    await trio.sleep(2)
    status, state = await ask()
    assert status == 200
    gateway = state["gateway"]
    assert (gateway["service"], gateway["datacenter"], gateway["state"]) == ("mesh-gateway", "dc1", "ready")
    assert gateway["listeners"] == [{"name": "default", "address": "127.0.0.1:8443"}]
    assert gateway["workers"] == [{"pid": 4711, "open": 2}, {"pid": None, "open": 0}]
    assert abs(gateway["now"] - time.time()) < 60
    assert state["totals"]["streams_rate"] == 4.0
    (row,) = state["destinations"]["rows"]
    assert (row["name"], row["healthy"], row["endpoints"], row["open"]) == ("web", 1, 2, 1)
    assert (row["rate"], row["received_rate"], row["sent_rate"]) == (4.0, 200.0, 20.0)
    assert [(each["reason"], each["sni"]) for each in state["refused"]["recent"]] == [
        ("not_tls", None),
        ("unknown_sni", "first"),
    ]
    health, roots = state["consul"]["watches"]
    assert (roots["kind"], roots["count"], roots["failing"], roots["age_seconds"]) == ("roots", 1, 0, 6.0)
    assert (health["count"], health["failing"], health["error"], health["age_seconds"]) == (2, 1, "500 broken", 11.0)
    assert state["consul"]["ca_root_expiry"] == 4e9


async def test_state_tells_how_streams_ended_and_how_old_the_catalog_is(
    autojump_clock: trio.testing.MockClock,
) -> None:
    lost = replace(RECORD, end=StreamEnd.WORKER_LOST)
    double = GatewayDouble(ended=[lost] * 100, losses=[WorkerLoss(5.0, 1, WorkerEnd.HUNG, 3, 1)])
    double.numbers.ends = {StreamEnd.CLOSED: 7, StreamEnd.WORKER_LOST: 3}
    ask = asking(double)
    _, state = await ask()
    assert {end: count for end, count in state["ended"]["ends"].items() if count} == {"closed": 7, "worker_lost": 3}
    assert [each["end"] for each in state["ended"]["streams"]] == ["worker_lost"] * 30
    assert [(each["reason"], each["streams"]) for each in state["ended"]["workers_lost"]] == [("hung", 3)]
    assert state["gateway"]["catalog_seconds"] == 0.0
    now = trio.current_time()
    double.states += [
        WatchState(WatchKey("roots", "CA roots"), now - 9, last_success=now - 2),
        WatchState(WatchKey("health", "mail"), now - 700, last_success=now - 600, error="500 broken", failures=2),
    ]
    await trio.sleep(1)
    assert (await ask())[1]["gateway"]["catalog_seconds"] == 601.0
    double.from_disk = 7200.0
    assert (await ask())[1]["gateway"]["catalog_seconds"] == 7200.0
    double.from_disk, double.consul_found = None, False
    assert (await ask())[1]["gateway"]["catalog_seconds"] is None


async def test_history_is_of_the_last_hour_by_the_minute(autojump_clock: trio.testing.MockClock) -> None:
    totals = Counters(connections={WEB: 1_000_000}, refused={Reason.UNKNOWN_SNI: 500})
    history = History()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(history.run, lambda: totals)
        for minute in range(65):
            await trio.sleep(60 if minute else 60.5)
            # What came before this process looked is no minute's.
            assert [each.streams for each in history.minutes][-3:] == [minute - 2, minute - 1, minute][-minute - 1 :]
            totals.connections[WEB] += minute + 1
        nursery.cancel_scope.cancel()
    assert len(history.minutes) == MINUTES
    assert [each.streams for each in history.minutes] == [*range(5, 65)]


async def test_history_tells_failures_of_a_destination_from_what_strangers_send() -> None:
    double, totals = GatewayDouble(route("web")), Counters()
    totals.connections, totals.first_bytes = {WEB: 8}, {WEB: [0, 8, *[0] * 9, 15000]}
    totals.failed = {(*WEB, Reason.CONNECT_FAILED): 2, (*WEB, Reason.DRAINING): 4, (*MAIL, Reason.CONNECT_TIMEOUT): 1}
    totals.refused = {Reason.CONNECT_FAILED: 2, Reason.DRAINING: 4, Reason.CONNECT_TIMEOUT: 1, Reason.NOT_TLS: 9}
    double.history.note(totals, 60.0)
    totals.connections[WEB] += 1
    double.history.note(totals, 120.0)
    response = await DashboardPage(double).history(Request("GET", "/dashboard/history", {}, {}))
    told = json.loads(response.body)
    assert (told["ends"], told["streams"], told["failed"], told["refused"]) == ([60.0, 120.0], [8, 1], [3, 0], [9, 0])
    web, mail = told["destinations"]
    assert (web["name"], web["streams"], web["failed"], web["success"]) == ("web", [8, 1], [2, 0], 0.818182)
    assert web["first_bytes"] == [0, 8, *[0] * 9]
    assert (mail["name"], mail["streams"], mail["failed"], mail["success"]) == ("mail", [0, 0], [1, 0], 0.0)


async def test_history_is_handed_over_to_the_next_version_whose_slots_may_be_others() -> None:
    history, totals = History(), Counters(connections={WEB: 8}, first_bytes={WEB: [0, 8, *[0] * 10]})
    history.note(totals, 60.0)
    record = msgspec.msgpack.encode([*history.minutes])
    after = History()
    after.remember(msgspec.msgpack.decode(record, type=list[Minute]))
    assert history_view(after.minutes) == history_view(history.minutes)
    other = History()
    other.remember([Minute(60.0, 8, 0, 0, [(WEB, (8, 0, [8]))])])
    view = history_view(other.minutes)
    assert (view.streams, view.destinations) == ([8], [])


async def test_history_keeps_the_busiest_destinations_and_all_in_sum() -> None:
    history, totals = History(), Counters()
    for number in range(BUSIEST + 50):
        totals.connections[RouteKind.SERVICE, f"s{number}"] = number + 1
    history.note(totals, 60.0)
    view = history_view(history.minutes)
    assert view.streams == [sum(range(BUSIEST + 51))]
    assert len(view.destinations) == BUSIEST
    assert (view.destinations[0].name, view.destinations[-1].name) == (f"s{BUSIEST + 49}", "s50")
    assert history_view(History().minutes).streams == []


@pytest.mark.parametrize(
    ("flags", "word"), [({}, "ready"), ({"ready": False}, "starting"), ({"ready": False, "draining": True}, "draining")]
)
async def test_state_has_a_word_for_each_phase(flags: dict[str, bool], word: str) -> None:
    _, state = await asking(GatewayDouble(**flags))()
    assert state["gateway"]["state"] == word


async def test_order_that_is_none_is_an_error() -> None:
    status, answer = await asking(GatewayDouble())(sort="colour")
    assert (status, answer["error"]) == (400, "sort is one of busy, name, health")


async def test_filter_and_order_choose_destinations() -> None:
    ask = asking(GatewayDouble(route("web"), route("mail")))
    _, state = await ask(filter="WE")
    assert [row["name"] for row in state["destinations"]["rows"]] == ["web"]
    _, state = await ask(sort="name")
    assert [row["name"] for row in state["destinations"]["rows"]] == ["mail", "web"]


async def test_half_a_character_in_a_name_does_not_break_the_answer() -> None:
    double = GatewayDouble(wrong=["\ud800"])
    double.recent.append((1.0, refused("\udfff", detail="\ud800")))
    status, state = await asking(double)()
    assert (status, state["problems"]) == (200, ["\\ud800"])


async def test_many_viewers_ask_the_workers_once(autojump_clock: trio.testing.MockClock) -> None:
    double = GatewayDouble()
    ask = asking(double)
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
    assert double.listed == 1
    await trio.sleep(FRESH)
    await ask()
    assert double.listed == 2


async def test_very_busy_gateway_is_not_asked_for_its_streams(autojump_clock: trio.testing.MockClock) -> None:
    double = GatewayDouble(route("web"))
    double.numbers.active, double.numbers.open = MOST_STREAMS + 1, {WEB: 7}
    _, state = await asking(double)()
    assert double.listed == 0
    assert state["destinations"]["rows"][0]["open"] == 7


async def test_old_samples_give_no_rates(autojump_clock: trio.testing.MockClock) -> None:
    double = GatewayDouble()
    sampler = Sampler(double)
    first = (await sampler.span()).after
    await trio.sleep(1)
    assert (await sampler.span()).before is first
    await trio.sleep(STALE + 2)
    span = await sampler.span()
    assert span.before is span.after


async def test_rates_are_of_the_last_seconds(autojump_clock: trio.testing.MockClock) -> None:
    double = GatewayDouble()
    sampler = Sampler(double)
    for _ in range(9):
        await sampler.span()
        await trio.sleep(1)
    span = await sampler.span()
    assert span.before is not None
    assert 3 <= span.after.at - span.before.at <= 4
