"""Registration options against real Consul: what the agent makes of a registration takes effect, at once and later."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from meshgate.adapters.mesh_tls import RefusedError
from tests.harness.agent import Consul
from tests.harness.caller import Caller
from tests.harness.gateway import GatewayProcess, gateway_beside
from tests.harness.native import native_service
from tests.harness.ports import free_ports

from .world import World, until_equal

pytestmark = pytest.mark.consul

HOST = "127.0.0.1"


@asynccontextmanager
async def web(world: World) -> AsyncIterator[Caller]:
    async with native_service(world.federation.dc2, "web", world.federation.folder):
        yield await world.caller()


async def serves(world: World, caller: Caller, port: int) -> bool:
    """Whether `web` is met by a listener at this port."""
    try:
        await caller.call((HOST, port), world.sni(), expect=world.spiffe())
    except RefusedError as error:
        if error.stage != "connect":
            raise
        return False
    return True


async def registration(consul: Consul, identity: str = "mesh-gateway") -> Any:
    return await consul.get(f"/v1/agent/service/{identity}")


async def test_bind_addresses_of_the_command_line_are_listened_on_and_registered(world: World) -> None:
    one, two = free_ports(2)
    binds = {"MESHGATE_BIND_ADDRESS": f"one={HOST}:{one},two={HOST}:{two}"}
    async with web(world) as caller, gateway_beside(world.federation.dc2, world.token, **binds) as gateway:
        held = (await registration(gateway.consul))["Proxy"]["Config"]
        assert held["envoy_gateway_no_default_bind"] is True
        assert held["envoy_gateway_bind_addresses"] == {
            "one": {"Address": HOST, "Port": one},
            "two": {"Address": HOST, "Port": two},
        }
        assert await serves(world, caller, one)
        assert await serves(world, caller, two)
        assert not await serves(world, caller, gateway.address[1])


@pytest.mark.parametrize("prefix", ["envoy_gateway", "envoy_mesh_gateway"])
async def test_listeners_of_proxy_defaults_come_and_go_while_streams_live_on(world: World, prefix: str) -> None:
    (extra,) = free_ports(1)
    async with web(world) as caller, gateway_beside(world.federation.dc2, world.token) as gateway:
        own = gateway.address[1]

        async def seen() -> tuple[bool, bool]:
            return await serves(world, caller, own), await serves(world, caller, extra)

        assert await seen() == (True, False)
        await central(world, {f"{prefix}_bind_addresses": {"extra": {"address": HOST, "port": extra}}})
        try:
            await until_equal("the new listener", seen, (True, True), 20)
            async with caller.connect((HOST, extra), world.sni(), expect=world.spiffe()) as stream:
                await central(world, {})
                await until_equal("its end", seen, (True, False), 20)
                await stream.send_all(b"still here")
                assert await stream.receive_some() == b"still here"
        finally:
            await world.federation.delete_config_entry("proxy-defaults", "global")


async def central(world: World, config: dict[str, object]) -> None:
    await world.federation.write_config_entry({"Kind": "proxy-defaults", "Name": "global", "Config": config})


async def test_listener_that_cannot_be_bound_is_a_problem_of_its_own(world: World) -> None:
    async with web(world) as caller, gateway_beside(world.federation.dc2, world.token) as gateway:
        await central(world, {"envoy_gateway_bind_addresses": {"far": {"address": "192.0.2.77", "port": 8443}}})

        async def problems() -> list[str]:
            return list((await gateway.ask("/readyz"))["problems"])

        try:
            wanted = ["cannot bind far=192.0.2.77:8443: Cannot assign requested address"]
            await until_equal("the problem", problems, wanted, 20)
            assert await serves(world, caller, gateway.address[1])
        finally:
            await world.federation.delete_config_entry("proxy-defaults", "global")
        await until_equal("its end", problems, [], 20)


async def test_keepalive_towards_other_gateways_is_set_centrally(world: World) -> None:
    async with gateway_beside(world.federation.dc2, world.token) as gateway:
        key = "envoy_gateway_remote_tcp"
        await central(
            world,
            {
                f"{key}_enable_keepalive": True,
                f"{key}_keepalive_time": 33,
                f"{key}_keepalive_interval": 7,
                f"{key}_keepalive_probes": 3,
            },
        )

        async def keepalive() -> object:
            return (await gateway.ask("/config_dump"))["limits"]["remote_keepalive"]

        try:
            await until_equal("the keepalive", keepalive, {"time": 33, "interval": 7, "probes": 3}, 20)
        finally:
            await world.federation.delete_config_entry("proxy-defaults", "global")
        await until_equal("its end", keepalive, {"time": 0, "interval": 0, "probes": 0}, 20)


class Defined:
    """A service definition file that the agent loads, and loads again."""

    def __init__(self, consul: Consul) -> None:
        self.consul = consul
        self._path = consul.folder / "consul.json"
        self._before = self._path.read_text()

    async def load(self, **service: object) -> None:
        # The agent makes a definition known to the catalog with the definition's own token.
        own = {"kind": "mesh-gateway", "name": "edge", "id": "edge-1", "token": self.consul.master_token}
        definition = own | service
        settings = json.loads(self._before) | ({"services": [definition]} if service else {})
        self._path.write_text(json.dumps(settings))
        await self.consul.put("/v1/agent/reload")

    async def unload(self) -> None:
        await self.load()


@asynccontextmanager
async def definition_file(consul: Consul) -> AsyncIterator[Defined]:
    defined = Defined(consul)
    try:
        yield defined
    finally:
        await defined.unload()


async def test_registration_from_a_definition_file_is_waited_for_and_followed_and_left_behind(world: World) -> None:
    """`MESHGATE_REGISTER=false`: addresses, ports and options are the file's, not those of the settings."""
    dc2 = world.federation.dc2
    first, second, third = free_ports(3)
    gateway = GatewayProcess(dc2, world.token, service="edge", instance="edge-1")
    async with web(world) as caller, definition_file(dc2) as file:
        gateway.spawn({"MESHGATE_REGISTER": "false"})
        try:

            async def problems() -> list[str]:
                return list((await gateway.ask("/readyz"))["problems"])

            missing = ["the agent holds no registration 'edge-1', and MESHGATE_REGISTER is false"]
            await until_answers(gateway)
            await until_equal("the wait", problems, missing, 20)
            assert not await serves(world, caller, gateway.address[1])

            async def ready() -> bool:
                return bool((await gateway.ask("/readyz"))["ready"])

            # Not until the catalog has it: that is the agent's doing, and took 1.22.6 over 45 seconds now and then.
            await file.load(address=HOST, port=first, meta={"consul-wan-federation": "1"})
            await until_equal("the gateway", ready, True, 20)
            assert await serves(world, caller, first)
            assert not await serves(world, caller, gateway.address[1])
            servers = [each["sni"] for each in (await gateway.ask("/routes"))["routes"] if each["kind"] == "server"]
            assert "server.dc2.consul" in servers

            options = {
                "envoy_gateway_bind_tagged_addresses": True,
                "envoy_gateway_bind_addresses": {"own": {"address": HOST, "port": third}},
                "connect_timeout_ms": 777,
            }
            await file.load(
                address=HOST,
                port=first,
                tagged_addresses={"lan": {"address": HOST, "port": second}},
                meta={"consul-wan-federation": "1"},
                proxy={"config": options},
            )

            async def served() -> list[bool]:
                return [await serves(world, caller, port) for port in (first, second, third)]

            async def timeout() -> object:
                return (await gateway.ask("/config_dump"))["limits"]["connect_timeout"]

            await until_equal("all its listeners", served, [True, True, True], 20)
            await until_equal("its timeout", timeout, 0.777, 20)

            await file.load(address=HOST, port=second, meta={"consul-wan-federation": "1"})
            await until_equal("the moved listener", served, [False, True, False], 20)
        finally:
            await gateway.stop()
        assert (await registration(dc2, "edge-1"))["Port"] == second


async def until_answers(gateway: GatewayProcess) -> None:
    async def live() -> bool:
        try:
            await gateway.ask("/readyz")
        except httpx.TransportError:
            return False
        return True

    await until_equal("the admin address", live, True, 20)
