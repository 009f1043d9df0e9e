"""What callers are sent to by Consul's own discovery chains: failover and redirect to another datacenter.

The caller decides, by the chain that Consul compiles for it; the gateways only have to be where the chain's targets
lead. (case-cfg-resolver-dc-failover-gateways-remote, -none, case-ingress-mesh-gateways-resolver)
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.harness.native import native_service

from .world import Pair, World, until_equal

pytestmark = pytest.mark.consul


@asynccontextmanager
async def entries(world: World, *written: dict[str, Any]) -> AsyncIterator[None]:
    """Configuration entries for the length of the block."""
    try:
        for entry in written:
            await world.federation.write_config_entry(entry)
        yield
    finally:
        for entry in written:
            await world.federation.delete_config_entry(entry["Kind"], entry["Name"])


def resolver(**fields: Any) -> dict[str, Any]:
    return {"Kind": "service-resolver", "Name": "web", **fields}


def mode(which: str) -> dict[str, Any]:
    return {"Kind": "proxy-defaults", "Name": "global", "MeshGateway": {"Mode": which}}


async def targets(world: World) -> dict[str, dict[str, Any]]:
    """The targets of the chain that a caller of `web` in dc1 follows, by datacenter."""
    chain = (await world.federation.dc1.get("/v1/discovery-chain/web"))["Chain"]
    return {target["Datacenter"]: target for target in chain["Targets"].values()}


async def carried(world: World, which: str, gateways: Pair, target: dict[str, Any]) -> tuple[float, ...]:
    """Call a chain's target as a sidecar of dc1 does in a mode; the connections of both gateways that it takes."""
    caller = await world.caller()
    local, remote = gateways
    entry = {"local": local, "remote": remote}[which]
    before = [await gateway.counter("meshgate_connections_total") for gateway in gateways]
    expect = world.spiffe()
    assert (await caller.call(entry.address, target["SNI"], b"ping\n", expect=expect)).data == b"ping\n"
    after = [await gateway.counter("meshgate_connections_total") for gateway in gateways]
    return tuple(now - then for now, then in zip(after, before, strict=True))


@pytest.mark.parametrize(("which", "counted"), [("remote", (0, 1)), ("local", (1, 1))])
async def test_failover_to_another_datacenter_goes_through_the_gateways_of_its_mode(
    world: World, gateways: Pair, which: str, counted: tuple[int, int]
) -> None:
    dc1, dc2 = world.federation.datacenters
    failover = resolver(Failover={"*": {"Datacenters": ["dc2"]}})
    async with (
        native_service(dc1, "web", world.federation.folder) as near,
        native_service(dc2, "web", world.federation.folder) as far,
        entries(world, mode(which), failover),
    ):
        chain = await targets(world)
        modes = {name: target["MeshGateway"].get("Mode") for name, target in chain.items()}
        # Newer Consuls name the mode for the near target too, where it has no meaning.
        assert modes in ({"dc1": None, "dc2": which}, {"dc1": which, "dc2": which})
        await near.set_health("critical")
        await until_equal("the far one", lambda: gateways[1].endpoints(chain["dc2"]["SNI"]), {far.port: True}, 20)
        assert await carried(world, which, gateways, chain["dc2"]) == counted


async def test_failover_without_gateways_is_told_so_by_consul_and_touches_none(world: World) -> None:
    async with entries(world, mode("none"), resolver(Failover={"*": {"Datacenters": ["dc2"]}})):
        chain = await targets(world)
        assert chain["dc2"]["MeshGateway"] == {"Mode": "none"}


@pytest.mark.parametrize(("which", "counted"), [("remote", (0, 1)), ("local", (1, 1))])
async def test_redirect_to_another_datacenter_goes_through_the_gateways_of_its_mode(
    world: World, gateways: Pair, which: str, counted: tuple[int, int]
) -> None:
    async with (
        native_service(world.federation.dc2, "web", world.federation.folder) as web,
        entries(world, mode(which), resolver(Redirect={"Datacenter": "dc2"})),
    ):
        chain = await targets(world)
        assert list(chain) == ["dc2"]
        assert chain["dc2"]["SNI"] == world.sni()
        # The resolver is dc2's too: there it redirects to itself, which changes nothing for who has arrived.
        await until_equal("the service", lambda: gateways[1].endpoints(world.sni()), {web.port: True}, 20)
        assert await carried(world, which, gateways, chain["dc2"]) == counted
