"""Consul's own servers in the catalog watcher: watched only for WAN federation, and never lost by mistake."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import trio
from trio.testing import MockClock

from meshgate.adapters.consul import CatalogWatcher, Home, WatchRegistry
from meshgate.adapters.consul.api import PermissionDeniedError
from meshgate.core.catalog import Instance, Snapshot

from .model import OWN, Model, gateway, server, unreachable

ONE = server()
TWO = replace(ONE, node="another", address="10.1.0.98")


class Federated:
    """A watcher of a gateway for WAN federation, and what it published."""

    def __init__(self, model: Model, *, partition: str = "default", expose: bool = True) -> None:
        model.plain.setdefault("mesh-gateway", (gateway(OWN),))
        self.model = model
        self.published: list[Snapshot] = []
        self.watcher = CatalogWatcher(
            model,
            WatchRegistry(),
            self.published.append,
            Home(OWN, partition, domain="fed.example", expose_servers=expose),
        )

    def servers(self) -> tuple[Instance, ...]:
        return self.published[-1].servers

    async def change(self, *servers: Instance) -> None:
        """Make these the datacenter's servers, and wait longer than a change may take."""
        self.model.plain["consul"] = servers
        self.model.change()
        await trio.sleep(1)


@asynccontextmanager
async def watching(federated: Federated) -> AsyncIterator[Federated]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(federated.watcher.run)
        with trio.fail_after(10):
            while not federated.published:
                await trio.sleep(0.01)
        yield federated
        nursery.cancel_scope.cancel()


async def test_the_first_snapshot_has_the_servers_and_how_they_are_named(autojump_clock: MockClock) -> None:
    async with watching(Federated(Model(plain={"consul": (ONE, TWO)}))) as federated:
        (first,) = federated.published
        assert (first.servers, first.domain, first.expose_servers) == ((TWO, ONE), "fed.example", True)
        assert "servers" in {state.key.kind for state in federated.watcher.states()}
        assert federated.watcher.problems() == []


async def test_servers_that_join_turn_critical_and_leave_are_followed(autojump_clock: MockClock) -> None:
    async with watching(Federated(Model())) as federated:
        assert federated.servers() == (ONE,)
        await federated.change(ONE, TWO)
        assert federated.servers() == (TWO, ONE)
        sick = replace(TWO, checks=(replace(ONE.checks[0], status="critical"),))
        await federated.change(ONE, sick)
        assert federated.servers() == (sick, ONE)
        await federated.change(TWO)
        assert federated.servers() == (TWO,)
        assert federated.model.count("readable:consul") == 0


async def test_without_wan_federation_servers_are_not_watched(autojump_clock: MockClock) -> None:
    async with watching(Federated(Model(), expose=False)) as federated:
        (first,) = federated.published
        assert (first.servers, first.domain, first.expose_servers) == ((), "fed.example", False)
        assert federated.model.count("instances:consul") == 0


async def test_another_partition_than_the_default_one_exposes_no_servers(autojump_clock: MockClock) -> None:
    async with watching(Federated(Model(), partition="p1")) as federated:
        assert not federated.published[0].expose_servers
        assert federated.model.count("instances:consul") == 0


async def test_servers_that_the_token_never_saw_are_a_problem_with_the_rule_to_add(autojump_clock: MockClock) -> None:
    async with watching(Federated(Model(denied={"consul"}))) as federated:
        assert federated.servers() == ()
        (problem,) = federated.watcher.problems()
        assert "none of its own servers" in problem
        assert 'service "consul" { policy = "read" }' in problem
        federated.model.denied = set()
        await trio.sleep(60)
        assert federated.servers() == (ONE,)
        assert federated.watcher.problems() == []


async def test_servers_that_vanish_with_the_right_to_see_them_are_kept(autojump_clock: MockClock) -> None:
    for lost in ("service", "one service", "nodes"):
        model = Model(plain={"consul": (ONE, TWO)})
        async with watching(Federated(model)) as federated:
            model.denied = {"service": {"*"}, "one service": {"consul"}}.get(lost, set())
            model.sees_nodes = lost != "nodes"
            model.change()
            await trio.sleep(60)
            assert federated.servers() == (TWO, ONE), lost
            assert federated.watcher.problems(), lost


async def test_no_failure_takes_servers_back(autojump_clock: MockClock) -> None:
    async with watching(Federated(Model())) as federated:
        for error in (unreachable(), PermissionDeniedError("ACL not found")):
            federated.model.fail(error)
            await trio.sleep(60)
            assert federated.servers() == (ONE,)
        federated.model.fail(None)
        await trio.sleep(60)
        await federated.change(ONE, TWO)
        assert federated.servers() == (TWO, ONE)


async def test_the_first_snapshot_waits_for_the_servers_but_not_for_ever(autojump_clock: MockClock) -> None:
    model = Model(hanging={"instances:consul"})
    start = trio.current_time()
    async with watching(Federated(model)) as federated:
        assert 5 <= trio.current_time() - start < 6
        assert federated.servers() == ()


async def test_the_watch_of_the_servers_takes_its_connection_from_the_others(autojump_clock: MockClock) -> None:
    datacenters = [f"dc{number}" for number in range(2, 20)]
    most = {}
    for expose in (False, True):
        model = Model(
            wan=(OWN, *datacenters), remote={name: {"gw": (gateway(name, name="gw"),)} for name in datacenters}
        )
        model.plain["mesh-gateway"] = (gateway(OWN),)
        watcher = CatalogWatcher(
            model, WatchRegistry(), lambda _: None, Home(OWN, expose_servers=expose), catalog_watches=12
        )
        with trio.move_on_after(60):
            await watcher.run()
        most[expose] = model.most_connections
        assert any(state == "instances:consul" for _, state in model.calls) is expose
    # Not one more; how many are held at once depends on which answer comes first.
    assert most[True] <= most[False] < 12
