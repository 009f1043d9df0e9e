"""What somebody between two services can do, be it on the wire or as a gateway that went bad: see names, not contents.

The rogue gateway here has all that a gateway has: the streams, and every certificate that its token is good for.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from meshgate.adapters.mesh_tls import RefusedError, WrongPeerError
from tests.e2e.world import World, until_equal
from tests.harness.agent import ConsulError
from tests.harness.backend import serving
from tests.harness.gateway import gateway_beside
from tests.harness.native import native_service
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
