"""Other datacenters and their gateways, on trio's mock clock."""

from dataclasses import replace

import trio
from trio.testing import MockClock

from meshgate.adapters.consul.api import PermissionDeniedError, ServerError
from meshgate.adapters.consul.remote_gateways import LOST_AFTER
from meshgate.core.catalog import Check

from .model import OWN, Model, gateway, server
from .watched import watching


async def test_a_gateway_that_is_replaced_is_followed(autojump_clock: MockClock) -> None:
    model = Model(wan=(OWN, "dc2"), remote={"dc2": {"mesh-gateway": (gateway("dc2"),), "consul": (server("dc2"),)}})
    async with watching(model) as watched:
        other = gateway("dc2", 2, modify_index=20)
        model.remote["dc2"]["mesh-gateway"] = (other,)
        await watched.change()
        assert watched.remotes == {"dc2": (other,)}


async def test_gateways_are_seen_as_soon_as_the_first_registers(autojump_clock: MockClock) -> None:
    model = Model(wan=(OWN, "dc2"), remote={"dc2": {}})
    async with watching(model) as watched:
        assert watched.remotes == {"dc2": ()}
        model.remote["dc2"]["mesh-gateway"] = (gateway("dc2"),)
        await watched.change()
        assert watched.remotes == {"dc2": (gateway("dc2"),)}


async def test_gateways_of_another_name_are_found_by_the_list(autojump_clock: MockClock) -> None:
    model = Model(wan=(OWN, "dc2"), remote={"dc2": {"mesh-gateway": (gateway("dc2"),)}})
    async with watching(model) as watched:
        odd = gateway("dc2", 2, name="odd")
        model.remote["dc2"]["odd"] = (odd,)
        await watched.change(31)
        assert watched.remotes == {"dc2": (gateway("dc2"), odd)}


async def test_without_the_list_the_names_of_the_federation_states_are_watched(autojump_clock: MockClock) -> None:
    odd = gateway("dc2", name="odd", modify_index=5)
    model = Model(wan=(OWN, "dc2"), remote={"dc2": {"odd": (odd,)}}, federation={"dc2": (odd,)})
    model.broken = {"gateway_names": PermissionDeniedError("no")}
    async with watching(model) as watched:
        newer = replace(odd, address="10.5.5.5", modify_index=6)
        model.remote["dc2"]["odd"] = (newer,)
        await watched.change()
        assert watched.remotes == {"dc2": (newer,)}


async def test_a_datacenter_that_answers_for_itself_is_believed_over_the_federation_states(
    autojump_clock: MockClock,
) -> None:
    """They may hold a gateway that has deregistered, and that was the last one registered."""
    direct, gone = gateway("dc2", 1, modify_index=10), gateway("dc2", 2, modify_index=11)
    model = Model(wan=(OWN, "dc2"), remote={"dc2": {"mesh-gateway": (direct,)}}, federation={"dc2": (direct, gone)})
    model.index = 20
    async with watching(model) as watched:
        assert watched.remotes == {"dc2": (direct,)}


async def test_of_two_views_the_newer_one_counts_where_a_datacenter_does_not_answer(autojump_clock: MockClock) -> None:
    direct, federated = gateway("dc2", 1, modify_index=10), gateway("dc2", 2, modify_index=11)
    model = Model(wan=(OWN, "dc2"), remote={"dc2": {"mesh-gateway": (direct,)}}, federation={"dc2": (federated,)})
    model.index = 20
    async with watching(model) as watched:
        assert watched.remotes == {"dc2": (direct,)}
        model.broken = {"instances:mesh-gateway in dc2": PermissionDeniedError("ACL not found")}
        await watched.change(40)
        assert watched.remotes == {"dc2": (federated,)}


async def test_a_view_with_an_older_registration_counts_only_once_a_datacenter_is_lost(
    autojump_clock: MockClock,
) -> None:
    direct, federated = gateway("dc2", 1, modify_index=10), gateway("dc2", 2, modify_index=9)
    model = Model(wan=(OWN, "dc2"), remote={"dc2": {"mesh-gateway": (direct,)}})
    model.index = 20
    async with watching(model) as watched:
        model.broken = {"instances:mesh-gateway in dc2": PermissionDeniedError("ACL not found")}
        model.federation = {"dc2": (federated,)}
        await watched.change(LOST_AFTER - 5)
        assert watched.remotes == {"dc2": (direct,)}
        await trio.sleep(45)
        assert watched.remotes == {"dc2": (federated,)}


async def test_a_datacenter_out_of_reach_keeps_its_gateways_and_disturbs_no_other(autojump_clock: MockClock) -> None:
    model = Model(
        wan=(OWN, "dc2", "dc3"),
        remote={name: {"mesh-gateway": (gateway(name),)} for name in ("dc2", "dc3")},
    )
    async with watching(model) as watched:
        del model.remote["dc2"]
        model.remote["dc3"]["mesh-gateway"] = (gateway("dc3"), gateway("dc3", 2))
        await watched.change(90)
        assert watched.remotes == {"dc2": (gateway("dc2"),), "dc3": (gateway("dc3"), gateway("dc3", 2))}
        assert "gateways mesh-gateway of dc2: Consul failed: 500 No path to datacenter" in watched.watcher.problems()


async def test_a_datacenter_that_refuses_the_token_keeps_its_gateways(autojump_clock: MockClock) -> None:
    model = Model(wan=(OWN, "dc2", "dc3"), remote={name: {"mesh-gateway": (gateway(name),)} for name in ("dc2", "dc3")})
    async with watching(model) as watched:
        model.broken = {"instances:mesh-gateway in dc2": PermissionDeniedError("ACL not found")}
        await watched.change(40)
        assert watched.remotes == {name: (gateway(name),) for name in ("dc2", "dc3")}
        assert any("does not know the token" in problem for problem in watched.watcher.problems())


async def test_a_datacenter_that_is_missing_for_a_moment_is_kept(autojump_clock: MockClock) -> None:
    model = Model(wan=(OWN, "dc2"), remote={"dc2": {"mesh-gateway": (gateway("dc2"),)}})
    async with watching(model) as watched:
        model.wan = (OWN,)
        await trio.sleep(50)
        model.wan = (OWN, "dc2")
        await trio.sleep(90)
        assert len(watched.published) == 1
        model.wan = (OWN,)
        await trio.sleep(95)
        assert watched.remotes == {}


async def test_a_datacenter_that_left_the_wan_counts_while_the_federation_states_name_it(
    autojump_clock: MockClock,
) -> None:
    here = gateway("dc2")
    model = Model(wan=(OWN, "dc2"), remote={"dc2": {"mesh-gateway": (here,)}}, federation={"dc2": (here,)})
    async with watching(model) as watched:
        model.wan = (OWN,)
        await trio.sleep(100)
        assert watched.remotes == {"dc2": (here,)}
        model.federation = {}
        await watched.change()
        assert watched.remotes == {}


async def test_a_consul_without_federation_states_is_no_problem(autojump_clock: MockClock) -> None:
    model = Model(federation=None, wan=(OWN, "dc2"), remote={"dc2": {"mesh-gateway": (gateway("dc2"),)}})
    async with watching(model) as watched:
        assert watched.remotes == {"dc2": (gateway("dc2"),)}
        await trio.sleep(100)
        assert watched.watcher.problems() == []
        assert 4 <= model.count("federated_gateways") <= 12


async def test_federation_states_that_are_disabled_are_no_problem_either(autojump_clock: MockClock) -> None:
    model = Model()
    model.broken = {"federated_gateways": ServerError("500 Federation states are currently disabled until", "disabled")}
    async with watching(model) as watched:
        await trio.sleep(100)
        assert watched.watcher.problems() == []
        assert model.count("federated_gateways") <= 12


# --- what others say of a datacenter ---------------------------------------------------------------------------------


async def test_a_gateway_that_moved_is_found_by_the_federation_states_while_its_datacenter_says_nothing(
    autojump_clock: MockClock,
) -> None:
    old, moved = gateway("dc2"), gateway("dc2", port=9443, modify_index=50)
    model = Model(wan=(OWN, "dc2"), remote={"dc2": {"mesh-gateway": (old,)}}, federation={"dc2": (old,)})
    async with watching(model) as watched:
        model.hanging.add("instances:mesh-gateway in dc2")
        await watched.change(5)
        model.federation = {"dc2": (moved,)}
        await watched.change(2)
        assert watched.remotes == {"dc2": (moved,)}


async def test_a_datacenter_of_which_others_have_news_is_asked_again_at_once(autojump_clock: MockClock) -> None:
    """After its Consul has restarted, federation states say for seconds that its gateways' checks are critical."""
    here = gateway("dc2")
    model = Model(wan=(OWN, "dc2"), remote={"dc2": {"mesh-gateway": (here,)}}, federation={"dc2": (here,)}, index=600)
    async with watching(model) as watched:
        model.broken = {"instances:mesh-gateway in dc2": ServerError("No path to datacenter", "500")}
        await watched.change(100)
        model.broken = {}
        here = replace(here, modify_index=50)
        model.remote["dc2"]["mesh-gateway"] = (here,)
        model.federation = {"dc2": (replace(here, checks=(Check("service:mesh-gateway", "critical"),)),)}
        await watched.change(0.5)
        assert watched.remotes == {"dc2": (here,)}


async def test_only_the_gateways_of_the_name_that_has_news_are_taken_from_others(autojump_clock: MockClock) -> None:
    one, two = gateway("dc2"), gateway("dc2", 2, name="second")
    moved = gateway("dc2", port=9443, modify_index=50)
    model = Model(
        wan=(OWN, "dc2"), remote={"dc2": {"mesh-gateway": (one,), "second": (two,)}}, federation={"dc2": (one,)}
    )
    async with watching(model) as watched:
        model.federation = {"dc2": (moved,)}
        await watched.change(2)
        assert watched.remotes == {"dc2": (moved, two)}


async def test_a_datacenter_that_was_built_anew_is_found_within_a_minute(autojump_clock: MockClock) -> None:
    old, new = gateway("dc2", modify_index=500), gateway("dc2", port=9443, modify_index=3)
    model = Model(wan=(OWN, "dc2"), remote={"dc2": {"mesh-gateway": (old,)}}, federation={"dc2": (old,)}, index=600)
    async with watching(model) as watched:
        model.broken = {
            call: ServerError("No path to datacenter", "500")
            for call in ("instances:mesh-gateway in dc2", "gateway_names:dc2")
        }
        await watched.change(10)
        assert watched.remotes == {"dc2": (old,)}
        model.federation = {"dc2": (new,)}
        await watched.change(60)
        assert watched.remotes == {"dc2": (new,)}


async def test_what_is_left_of_a_datacenter_from_before_it_was_built_anew_is_no_news(autojump_clock: MockClock) -> None:
    old, new = gateway("dc2", modify_index=500), gateway("dc2", port=9443, modify_index=3)
    model = Model(wan=(OWN, "dc2"), remote={"dc2": {"mesh-gateway": (old,)}}, federation={"dc2": (old,)}, index=600)
    async with watching(model) as watched:
        model.remote["dc2"]["mesh-gateway"] = (new,)
        model.index = 20
        await trio.sleep(70)
        assert watched.remotes == {"dc2": (new,)}
        # What others hear of it from now on counts again.
        model.hanging.add("instances:mesh-gateway in dc2")
        newer = gateway("dc2", port=9444, modify_index=50)
        model.federation = {"dc2": (newer,)}
        await watched.change(2)
        assert watched.remotes == {"dc2": (newer,)}


async def test_a_datacenter_that_answers_again_soon_is_believed_over_others(autojump_clock: MockClock) -> None:
    here, other = gateway("dc2", modify_index=9), gateway("dc2", port=9443, modify_index=3)
    model = Model(wan=(OWN, "dc2"), remote={"dc2": {"mesh-gateway": (here,)}}, federation={"dc2": (here,)})
    async with watching(model) as watched:
        model.broken = {"instances:mesh-gateway in dc2": ServerError("No path to datacenter", "500")}
        model.federation = {"dc2": (other,)}
        await watched.change(10)
        assert watched.remotes == {"dc2": (here,)}
        model.broken = {}
        await trio.sleep(40)
        assert watched.remotes == {"dc2": (here,)}
