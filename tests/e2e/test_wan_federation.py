"""WAN federation through gateways, with two real datacenters that have no other way to each other (case-wanfed-gw)."""

import ssl
from collections.abc import Iterator

import pytest
import trio

from tests.harness.agent import Consul, ConsulError
from tests.harness.gateway import GatewayProcess
from tests.harness.instance import HOST
from tests.harness.ports import free_ports
from tests.harness.sidecar import sidecar_for
from tests.harness.wanfed import DOMAIN, NOWHERE, GatewayFederation

from .world import World, until_equal

pytestmark = pytest.mark.consul

ALIVE = 1


@pytest.fixture(scope="module")
def federation(consul_binary: str) -> Iterator[GatewayFederation]:
    """Two datacenters that found each other, from nothing, through their gateways."""
    federation = trio.run(GatewayFederation.start, consul_binary)
    try:
        yield federation
    finally:
        trio.run(federation.stop)


def server_name(node: str, datacenter: str) -> str:
    return f"{node}.server.{datacenter}.{DOMAIN}"


async def alive(consul: Consul) -> dict[str, str]:
    """The members of the WAN that a server believes alive, and the addresses that it knows them by."""
    members = await consul.get("/v1/agent/members", wan="1")
    return {member["Name"]: member["Addr"] for member in members if member["Status"] == ALIVE}


async def carried(gateway: GatewayProcess, destination: str) -> float:
    return await gateway.counter("meshgate_connections_total", kind="server", destination=destination)


async def writes(consul: Consul, datacenter: str, key: str) -> bool:
    """Whether a key written through `consul` for another datacenter arrives there."""
    try:
        await consul.put(f"/v1/kv/{key}", f"by {consul.datacenter}", dc=datacenter)
        return bool(await consul.get(f"/v1/kv/{key}", dc=datacenter))
    except ConsulError:
        return False


async def meet_server(federation: GatewayFederation, gateway: GatewayProcess, name: str) -> None:
    """A handshake as a server of dc2 makes it, by which the other side must prove that it is the server `name`."""
    context = ssl.create_default_context(cafile=federation.folder / f"{DOMAIN}-agent-ca.pem")
    certificate = federation.folder / f"dc2-server-{DOMAIN}-0.pem"
    context.load_cert_chain(certificate, certificate.with_name(f"{certificate.stem}-key.pem"))
    stream = trio.SSLStream(await trio.open_tcp_stream(*gateway.address), context, server_hostname=name)
    try:
        with trio.fail_after(10):
            await stream.do_handshake()
    finally:
        await trio.aclose_forcefully(stream)


async def test_each_datacenter_sees_both_alive_at_addresses_that_only_gateways_can_make_good(
    federation: GatewayFederation,
) -> None:
    announced = {f"{name}-server.{name}": address for name, address in NOWHERE.items()}
    for consul in federation.datacenters:
        assert await alive(consul) == announced
    primary, secondary = federation.gateways
    await until_equal("dc2's calls to dc1", lambda: has_carried(primary, "dc1-server.server.dc1"), True, 10)
    await until_equal("dc1's calls to dc2", lambda: has_carried(primary, "*.server.dc2"), True, 10)
    await until_equal("their arrival in dc2", lambda: has_carried(secondary, "dc2-server.server.dc2"), True, 10)


async def has_carried(gateway: GatewayProcess, destination: str) -> bool:
    return await carried(gateway, destination) > 0


async def test_a_key_is_written_by_rpc_in_both_directions(federation: GatewayFederation) -> None:
    dc1, dc2 = federation.datacenters
    for consul, other in ((dc1, dc2), (dc2, dc1)):
        await consul.put("/v1/kv/both-ways", f"from {consul.datacenter}", dc=other.datacenter)
        # Read where it belongs, without a detour: it is there and nowhere else.
        (row,) = await other.get("/v1/kv/both-ways")
        assert row["Key"] == "both-ways"
        await other.delete("/v1/kv/both-ways")
        with pytest.raises(ConsulError):
            await consul.get("/v1/kv/both-ways")


async def test_gossip_measures_its_round_trips_through_the_gateways(federation: GatewayFederation) -> None:
    """Packets of the gossip go both ways: a server's network coordinate moves only when its probes are answered."""
    for consul in federation.datacenters:

        async def measured(consul: Consul = consul) -> set[str]:
            areas = await consul.get("/v1/coordinate/datacenters")
            return {area["Datacenter"] for area in areas for node in area["Coordinates"] if any(node["Coord"]["Vec"])}

        await until_equal("coordinates of both", measured, {"dc1", "dc2"}, 30)


async def test_each_gateway_has_the_names_that_consuls_own_has(federation: GatewayFederation) -> None:
    for gateway, other in zip(federation.gateways, ("dc2", "dc1"), strict=True):
        here = gateway.consul
        servers = {
            route["sni"]: {endpoint["port"] for endpoint in route["endpoints"]}
            for route in (await gateway.ask("/routes"))["routes"]
            if route["kind"] == "server"
        }
        (beyond,) = (one.address[1] for one in federation.gateways if one is not gateway)
        assert servers == {
            server_name(here.node, here.datacenter): {here.ports.server},
            f"server.{here.datacenter}.{DOMAIN}": {here.ports.server},
            f"*.server.{other}.{DOMAIN}": {beyond},
            f"server.{other}.{DOMAIN}": {beyond},
        }


@pytest.mark.parametrize("name", [server_name("dc1-server", "dc1"), f"server.dc1.{DOMAIN}"])
async def test_a_server_is_met_through_its_own_and_through_both_gateways(
    federation: GatewayFederation, name: str
) -> None:
    for gateway in federation.gateways:
        await meet_server(federation, gateway, name)


async def test_a_server_that_does_not_exist_is_refused_where_it_would_be(federation: GatewayFederation) -> None:
    primary, secondary = federation.gateways
    name = server_name("nosuch", "dc2")
    before = await secondary.counter("meshgate_refused_total", reason="unknown_sni")
    with pytest.raises(trio.BrokenResourceError) as refused:
        await meet_server(federation, primary, name)
    assert "UNRECOGNIZED_NAME" in str(refused.value.__cause__)
    assert await secondary.counter("meshgate_refused_total", reason="unknown_sni") == before + 1
    explanation = await secondary.ask(f"/explain?sni={name}")
    assert explanation["steps"][-1]["outcome"].endswith("known are dc2-server")


async def test_a_service_of_dc2_is_reached_from_dc1_in_mode_local_on_top_of_it(federation: GatewayFederation) -> None:
    world = World(federation, federation.token)
    local, remote = federation.gateways
    await federation.set_intention("shop", "web", "allow")
    async with sidecar_for(federation.dc2, "web") as web:
        await until_equal("the service", lambda: remote.endpoints(world.sni()), {web.port: True}, 10)
        caller = await world.caller()
        answer = await caller.call(local.address, world.sni(), b"ping\n", expect=world.spiffe())
        assert answer.data == b"ping\n"


@pytest.mark.parametrize(
    ("which", "how"), [(0, "killed"), (0, "drained"), (1, "killed"), (1, "drained"), (1, "killed and moved")]
)
async def test_without_a_gateway_there_is_no_way_and_its_restart_heals(
    federation: GatewayFederation, which: int, how: str
) -> None:
    dc1, dc2 = federation.datacenters
    gateway = federation.gateways[which]
    key = f"{how}-{which}"

    async def both_ways() -> tuple[bool, bool]:
        return await writes(dc1, "dc2", key), await writes(dc2, "dc1", key)

    await until_equal("writes before it", both_ways, (True, True), 30)
    if how != "drained":
        await gateway.child.kill()
    else:
        # Long before its drain is over: streams of servers, which never end by themselves, are not waited for.
        await gateway.stop()
        assert gateway.child.returncode == 0
    assert not await writes(dc1, "dc2", key)
    if "moved" in how:
        # Where it is now is known where it leads to; the way back is through the other gateway, which only hears of it.
        gateway.address = HOST, free_ports(1)[0]
    await federation.start_gateway(gateway)
    await until_equal("writes after it", both_ways, (True, True), 30)
    for consul in federation.datacenters:
        assert len(await alive(consul)) == 2
