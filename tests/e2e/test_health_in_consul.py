"""Health as Consul means it, all of it real: maintenance of services and nodes, and who stands in for a service."""

import pytest
import trio

from meshgate.adapters.mesh_tls import RefusedError
from tests.harness.native import native_service

from .world import Pair, World, until_equal

pytestmark = pytest.mark.consul


@pytest.mark.parametrize("whose", ["service/maintenance/web", "maintenance"], ids=["service", "node"])
async def test_maintenance_takes_an_instance_out_and_puts_it_back(world: World, gateways: Pair, whose: str) -> None:
    dc2 = world.federation.dc2
    _, remote = gateways
    async with native_service(dc2, "web", world.federation.folder) as web:
        caller = await world.caller()

        async def endpoints() -> dict[int, bool]:
            return await remote.endpoints(world.sni())

        await until_equal("the service", endpoints, {web.port: True}, 20)
        async with caller.connect(remote.address, world.sni(), expect=world.spiffe()) as stream:
            await dc2.put(f"/v1/agent/{whose}", enable="true", reason="a test")
            try:
                await until_equal("the maintenance", endpoints, {web.port: False}, 20)
                with pytest.raises(RefusedError) as refused:
                    await caller.call(remote.address, world.sni())
                assert refused.value.alert == "internal_error"
                await stream.send_all(b"still here")
                assert await stream.receive_some() == b"still here"
            finally:
                await dc2.put(f"/v1/agent/{whose}", enable="false")
        await until_equal("its end", endpoints, {web.port: True}, 20)
        await caller.call(remote.address, world.sni(), expect=world.spiffe())


async def test_instance_with_a_warning_has_its_weight_for_warnings_and_none_below_one(
    world: World, gateways: Pair
) -> None:
    _, remote = gateways
    dc2, folder = world.federation.dc2, world.federation.folder
    async with (
        native_service(dc2, "web", folder, instance="heavy", named=True, Weights={"Passing": 3, "Warning": 1}),
        native_service(dc2, "web", folder, instance="light", named=True, Weights={"Passing": 3, "Warning": 1}) as light,
        native_service(dc2, "web", folder, instance="none", named=True, Weights={"Passing": 3, "Warning": 0}) as none,
    ):
        caller = await world.caller()
        await light.set_health("warning")
        await none.set_health("warning")

        async def weights() -> list[int]:
            routes = (await remote.ask("/routes"))["routes"]
            endpoints = [it for route in routes if route["sni"] == world.sni() for it in route["endpoints"]]
            return sorted(endpoint["weight"] for endpoint in endpoints if endpoint["healthy"])

        await until_equal("the warnings", weights, [1, 3], 20)

        async def met() -> bytes:
            return (await caller.call(remote.address, world.sni(), b".")).data

        with trio.fail_after(60):
            names = [await met() for _ in range(8)]
        assert {name: names.count(name) for name in set(names)} == {b"heavy\n.": 6, b"light\n.": 2}


async def test_terminating_gateway_answers_for_the_services_that_are_linked_to_it(world: World, gateways: Pair) -> None:
    _, remote = gateways
    dc2 = world.federation.dc2
    linked = {"Kind": "terminating-gateway", "Name": "egress", "Services": [{"Name": "legacy"}]}
    gateway = {"Kind": "terminating-gateway", "Name": "egress", "ID": "egress-1", "Address": "127.0.0.1", "Port": 9443}

    async def endpoints() -> dict[int, bool]:
        return await remote.endpoints(world.sni("legacy"))

    try:
        await dc2.register({"Name": "legacy", "ID": "legacy", "Address": "127.0.0.1", "Port": 5432})
        await dc2.register(gateway)
        assert await endpoints() == {}
        await world.federation.write_config_entry(linked)
        await until_equal("the link", endpoints, {9443: True}, 20)
        await dc2.register(gateway | {"Port": 9444})
        await until_equal("the moved gateway", endpoints, {9444: True}, 20)
        # Consul 1.8 lets a held query sleep when only the link goes (its index goes back), but not for this.
        await dc2.deregister("egress-1")
        await until_equal("its end", endpoints, {}, 20)
    finally:
        await world.federation.delete_config_entry("terminating-gateway", "egress")
        for instance in ("egress-1", "legacy"):
            await dc2.deregister(instance)
