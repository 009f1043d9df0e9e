"""A gateway that is held out of service with Consul's own command, and what that outlives. Consul is a real one."""

import re
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from meshgate.adapters.consul.policy import acl_policy
from tests.harness.agent import Consul
from tests.harness.gateway import GatewayProcess, gateway_beside
from tests.harness.native import native_service
from tests.harness.process import child_environment

from .world import World, until_equal

if TYPE_CHECKING:
    from tests.harness.caller import Conversation

pytestmark = [pytest.mark.consul, pytest.mark.own_consul]

WHY = "a new disk"


async def maint(consul: Consul, *arguments: str) -> None:
    """`consul maint` beside an agent."""
    environment = child_environment(CONSUL_HTTP_ADDR=consul.http_addr, CONSUL_HTTP_TOKEN=consul.master_token)
    await trio.run_process([consul.binary, "maint", *arguments], capture_stdout=True, env=environment)


async def checks(consul: Consul, instance: str) -> set[str]:
    """The IDs of the checks that the agent holds of a service."""
    held = await consul.ask("/v1/agent/checks") or {}
    return {name for name, check in held.items() if check["ServiceID"] == instance}


async def problem(gateway: GatewayProcess) -> tuple[bool, list[str]]:
    ready = await gateway.ask("/readyz")
    return ready["ready"], [line for line in ready["problems"] if "maintenance" in line]


def registrations(gateway: GatewayProcess) -> int:
    """How often the gateway says that it has registered."""
    return gateway.child.log.read_text().count("meshgate.consul: registered with the agent")


async def until_registered_again(gateway: GatewayProcess, before: int) -> None:
    async def more() -> bool:
        return registrations(gateway) > before

    await until_equal("another registration", more, True, seconds=60)


async def test_gateway_in_maintenance_keeps_its_streams_and_gets_no_new_ones_of_other_gateways(world: World) -> None:
    dc1, dc2 = world.federation.datacenters
    caller = await world.caller()
    async with (
        native_service(dc2, "web", world.federation.folder),
        gateway_beside(dc2, world.token, instance="gw-a") as held_out,
        gateway_beside(dc2, world.token, instance="gw-b") as other,
        gateway_beside(dc1, world.token) as local,
    ):
        ports = held_out.address[1], other.address[1]

        async def remote() -> dict[int, bool]:
            return await local.endpoints(f"*.dc2.internal.{world.federation.trust_domain}")

        async def carried() -> float:
            return await held_out.counter("meshgate_connections_total")

        async def web() -> list[bool]:
            return [list((await each.endpoints(world.sni())).values()) == [True] for each in (held_out, other)]

        await until_equal("both gateways", remote, dict.fromkeys(ports, True), seconds=20)
        await until_equal("web", web, [True, True], seconds=20)
        # The two take turns, so one of them soon carries a stream.
        async with AsyncExitStack() as open_streams:
            streams: list[Conversation] = []
            while not (before := await carried()):
                assert len(streams) < 10
                opened = caller.connect(local.address, world.sni(), expect=world.spiffe())
                streams.append(await open_streams.enter_async_context(opened))
            await maint(dc2, "-enable", "-service=gw-a", f"-reason={WHY}")
            await until_equal("the maintenance", remote, {ports[0]: False, ports[1]: True}, seconds=20)
            for _ in range(4):
                await caller.call(local.address, world.sni(), b"new", expect=world.spiffe())
            assert await carried() == before
            for stream in streams:
                await stream.send_all(b"still here")
                assert await stream.receive_some() == b"still here"
        said = f"it is in maintenance in Consul, so other gateways send it no new streams: {WHY}"
        await until_equal("the gateway to say so", lambda: problem(held_out), (True, [said]), seconds=30)
        # Who dials it all the same is served: sidecars do not look at a gateway's health.
        await caller.call(held_out.address, world.sni(), b"direct", expect=world.spiffe())
        await maint(dc2, "-disable", "-service=gw-a")
        await until_equal("its end", remote, dict.fromkeys(ports, True), seconds=20)
        await until_equal("the gateway to say so", lambda: problem(held_out), (True, []), seconds=30)


async def test_maintenance_outlives_all_but_an_orderly_stop_of_the_gateway(world: World, tmp_path: Path) -> None:
    dc1, name = world.federation.dc1, "mesh-gateway"
    held_out = f"_service_maintenance:{name}"
    file = tmp_path / "token"
    file.write_text(world.token)
    gateway = GatewayProcess(dc1, "")
    environment = {"CONSUL_HTTP_TOKEN_FILE": str(file)}
    try:
        await gateway.start(environment)
        await maint(dc1, "-enable", f"-service={name}", f"-reason={WHY}")
        assert await checks(dc1, name) == {held_out, f"service:{name}"}

        # Another token: the registration is sent again with it.
        another = await world.federation.create_policy_token(acl_policy(), "another")
        before = registrations(gateway)
        file.write_text(another)
        await until_registered_again(gateway, before)
        await until_equal("the checks", lambda: checks(dc1, name), {held_out, f"service:{name}"}, seconds=20)

        # The agent is restarted: so is it then, with another check.
        before = registrations(gateway)
        await dc1.restart()
        await until_registered_again(gateway, before)
        await until_equal("the checks", lambda: shapes(dc1, name), [held_out, f"service:{name}:…"], seconds=20)

        # The gateway is killed and started again.
        await gateway.child.kill()
        before = registrations(gateway)
        await gateway.start(environment)
        await until_registered_again(gateway, before)
        await until_equal("the checks", lambda: checks(dc1, name), {held_out, f"service:{name}"}, seconds=20)

        # Node maintenance is the agent's, service maintenance goes with the registration.
        await maint(dc1, "-enable", f"-reason={WHY}")
        await gateway.stop()
        await until_equal("the removal", lambda: checks(dc1, name), set(), seconds=20)
        before = registrations(gateway)
        await gateway.start(environment)
        await until_registered_again(gateway, before)
        assert await checks(dc1, name) == {f"service:{name}"}
        said = f"its node is in maintenance in Consul, so other gateways send it no new streams: {WHY}"
        await until_equal("the gateway to say so", lambda: problem(gateway), (True, [said]), seconds=30)
    finally:
        await maint(dc1, "-disable")
        await gateway.stop()


async def test_maintenance_outlives_every_write_of_central_configuration(world: World) -> None:
    """The agent repeats a registration with the flags that it came with whenever what it merges has changed."""
    dc1, name = world.federation.dc1, "mesh-gateway"
    defaults = {"Kind": "proxy-defaults", "Name": "global"}

    async def merged() -> object:
        return (await dc1.get(f"/v1/agent/service/{name}"))["Proxy"]["Config"].get("connect_timeout_ms")

    async with gateway_beside(dc1, world.token):
        await maint(dc1, "-enable", f"-service={name}", f"-reason={WHY}")
        try:
            for milliseconds in (701, 702, 703):
                await world.federation.write_config_entry(defaults | {"Config": {"connect_timeout_ms": milliseconds}})
                await until_equal("the merge", merged, milliseconds, seconds=20)
                assert await checks(dc1, name) == {f"_service_maintenance:{name}", f"service:{name}"}
                own = {"Kind": "service-defaults", "Name": name, "Protocol": "http" if milliseconds == 701 else "tcp"}
                await world.federation.write_config_entry(own)
        finally:
            await world.federation.delete_config_entry("service-defaults", name)
            await world.federation.delete_config_entry("proxy-defaults", "global")


async def shapes(consul: Consul, instance: str) -> list[str]:
    """The IDs of the checks, sorted, without what is random in them."""
    return sorted(re.sub(r":[0-9a-f]{8}$", ":…", each) for each in await checks(consul, instance))
