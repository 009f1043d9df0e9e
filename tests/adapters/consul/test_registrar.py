"""The registrar against a model of Consul, on trio's mock clock."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from meshgate.adapters.consul import (
    GatewayDefinition,
    Maintenance,
    OwnHealth,
    Registrar,
    RegistrationError,
    WatchRegistry,
)
from meshgate.adapters.consul.api import (
    AgentFacts,
    ConsulError,
    HealthCheck,
    OwnInstance,
    OwnRegistration,
    PermissionDeniedError,
    ServerError,
)
from meshgate.adapters.consul.registrar import maintenance_check
from tests.harness.ports import free_ports

from .model import Model, unreachable


@asynccontextmanager
async def registering(
    model: Model, *, register: bool = True
) -> AsyncIterator[tuple[Registrar, WatchRegistry, list[OwnRegistration | None]]]:
    seen: list[OwnRegistration | None] = []
    registry = WatchRegistry()
    registrar = Registrar(
        model, registry, GatewayDefinition(), register=register, on_change=lambda: _note(seen, registrar.registration)
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(registrar.run)
        yield registrar, registry, seen
        nursery.cancel_scope.cancel()


def _note(seen: list[OwnRegistration | None], registration: OwnRegistration | None) -> None:
    if seen[-1:] != [registration]:
        seen.append(registration)


async def test_the_gateway_is_registered_and_what_the_agent_holds_is_told(autojump_clock: MockClock) -> None:
    model = Model()
    async with registering(model) as (registrar, _, seen):
        held = await registrar.registered()
        assert model.registered == [GatewayDefinition().payload()]
        assert seen == [held]
        assert registrar.registration == held
        await trio.sleep(300)
        assert len(model.registered) == 1


async def test_a_registration_from_before_is_replaced_by_the_present_one(autojump_clock: MockClock) -> None:
    model = Model(agent={"mesh-gateway": OwnRegistration("mesh-gateway", "mesh-gateway", "", 1)})
    async with registering(model) as (registrar, _, _):
        assert (await registrar.registered()).port == 8443


async def test_central_configuration_that_changes_is_told(autojump_clock: MockClock) -> None:
    model = Model()
    async with registering(model) as (registrar, _, seen):
        held = await registrar.registered()
        model.agent["mesh-gateway"] = replace(held, config={"connect_timeout_ms": 7})
        model.change()
        await trio.sleep(1)
        assert [it and it.config for it in seen] == [{}, {"connect_timeout_ms": 7}]


@pytest.mark.parametrize("outage", [False, True])
async def test_a_registration_that_the_agent_has_lost_is_sent_again(autojump_clock: MockClock, outage: bool) -> None:
    model = Model()
    async with registering(model) as (registrar, _, _):
        await registrar.registered()
        if outage:
            model.fail(unreachable())
            await trio.sleep(60)
        model.agent.clear()
        model.fail(None)
        await trio.sleep(31 if outage else 1)
        assert len(model.registered) == 2
        assert "mesh-gateway" in model.agent


async def test_a_registration_of_a_token_that_was_replaced_is_sent_again_with_the_new_one(
    autojump_clock: MockClock,
) -> None:
    model, version = Model(), [1]
    registrar = Registrar(model, WatchRegistry(token_version=lambda: version[0]), GatewayDefinition())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(registrar.run)
        await registrar.registered()
        await trio.sleep(300)
        assert len(model.registered) == 1
        version[0] += 1
        await trio.sleep(2)
        assert len(model.registered) == 2
        await trio.sleep(300)
        assert len(model.registered) == 2
        registrar.stop()


@pytest.mark.parametrize(
    "outage",
    [unreachable(), PermissionDeniedError("ACL not found"), ServerError("No cluster leader", "500")],
    ids=["gone", "knows no token yet", "knows no leader yet"],
)
async def test_after_an_outage_the_registration_is_sent_again_with_a_check_that_starts_anew(
    autojump_clock: MockClock, outage: ConsulError
) -> None:
    model = Model()
    async with registering(model) as (registrar, _, _):
        await registrar.registered()
        for _ in range(2):
            model.fail(outage)
            await trio.sleep(60)
            model.fail(None)
            await trio.sleep(31)
    checks = [payload["Check"] for payload in model.registered]
    assert [check["Status"] for check in checks] == ["passing"] * 3
    assert len({check.get("CheckID") for check in checks}) == 3


def in_maintenance(model: Model) -> None:
    """What `consul maint -enable -service=mesh-gateway` does."""
    check = HealthCheck(maintenance_check("mesh-gateway"), service_id="mesh-gateway", notes="looking at it")
    model.checks[check.id] = check


async def test_maintenance_outlives_a_registration_that_is_sent_again(autojump_clock: MockClock) -> None:
    model, version = Model(), [1]
    model.checks["_node_maintenance"] = HealthCheck("_node_maintenance")
    registrar = Registrar(model, WatchRegistry(token_version=lambda: version[0]), GatewayDefinition())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(registrar.run)
        await registrar.registered()
        in_maintenance(model)
        version[0] += 1
        await trio.sleep(2)
        assert set(model.checks) == {"_node_maintenance", "_service_maintenance:mesh-gateway", "service:mesh-gateway"}
        model.fail(unreachable())
        await trio.sleep(60)
        model.fail(None)
        await trio.sleep(31)
        assert len(model.registered) == 3
        # The check that the agent takes for critical after an outage is gone, the one that was sent instead is there.
        sent = model.registered[-1]["Check"]["CheckID"]
        assert sent != "service:mesh-gateway"
        assert set(model.checks) == {"_node_maintenance", "_service_maintenance:mesh-gateway", sent}
        registrar.stop()
    assert set(model.checks) == {"_node_maintenance"}


async def test_gateway_that_starts_again_is_still_held_out_of_service(autojump_clock: MockClock) -> None:
    """It was killed, so the agent has what was said of it."""
    model = Model(agent={"mesh-gateway": OwnRegistration("mesh-gateway", "mesh-gateway", "", 1)})
    model.checks["theirs"] = HealthCheck("theirs", service_id="mesh-gateway")
    model.checks["other"] = HealthCheck("other", service_id="mesh-gateway-2")
    in_maintenance(model)
    async with registering(model) as (registrar, _, _):
        assert (await registrar.registered()).port == 8443
        assert set(model.checks) == {"_service_maintenance:mesh-gateway", "service:mesh-gateway", "other"}


async def test_earlier_checks_that_could_not_be_removed_are_removed_later(autojump_clock: MockClock) -> None:
    model = Model(
        checks={"theirs": HealthCheck("theirs", service_id="mesh-gateway")}, broken={"deregister_check": unreachable()}
    )
    in_maintenance(model)
    async with registering(model):
        await trio.sleep(60)
        assert "theirs" in model.checks
        model.broken.clear()
        await trio.sleep(31)
        assert "theirs" not in model.checks
        assert "_service_maintenance:mesh-gateway" in model.checks


async def test_an_agent_that_is_not_there_yet_is_waited_for(autojump_clock: MockClock) -> None:
    model = Model(down=unreachable())
    async with registering(model) as (registrar, registry, _):
        await trio.sleep(100)
        assert registry.states()[0].failures > 3
        model.fail(None)
        with trio.fail_after(31):
            await registrar.registered()


async def test_a_token_that_may_not_register_is_told_the_rule_and_tried_again(autojump_clock: MockClock) -> None:
    model = Model(denied={"mesh-gateway"})
    with capture_logs() as logs:
        async with registering(model) as (registrar, registry, _):
            await trio.sleep(20)
            (state,) = (each for each in registry.states() if each.key.kind == "registration")
            assert 'add service "mesh-gateway" { policy = "write" }' in state.error
            model.denied.clear()
            with trio.fail_after(31):
                await registrar.registered()
    warnings = [entry["error"] for entry in logs if entry["log_level"] == "warning"]
    assert len(warnings) == 1
    assert 'token may not register service "mesh-gateway"' in warnings[0]


async def test_a_refused_gateway_leaves_nothing_to_take_back(autojump_clock: MockClock) -> None:
    model = Model(denied={"mesh-gateway"})
    async with registering(model):
        await trio.sleep(20)
    assert model.deregistered == []


async def test_a_gateway_whose_new_token_is_refused_still_takes_its_registration_back(
    autojump_clock: MockClock,
) -> None:
    model, version = Model(), [1]
    registrar = Registrar(model, WatchRegistry(token_version=lambda: version[0]), GatewayDefinition())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(registrar.run)
        await registrar.registered()
        model.denied.add("mesh-gateway")
        version[0] += 1
        await trio.sleep(20)
        model.denied.clear()
        registrar.stop()
    assert model.deregistered == ["mesh-gateway"]


async def test_stop_takes_the_registration_back_and_ends(autojump_clock: MockClock) -> None:
    model = Model()
    registrar = Registrar(model, WatchRegistry(), GatewayDefinition())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(registrar.run)
        await registrar.registered()
        registrar.stop()
        registrar.stop()
    assert model.deregistered == ["mesh-gateway"]
    assert model.agent == {}
    assert model.connections == 0


async def test_cancellation_takes_the_registration_back_too(autojump_clock: MockClock) -> None:
    model = Model()
    async with registering(model) as (registrar, _, _):
        await registrar.registered()
    assert model.deregistered == ["mesh-gateway"]


async def test_a_request_that_was_cancelled_may_have_arrived_and_is_taken_back(autojump_clock: MockClock) -> None:
    model = Model(hanging={"register"})
    async with registering(model):
        await trio.sleep(1)
    assert model.deregistered == ["mesh-gateway"]


async def test_the_end_does_not_wait_long_for_an_agent_that_hangs(autojump_clock: MockClock) -> None:
    model = Model()
    async with registering(model) as (registrar, _, _):
        await registrar.registered()
        model.hanging.add("deregister")
        start = trio.current_time()
    assert trio.current_time() - start == pytest.approx(5, abs=0.1)


@pytest.mark.parametrize(
    ("error", "stays"),
    [
        (unreachable(), True),
        (PermissionDeniedError("no"), True),
        (ServerError('Consul failed: 500 Unknown service {"mesh-gateway" {}}', "500"), False),
    ],
)
async def test_what_stays_behind_is_logged(autojump_clock: MockClock, error: Exception, stays: bool) -> None:
    model = Model()
    with capture_logs() as logs:
        async with registering(model) as (registrar, _, _):
            await registrar.registered()
            model.broken = {"deregister": error}  # type: ignore[dict-item]
    assert ("the registration stays behind" in [entry["event"] for entry in logs]) is stays


# --- another process ----------------------------------------------------------------------------------------------


HOST = "127.0.0.1"


@asynccontextmanager
async def somebody() -> AsyncIterator[int]:
    """The port of a process that takes connections."""
    with socket.create_server((HOST, 0)) as listening:
        yield listening.getsockname()[1]


def held_at(port: int, address: str = HOST) -> Model:
    return Model(agent={"mesh-gateway": OwnRegistration("mesh-gateway", "mesh-gateway", address, port)})


@pytest.mark.parametrize("address", [HOST, ""])
async def test_registration_that_another_process_lives_by_is_left_to_it_until_it_is_gone(address: str) -> None:
    async with somebody() as port:
        model = held_at(port, address)
        definition = GatewayDefinition(address=HOST, port=free_ports(1)[0])
        registrar = Registrar(model, WatchRegistry(), definition)
        told = f"'mesh-gateway' is registered at {HOST}:{port} by another process"
        assert (await registrar.rival() or "").startswith(told)
        with capture_logs() as logs, trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(registrar.run)
                while not logs:
                    await trio.sleep(0.01)
                assert logs[0]["error"].startswith(told)
                assert logs[0]["error"].endswith("give this gateway a --proxy-id of its own")
                assert model.registered == []
                del model.agent["mesh-gateway"]
                await registrar.registered()
                registrar.stop()
    assert [each["Port"] for each in model.registered] == [definition.port]


@pytest.mark.parametrize("case", ["restarted", "moved", "own"])
async def test_registration_of_its_own_is_taken_over(case: str) -> None:
    """A restart finds it at its address, one that moved finds nobody there, and its own listener is no rival."""
    async with somebody() as port:
        model = held_at(free_ports(1)[0] if case == "moved" else port)
        definition = GatewayDefinition(address=HOST, port=port if case == "restarted" else free_ports(1)[0])
        own = {(HOST, port)} if case == "own" else set()
        registrar = Registrar(model, WatchRegistry(), definition, is_own=lambda *place: place in own)
        with trio.fail_after(10):
            assert await registrar.rival() is None
            async with trio.open_nursery() as nursery:
                nursery.start_soon(registrar.run)
                assert (await registrar.registered()).port == definition.port
                registrar.stop()


async def test_agent_without_a_registration_knows_no_rival() -> None:
    assert await Registrar(Model(), WatchRegistry(), GatewayDefinition()).rival() is None


async def test_registration_that_another_process_took_is_not_followed_and_taken_back_once_that_is_gone() -> None:
    model = Model()
    definition = GatewayDefinition(address=HOST, port=free_ports(1)[0])
    async with somebody() as port:
        registrar = Registrar(model, WatchRegistry(), definition)
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(registrar.run)
                ours = await registrar.registered()
                with capture_logs() as logs:
                    model.agent["mesh-gateway"] = replace(ours, port=port)
                    model.change()
                    while not logs:
                        await trio.sleep(0.01)
                    assert f"{HOST}:{port} by another process" in logs[0]["error"]
                assert registrar.registration == ours
                model.agent["mesh-gateway"] = replace(ours, port=free_ports(1)[0])
                while len(model.registered) < 2:
                    await trio.sleep(0.01)
                registrar.stop()


# --- other definitions ----------------------------------------------------------------------------------------------


async def test_another_definition_is_registered_at_once(autojump_clock: MockClock) -> None:
    model = Model()
    async with registering(model) as (registrar, _, seen):
        await registrar.registered()
        registrar.define(GatewayDefinition())
        await trio.sleep(5)
        assert len(model.registered) == 1
        registrar.define(GatewayDefinition(wan_address="192.0.2.7", wan_port=443))
        await trio.sleep(1)
        assert [each.get("TaggedAddresses") for each in model.registered] == [
            None,
            {"wan": {"Address": "192.0.2.7", "Port": 443}},
        ]
        with pytest.raises(RegistrationError):
            registrar.define(GatewayDefinition(address="192.0.2.77"))
        registrar.define(GatewayDefinition(port=9443))
        await trio.sleep(1)
        assert [each and each.port for each in seen] == [8443, 9443]
    assert model.deregistered == ["mesh-gateway"]


async def test_definition_does_not_matter_where_somebody_else_registers(autojump_clock: MockClock) -> None:
    model = held_at(9000)
    async with registering(model, register=False) as (registrar, _, _):
        await registrar.registered()
        registrar.define(GatewayDefinition(port=9443))
        await trio.sleep(5)
    assert model.registered == []


# --- several agents behind one address --------------------------------------------------------------------------------


class Balancer(Model):
    """An address that leads each new connection to the next of several agents, of one catalog."""

    def __init__(self, *agents: Model) -> None:
        super().__init__()
        self.agents, self.next = agents, 0
        for agent in agents:
            agent.nodes = {each.facts.node for each in agents}

    @asynccontextmanager
    async def dedicated(self) -> AsyncIterator[Any]:
        agent = self.agents[self.next % len(self.agents)]
        self.next += 1
        yield agent


def agent(node: str) -> Model:
    return Model(facts=AgentFacts("dc1", node))


@asynccontextmanager
async def registering_with_one_of_two() -> AsyncIterator[tuple[Registrar, Balancer, Model, Model]]:
    """The balancer, the agent that got the registration, and the other one."""
    a, b = agent("a"), agent("b")
    model = Balancer(a, b)
    async with registering(model) as (registrar, _, _):
        await registrar.registered()
        yield registrar, model, *((a, b) if a.registered else (b, a))


async def test_one_agent_has_the_registration_and_gives_it_back_whatever_connections_lead_to(
    autojump_clock: MockClock,
) -> None:
    with capture_logs() as logs:
        async with registering_with_one_of_two() as (registrar, model, holder, other):
            assert (len(holder.registered), len(other.registered)) == (1, 0)
            # Connections lead elsewhere from now on, and back at last.
            model.agents = (other, other, other, holder)
            registrar.define(GatewayDefinition(wan_address="192.0.2.7"))
            with trio.fail_after(120):
                while len(holder.registered) < 2:
                    await trio.sleep(0.1)
            assert other.registered == []
            model.next = 0
    assert (holder.deregistered, other.deregistered) == (["mesh-gateway"], [])
    assert (holder.agent, other.agent) == ({}, {})
    assert next(entry["error"] for entry in logs if entry["log_level"] == "warning") == (
        f"the gateway is registered with the agent of node {holder.facts.node}, and the agent of node "
        f"{other.facts.node} answers now: CONSUL_HTTP_ADDR has to lead to one agent"
    )


async def test_agent_whose_node_has_left_the_catalog_is_followed_by_another(autojump_clock: MockClock) -> None:
    async with registering_with_one_of_two() as (registrar, model, _, other):
        model.agents = (other,)
        other.nodes = {other.facts.node}
        registrar.define(GatewayDefinition(wan_address="192.0.2.7"))
        with trio.fail_after(60):
            while not other.registered:
                await trio.sleep(0.1)
    assert other.deregistered == ["mesh-gateway"]


async def test_agent_that_cannot_be_met_at_the_end_keeps_the_registration_and_that_is_told(
    autojump_clock: MockClock,
) -> None:
    with capture_logs() as logs:
        async with registering_with_one_of_two() as (_, model, holder, other):
            model.agents = (other,)
    assert (holder.deregistered, other.deregistered) == ([], [])
    assert [entry["node"] for entry in logs if entry["event"] == "the registration stays behind"] == [holder.facts.node]


async def test_registration_that_was_left_behind_on_another_node_is_told(autojump_clock: MockClock) -> None:
    model = agent("a")
    definition = GatewayDefinition(address=HOST)
    registrar = Registrar(model, WatchRegistry(), definition)
    other = OwnRegistration("mesh-gateway", "mesh-gateway", HOST, 8443)
    model.catalog = [OwnInstance("b", other), OwnInstance("c", replace(other, address="10.0.0.9"))]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(registrar.run)
        await registrar.registered()
        await trio.sleep(1)
        assert registrar.health.elsewhere == ("b",)
        registrar.stop()


# --- somebody else's registration -----------------------------------------------------------------------------------


async def test_registration_in_the_catalog_is_waited_for_and_followed_with_its_health(
    autojump_clock: MockClock,
) -> None:
    model = Model()
    seen: list[tuple[OwnRegistration | None, OwnHealth]] = []
    registrar = Registrar(
        model,
        WatchRegistry(),
        GatewayDefinition(),
        register=False,
        node="virtual",
        on_change=lambda: seen.append((registrar.registration, registrar.health)),
    )
    theirs = OwnRegistration("mesh-gateway", "mesh-gateway", "10.0.0.7", 443, config={"connect_timeout_ms": 7})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(registrar.run)
        model.catalog = [OwnInstance("elsewhere", theirs)]
        await trio.sleep(100)
        assert seen == [(None, OwnHealth())]
        assert registrar.missing
        probe = HealthCheck("ns/pod", "Kubernetes Readiness Check", "critical", "no", "mesh-gateway")
        model.catalog = [OwnInstance("virtual", theirs, (probe,))]
        model.change()
        with trio.fail_after(5):
            assert await registrar.registered() == theirs
        assert registrar.health.failing == (("Kubernetes Readiness Check", "no"),)
        held_out = HealthCheck(
            maintenance_check("mesh-gateway"), status="critical", service_id="mesh-gateway", notes="a disk"
        )
        model.catalog = [OwnInstance("virtual", theirs, (held_out,))]
        model.change()
        await trio.sleep(1)
        assert registrar.health == OwnHealth(maintenance=(Maintenance(node=False, reason="a disk"),))
        registrar.stop()
    assert (model.registered, model.deregistered) == ([], [])
    assert model.count("agent_service") == 0


async def test_without_registering_the_registration_is_waited_for_and_never_removed(autojump_clock: MockClock) -> None:
    model = Model()
    async with registering(model, register=False) as (registrar, registry, seen):
        await trio.sleep(100)
        assert seen == [None]
        assert registry.states()[0].error == ""
        theirs = OwnRegistration("mesh-gateway", "mesh-gateway", "10.0.0.7", 443)
        model.agent["mesh-gateway"] = theirs
        with trio.fail_after(5):
            assert await registrar.registered() == theirs
        assert seen == [None, theirs]
    assert model.registered == []
    assert model.deregistered == []


def test_a_definition_that_cannot_work_here_is_an_error_only_where_it_is_registered() -> None:
    definition = GatewayDefinition(address="192.0.2.77")
    with pytest.raises(RegistrationError):
        Registrar(Model(), WatchRegistry(), definition)
    Registrar(Model(), WatchRegistry(), definition, register=False)


@pytest.mark.parametrize(
    ("same_token", "port", "sent"), [(True, 8443, 1), (False, 8443, 2), (True, 9443, 2)], ids=["same", "token", "other"]
)
async def test_another_program_goes_on_with_the_registration_and_sends_only_what_is_other(
    autojump_clock: MockClock, same_token: bool, port: int, sent: int
) -> None:
    model = Model()
    async with registering(model) as (registrar, _, _):
        held = await registrar.registered()
        left = registrar.left()
        registrar._sent = None  # Its program is gone, and takes nothing back.
    assert model.deregistered == []
    seen: list[OwnRegistration | None] = []
    definition = GatewayDefinition(port=port)
    after = Registrar(model, WatchRegistry(), definition, on_change=lambda: _note(seen, after.registration))
    after.adopt(left, same_token=same_token)
    assert seen == [held]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(after.run)
        await trio.sleep(300)
        assert len(model.registered) == sent
        assert after.registration is not None
        assert after.registration.port == port
        assert model.deregistered == []
        after.stop()
    assert model.deregistered == ["mesh-gateway"]
