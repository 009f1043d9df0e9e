"""What somebody between two services can do, be it on the wire or as a gateway that went bad: see names, not contents.

The rogue gateway here has all that a gateway has: the streams, and every certificate that its token is good for.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial

import pytest
import trio

from meshgate.adapters.mesh_tls import RefusedError, WrongPeerError
from meshgate.app.settings.setting_table import BY_NAME
from tests.adapters.relay.streams import hello_for
from tests.core.hellos import hello, server_name
from tests.e2e.world import World, until_equal
from tests.harness.agent import ConsulError
from tests.harness.backend import serving
from tests.harness.gateway import GatewayProcess, gateway_beside
from tests.harness.native import native_service
from tests.harness.sidecar import sidecar_for
from tests.harness.tls import TlsStream, mesh_context
from tests.versions import KEYS_KEPT

pytestmark = pytest.mark.consul

SECRET = b"the salary of the director\n"


@asynccontextmanager
async def forwarder(port: int, seen: bytearray) -> AsyncIterator[int]:
    """Somebody in the middle who sends all streams to `port` and keeps a copy of both directions."""

    async def carry(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for chunk in source:
                seen.extend(chunk)
                await sink.send_all(chunk)
            await sink.send_eof()

    async def serve(client: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", port) as upstream, trio.open_nursery() as nursery:
            nursery.start_soon(carry, client, upstream)
            nursery.start_soon(carry, upstream, client)

    async with serving(serve) as own:
        yield own


async def test_the_wire_shows_the_name_and_no_content_and_no_identity(world: World) -> None:
    dc2, seen = world.federation.dc2, bytearray()
    async with (
        native_service(dc2, "web", world.federation.folder) as web,
        gateway_beside(dc2, world.token) as gateway,
        forwarder(gateway.address[1], seen) as tap,
    ):
        await until_equal("web", lambda: gateway.endpoints(world.sni()), {web.port: True})
        answer = await (await world.caller()).call(("127.0.0.1", tap), world.sni(), SECRET, expect=world.spiffe())
    assert answer.data == SECRET
    assert answer.met.tls_version == "TLSv1.3"
    assert world.sni().encode() in seen
    assert SECRET not in seen
    # In TLS 1.3 the certificates travel encrypted, too.
    assert b"spiffe://" not in seen


async def test_a_gateway_that_misroutes_is_noticed_before_a_byte_is_sent(world: World) -> None:
    dc2, folder, seen = world.federation.dc2, world.federation.folder, bytearray()
    async with native_service(dc2, "other", folder) as other, forwarder(other.port, seen) as rogue:
        caller = await world.caller()
        with pytest.raises(WrongPeerError, match="/svc/other"):
            await caller.call(("127.0.0.1", rogue), world.sni(), SECRET, expect=world.spiffe())
        # The way itself works: it is the name that the caller does not take.
        expected = world.spiffe("other")
        assert (await caller.call(("127.0.0.1", rogue), world.sni(), b"hello\n", expect=expected)).data == b"hello\n"
    assert len(seen) > 1000


async def test_a_gateway_cannot_pass_for_a_service_with_what_its_token_gets(world: World) -> None:
    dc2, folder = world.federation.dc2, world.federation.folder
    leaf = await dc2.get("/v1/agent/connect/ca/leaf/mesh-gateway", token=world.token)
    roots = await dc2.get("/v1/agent/connect/ca/roots", token=world.token)
    context = mesh_context(leaf, roots, folder, server=True)
    read = bytearray()

    async def impersonate(transport: trio.SocketStream) -> None:
        stream = TlsStream(transport, context, server=True)
        with suppress(RefusedError):
            await stream.do_handshake()
            while data := await stream.receive_some():
                read.extend(data)

    async with serving(impersonate) as port:
        with pytest.raises(WrongPeerError, match="/svc/mesh-gateway"):
            await (await world.caller()).call(("127.0.0.1", port), world.sni(), SECRET, expect=world.spiffe())
    assert read == b""


async def test_a_gateway_may_call_only_where_intentions_let_its_own_name(world: World) -> None:
    dc2, folder = world.federation.dc2, world.federation.folder
    thief = await world.caller("mesh-gateway", dc2)
    assert thief.spiffe_id == world.spiffe("mesh-gateway")
    async with native_service(dc2, "web", folder) as web:
        with pytest.raises(RefusedError):
            await thief.call(("127.0.0.1", web.port), None, SECRET)


@pytest.mark.before_consul(*KEYS_KEPT)
async def test_a_stolen_token_gets_no_other_services_leaf(world: World) -> None:
    for consul in world.federation.datacenters:
        with pytest.raises(ConsulError) as refused:
            await consul.get("/v1/agent/connect/ca/leaf/web", token=world.token)
        assert refused.value.status == 403


LOCAL = ("127.0.0.1", "localhost", "::ffff:127.0.0.1", "::1", "169.254.169.254", "127.1", "fe80::1%lo")


async def all_refused_for(cause: str, gateway: GatewayProcess, sni: str) -> bool:
    endpoints = (await gateway.ask(f"/explain?sni={sni}"))["endpoints"]
    return bool(endpoints) and all(cause in (endpoint["cause"] or "") for endpoint in endpoints)


async def test_a_registered_address_opens_no_way_into_the_gateways_machine(world: World) -> None:
    """Somebody who may register `evil` says that it is at loopback of another node: the gateway's would be dialled."""
    dc2, met = world.federation.dc2, []

    async def obey(client: trio.SocketStream) -> None:
        met.append(await client.receive_some(1))

    denied = BY_NAME["MESHGATE_DENY_ENDPOINTS"].default_text()
    async with (
        serving(obey) as port,
        gateway_beside(dc2, world.token, MESHGATE_DENY_ENDPOINTS=denied) as gateway,
        native_service(dc2, "honest", world.federation.folder) as honest,
    ):
        admin = int(gateway.admin.rpartition(":")[2])
        await until_equal("honest", lambda: gateway.endpoints(world.sni("honest")), {honest.port: True})
        for number, (host, target) in enumerate([*((host, port) for host in LOCAL), ("127.0.0.1", admin)]):
            node, name = f"outpost-{number}", f"evil-{number}"
            service = {"ID": name, "Service": name, "Address": host, "Port": target, "Connect": {"Native": True}}
            await dc2.put("/v1/catalog/register", {"Node": node, "Address": "192.0.2.7", "Service": service})
            sni = world.sni(name)
            wanted = "admin address" if target == admin else "MESHGATE_DENY_ENDPOINTS"
            await until_equal(host, partial(all_refused_for, wanted, gateway, sni), True, seconds=10)
            async with await trio.open_tcp_stream(*gateway.address) as client:
                await client.send_all(hello(server_name(sni.encode())) + b"SET y 2\r\n")
                with trio.fail_after(10):
                    assert await client.receive_some(100) == b"\x15\x03\x03\x00\x02\x02\x50"
            told = await gateway.ask(f"/explain?sni={sni}")
            assert told["reason"] == "no_healthy_endpoint"
            assert any(wanted in step["outcome"] for step in told["steps"])
            await dc2.put("/v1/catalog/deregister", {"Node": node})
        assert met == []
        # An instance of the gateway's own node may be at its loopback.
        answer = await (await world.caller()).call(gateway.address, world.sni("honest"), SECRET)
        assert answer.data == SECRET
        assert "why=a loopback address on another node" in gateway.child.log.read_text().replace('"', "")


@pytest.mark.parametrize("limit", [{}, {"MESHGATE_MAX_CONNECTIONS_PER_CLIENT": "0"}], ids=["default", "no-limit"])
async def test_hellos_with_nothing_behind_them_use_up_no_slots(world: World, limit: dict[str, str]) -> None:
    """More than there are slots, each a true hello for a sidecar that answers it: no certificate is needed for that."""
    dc2, slots, honest_calls = world.federation.dc2, 64, 20

    async def attack(gateway: GatewayProcess) -> trio.SocketStream:
        sock = trio.socket.socket()
        await sock.bind(("127.0.0.7", 0))
        await sock.connect(gateway.address)
        stream = trio.SocketStream(sock)
        with suppress(trio.BrokenResourceError):
            await stream.send_all(hello_for(world.sni()))
        return stream

    async def holds_out(gateway: GatewayProcess) -> bool:
        """Whether all that are let in have had their answer for longer than a handshake takes."""
        streams = await gateway.ask("/connections")
        spoken = [it for it in streams if it["bytes_sent"] and it["age_seconds"] > 3]
        # Those beyond 15/16 of the slots go by themselves, twice a second.
        return len(spoken) >= (slots - slots // 16 - 1 if limit else slots // 2)

    async with (
        sidecar_for(dc2, "web") as web,
        gateway_beside(dc2, world.token, MESHGATE_MAX_CONNECTIONS=str(slots), **limit) as gateway,
        AsyncExitStack() as attackers,
    ):
        await until_equal("web", lambda: gateway.endpoints(world.sni()), {web.port: True})
        for _ in range(slots + 8):
            await attackers.enter_async_context(await attack(gateway))
        await until_equal("all hold out", partial(holds_out, gateway), True, seconds=15)
        caller = await world.caller()
        for _ in range(honest_calls):
            assert (await caller.call(gateway.address, world.sni(), SECRET, expect=world.spiffe())).data == SECRET
        assert (await gateway.counter("meshgate_stream_ends_total", end="shed") > 0) == bool(limit)
        refused = await gateway.counter("meshgate_refused_total", reason="max_connections_per_client")
        assert (refused > 0) != bool(limit)
