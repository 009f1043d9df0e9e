"""The registrar against a model of Consul, on trio's mock clock."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from meshgate.adapters.consul import (
    GatewayDefinition,
    OwnRegistration,
    PermissionDeniedError,
    Registrar,
    RegistrationError,
    ServerError,
    WatchRegistry,
)
from meshgate.adapters.consul.api import HealthCheck
from meshgate.adapters.consul.maintenance import maintenance_check

from .model import Model, unreachable


@asynccontextmanager
async def registering(
    model: Model, *, register: bool = True
) -> AsyncIterator[tuple[Registrar, WatchRegistry, list[OwnRegistration | None]]]:
    seen: list[OwnRegistration | None] = []
    registry = WatchRegistry()
    registrar = Registrar(model, registry, GatewayDefinition(), register=register, on_change=seen.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(registrar.run)
        yield registrar, registry, seen
        nursery.cancel_scope.cancel()


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
    model = Model(agent={"mesh-gateway": OwnRegistration("mesh-gateway", "mesh-gateway", "", 1, content_hash="old")})
    async with registering(model) as (registrar, _, _):
        assert (await registrar.registered()).port == 8443


async def test_central_configuration_that_changes_is_told(autojump_clock: MockClock) -> None:
    model = Model()
    async with registering(model) as (registrar, _, seen):
        held = await registrar.registered()
        model.agent["mesh-gateway"] = replace(held, config={"connect_timeout_ms": 7}, content_hash="new")
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


async def test_after_an_outage_the_registration_is_sent_again_with_a_check_that_starts_anew(
    autojump_clock: MockClock,
) -> None:
    model = Model()
    async with registering(model) as (registrar, _, _):
        await registrar.registered()
        for _ in range(2):
            model.fail(unreachable())
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
    model = Model(agent={"mesh-gateway": OwnRegistration("mesh-gateway", "mesh-gateway", "", 1, content_hash="old")})
    model.checks["theirs"] = HealthCheck("theirs", service_id="mesh-gateway")
    in_maintenance(model)
    async with registering(model) as (registrar, _, _):
        assert (await registrar.registered()).port == 8443
        assert set(model.checks) == {"_service_maintenance:mesh-gateway", "service:mesh-gateway"}


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
            assert 'add service "mesh-gateway" { policy = "write" }' in registry.states()[0].error
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


async def test_without_registering_the_registration_is_waited_for_and_never_removed(autojump_clock: MockClock) -> None:
    model = Model()
    async with registering(model, register=False) as (registrar, registry, seen):
        await trio.sleep(100)
        assert seen == [None]
        assert registry.states()[0].error == ""
        theirs = OwnRegistration("mesh-gateway", "mesh-gateway", "10.0.0.7", 443, content_hash="x")
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
