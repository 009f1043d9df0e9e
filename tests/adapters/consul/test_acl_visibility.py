"""What the catalog is worth when the token does not see all of it, on trio's mock clock."""

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from meshgate.adapters.consul import (
    PermissionDeniedError,
    Rule,
    ServerError,
)
from meshgate.adapters.consul.api import Resolver

from .model import OWN, Model, gateway, server, sidecar
from .watched import API, WEB, watching


async def test_a_token_that_sees_nothing_at_the_start_makes_no_empty_table(autojump_clock: MockClock) -> None:
    model = Model(connect={"web": (WEB,)}, denied={"*"})
    async with watching(model, wait=False) as watched:
        await trio.sleep(60)
        assert watched.published == []
        assert any('node_prefix "" { policy = "read" }' in problem for problem in watched.watcher.problems())
        model.denied.clear()
        await watched.first(31)
        assert set(watched.services) == {"web"}


@pytest.mark.parametrize("lost", ["services", "nodes", "both"])
async def test_a_token_that_loses_its_rights_keeps_the_table(autojump_clock: MockClock, lost: str) -> None:
    model = Model(
        connect={"web": (WEB,), "api": (API,)},
        entries=(Resolver("web", connect_timeout=3.0),),
        wan=(OWN, "dc2"),
        remote={"dc2": {"mesh-gateway": (gateway("dc2"),), "consul": (server("dc2"),)}},
        federation={"dc3": (gateway("dc3"),)},
    )
    async with watching(model) as watched:
        before = watched.last
        model.sees_nodes = lost == "services"
        model.denied = {"*"} if lost != "nodes" else set()
        await watched.change(200)
        assert watched.last is before
        rule = 'service "web" { policy = "read" }' if lost != "nodes" else 'node_prefix "" { policy = "read" }'
        assert any(rule in problem for problem in watched.watcher.problems())
        model.sees_nodes, model.denied = True, set()
        del model.connect["api"]
        await watched.change(40)
        assert set(watched.services) == {"web"}
        assert watched.watcher.problems() == []


async def test_a_service_that_the_token_may_no_longer_read_stays_alone(autojump_clock: MockClock) -> None:
    model = Model(connect={"web": (WEB,), "secret": (API,)})
    async with watching(model) as watched:
        model.denied = {"secret"}
        model.connect["new"] = (sidecar("new"),)
        await watched.change(40)
        assert set(watched.services) == {"web", "secret", "new"}
        (problem,) = watched.watcher.problems()
        assert problem.startswith('token may not read service "secret": add service "secret" { policy = "read" }')


async def test_a_service_that_was_never_readable_is_missing_alone(autojump_clock: MockClock) -> None:
    model = Model(connect={"web": (WEB,), "secret": (API,)}, denied={"secret"}, reports_filtering=True)
    async with watching(model) as watched:
        assert set(watched.services) == {"web"}
        assert any("hides some services" in problem for problem in watched.watcher.problems())
        assert "may not read service" in (await watched.watcher.why_missing("secret") or "")


async def test_a_legitimate_removal_is_followed_within_a_second(autojump_clock: MockClock) -> None:
    model = Model(connect={f"s{number:03}": (sidecar(f"s{number:03}"),) for number in range(90)})
    async with watching(model) as watched:
        await trio.sleep(5)
        model.connect.clear()
        await watched.change(1.0)
        assert watched.services == {}
        assert watched.watcher.problems() == []


async def test_services_outside_the_mesh_that_disappear_all_at_once_are_let_go(autojump_clock: MockClock) -> None:
    plain = {f"p{number:03}": (sidecar("p", kind=""),) for number in range(200)}
    model = Model()
    model.plain.update(plain)
    async with watching(model, catalog_watches=300) as watched:
        await trio.sleep(5)
        for name in plain:
            del model.plain[name]
        await watched.change(5)
        assert {str(state.key) for state in watched.registry.states() if state.key.kind == "health"} == {
            "consul",
            "mesh-gateway",
        }


async def test_without_a_proof_that_it_is_gone_a_service_stays(autojump_clock: MockClock) -> None:
    model = Model(connect={"web": (WEB,), "api": (API,)})
    async with watching(model) as watched:
        model.broken = {"resolver_exists:web": ServerError("500", "500")}
        del model.connect["web"]
        await watched.change(100)
        assert set(watched.services) == {"web", "api"}
        model.broken = {}
        await trio.sleep(100)
        assert set(watched.services) == {"api"}


async def test_a_service_that_is_no_longer_listed_but_has_hidden_instances_stays(autojump_clock: MockClock) -> None:
    model = Model(connect={"web": (WEB,)}, reports_filtering=True)
    async with watching(model) as watched:
        model.denied = {"web-sidecar-proxy"}
        model.unlisted = {"web"}
        await watched.change(20)
        assert watched.services == {"web": (WEB,)}


async def test_the_last_instance_less_is_believed_after_a_proof(autojump_clock: MockClock) -> None:
    model = Model(connect={"web": (WEB, API)})
    async with watching(model) as watched:
        model.connect["web"] = (WEB,)
        await watched.change()
        assert watched.services == {"web": (WEB,)}
        # The other one is the proof: it is shown to nobody who may not read the service.
        assert model.count("resolver_exists:web") == 0
        model.connect["web"] = ()
        await watched.change()
        assert watched.services == {}
        assert model.count("resolver_exists:web") == 1


async def test_an_answer_that_adds_or_changes_needs_no_proof(autojump_clock: MockClock) -> None:
    model = Model(connect={"web": (WEB,)})
    async with watching(model) as watched:
        model.connect["web"] = (replace(WEB, port=1), API)
        await watched.change()
        assert watched.services == {"web": (replace(WEB, port=1), API)}
        assert model.count("resolver_exists") == 0


async def test_an_answer_that_consul_filters_anew_is_not_believed(autojump_clock: MockClock) -> None:
    """A token that sees its own node and Consul's servers, but no longer the node of one instance."""
    hidden = replace(API, service="hidden-name")
    model = Model(connect={"web": (WEB, hidden)}, reports_filtering=True)
    async with watching(model) as watched:
        model.denied = {"hidden-name"}
        await watched.change(20)
        assert watched.services == {"web": (WEB, hidden)}
        assert any("now leaves out instances of web" in problem for problem in watched.watcher.problems())


async def test_a_service_that_was_filtered_from_the_first_is_followed_as_it_is_seen(autojump_clock: MockClock) -> None:
    hidden = replace(API, service="hidden-name")
    third = sidecar("web", 3)
    model = Model(connect={"web": (WEB, third, hidden)}, reports_filtering=True, denied={"hidden-name"})
    async with watching(model) as watched:
        assert watched.services == {"web": (WEB, third)}
        model.connect["web"] = (WEB, hidden)
        await watched.change()
        assert watched.services == {"web": (WEB,)}


async def test_gateways_that_vanish_with_the_right_to_see_them_are_kept(autojump_clock: MockClock) -> None:
    model = Model(
        wan=(OWN, "dc2"),
        remote={"dc2": {"odd": (gateway("dc2", name="odd"),), "consul": (server("dc2"),)}},
        federation={"dc3": (gateway("dc3", name="far"),), "dc4": (gateway("dc4", name="other"),)},
    )
    async with watching(model) as watched:
        before = watched.last
        model.denied = {"odd", "far"}
        await watched.change(40)
        assert watched.last is before
        assert any('service "odd"' in problem for problem in watched.watcher.problems())
        assert any('service "far"' in problem for problem in watched.watcher.problems())
        model.federation = {"dc3": (gateway("dc3", name="far"),)}
        await watched.change()
        assert set(watched.remotes) == {"dc2", "dc3"}


async def test_a_resolver_that_the_token_may_no_longer_read_stays(autojump_clock: MockClock) -> None:
    model = Model(
        connect={"web": (WEB,)}, entries=(Resolver("web", connect_timeout=3.0), Resolver("gone", connect_timeout=1.0))
    )
    async with watching(model) as watched:
        model.broken = {"resolver_exists:web": PermissionDeniedError("no", Rule("service", "web"))}
        model.entries = ()
        await watched.change()
        assert watched.last.services[0].connect_timeout == 3.0
        assert any('service "web" { policy = "read" }' in problem for problem in watched.watcher.problems())
