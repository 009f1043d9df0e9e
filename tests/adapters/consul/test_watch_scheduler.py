"""More services than connections: which are followed how, on trio's mock clock."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from meshgate.adapters.consul.api import Resolver, SubsetRule
from meshgate.adapters.consul.watch_scheduler import (
    IN_USE,
    PASSING_WAIT,
    SUMMARY_PACE,
    SWEEP_PAUSE,
    SWEEP_PAUSE_ALONE,
    TICK,
)
from meshgate.core.catalog import Check

from .model import OWN, Model, gateway, sidecar, unreachable
from .watched import Watched, watching

SERVICES = 120
# Of these some belong to lists, and one to the summaries.
BUDGET = 22


def names(number: int = SERVICES) -> list[str]:
    return [f"s{index:03}" for index in range(number)]


def world(**fields: object) -> Model:
    rows = {name: (sidecar(name),) for name in names()}
    return Model(connect=rows, unlisted={f"{name}-sidecar-proxy" for name in names()}, **fields)  # type: ignore[arg-type]


@asynccontextmanager
async def many(model: Model) -> AsyncIterator[Watched]:
    async with watching(model, catalog_watches=BUDGET) as watched:
        await trio.sleep(5)
        yield watched
        assert model.most_held <= BUDGET
        assert model.most_connections <= BUDGET


def move(model: Model, name: str) -> None:
    """What no summary shows: the port is another one."""
    (row, *others) = model.connect[name]
    model.connect[name] = (replace(row, port=row.port + 1), *others)


async def seconds_until(condition: Callable[[], bool], limit: float = 4000) -> float:
    start = trio.current_time()
    with trio.fail_after(limit):
        while not condition():
            await trio.sleep(0.02)
    return trio.current_time() - start


async def seen(watched: Watched, name: str) -> float:
    """Seconds until the table has what Consul has of a service."""
    return await seconds_until(lambda: watched.services.get(name) == watched.model.connect[name])


async def test_the_first_snapshot_has_every_service_although_few_queries_are_held(autojump_clock: MockClock) -> None:
    async with many(world()) as watched:
        assert watched.published[0][1].services
        assert {service.name for service in watched.published[0][1].services} == set(names())
        assert all(watched.model.count(f"connect_instances:{name}") == 1 for name in names()[20:])


async def test_a_service_in_use_is_followed_within_a_second(autojump_clock: MockClock) -> None:
    async with many(world()) as watched:
        watched.watcher.used(["s100", "unknown"])
        await trio.sleep(2)
        for _ in range(3):
            move(watched.model, "s100")
            watched.model.change()
            assert await seen(watched, "s100") < 1
            await trio.sleep(20)


async def test_a_service_that_comes_into_use_is_read_at_once(autojump_clock: MockClock) -> None:
    async with many(world()) as watched:
        await trio.sleep(100)
        move(watched.model, "s100")
        watched.watcher.used(["s100"])
        assert await seen(watched, "s100") < 1


async def test_a_change_that_the_summaries_show_is_read_soon(autojump_clock: MockClock) -> None:
    async with many(world()) as watched:
        await trio.sleep(60)
        for name in ("s100", "s007"):
            (row,) = watched.model.connect[name]
            watched.model.connect[name] = (replace(row, checks=(Check("up", "critical"),)),)
            watched.model.change()
            assert await seen(watched, name) <= SUMMARY_PACE + 1


async def test_a_change_that_no_summary_shows_is_found_by_the_sweep(autojump_clock: MockClock) -> None:
    async with many(world()) as watched:
        await trio.sleep(60)
        move(watched.model, "s100")
        watched.model.index += 1  # nobody is woken
        assert await seen(watched, "s100") <= (SERVICES + 2) * SWEEP_PAUSE + 2


async def test_without_summaries_the_sweep_is_faster_and_nothing_is_wrong(autojump_clock: MockClock) -> None:
    async with many(world(summarizes=False)) as watched:
        await trio.sleep(60)
        move(watched.model, "s100")
        watched.model.index += 1
        assert await seen(watched, "s100") <= (SERVICES + 2) * SWEEP_PAUSE_ALONE + 2
        assert watched.watcher.problems() == []


async def test_a_new_service_has_a_route_at_once_and_is_followed_until_its_sidecars_are_there(
    autojump_clock: MockClock,
) -> None:
    async with many(world(summarizes=False)) as watched:
        model = watched.model
        model.plain["fresh"] = (sidecar("fresh", kind=""),)
        model.change()
        await trio.sleep(40)
        assert "fresh" not in watched.services
        model.connect["fresh"] = (sidecar("fresh"),)
        model.change()
        assert await seen(watched, "fresh") < 1
        del model.connect["fresh"], model.plain["fresh"]
        model.change()
        assert await seconds_until(lambda: "fresh" not in watched.services) < 2
        assert [state for state in watched.registry.states() if str(state.key) == "fresh"] == []


async def test_where_more_are_in_use_than_connections_they_share_them_and_none_is_forgotten(
    autojump_clock: MockClock,
) -> None:
    model = world()
    async with many(model) as watched:
        used = names()[:60]
        for _ in range(40):
            watched.watcher.used(used)
            await trio.sleep(5)
        for name in used[::7]:
            move(model, name)
        model.index += 1
        watched.watcher.used(used)
        start = trio.current_time()
        for name in used[::7]:
            await seen(watched, name)
        # None waits longer than the round of those that are held, or the next tick.
        assert trio.current_time() - start <= PASSING_WAIT * 17 / 16 + 2 * TICK
        assert model.abandoned == 0


async def test_a_query_is_given_back_when_its_service_was_not_used_for_long(autojump_clock: MockClock) -> None:
    model = world()
    async with many(model) as watched:
        before = model.held
        watched.watcher.used(["s001", "s002"])
        await trio.sleep(5)
        assert model.held == before + 2
        await trio.sleep(IN_USE + 70)
        assert model.held == before
        assert model.abandoned == 0


async def test_when_there_are_connections_for_all_again_all_are_watched(autojump_clock: MockClock) -> None:
    model = world()
    async with many(model) as watched:
        for name in names()[8:]:
            del model.connect[name]
        await watched.change(5)
        assert set(watched.services) == set(names()[:8])
        move(model, "s003")
        model.change()
        assert await seen(watched, "s003") < 1
        assert not any(state.swept for state in watched.registry.states() if state.key.kind == "health")


async def test_remote_gateways_and_subsets_fit_in_the_budget_too(autojump_clock: MockClock) -> None:
    datacenters = [f"dc{number}" for number in range(2, 10)]
    model = world(
        wan=(OWN, *datacenters),
        remote={name: {"mesh-gateway": (gateway(name),)} for name in datacenters},
        entries=tuple(Resolver(name, (SubsetRule("v1", "F1"),)) for name in names()[:30]),
        filters={(name, "F1"): (sidecar(name),) for name in names()[:30]},
    )
    async with many(model) as watched:
        assert len(watched.remotes) == 8
        subsets = {service.name: service.subsets for service in watched.published[0][1].services}
        assert all(subsets[name][0].instances == model.connect[name] for name in names()[:30])
        watched.watcher.used(["s004"])
        await trio.sleep(2)
        model.filters[("s004", "F1")] = ()
        model.change()
        seconds = await seconds_until(lambda: watched.last.services[4].subsets[0].instances == ())
        assert seconds < 1


async def test_an_agent_that_is_lost_during_the_first_reads_is_asked_again(autojump_clock: MockClock) -> None:
    model = world()
    async with watching(model, wait=False, catalog_watches=BUDGET) as watched:
        await seconds_until(lambda: model.count("connect_instances") > SERVICES / 2)
        model.fail(unreachable())
        await watched.first()
        assert SERVICES / 3 < len(watched.services) < SERVICES
        await trio.sleep(20)
        model.fail(None)
        assert await seconds_until(lambda: len(watched.services) == SERVICES) < 40
        await trio.sleep(40)
        assert watched.watcher.problems() == []


@pytest.mark.parametrize("seconds", [30.0, 200.0])
async def test_an_outage_takes_nothing_back_and_its_end_is_noticed(autojump_clock: MockClock, seconds: float) -> None:
    model = world()
    async with many(model) as watched:
        watched.watcher.used(names()[:5])
        await trio.sleep(3)
        published = len(watched.published)
        model.fail(unreachable())
        await trio.sleep(seconds)
        assert len(watched.published) == published
        for name in ("s002", "s100"):
            move(model, name)
        model.index += 1
        model.fail(None)
        assert await seen(watched, "s002") < 35
        assert await seen(watched, "s100") <= (SERVICES + 2) * SWEEP_PAUSE + 2


async def test_the_age_of_what_is_swept_is_no_alarm(autojump_clock: MockClock) -> None:
    async with many(world()) as watched:
        await trio.sleep(50)
        ages = {
            str(state.key): state.age(trio.current_time())
            for state in watched.registry.states()
            if state.key.kind == "health"
        }
        assert ages["s100"] == 0
