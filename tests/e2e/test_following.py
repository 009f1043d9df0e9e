"""The route table follows Consul within two seconds, and streams go where it says."""

import pytest

from meshgate.adapters.mesh_tls import RefusedError
from tests.harness.native import native_service
from tests.harness.sidecar import sidecar_for

from .world import Pair, World, until_equal

pytestmark = pytest.mark.consul


async def test_service_that_appears_moves_turns_critical_recovers_and_disappears(world: World, gateways: Pair) -> None:
    local, remote = gateways
    caller = await world.caller()

    async def endpoints() -> dict[int, bool]:
        return await remote.endpoints(world.sni())

    async def refused_for_want_of_health() -> float:
        return await remote.counter("meshgate_refused_total", reason="no_healthy_endpoint")

    assert await endpoints() == {}
    before = await refused_for_want_of_health()
    async with sidecar_for(world.federation.dc2, "web") as web:
        await until_equal("the new service", endpoints, {web.port: True})
        await caller.call(local.address, world.sni(), expect=world.spiffe())

        await web.move()
        await until_equal("the moved service", endpoints, {web.port: True})
        await caller.call(local.address, world.sni(), expect=world.spiffe())

        await web.set_health("critical")
        await until_equal("the critical service", endpoints, {web.port: False})
        with pytest.raises(RefusedError) as refused:
            await caller.call(local.address, world.sni())
        assert refused.value.alert == "internal_error"
        assert await refused_for_want_of_health() == before + 1

        await web.set_health("warning")
        await until_equal("the recovered service", endpoints, {web.port: True})
        await caller.call(local.address, world.sni(), expect=world.spiffe())

        await web.deregister()
        await until_equal("the service's end", endpoints, {})
        with pytest.raises(RefusedError) as refused:
            await caller.call(local.address, world.sni())
        assert refused.value.alert == "unrecognized_name"


async def test_open_stream_outlives_its_service_in_the_catalog(world: World, gateways: Pair) -> None:
    local, remote = gateways
    async with native_service(world.federation.dc2, "web", world.federation.folder) as web:
        await world.until_known(remote, web.port)
        caller = await world.caller()
        async with caller.connect(local.address, world.sni(), expect=world.spiffe()) as stream:
            await stream.send_all(b"one")
            assert await stream.receive_some() == b"one"
            await web.deregister()
            await until_equal("the service's end", lambda: remote.endpoints(world.sni()), {})
            await stream.send_all(b"two")
            assert await stream.receive_some() == b"two"


async def test_subsets_and_the_default_subset_of_a_resolver(world: World, gateways: Pair) -> None:
    local, remote = gateways
    dc2, folder = world.federation.dc2, world.federation.folder
    async with (
        native_service(dc2, "api", folder, instance="api-1", named=True, Meta={"version": "1"}) as one,
        native_service(dc2, "api", folder, instance="api-2", named=True, Meta={"version": "2"}) as two,
    ):
        caller = await world.caller()
        await until_equal("both", lambda: remote.endpoints(world.sni("api")), {one.port: True, two.port: True})
        await world.federation.write_config_entry(
            {
                "Kind": "service-resolver",
                "Name": "api",
                "DefaultSubset": "v2",
                "Subsets": {
                    "v1": {"Filter": "Service.Meta.version == 1"},
                    "v2": {"Filter": "Service.Meta.version == 2"},
                },
            }
        )
        v1 = world.sni("v1.api")
        await until_equal("v1", lambda: remote.endpoints(v1), {one.port: True})
        await until_equal("the default", lambda: remote.endpoints(world.sni("api")), {two.port: True})
        assert (await caller.call(local.address, v1, b".")).data == b"api-1\n."
        assert (await caller.call(local.address, world.sni("api"), b".")).data == b"api-2\n."
        await world.federation.delete_config_entry("service-resolver", "api")
        await until_equal("no subsets", lambda: remote.endpoints(v1), {})
        await until_equal("both again", lambda: remote.endpoints(world.sni("api")), {one.port: True, two.port: True})


async def test_instances_are_balanced_by_their_weights(world: World, gateways: Pair) -> None:
    _, remote = gateways
    dc2, folder = world.federation.dc2, world.federation.folder
    async with (
        native_service(dc2, "cart", folder, instance="cart-1", named=True, Weights={"Passing": 1, "Warning": 1}),
        native_service(dc2, "cart", folder, instance="cart-2", named=True, Weights={"Passing": 3, "Warning": 1}),
    ):
        caller = await world.caller()

        async def count() -> int:
            return len(await remote.endpoints(world.sni("cart")))

        await until_equal("both", count, 2)
        met = [(await caller.call(remote.address, world.sni("cart"), b".")).data for _ in range(8)]
        assert met.count(b"cart-1\n.") == 2
        assert met.count(b"cart-2\n.") == 6


async def test_connect_timeout_of_proxy_defaults_takes_effect_while_running(world: World, gateways: Pair) -> None:
    """Central configuration is merged by the agent, read back and followed."""
    local, _ = gateways

    async def timeout() -> object:
        return (await local.ask("/config_dump"))["limits"]["connect_timeout"]

    assert await timeout() == 5.0
    await world.federation.write_config_entry(
        {"Kind": "proxy-defaults", "Name": "global", "Config": {"connect_timeout_ms": 321}}
    )
    await until_equal("the gateway to follow", timeout, 0.321, seconds=10)
    await world.federation.delete_config_entry("proxy-defaults", "global")
    await until_equal("the gateway to go back", timeout, 5.0, seconds=10)
