"""Real mTLS between two real datacenters, through the local and the remote gateway (case-gateways-local, -remote)."""

import hashlib
import random
from functools import partial

import pytest
import trio

from meshgate.adapters.mesh_tls import RefusedError
from tests.harness.native import native_service
from tests.harness.sidecar import sidecar_for

from .world import Pair, World, until_equal

pytestmark = pytest.mark.consul

MEGABYTES_10 = 10 << 20


async def test_gateway_with_no_services_at_all_is_ready(world: World, gateways: Pair) -> None:
    """case-gateway-without-services. What runs before this test leaves no service."""
    local, _ = gateways

    async def kinds() -> set[str]:
        return {route["kind"] for route in (await local.ask("/routes"))["routes"]}

    await until_equal("a table without services", kinds, {"datacenter"})
    assert (await local.ask("/readyz"))["ready"]
    assert (await local.ask("/routes"))["trust_domain"] == world.federation.trust_domain


@pytest.mark.parametrize("mode", ["local", "remote"])
async def test_caller_meets_the_service_and_only_the_gateways_of_its_mode_carry_it(
    world: World, gateways: Pair, mode: str
) -> None:
    local, remote = gateways
    async with sidecar_for(world.federation.dc2, "web", named=True) as web:
        await world.until_known(remote, web.port)
        caller = await world.caller()
        entry = local if mode == "local" else remote

        async def carried() -> list[float]:
            return [
                await local.counter("meshgate_connections_total"),
                await local.counter("meshgate_connections_total", kind="datacenter", destination="dc2"),
                await remote.counter("meshgate_connections_total", kind="service", destination="web"),
            ]

        before = await carried()
        answer = await caller.call(entry.address, world.sni(), b"ping\n", expect=world.spiffe())
        assert answer.data == b"web\nping\n"
        assert answer.met.tls_version == "TLSv1.3"
        by_local = mode == "local"
        more = [now - then for now, then in zip(await carried(), before, strict=True)]
        assert more == [by_local, by_local, 1]


@pytest.mark.parametrize("mode", ["local", "remote"])
async def test_ten_mebibytes_each_way_arrive_with_equal_hashes(world: World, gateways: Pair, mode: str) -> None:
    data = random.Random(7).randbytes(MEGABYTES_10)
    entry = gateways[0] if mode == "local" else gateways[1]

    async def carried(direction: str) -> float:
        return await entry.counter("meshgate_bytes_total", direction=direction)

    before = {direction: await carried(direction) for direction in ("received", "sent")}
    async with native_service(world.federation.dc2, "web", world.federation.folder) as web:
        await world.until_known(gateways[1], web.port)
        caller = await world.caller()
        async with caller.connect(entry.address, world.sni(), expect=world.spiffe()) as stream:
            received = hashlib.sha256()

            async def send() -> None:
                await stream.send_all(data)
                await stream.send_eof()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                while chunk := await stream.receive_some():
                    received.update(chunk)
        assert received.digest() == hashlib.sha256(data).digest()
        for direction, earlier in before.items():
            assert await carried(direction) > earlier + MEGABYTES_10


async def test_half_close_crosses_both_gateways_and_the_answer_comes_after_it(world: World, gateways: Pair) -> None:
    """The service ends its side when the caller has: the last byte comes after the caller's end of stream."""
    async with native_service(world.federation.dc2, "web", world.federation.folder) as web:
        await world.until_known(gateways[1], web.port)
        caller = await world.caller()
        async with caller.connect(gateways[0].address, world.sni(), expect=world.spiffe()) as stream:
            await stream.send_all(b"half")
            await stream.send_eof()
            received = b""
            while chunk := await stream.receive_some():
                received += chunk
            assert received == b"half"


async def test_wrong_names_get_an_alert_and_never_a_byte(world: World, gateways: Pair) -> None:
    local, remote = gateways
    async with sidecar_for(world.federation.dc2, "web"):
        caller = await world.caller()
        names = {
            world.sni("nosuch"): (remote, "unknown_sni"),
            world.sni("web", "dc3"): (local, "unknown_sni"),
            "web.default.dc2.internal.11111111-2222-3333-4444-555555555555.consul": (local, "unknown_sni"),
            world.sni("nosuch", "dc1"): (local, "unknown_sni"),
            None: (local, "no_sni"),
        }
        for name, (gateway, reason) in names.items():
            before = await gateway.counter("meshgate_refused_total", reason=reason)
            with pytest.raises(RefusedError) as refused:
                await caller.call(gateway.address, name)
            assert refused.value.alert == "unrecognized_name", name
            assert await gateway.counter("meshgate_refused_total", reason=reason) == before + 1


async def test_denied_by_intentions_the_sidecar_refuses_and_the_gateways_relay_faithfully(
    world: World, gateways: Pair
) -> None:
    local, remote = gateways

    async def counts() -> list[tuple[float, float]]:
        return [
            (await it.counter("meshgate_connections_total"), await it.counter("meshgate_refused_total"))
            for it in gateways
        ]

    async with sidecar_for(world.federation.dc2, "web") as web:
        await world.until_known(remote, web.port)
        stranger = await world.caller("stranger")
        before = await counts()
        with pytest.raises(RefusedError):
            await stranger.call(local.address, world.sni())
        assert await counts() == [(carried + 1, refused) for carried, refused in before]
        for gateway in gateways:
            await until_equal("the stream's end", partial(gateway.counter, "meshgate_connections_active"), 0)
        caller = await world.caller()
        assert (await caller.call(local.address, world.sni())).met.spiffe_id == world.spiffe()
