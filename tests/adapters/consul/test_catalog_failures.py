"""What failures of Consul do to the catalog, on trio's mock clock."""

import pytest
import trio
from trio.testing import MockClock

from meshgate.adapters.consul.api import (
    ConsulError,
    InvalidAnswerError,
    PermissionDeniedError,
    Resolver,
    ServerError,
    SubsetRule,
)
from meshgate.core.catalog import Subset

from .model import OWN, Model, gateway, unreachable
from .watched import API, WEB, watching


@pytest.mark.parametrize(
    "error",
    [
        unreachable(),
        ServerError("500 No cluster leader", "500"),
        InvalidAnswerError("garbage", "invalid"),
        PermissionDeniedError("ACL not found"),
    ],
)
async def test_no_failure_of_consul_takes_anything_back(autojump_clock: MockClock, error: ConsulError) -> None:
    model = Model(
        connect={"web": (WEB,)},
        entries=(Resolver("web", (SubsetRule("v1", "F1"),)),),
        filters={("web", "F1"): (WEB,)},
        wan=(OWN, "dc2"),
        remote={"dc2": {"mesh-gateway": (gateway("dc2"),)}},
        federation={"dc3": (gateway("dc3"),)},
    )
    async with watching(model) as watched:
        before = watched.last
        model.fail(error)
        await trio.sleep(300)
        assert watched.last is before
        assert watched.stale()
        assert watched.watcher.problems()
        model.connect["api"] = (API,)
        model.fail(None)
        await trio.sleep(40)
        assert set(watched.services) == {"web", "api"}
        assert not watched.stale()
        assert watched.watcher.problems() == []


async def test_an_agent_that_is_gone_is_one_problem_whatever_is_watched(autojump_clock: MockClock) -> None:
    model = Model(connect={"web": (WEB,)}, wan=(OWN, "dc2"), federation={"dc3": (gateway("dc3"),)})
    async with watching(model) as watched:
        model.fail(unreachable())
        await trio.sleep(60)
        assert watched.watcher.problems() == ["cannot reach Consul"]


async def test_the_catalog_is_stale_only_after_a_while(autojump_clock: MockClock) -> None:
    model = Model()
    async with watching(model) as watched:
        model.fail(unreachable())
        await trio.sleep(9)
        assert not watched.stale()
        await trio.sleep(2)
        assert watched.stale()


async def test_one_failing_service_is_not_a_stale_catalog(autojump_clock: MockClock) -> None:
    model = Model(connect={"web": (WEB,), "api": (API,)})
    async with watching(model) as watched:
        model.broken = {"connect_instances:web": ServerError("Consul failed: 500 oops", "500")}
        await watched.change(60)
        assert not watched.stale()
        assert watched.watcher.problems() == ["health web: Consul failed: 500 oops"]
        assert set(watched.services) == {"web", "api"}


async def test_a_subset_whose_filter_does_not_compile_is_out_and_nothing_else(autojump_clock: MockClock) -> None:
    model = Model(
        connect={"web": (WEB,), "api": (API,)},
        entries=(Resolver("web", (SubsetRule("bad", "F?"), SubsetRule("v1", "F1"))),),
        filters={("web", "F1"): (WEB,)},
    )
    async with watching(model) as watched:
        web = watched.last.services[1]
        assert web.instances == (WEB,)
        assert web.subsets == (Subset("bad", instances=None), Subset("v1", instances=(WEB,)))
        assert watched.watcher.problems() == ["subset bad.web: the filter does not compile"]
        model.entries = (Resolver("web", (SubsetRule("v1", "F1"),)),)
        await watched.change()
        assert watched.last.services[1].subsets == (Subset("v1", instances=(WEB,)),)
        assert watched.watcher.problems() == []


async def test_while_a_new_filter_is_not_answered_the_old_ones_instances_stay(autojump_clock: MockClock) -> None:
    model = Model(
        connect={"web": (WEB, API)},
        entries=(Resolver("web", (SubsetRule("v1", "F1"),)),),
        filters={("web", "F1"): (WEB,), ("web", "F2"): (WEB, API)},
    )
    async with watching(model) as watched:
        model.entries = (Resolver("web", (SubsetRule("v1", "F2", only_passing=True),)),)
        model.hanging = {"connect_instances:web"}
        await watched.change()
        assert watched.last.services[0].subsets == (Subset("v1", only_passing=True, instances=(WEB,)),)


async def test_a_new_filter_replaces_the_old_one(autojump_clock: MockClock) -> None:
    model = Model(
        connect={"web": (WEB, API)},
        entries=(Resolver("web", (SubsetRule("v1", "F1"),)),),
        filters={("web", "F1"): (WEB,), ("web", "F2"): (API,)},
    )
    async with watching(model) as watched:
        model.entries = (Resolver("web", (SubsetRule("v1", "F2"),)),)
        await watched.change()
        assert watched.last.services[0].subsets == (Subset("v1", instances=(API,)),)
        model.entries = (Resolver("web", (SubsetRule("v1", "F?"),)),)
        await watched.change()
        assert watched.last.services[0].subsets == (Subset("v1", instances=None),)
        model.entries = (Resolver("web", (SubsetRule("v1", "F1"),)),)
        await watched.change()
        assert watched.last.services[0].subsets == (Subset("v1", instances=(WEB,)),)


async def test_a_resolver_that_is_deleted_is_dropped(autojump_clock: MockClock) -> None:
    model = Model(connect={"web": (WEB,)}, entries=(Resolver("web", connect_timeout=3.0),))
    async with watching(model) as watched:
        assert watched.last.services[0].connect_timeout == 3.0
        model.entries = ()
        await watched.change()
        assert watched.last.services[0].connect_timeout is None


class Momentary(Model):
    """Hides what it has until the token is proven."""

    hidden: tuple[Resolver, ...] = ()

    async def confirm_readable(self, service: str, *, datacenter: str = "") -> None:
        await super().confirm_readable(service, datacenter=datacenter)
        self.entries = self.hidden


async def test_a_resolver_that_is_hidden_for_a_moment_stays(autojump_clock: MockClock) -> None:
    """The list leaves it out, and by the time of the proof the token may read it again."""
    model = Momentary(connect={"web": (WEB,)}, entries=(Resolver("web", connect_timeout=3.0),))
    async with watching(model) as watched:
        model.hidden, model.entries = model.entries, ()
        await watched.change()
        assert watched.last.services[0].connect_timeout == 3.0
        assert model.count("readable:web") == 1
