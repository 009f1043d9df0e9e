"""Memory with nothing to do: the peers with many routes, and `meshgate run` itself, beside a real Consul."""

import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import trio
from tests.harness.agent import Consul, Ports, consul_version
from tests.harness.cluster import find_consul
from tests.harness.gateway import gateway_beside
from tests.harness.waiting import until

from .peers import Place, Subject
from .processes import memory_of

SETTLE_SECONDS = 0.5
FETCHED = Path(__file__).parents[2] / ".cache" / "consul" / "consul"  # by scripts/get-consul


def at_rest(place: Place, subject: Subject) -> Mapping[str, float]:
    """What a peer holds that has its routes and has seen no stream."""
    del place
    time.sleep(SETTLE_SECONDS)
    return {"mb": subject.running.memory() / 1e6}


def product_at_rest(place: Place, *, services: int, workers: int) -> Mapping[str, float]:
    """What all processes of `meshgate run` hold that follows a Consul with so many services.

    Raises:
        FileNotFoundError: there is no Consul here.
    """
    return trio.run(_product_at_rest, place, services, workers)


async def _product_at_rest(place: Place, services: int, workers: int) -> Mapping[str, float]:
    binary = find_consul(FETCHED)
    with tempfile.TemporaryDirectory(dir=place.folder) as folder:
        consul = Consul(binary, consul_version(binary), "dc1", Ports.pick(), Path(folder) / "dc1", str(uuid.uuid4()))
        consul.configure("dc1", [])
        consul.start()
        try:
            await consul.until_leader()

            async def missing() -> str | None:
                return None if await consul.ask("/v1/agent/self") else "the token is not known yet"

            await until("Consul to know its first token", missing, seconds=20)
            for number in range(services):
                await consul.register(
                    {"Name": f"service-{number}", "Port": 20000 + number, "Connect": {"Native": True}}
                )
            async with gateway_beside(consul, consul.master_token, MESHGATE_WORKERS=str(workers)) as gateway:
                with trio.fail_after(30):
                    while len((await gateway.ask("/routes"))["routes"]) < services:  # noqa: ASYNC110  (another process)
                        await trio.sleep(0.1)
                await trio.sleep(SETTLE_SECONDS)
                memory = memory_of(gateway.child.pid)
        finally:
            await consul.stop()
    return {"mb": memory / 1e6}
