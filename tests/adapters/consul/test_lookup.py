"""What is learned of a service before its stream is placed, on trio's mock clock."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from meshgate.adapters.consul.api import LONGEST_WAIT, Resolver, SubsetRule
from meshgate.adapters.consul.catalog_watcher import APART, COALESCE
from meshgate.adapters.consul.watch_scheduler import AT_A_TICK, FRESH, IN_USE
from meshgate.core.catalog import Service

from .model import Model, sidecar, unreachable
from .test_watch_scheduler import many, move, names, seconds_until, world
from .watched import WEB, Watched, watching

# Seconds that a few requests take here; far less than what snapshots are gathered for.
REQUESTS = 0.02


def service(watched: Watched, name: str) -> Service | None:
    return next((it for it in watched.last.services if it.name == name), None)


def is_cold(watched: Watched, name: str) -> bool:
    found = service(watched, name)
    assert found is not None
    return found.cold


def asked(model: Model, name: str) -> int:
    return model.count(f"connect_instances:{name}")


async def learned(watched: Watched, *names: str, namespace: str = "") -> float:
    """Learn of services; the seconds that it took."""
    start = trio.current_time()
    await watched.watcher.lookup(names, namespace)
    return trio.current_time() - start


# --- who is cold -----------------------------------------------------------------------------------------------------


async def test_services_without_a_held_query_are_cold_until_they_are_used(autojump_clock: MockClock) -> None:
    async with many(world()) as watched:
        assert all(is_cold(watched, name) for name in names())
        watched.watcher.used(["s100"])
        assert await seconds_until(lambda: not is_cold(watched, "s100")) < 1
        assert is_cold(watched, "s099")
        await trio.sleep(IN_USE + LONGEST_WAIT * 17 / 16 + 10)
        assert is_cold(watched, "s100")


async def test_a_service_that_waits_for_a_connection_is_not_cold(autojump_clock: MockClock) -> None:
    """It is read every few seconds."""
    async with many(world()) as watched:
        watched.watcher.used(names()[:60])
        await trio.sleep(3)
        assert [is_cold(watched, name) for name in names()] == [False] * 60 + [True] * 60


async def test_of_those_that_wait_as_many_as_can_be_read_are_not_cold(autojump_clock: MockClock) -> None:
    async with many(world()) as watched:
        watched.watcher.used(names())
        await trio.sleep(3)
        held = watched.model.held
        warm = [name for name in names() if not is_cold(watched, name)]
        assert AT_A_TICK < len(warm) < AT_A_TICK + held
        # What is cold is asked for anew with each stream, and the others every few seconds.
        for name in names():
            move(watched.model, name)
        watched.model.index += 1
        await trio.sleep(2 * FRESH)
        cold = next(name for name in names() if is_cold(watched, name))
        await learned(watched, cold)
        assert watched.services[cold] == watched.model.connect[cold]


async def test_those_who_learn_at_the_same_time_share_a_snapshot(autojump_clock: MockClock) -> None:
    async with many(world()) as watched:
        await trio.sleep(100)
        for name in names():
            move(watched.model, name)
        watched.model.index += 1
        published = len(watched.published)
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for name in names():
                nursery.start_soon(watched.watcher.lookup, [name])
        seconds = trio.current_time() - start
        assert all(watched.services[name] == watched.model.connect[name] for name in names())
        assert len(watched.published) - published <= 2 + seconds / APART


async def test_where_there_are_connections_for_all_nothing_is_cold(autojump_clock: MockClock) -> None:
    async with watching(Model(connect={"web": (WEB,)})) as watched:
        assert not any(it.cold for _, snapshot in watched.published for it in snapshot.services)


async def test_a_service_is_cold_while_one_of_its_subsets_is(autojump_clock: MockClock) -> None:
    model = world(entries=(Resolver("s100", (SubsetRule("v1", "F1"),)),), filters={("s100", "F1"): (sidecar("s100"),)})
    async with many(model) as watched:
        watched.watcher.used(["s100"])
        await trio.sleep(3)
        assert not is_cold(watched, "s100")
        model.filters[("s100", "F2")] = ()
        model.entries = (Resolver("s100", (SubsetRule("v1", "F2"),)),)
        model.change()
        # The new query is in use as soon as there are streams again.
        assert await seconds_until(lambda: is_cold(watched, "s100")) < 2
        watched.watcher.used(["s100"])
        assert await seconds_until(lambda: not is_cold(watched, "s100")) < 2


# --- services that are known -----------------------------------------------------------------------------------------


async def test_what_is_learned_of_a_cold_service_is_published_at_once(autojump_clock: MockClock) -> None:
    async with many(world()) as watched:
        await trio.sleep(100)
        move(watched.model, "s100")
        watched.model.index += 1  # nobody is woken
        assert await learned(watched, "s100") < REQUESTS
        assert watched.services["s100"] == watched.model.connect["s100"]
        # It is in use from now on.
        assert await seconds_until(lambda: not is_cold(watched, "s100")) < 1
        move(watched.model, "s100")
        watched.model.change()
        assert await seconds_until(lambda: watched.services["s100"] == watched.model.connect["s100"]) < 1


async def test_what_is_known_and_not_published_yet_is_published_for_who_learns(autojump_clock: MockClock) -> None:
    async with watching(small()) as watched:
        await trio.sleep(5)
        move(watched.model, "web")
        watched.model.change()
        await trio.sleep(COALESCE / 2)
        assert watched.services["web"] == (WEB,)
        await learned(watched, "web")
        assert watched.services["web"] == watched.model.connect["web"]


async def test_subsets_of_a_cold_service_are_learned_with_it(autojump_clock: MockClock) -> None:
    model = world(entries=(Resolver("s100", (SubsetRule("v1", "F1"),)),), filters={("s100", "F1"): (sidecar("s100"),)})
    async with many(model) as watched:
        await trio.sleep(100)
        model.filters[("s100", "F1")] = (sidecar("s100", 7),)
        await learned(watched, "s100")
        found = service(watched, "s100")
        assert found is not None
        assert found.subsets[0].instances == (sidecar("s100", 7),)


async def test_a_known_name_whose_sidecars_have_names_of_their_own_is_learned(autojump_clock: MockClock) -> None:
    model = world()
    model.plain["odd"] = (sidecar("odd", kind=""),)
    async with many(model) as watched:
        await trio.sleep(500)
        model.connect["odd"] = (replace(sidecar("odd"), service="proxy-of-odd"),)
        model.unlisted.add("odd")
        assert await learned(watched, "odd", namespace="default") < REQUESTS
        assert watched.services["odd"] == model.connect["odd"]


async def test_what_is_fresh_is_not_asked_for(autojump_clock: MockClock) -> None:
    async with many(world()) as watched:
        await learned(watched, "s100")
        await trio.sleep(3)
        before = asked(watched.model, "s100")
        for _ in range(10):
            await learned(watched, "s100")
        assert asked(watched.model, "s100") == before


async def test_many_who_learn_at_once_cost_few_requests(autojump_clock: MockClock) -> None:
    async with many(world()) as watched:
        await trio.sleep(100)
        before = asked(watched.model, "s100")
        await learned(watched, "s100")
        # One to learn, and the one that is held from then on.
        for _ in range(20):
            await learned(watched, "s100")
            await trio.sleep(FRESH / 40)
        assert asked(watched.model, "s100") <= before + 2


@pytest.mark.parametrize("trouble", ["unreachable", "hangs"])
async def test_without_consul_nothing_is_learned_and_nothing_is_lost(autojump_clock: MockClock, trouble: str) -> None:
    async with many(world()) as watched:
        await trio.sleep(100)
        known = watched.services["s100"]
        if trouble == "hangs":
            watched.model.hanging.add("connect_instances:s100")
        else:
            watched.model.fail(unreachable())
        with trio.move_on_after(1) as patience:
            await watched.watcher.lookup(["s100"])
        assert patience.cancelled_caught is (trouble == "hangs")
        assert watched.services["s100"] == known
        watched.model.hanging.clear()
        watched.model.fail(None)
        move(watched.model, "s100")
        watched.model.change()
        watched.watcher.used(["s100"])
        assert await seconds_until(lambda: watched.services["s100"] == watched.model.connect["s100"]) < 40


async def test_learning_of_what_is_left_meanwhile_ends(autojump_clock: MockClock) -> None:
    async with many(world()) as watched:
        watched.model.hanging.add("connect_instances:s100")
        watched.watcher.used(["s100"])
        await trio.sleep(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watched.watcher.lookup, ["s100"])
            await trio.sleep(1)
            # Its query is held by nobody any more: the list no longer has it.
            services = watched.watcher._services._namespaces["default"]
            services._named({name: name for name in services._services if name != "s100"})
            with trio.fail_after(5):
                while nursery.child_tasks:
                    await trio.sleep(0.1)


# --- services that nobody has heard of -------------------------------------------------------------------------------


def small() -> Model:
    return Model(connect={"web": (WEB,)}, plain={"consul": Model().plain["consul"], "web": (sidecar("web", kind=""),)})


def crowded() -> Model:
    return world()


@pytest.mark.parametrize("catalog", [small, crowded])
async def test_a_service_that_no_list_had_yet_is_found(autojump_clock: MockClock, catalog: Callable[[], Model]) -> None:
    async with watching(catalog(), catalog_watches=22) as watched:
        await trio.sleep(5)
        watched.model.connect["fresh"] = (sidecar("fresh"),)
        assert await learned(watched, "fresh", namespace="default") < REQUESTS
        assert watched.services["fresh"] == (sidecar("fresh"),)
        # The list has it later, or only the names of its sidecars: it stays.
        watched.model.change()
        await trio.sleep(100)
        watched.model.unlisted.add("fresh")
        watched.model.change()
        await trio.sleep(100)
        assert watched.services["fresh"] == (sidecar("fresh"),)
        del watched.model.connect["fresh"]
        watched.model.change()
        assert await seconds_until(lambda: "fresh" not in watched.services) < 3


async def test_a_service_that_the_list_has_meanwhile_is_waited_for(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the lookup comes behind the list's, and before that to the query that the list has begun."""
    async with watching(small(), catalog_watches=22) as watched:
        model, answered, begun = watched.model, trio.Event(), 0
        await trio.sleep(5)
        usual = model.connect_instances

        async def late(service: str, *args: object, **options: object) -> object:
            nonlocal begun
            if service == "fresh":
                begun += 1
                if begun == 1:
                    await answered.wait()
                else:
                    await trio.sleep(3)
            return await usual(service, *args, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(model, "connect_instances", late)
        model.connect["fresh"] = (sidecar("fresh"),)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watched.watcher.lookup, ["fresh"], "default")
            await trio.sleep(0.1)
            await watched.change()
            while begun < 2:
                await trio.sleep(0.1)
            answered.set()
        assert watched.services["fresh"] == (sidecar("fresh"),)


async def test_a_busy_list_is_read_more_often_while_streams_wait_for_it(autojump_clock: MockClock) -> None:
    async def be_busy(model: Model) -> None:
        while True:
            model.change()
            await trio.sleep(0.2)

    async with watching(crowded(), catalog_watches=22) as watched, trio.open_nursery() as nursery:
        model = watched.model
        nursery.start_soon(be_busy, model)
        await trio.sleep(30)
        before = model.count("service_names")
        await trio.sleep(20)
        assert model.count("service_names") - before < 6
        for number in range(10):
            watched.watcher.hurry_names()
            await trio.sleep(5 if number == 0 else 1)  # A pause may have begun.
            watched.watcher.hurry_names()
            model.connect[f"fresh-{number}"] = (sidecar(f"fresh-{number}"),)
            assert await seconds_until(lambda: f"fresh-{number}" in watched.services) < 1  # noqa: B023
        await trio.sleep(30)
        before = model.count("service_names")
        await trio.sleep(20)
        assert model.count("service_names") - before < 6
        nursery.cancel_scope.cancel()


async def test_a_list_that_is_older_than_the_find_does_not_take_it_back(autojump_clock: MockClock) -> None:
    model = small()
    model.unlisted.add("fresh")
    async with watching(model) as watched:
        gone = sidecar("api")
        model.connect["api"] = (gone,)
        await watched.change()
        assert set(watched.services) == {"web", "api"}
        # The list comes without `api`, and while Consul is asked about that, `fresh` is found.
        del model.connect["api"]
        model.hanging.add("readable:api")
        await watched.change()
        model.connect["fresh"] = (sidecar("fresh"),)
        await learned(watched, "fresh", namespace="default")
        model.hanging.clear()
        model.fail(unreachable())
        model.fail(None)
        before = len(watched.published)
        await trio.sleep(60)
        assert all("fresh" in {it.name for it in snapshot.services} for _, snapshot in watched.published[before:])
        assert watched.services["fresh"] == (sidecar("fresh"),)


@pytest.mark.parametrize(
    "reason", ["nowhere", "denied", "unreachable", "unaskable", "another namespace", "no instances"]
)
async def test_what_cannot_be_found_leaves_nothing_behind(autojump_clock: MockClock, reason: str) -> None:
    model = small()
    async with watching(model) as watched:
        await trio.sleep(5)
        published, states = len(watched.published), len(watched.registry.states())
        name, namespace = "fresh", "default"
        match reason:
            case "denied":
                model.connect["fresh"] = (sidecar("fresh"),)
                model.denied.add("fresh")
            case "unreachable":
                model.broken["connect_instances:fresh"] = unreachable()
            case "unaskable":
                name = "a//b"
            case "another namespace":
                model.connect["fresh"] = (sidecar("fresh"),)
                namespace = "team"
            case "no instances":
                model.connect["fresh"] = ()
        with trio.move_on_after(30) as waited:
            assert await learned(watched, name, namespace=namespace) < REQUESTS
        # That Consul could not be asked is no answer: a stream that waits for one must not be told that there is none.
        assert waited.cancelled_caught == (reason == "unreachable")
        assert len(watched.published) == published
        assert len(watched.registry.states()) == states
        assert watched.watcher.problems() == []


async def test_without_a_namespace_nobody_is_asked_for_unknown_names(autojump_clock: MockClock) -> None:
    async with watching(small()) as watched:
        before = asked(watched.model, "fresh")
        await learned(watched, "fresh")
        assert asked(watched.model, "fresh") == before


async def test_nothing_is_published_before_the_first_snapshot(autojump_clock: MockClock) -> None:
    model = small()
    model.hanging.add("resolvers")
    async with watching(model, wait=False) as watched:
        await trio.sleep(2)
        await learned(watched, "web", "fresh", namespace="default")
        assert watched.published == []
