"""Real mTLS between two real datacenters, through the local and the remote gateway (case-gateways-local, -remote)."""

import hashlib
import random
from functools import partial

import pytest
import trio

from meshgate.adapters.mesh_tls import RefusedError
from tests.harness.native import native_service
from tests.harness.sidecar import sidecar_for

from .world import World, until_equal

pytestmark = pytest.mark.consul

MEGABYTES_10 = 10 << 20


@pytest.mark.parametrize("mode", ["local", "remote"])
async def test_caller_meets_the_service_and_only_the_gateways_of_its_mode_carry_it(world: World, mode: str) -> None:
    async with sidecar_for(world.federation.dc2, "web", named=True), world.gateways() as (local, remote):
        caller = await world.caller()
        entry = local if mode == "local" else remote
        answer = await caller.call(entry.address, world.sni(), b"ping\n", expect=world.spiffe())
        assert answer.data == b"web\nping\n"
        assert answer.met.tls_version == "TLSv1.3"
        assert await local.counter("meshgate_connections_total") == (mode == "local")
        assert await local.counter("meshgate_connections_total", kind="datacenter", destination="dc2") == (
            mode == "local"
        )
        assert await remote.counter("meshgate_connections_total", kind="service", destination="web") == 1


@pytest.mark.parametrize("mode", ["local", "remote"])
async def test_ten_mebibytes_each_way_arrive_with_equal_hashes(world: World, mode: str) -> None:
    data = random.Random(7).randbytes(MEGABYTES_10)
    async with (
        native_service(world.federation.dc2, "web", world.federation.folder),
        world.gateways() as (local, remote),
    ):
        caller = await world.caller()
        entry = local if mode == "local" else remote
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
        assert await entry.counter("meshgate_bytes_total", direction="received") > MEGABYTES_10
        assert await entry.counter("meshgate_bytes_total", direction="sent") > MEGABYTES_10


async def test_half_close_crosses_both_gateways_and_the_answer_comes_after_it(world: World) -> None:
    """The service ends its side when the caller has: the last byte comes after the caller's end of stream."""
    async with native_service(world.federation.dc2, "web", world.federation.folder), world.gateways() as (local, _):
        caller = await world.caller()
        async with caller.connect(local.address, world.sni(), expect=world.spiffe()) as stream:
            await stream.send_all(b"half")
            await stream.send_eof()
            received = b""
            while chunk := await stream.receive_some():
                received += chunk
            assert received == b"half"


async def test_wrong_names_get_an_alert_and_never_a_byte(world: World) -> None:
    async with sidecar_for(world.federation.dc2, "web"), world.gateways() as (local, remote):
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


async def test_gateway_with_no_services_at_all_is_ready(world: World) -> None:
    """case-gateway-without-services."""
    async with world.gateways() as (local, _):
        assert (await local.ask("/readyz"))["ready"]
        table = await local.ask("/routes")
        assert {route["kind"] for route in table["routes"]} == {"datacenter"}
        assert table["trust_domain"] == world.federation.trust_domain


async def test_denied_by_intentions_the_sidecar_refuses_and_the_gateways_relay_faithfully(world: World) -> None:
    async with sidecar_for(world.federation.dc2, "web"), world.gateways() as (local, remote):
        stranger = await world.caller("stranger")
        with pytest.raises(RefusedError):
            await stranger.call(local.address, world.sni())
        for gateway in (local, remote):
            assert await gateway.counter("meshgate_connections_total") == 1
            assert await gateway.counter("meshgate_refused_total") == 0
            await until_equal("the stream's end", partial(gateway.counter, "meshgate_connections_active"), 0)
        caller = await world.caller()
        assert (await caller.call(local.address, world.sni())).met.spiffe_id == world.spiffe()
