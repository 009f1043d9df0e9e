"""The table in force, and what is done with each new one."""

import gc
from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock

import pytest
from structlog.testing import capture_logs

from meshgate.adapters.relay import Limits, Refused
from meshgate.adapters.relay.pool import RelayPool
from meshgate.app.gateway import table_keeper
from meshgate.app.gateway.stream_observer import StreamObserver
from meshgate.app.gateway.table_keeper import TableKeeper
from meshgate.app.settings.settings import Settings
from meshgate.core.catalog import Export, Service, Snapshot
from meshgate.core.reasons import Reason
from tests.adapters.consul.model import sidecar


def catalog(services: int) -> Snapshot:
    return Snapshot(
        "dc1", "td.consul", services=tuple(Service(f"s{each}", (sidecar(f"s{each}"),)) for each in range(services))
    )


@pytest.fixture
async def keeper(nursery: Any, monkeypatch: pytest.MonkeyPatch) -> TableKeeper:
    monkeypatch.setattr(table_keeper, "_LARGE", 3)
    relay = RelayPool(1, Limits(), MagicMock(), 1.0)
    return TableKeeper(Settings.load({}, environ={}), relay, MagicMock(), MagicMock())


async def test_a_table_without_a_route_still_knows_where_it_is(keeper: TableKeeper) -> None:
    assert (len(keeper.table), keeper.table.datacenter, keeper.known.is_set()) == (0, "", False)
    keeper.use(catalog(0))
    assert (keeper.table.datacenter, keeper.table.trust_domain) == ("dc1", "td.consul")
    assert keeper.known.is_set()


async def test_without_a_catalog_there_is_no_table_any_more(keeper: TableKeeper) -> None:
    keeper.use(catalog(2))
    assert len(keeper.table) == 2
    keeper.clear()
    assert (keeper.snapshot, len(keeper.table), keeper.known.is_set()) == (None, 0, False)
    assert keeper.health._routes == {}
    keeper.renew()
    assert (len(keeper.table), keeper.known.is_set()) == (0, False)


async def test_a_large_catalog_is_left_out_of_the_search_for_garbage_each_time_it_has_doubled(
    keeper: TableKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen: list[int] = []
    monkeypatch.setattr(gc, "collect", lambda: 0)
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(len(keeper.table)))
    for services in (2, 3, 5, 6, 3, 11, 12):
        keeper.use(catalog(services))
    assert frozen == [3, 6, 12]


async def test_an_export_that_is_left_alone_is_told_once_and_so_is_a_stream_that_is_refused_for_it(
    keeper: TableKeeper,
) -> None:
    def exporting(protocol: str) -> Snapshot:
        return replace(catalog(1), exports=(Export("s0", peers=("east",), protocol=protocol),))

    with capture_logs() as logs:
        for protocol in ("tcp", "http", "http", "grpc", "tcp", "http"):
            keeper.use(exporting(protocol))
    told = [entry["why"] for entry in logs if entry["event"] == "an export is left alone"]
    assert [line.split(",")[0] for line in told] == [
        f"s0 is exported with protocol {protocol}" for protocol in ("http", "grpc", "http")
    ]
    observer = StreamObserver(None, lambda name: keeper.table.unroutable.get(name, ""))
    name = "S0.default.default.east.external.td.consul"
    with capture_logs() as logs:
        observer.on_refused(Refused("192.0.2.1:1", name, Reason.UNKNOWN_SNI, "no route for this name"))
        observer.on_refused(Refused("192.0.2.1:1", "x", Reason.UNKNOWN_SNI, "no route for this name"))
        observer.on_refused(Refused("192.0.2.1:1", None, Reason.NO_SNI, "no name"))
    assert [entry["detail"] for entry in logs] == [told[0], "no route for this name", "no name"]
    assert observer.recent[0][1].detail == told[0]
