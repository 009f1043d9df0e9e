"""The table in force, and what is done with each new one."""

import gc
from typing import Any
from unittest.mock import MagicMock

import pytest

from meshgate.adapters.relay import Limits
from meshgate.adapters.relay.pool import RelayPool
from meshgate.app.gateway.table_keeper import TableKeeper
from meshgate.app.settings.settings import Settings
from meshgate.core.catalog import Service, Snapshot
from tests.adapters.consul.model import sidecar


def catalog(services: int) -> Snapshot:
    return Snapshot(
        "dc1", "td.consul", services=tuple(Service(f"s{each}", (sidecar(f"s{each}"),)) for each in range(services))
    )


@pytest.fixture
async def keeper(nursery: Any) -> TableKeeper:
    relay = RelayPool(1, Limits(), MagicMock(), 1.0)
    return TableKeeper(Settings.load({}, environ={}), relay, MagicMock(), MagicMock(), large=3)


async def test_a_table_without_a_route_still_knows_where_it_is(keeper: TableKeeper) -> None:
    assert (keeper.table, keeper.in_force().datacenter, keeper.known.is_set()) == (None, "", False)
    keeper.use(catalog(0))
    assert (keeper.in_force().datacenter, keeper.in_force().trust_domain) == ("dc1", "td.consul")
    assert keeper.known.is_set()


async def test_without_a_catalog_there_is_no_table_any_more(keeper: TableKeeper) -> None:
    keeper.use(catalog(2))
    assert len(keeper.in_force()) == 2
    keeper.clear()
    assert (keeper.table, keeper.snapshot, len(keeper.in_force()), keeper.known.is_set()) == (None, None, 0, False)
    assert keeper.health._routes == {}
    keeper.renew()
    assert keeper.table is None


async def test_a_large_catalog_is_left_out_of_the_search_for_garbage_each_time_it_has_doubled(
    keeper: TableKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen: list[int] = []
    monkeypatch.setattr(gc, "collect", lambda: 0)
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(len(keeper.in_force())))
    for services in (2, 3, 5, 6, 3, 11, 12):
        keeper.use(catalog(services))
    assert frozen == [3, 6, 12]
