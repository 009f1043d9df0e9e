"""Consul fails, traffic does not: what is known goes on serving, and recovery needs no restart."""

import json

import pytest
import trio

from meshgate.adapters.mesh_tls import RefusedError
from tests.harness.agent import Consul
from tests.harness.native import native_service

from .world import World, until_equal

pytestmark = [pytest.mark.consul, pytest.mark.own_consul]


async def test_agent_that_dies_takes_no_stream_with_it_and_gets_the_registration_back(world: World) -> None:
    dc2 = world.federation.dc2
    async with native_service(dc2, "web", world.federation.folder, named=True), world.gateways() as (local, remote):
        caller = await world.caller()
        # The service asks Consul about intentions only when a stream begins, so two begin while it lives.
        async with caller.connect(local.address, world.sni(), expect=world.spiffe()) as stream:
            assert await stream.receive_some() == b"web\n"
            await dc2.kill()
            await stream.send_all(b"during")
            assert await stream.receive_some() == b"during"
            # New streams are still placed: the handshake with the service succeeds, by both gateways.
            async with caller.connect(local.address, world.sni(), expect=world.spiffe()):
                pass
            async with caller.connect(remote.address, world.sni(), expect=world.spiffe()):
                pass

            async def stale() -> float:
                return await remote.counter("meshgate_catalog_stale")

            await until_equal("the gateway to notice", stale, 1, seconds=15)
            assert (await remote.ask("/readyz"))["ready"]
            # What was registered since is not known: its caller is refused, and the log says so.
            with pytest.raises(RefusedError, match="unrecognized_name"):
                await caller.call(remote.address, world.sni("newer"))

            async def told() -> bool:
                return "no route for this name in the last known catalog" in remote.child.log.read_text()

            await until_equal("the line about it", told, True)
            forget_registration(dc2, "mesh-gateway")
            await dc2.restart()
            await until_equal("the catalog to be fresh", stale, 0, seconds=40)

            async def registered() -> list[str]:
                rows = await dc2.ask("/v1/health/service/mesh-gateway") or ()
                return [row["Service"]["ID"] for row in rows]

            await until_equal("the registration", registered, ["mesh-gateway"], seconds=30)
            await stream.send_all(b"after")
            assert await stream.receive_some() == b"after"
        with trio.fail_after(10):
            assert (await caller.call(local.address, world.sni(), b"new")).data == b"web\nnew"


def forget_registration(consul: Consul, instance: str) -> None:
    """Take a service out of what an agent keeps on disk, as an agent that lost its data folder has."""
    kept = [path for path in (consul.folder / "data" / "services").iterdir() if path.is_file()]
    (lost,) = [path for path in kept if json.loads(path.read_text())["Service"]["ID"] == instance]
    lost.unlink()
