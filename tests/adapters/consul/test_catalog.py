"""What the catalog watcher publishes and when, against a model of Consul on trio's mock clock."""

from dataclasses import replace

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from meshgate.adapters.consul.api import InvalidAnswerError, Resolver, ServerError, SubsetRule
from meshgate.core.catalog import Remote, Service, Snapshot, Subset

from .model import OWN, Model, gateway, server, sidecar
from .watched import API, WEB, watching


async def test_the_first_snapshot_is_complete(autojump_clock: MockClock) -> None:
    model = Model(
        connect={"web": (WEB,), "api": (API,)},
        plain={"consul": (server(),), "plain": (sidecar("plain", kind=""),)},
        entries=(Resolver("web", (SubsetRule("v1", "F1"), SubsetRule("all")), "v1", 15.0),),
        filters={("web", "F1"): (WEB,)},
        wan=(OWN, "dc2"),
        remote={"dc2": {"mesh-gateway": (gateway("dc2"),)}},
        federation={OWN: (gateway(OWN),), "dc3": (gateway("dc3"),)},
    )
    async with watching(model) as watched:
        assert len(watched.published) == 1
        assert watched.last == Snapshot(
            OWN,
            "td.consul",
            "default",
            services=(
                Service("api", (API,)),
                Service(
                    "web",
                    (WEB,),
                    subsets=(Subset("v1", instances=(WEB,)), Subset("all", instances=(WEB,))),
                    default_subset="v1",
                    connect_timeout=15.0,
                ),
            ),
            remotes=(Remote("dc2", (gateway("dc2"),)), Remote("dc3", (gateway("dc3"),))),
        )
        assert watched.watcher.problems() == []
        assert not watched.stale()
        assert watched.watcher.ca_roots is not None
        assert watched.watcher.ca_roots.expires == 2e9
        kinds = {state.key.kind for state in watched.watcher.states()}
        assert kinds == {
            "roots", "services", "health", "subset", "resolvers", "datacenters", "federation-states", "gateway-names",
            "gateways", "peerings",
        }  # fmt: skip


async def test_a_catalog_without_services_is_known_too(autojump_clock: MockClock) -> None:
    async with watching(Model()) as watched:
        assert watched.last == Snapshot(OWN, "td.consul")


async def test_what_did_not_change_is_not_published_again(autojump_clock: MockClock) -> None:
    async with watching(Model(connect={"web": (WEB,)})) as watched:
        for _ in range(5):
            await watched.change()
        await trio.sleep(200)
        assert len(watched.published) == 1


async def test_changes_are_gathered_for_a_moment_that_they_do_not_prolong(autojump_clock: MockClock) -> None:
    async with watching(Model(connect={"web": (WEB,)})) as watched:
        await trio.sleep(5)
        start = trio.current_time()
        for number in range(2, 30):
            watched.model.connect[f"s{number}"] = (sidecar(f"s{number}"),)
            watched.model.change()
            await trio.sleep(0.02)
        await trio.sleep(2)
        times = [at - start for at, _ in watched.published[1:]]
        assert times[0] == pytest.approx(0.1, abs=0.03)
        assert 2 <= len(times) <= 12
        assert len(watched.services) == 29


async def test_names_that_differ_by_case_are_one_service(autojump_clock: MockClock) -> None:
    third = sidecar("web", 3)
    model = Model(connect={"WEB": (WEB,), "Web": (API,), "Only": (API,)})
    async with watching(model) as watched:
        assert watched.services == {"only": (API,), "web": (WEB, API)}
        assert model.count("connect_instances:WEB")
        assert not model.count("connect_instances:Web")
        model.connect["web"] = (third,)
        await watched.change()
        assert watched.services["web"] == (WEB, API, third)


async def test_a_service_that_appears_moves_turns_critical_and_disappears_is_followed(
    autojump_clock: MockClock,
) -> None:
    model = Model(connect={"web": (WEB,)})
    async with watching(model) as watched:
        model.connect["api"] = (API,)
        await watched.change()
        assert watched.services == {"web": (WEB,), "api": (API,)}
        moved = replace(API, node="n9", address="10.9.9.9")
        model.connect["api"] = (moved,)
        await watched.change()
        assert watched.services["api"] == (moved,)
        del model.connect["api"]
        await watched.change()
        assert watched.services == {"web": (WEB,)}
        assert [state for state in watched.registry.states() if str(state.key) == "api"] == []
        model.connect["api"] = (API,)
        await watched.change()
        assert watched.services["api"] == (API,)


async def test_nothing_is_published_before_the_trust_domain_is_known(autojump_clock: MockClock) -> None:
    model = Model(trust_domain="", connect={"web": (WEB,)})
    async with watching(model, wait=False) as watched:
        await trio.sleep(30)
        assert watched.published == []
        model.trust_domain = "td.consul"
        assert await watched.first() <= 2


async def test_nothing_is_published_before_the_services_are_known(autojump_clock: MockClock) -> None:
    model = Model(broken={"service_names": InvalidAnswerError("garbage", "invalid")})
    async with watching(model, wait=False) as watched:
        await trio.sleep(60)
        assert watched.published == []
        model.broken.clear()
        await watched.first(31)


@pytest.mark.parametrize(
    "call", ["resolvers", "datacenters", "federated_gateways", "connect_instances:web", "gateway_names:dc2"]
)
async def test_a_source_that_hangs_holds_up_the_start_for_five_seconds_at_most(
    autojump_clock: MockClock, call: str
) -> None:
    model = Model(connect={"web": (WEB,), "api": (API,)}, wan=(OWN, "dc2"), remote={"dc2": {}}, hanging={call})
    with capture_logs() as logs:
        async with watching(model, wait=False) as watched:
            assert 4.9 <= await watched.first() <= 5.2
            assert "api" in watched.services
    assert "catalog is incomplete at the start" in [entry["event"] for entry in logs]


async def test_a_source_that_fails_does_not_hold_up_the_start(autojump_clock: MockClock) -> None:
    model = Model(connect={"web": (WEB,), "api": (API,)}, wan=(OWN, "dc2"))
    model.broken = {"connect_instances:web": ServerError("500", "500"), "federated_gateways": ServerError("500", "500")}
    async with watching(model, wait=False) as watched:
        assert await watched.first() < 1
        assert watched.services == {"api": (API,)}


async def test_the_first_snapshot_waits_for_subsets_and_remote_gateways(autojump_clock: MockClock) -> None:
    model = Model(
        connect={"web": (WEB,)},
        entries=(Resolver("web", (SubsetRule("v1", "F1"),)),),
        filters={("web", "F1"): ()},
        wan=(OWN, "dc2"),
        remote={"dc2": {"odd-name": (gateway("dc2", name="odd-name"),)}},
    )
    async with watching(model) as watched:
        assert watched.published[0][1].services[0].subsets == (Subset("v1", instances=()),)
        assert watched.remotes == {"dc2": (gateway("dc2", name="odd-name"),)}


async def test_never_more_queries_are_held_than_the_budget_allows(autojump_clock: MockClock) -> None:
    model = Model(connect={f"s{number:03}": (sidecar(f"s{number:03}"),) for number in range(200)})
    async with watching(model, catalog_watches=50) as watched:
        await trio.sleep(60)
        assert model.most_held <= 50
        assert model.most_connections <= 50
        assert len(watched.services) == 200
