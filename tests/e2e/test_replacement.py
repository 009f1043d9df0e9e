"""Gateways that stop, are followed by others or replaced one after another under load: no connection fails."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio

from meshgate.adapters.mesh_tls import RefusedError
from tests.harness.agent import Consul
from tests.harness.gateway import LONG_DRAIN, GatewayProcess, gateway_beside
from tests.harness.native import native_service
from tests.harness.sidecar import sidecar_for

from .world import World, until_equal

pytestmark = pytest.mark.consul


@dataclass
class Load:
    """Calls through whatever gateways of dc1 the catalog lists as healthy, as sidecars choose theirs."""

    world: World
    done: int = 0
    failures: list[str] = field(default_factory=list)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(self._call_on_and_on)

    async def _call_on_and_on(self) -> None:
        caller = await self.world.caller()
        while True:
            address = random.choice(await healthy_gateways(self.world.federation.dc1))
            try:
                answer = await caller.call(address, self.world.sni(), b"x" * 5000, expect=self.world.spiffe())
                assert answer.data == b"x" * 5000
            except RefusedError as error:
                self.failures.append(f"{address}: {error}")
            self.done += 1


async def healthy_gateways(consul: Consul) -> list[tuple[str, int]]:
    rows = await consul.get("/v1/health/service/mesh-gateway", passing="1")
    return [(row["Service"]["Address"], row["Service"]["Port"]) for row in rows]


@asynccontextmanager
async def two_gateways(world: World, consul: Consul) -> AsyncIterator[list[GatewayProcess]]:
    """Two gateways of a datacenter under one name; the list is the test's to change."""
    gateways = [GatewayProcess(consul, world.token, instance=f"mesh-gateway-{number}") for number in (1, 2)]
    try:
        for gateway in gateways:
            await gateway.start(LONG_DRAIN)
        yield gateways
    finally:
        async with trio.open_nursery() as nursery:
            for gateway in gateways:
                nursery.start_soon(gateway.stop)


async def test_replacing_every_gateway_one_by_one_fails_no_connection(world: World) -> None:
    dc1, dc2 = world.federation.datacenters
    suffix = f"*.dc2.internal.{world.federation.trust_domain}"
    async with (
        native_service(dc2, "web", world.federation.folder),
        two_gateways(world, dc2) as remote,
        two_gateways(world, dc1) as local,
    ):

        async def known(gateway: GatewayProcess) -> int:
            return sum((await gateway.endpoints(suffix)).values())

        for gateway in local:
            await until_equal("both gateways of dc2", lambda each=gateway: known(each), 2, seconds=15)  # type: ignore[misc]
        async with trio.open_nursery() as nursery:
            load = Load(world)
            nursery.start_soon(load.run)
            for consul, gateways in ((dc2, remote), (dc1, local)):
                for number in (3, 4):
                    old = gateways.pop(0)
                    new = GatewayProcess(consul, world.token, instance=f"mesh-gateway-{number}")
                    gateways.append(await new.start(LONG_DRAIN))
                    before = load.done
                    await old.stop(20)
                    assert old.child.returncode == 0
                    assert load.done > before
            await trio.sleep(0.5)
            nursery.cancel_scope.cancel()
        assert load.failures == []
        assert load.done > 50


async def test_second_gateway_of_dc2_takes_over_when_the_first_one_stops(world: World) -> None:
    async with sidecar_for(world.federation.dc2, "web"), world.gateways() as (local, remote):
        caller = await world.caller()
        await caller.call(local.address, world.sni(), expect=world.spiffe())
        await remote.stop()

        async def healthy() -> list[int]:
            known = await local.endpoints(f"*.dc2.internal.{world.federation.trust_domain}")
            return [port for port, good in known.items() if good]

        await until_equal("the first gateway's end", healthy, [])
        async with gateway_beside(world.federation.dc2, world.token, instance="mesh-gateway-2") as second:
            await until_equal("the second gateway", healthy, [second.address[1]], seconds=15)
            await caller.call(local.address, world.sni(), expect=world.spiffe())


async def test_gateway_that_stops_lets_open_streams_end_first(world: World) -> None:
    async with native_service(world.federation.dc2, "web", world.federation.folder):
        async with gateway_beside(world.federation.dc2, world.token, **LONG_DRAIN) as gateway:
            caller = await world.caller()
            async with (
                caller.connect(gateway.address, world.sni(), expect=world.spiffe()) as stream,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(gateway.stop, 20)
                await until_equal("the deregistration", lambda: is_registered(world), False, seconds=5)
                await stream.send_all(b"still here")
                assert await stream.receive_some() == b"still here"
                await stream.aclose()
            assert gateway.child.returncode == 0


async def is_registered(world: World) -> bool:
    return bool(await world.federation.dc2.get("/v1/health/service/mesh-gateway"))
