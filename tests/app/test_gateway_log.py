"""What the log says of a table when streams are taken from now on, and of streams that are refused."""

from dataclasses import replace

import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from meshgate.app.gateway.stream_observer import BURST, KEPT, StreamObserver
from meshgate.app.gateway.table_keeper import tell_ready
from meshgate.app.logs import logs
from meshgate.core.catalog import Remote, Snapshot
from meshgate.core.reasons import StreamEnd
from meshgate.core.routes import RouteTable
from tests.adapters.consul.model import gateway
from tests.core.samples import plan

from .gateway_double import refused
from .stream_records import RECORD, REFUSED


def test_start_without_a_route_says_why_and_is_no_warning() -> None:
    with capture_logs() as logs:
        tell_ready(RouteTable.of("dc1", "td.consul", "default", iter(())))
    (line,) = logs
    assert (line["event"], line["log_level"], line["routes"]) == ("ready", "info", 0)
    assert line["why"] == "the catalog has no mesh service and no gateway elsewhere yet that the token sees"


def test_start_with_routes_says_how_many() -> None:
    snapshot = Snapshot("dc1", "td.consul", remotes=(Remote("dc2", (gateway("dc2"),)),))
    with capture_logs() as logs:
        tell_ready(plan(snapshot))
    assert logs == [{"event": "ready", "log_level": "info", "routes": 1, "module": "meshgate"}]


async def test_strangers_cannot_fill_the_log_and_what_was_left_out_is_said(autojump_clock: MockClock) -> None:
    observer = StreamObserver(None)
    with capture_logs() as logs:
        for _ in range(BURST + 10):
            observer.on_refused(refused("no.such"))
        await trio.sleep(60)
        observer.on_refused(refused("later"))
        observer.on_refused(refused("last"))
    assert [entry["sni"] for entry in logs] == ["no.such"] * BURST + ["later", "last"]
    assert [entry.get("left_out") for entry in logs[-3:]] == [None, 10, None]
    assert len(observer.recent) == BURST + 12


def test_at_level_debug_there_is_a_line_for_each_stream_and_none_above_it() -> None:
    observer = StreamObserver(None)
    before = logs.level()
    try:
        with capture_logs() as lines:
            for level, wanted in (("info", False), ("debug", True), ("trace", True), ("warn", False)):
                logs.set_level(level)
                assert observer.wants_records is wanted
                observer.on_ended(replace(RECORD, end=StreamEnd.CLOSED))
                # Told by `on_refused`.
                observer.on_ended(REFUSED)
    finally:
        logs.set_level(before)
    assert [(line["event"], line["log_level"], line["end"], line["client"]) for line in lines] == [
        ("stream ended", "debug", "closed", RECORD.client)
    ] * 2
    assert (lines[0]["sni"], lines[0]["endpoint"], lines[0]["bytes_sent"]) == (RECORD.sni, RECORD.endpoint, 20)
    assert not observer.has_access_log


def test_ends_that_a_client_can_cause_push_no_other_ends_out() -> None:
    observer = StreamObserver(None)
    observer.on_ended(replace(RECORD, end=StreamEnd.DRAIN, started=5.0))
    observer.on_ended(replace(RECORD, end=StreamEnd.WORKER_LOST, started=7.0))
    for number in range(KEPT + 10):
        observer.on_ended(replace(RECORD, end=StreamEnd.CLIENT_RESET, started=10.0 + number))
    # In order, or told by `on_refused`.
    observer.on_ended(replace(RECORD, end=StreamEnd.CLOSED))
    observer.on_ended(REFUSED)
    kept = observer.ended
    assert [record.end for record in kept] == [StreamEnd.CLIENT_RESET] * KEPT + [StreamEnd.WORKER_LOST, StreamEnd.DRAIN]
    assert [record.started for record in kept[:2]] == [19.0 + KEPT, 18.0 + KEPT]
    assert all(record.alpn == () for record in kept)  # Thousands of names may be in one.
