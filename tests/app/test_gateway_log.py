"""What the log says of a table when streams are taken from now on, and of streams that are refused."""

import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from meshgate.app.gateway.stream_observer import BURST, StreamObserver
from meshgate.app.gateway.table_keeper import tell_ready
from meshgate.core.catalog import RemoteDatacenter, Snapshot
from meshgate.core.routes import RouteTable
from tests.adapters.consul.model import gateway
from tests.core.samples import plan

from .gateway_double import refused


def test_start_without_a_route_says_why_and_is_no_warning() -> None:
    with capture_logs() as logs:
        tell_ready(RouteTable.of("dc1", "td.consul", "default", iter(())))
    (line,) = logs
    assert (line["event"], line["log_level"], line["routes"]) == ("ready", "info", 0)
    assert line["why"] == "the catalog has no mesh service and no gateway elsewhere yet that the token sees"


def test_start_with_routes_says_how_many() -> None:
    snapshot = Snapshot("dc1", "td.consul", remotes=(RemoteDatacenter("dc2", (gateway("dc2"),)),))
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
