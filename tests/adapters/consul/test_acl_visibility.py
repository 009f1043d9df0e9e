"""What the catalog is worth when the token does not see all of it, on trio's mock clock."""

from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from meshgate.adapters.consul.acl_visibility import AclVisibility, VerifiedInstances
from meshgate.adapters.consul.api import (
    Cursor,
    EndpointBlockedError,
    Page,
    PermissionDeniedError,
    Resolver,
    Rule,
    ServerError,
)

from .model import OWN, Model, gateway, server, sidecar
from .watched import API, WEB, watching


async def test_a_token_that_sees_nothing_at_the_start_makes_no_empty_table(autojump_clock: MockClock) -> None:
    model = Model(connect={"web": (WEB,)}, denied={"*"}, sees_nodes=False)
    async with watching(model, wait=False) as watched:
        await trio.sleep(60)
        assert watched.published == []
        assert any('node_prefix "" { policy = "read" }' in problem for problem in watched.watcher.problems())
        model.denied.clear()
        model.sees_nodes = True
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


class Recovering(Model):
    """Its token sees again as soon as it is asked for a proof."""

    async def confirm_readable(self, service: str, *, datacenter: str = "") -> None:
        self.sees_nodes = True
        await super().confirm_readable(service, datacenter=datacenter)


@pytest.mark.parametrize(
    ("asked", "world"),
    [
        ("web", {"connect": {"web": (WEB,)}}),
        ("odd", {"wan": (OWN, "dc2"), "remote": {"dc2": {"odd": (gateway("dc2", name="odd"),)}}}),
        ("far", {"federation": {"dc3": (gateway("dc3", name="far"),)}}),
    ],
)
async def test_a_token_that_was_blind_for_one_answer_and_proves_that_it_sees_keeps_the_table(
    autojump_clock: MockClock, asked: str, world: dict[str, Any]
) -> None:
    model = Recovering(**world)
    async with watching(model) as watched:
        published = len(watched.published)
        model.sees_nodes = False
        await watched.change(20)
        assert model.count(f"readable:{asked}")
        assert len(watched.published) == published
        model.connect.clear()
        model.remote["dc2"] = model.federation = {}
        await watched.change(20)
        assert not watched.services
        assert not any(watched.remotes.values())


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
        model.broken = {"readable:web": ServerError("500", "500")}
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
        assert model.count("readable:web") == 0
        model.connect["web"] = ()
        await watched.change()
        assert watched.services == {}
        assert model.count("readable:web") == 1


async def test_an_answer_that_adds_or_changes_needs_no_proof(autojump_clock: MockClock) -> None:
    model = Model(connect={"web": (WEB,)})
    async with watching(model) as watched:
        model.connect["web"] = (replace(WEB, port=1), API)
        await watched.change()
        assert watched.services == {"web": (replace(WEB, port=1), API)}
        assert model.count("readable") == 0


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
        model.broken = {"readable:web": PermissionDeniedError("no", Rule("service", "web"))}
        model.entries = ()
        await watched.change()
        assert watched.last.services[0].connect_timeout == 3.0
        assert any('service "web" { policy = "read" }' in problem for problem in watched.watcher.problems())


# --- narrow tokens ---------------------------------------------------------------------------------------------------


async def test_a_token_that_sees_nodes_and_no_service_is_ready_and_says_so(autojump_clock: MockClock) -> None:
    model = Model(
        connect={"web": (WEB,)},
        denied={"web", "consul", "mesh-gateway", "web-sidecar-proxy"},
        wan=(OWN, "dc2"),
        remote={"dc2": {"gate": (gateway("dc2", name="gate"),)}},
    )
    async with watching(model, wait=False) as watched:
        assert await watched.first(3) < 2
        assert (watched.services, set(watched.remotes)) == ({}, {"dc2"})
        assert len(watched.remotes["dc2"]) == 1
        (problem,) = watched.watcher.problems()
        assert problem.startswith("the token sees no service here: service_prefix")


async def test_the_last_gateway_of_a_datacenter_is_gone_when_it_is_for_a_token_that_sees_little_else(
    autojump_clock: MockClock,
) -> None:
    model = Model(
        connect={"web": (WEB,)},
        denied={"consul"},
        wan=(OWN, "dc2"),
        remote={"dc2": {"mesh-gateway": (gateway("dc2"),), "consul": (server("dc2"),)}},
    )
    async with watching(model) as watched:
        model.remote["dc2"]["mesh-gateway"] = ()
        await watched.change(3)
        assert watched.remotes == {"dc2": ()}
        assert watched.watcher.problems() == []


async def test_a_token_for_one_node_is_not_stale_for_good_after_its_agent_restarted(autojump_clock: MockClock) -> None:
    one, two = sidecar("web"), sidecar("web", 2)
    held = VerifiedInstances(AclVisibility(Model(), "mesh-gateway"), "web")
    await held.accept(Page((one, two), 5, filtered=True))
    # A held query is answered from a stream, which does not say that it was filtered.
    await held.accept(Page((one, two), 6), Cursor(5))
    await held.accept(Page((one,), 9, filtered=True))
    assert held.value == (one,)
    # Who was shown everything, and is not any more, is not told that something is gone.
    await held.accept(Page((one, two), 12))
    with pytest.raises(PermissionDeniedError, match="leaves out instances"):
        await held.accept(Page((one,), 13, filtered=True))


@pytest.mark.parametrize("version", ["old", "new"])
async def test_where_the_agent_blocks_internal_endpoints_gateways_of_other_names_are_found_or_missed_aloud(
    autojump_clock: MockClock, version: str
) -> None:
    blocked = EndpointBlockedError("/v1/internal/ui/services")
    model = Model(
        wan=(OWN, "dc2"),
        remote={"dc2": {"odd": (gateway("dc2", name="odd"),)}},
        filters_lists=version == "new",
        broken={"gateway_names": blocked, "federated_gateways": blocked, "summaries": blocked},
    )
    async with watching(model) as watched:
        assert len(watched.remotes["dc2"]) == (version == "new")
        problems = [line for line in watched.watcher.problems() if line.startswith("gateway-names dc2: this agent")]
        assert len(problems) == (version == "old")
        assert any(line.startswith("federation-states") for line in watched.watcher.problems())
