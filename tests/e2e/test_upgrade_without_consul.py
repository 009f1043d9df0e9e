"""An upgrade while Consul is away: what the version before knew serves on, without a folder for it."""

import pytest

from tests.harness.gateway import GatewayProcess
from tests.harness.native import native_service

from .world import World, until_equal

pytestmark = [pytest.mark.consul, pytest.mark.own_consul]


async def test_streams_and_new_streams_go_on_when_consul_is_away_during_the_upgrade(world: World) -> None:
    dc2 = world.federation.dc2
    gateway = GatewayProcess(dc2, world.token)
    async with native_service(dc2, "web", world.federation.folder, named=True):
        try:
            await gateway.start()
            caller = await world.caller(consul=dc2)
            sni, spiffe = world.sni(), world.spiffe()
            await dc2.put(f"/v1/agent/service/maintenance/{gateway.instance}", enable="true", reason="by hand")
            async with caller.connect(gateway.address, sni, expect=spiffe) as stream:
                assert await stream.receive_some() == b"web\n"
                await dc2.kill()

                async def stale() -> float:
                    return await gateway.counter("meshgate_catalog_stale")

                await until_equal("the gateway to notice", stale, 1, seconds=20)
                errors = await gateway.counter("meshgate_consul_errors_total")
                done = await gateway.upgrade()
                assert done.returncode == 0, done.stderr
                # At once, and still: nothing is forgotten that was known before.
                assert await stale() == 1
                assert (await gateway.ask("/readyz"))["ready"]
                assert await gateway.counter("meshgate_consul_errors_total") >= errors
                assert len(await gateway.endpoints(sni)) == 1
                await stream.send_all(b"after")
                assert await stream.receive_some() == b"after"
                # The service asks Consul about intentions, so only the handshake can be had.
                async with caller.connect(gateway.address, sni, expect=spiffe):
                    pass
                await dc2.restart()
                await until_equal("the catalog to be fresh", stale, 0, seconds=60)

                async def maintained() -> list[str]:
                    rows = await dc2.ask(f"/v1/health/service/{gateway.service}") or ()
                    return [
                        check["Notes"] for row in rows for check in row["Checks"] if "maintenance" in check["CheckID"]
                    ]

                await until_equal("maintenance, which an operator has to end", maintained, ["by hand"], seconds=30)
                await stream.send_all(b"again")
                assert await stream.receive_some() == b"again"
            said = gateway.child.log.read_text()
            assert "Traceback" not in said
            assert "registered by another process" not in said
        finally:
            await gateway.stop()
