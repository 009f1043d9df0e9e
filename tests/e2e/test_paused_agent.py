"""An agent that keeps its sockets and answers nothing holds up no stream, and is followed again when it goes on."""

import pytest
import trio

from tests.harness.native import native_service

from .world import World, until_equal

pytestmark = [pytest.mark.consul, pytest.mark.own_consul]


async def test_streams_go_on_and_begin_while_the_agent_is_paused(world: World) -> None:
    dc2, folder = world.federation.dc2, world.federation.folder
    async with native_service(dc2, "web", folder, named=True) as web, world.gateways() as (local, remote):
        caller = await world.caller()
        await until_equal("web", lambda: remote.endpoints(world.sni()), {web.port: True})
        async with caller.connect(local.address, world.sni(), expect=world.spiffe()) as stream:
            assert await stream.receive_some() == b"web\n"
            dc2.child.pause()
            try:
                for _ in range(5):
                    await stream.send_all(b"during")
                    assert await stream.receive_some() == b"during"
                    # The service itself waits for Consul after its handshake, so the handshake has to be enough.
                    for gateway in (local, remote):
                        with trio.fail_after(20):
                            async with caller.connect(gateway.address, world.sni(), expect=world.spiffe()):
                                pass
                assert (await remote.ask("/readyz"))["ready"]
            finally:
                dc2.child.resume()
            await web.set_health("critical")
            await until_equal("the news", lambda: remote.endpoints(world.sni()), {web.port: False}, 15)
            await web.set_health("passing")
            await until_equal("the recovery", lambda: remote.endpoints(world.sni()), {web.port: True}, 5)
            await stream.send_all(b"after")
            assert await stream.receive_some() == b"after"
        with trio.fail_after(10):
            assert (await caller.call(local.address, world.sni(), b"new")).data == b"web\nnew"
