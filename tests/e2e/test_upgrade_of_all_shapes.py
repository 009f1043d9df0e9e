"""Upgrades in a row, to another installation and back, under streams of all shapes: no stream notices one."""

import json
import shutil
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.harness.gateway import GatewayProcess
from tests.harness.installation import Installation
from tests.harness.instance import HOST
from tests.harness.shapes import Driver, Names, driving, endpoints, not_as_told
from tests.harness.sidecar import sidecar_for
from tests.security.processes import COUNTS, children, held, left_over, workers as workers_of

from .test_upgrade import grows_only, installation, registration_of
from .world import World, until_equal

__all__ = ["installation"]

pytestmark = pytest.mark.consul

PATIENCE = 60.0


@dataclass(frozen=True)
class Line:
    """A line of the access log, as `not_as_told` compares it."""

    client: str
    started: float
    sni: str | None
    bytes_received: int
    bytes_sent: int
    end: str

    @classmethod
    def of(cls, text: str) -> "Line":
        told = json.loads(text)
        started = datetime.fromisoformat(told["start_time"]).timestamp()
        return cls(told["client"], started, told["sni"], told["bytes_received"], told["bytes_sent"], told["end"])


async def registered(world: World, name: str, port: int) -> None:
    service = {"ID": f"{name}-{port}", "Name": name, "Address": HOST, "Port": port, "Connect": {"Native": True}}
    await world.federation.dc2.register(service)


@asynccontextmanager
async def under_load(world: World, workers: int, **options: float) -> AsyncIterator[tuple[GatewayProcess, Driver]]:
    """A gateway of dc2 with the streams; after the block all must have ended well, and be told of rightly."""
    dc2 = world.federation.dc2
    log = world.federation.folder / f"access-{uuid.uuid4().hex}.log"
    names = Names(world.sni("plain"), world.sni("slow"))
    gateway = GatewayProcess(dc2, world.token)
    async with endpoints() as servers:
        for name, port in (("plain", servers.port), ("slow", servers.slow_port)):
            await registered(world, name, port)
        try:
            # A busy machine takes its time, which must not end streams whose hello is slow on purpose.
            patient = {"MESHGATE_HELLO_TIMEOUT": "120s", "MESHGATE_CONNECT_TIMEOUT": "60s"}
            await gateway.start({"MESHGATE_WORKERS": str(workers), "MESHGATE_ACCESS_LOG": str(log), **patient})
            for sni in (world.sni("plain"), world.sni("slow")):
                await until_equal(sni, partial(routed, gateway, sni), True, PATIENCE)
            registration, pid = await registration_of(gateway), gateway.child.pid
            await until_equal("the workers", partial(serving, pid), workers, PATIENCE)
            normal = held(workers_of(pid)[0])
            async with driving(servers, gateway.address, names, seed=workers, **options) as driver:  # type: ignore[arg-type]
                yield gateway, driver
            streams = len(driver.lives)

            async def told() -> int:
                return log.read_text().count("\n")

            await until_equal("a line for each stream", told, streams, PATIENCE)
            assert not_as_told(driver.lives, map(Line.of, log.read_text().splitlines())) == []
            assert await gateway.counter("meshgate_connections_total") == streams
            assert await gateway.counter("meshgate_stream_ends_total", end="closed") == streams
            assert await gateway.counter("meshgate_stream_ends_total") == streams
            assert await gateway.counter("meshgate_connections_active") == 0
            both = [await gateway.counter("meshgate_bytes_total", direction=each) for each in ("received", "sent")]
            assert both == [sum(life.up for life in driver.lives), sum(life.down for life in driver.lives)]
            assert await registration_of(gateway) == registration
            assert gateway.child.pid == pid
            assert sorted(children(pid)) == sorted(workers_of(pid))
            assert len(workers_of(pid)) == workers
            assert [left_over(worker, normal, workers) for worker in workers_of(pid)] == [Counter()] * workers
        finally:
            await gateway.stop()
            for name, port in (("plain", servers.port), ("slow", servers.slow_port)):
                await dc2.deregister(f"{name}-{port}")


async def serving(pid: int) -> int:
    """How many workers have come so far that they have their listener, which keeps a spare descriptor."""
    return sum(held(worker)["anon_inode:[eventfd]"] > 1 for worker in workers_of(pid))


async def routed(gateway: GatewayProcess, name: str) -> bool:
    return any((await gateway.endpoints(name)).values())


async def upgrade(gateway: GatewayProcess, python: str, version: str) -> None:
    before = await gateway.series()
    done = await gateway.upgrade("--python", python)
    assert done.returncode == 0, done.stderr
    assert (await gateway.ask("/server_info"))["version"] == version
    assert await gateway.counter("meshgate_upgrades_total", result="done") == before_done(before) + 1
    assert grows_only(before, await gateway.series()) == []


def before_done(series: dict[str, float]) -> float:
    return sum(value for name, value in series.items() if "meshgate_upgrades_total" in name and "done" in name)


async def back_and_forth(gateway: GatewayProcess, driver: Driver, installation: Installation, times: int) -> None:
    own = (str(Path(shutil.which("python") or "")), (await gateway.ask("/server_info"))["version"])
    before, workers = held(gateway.child.pid), len(workers_of(gateway.child.pid))
    for number in range(times):
        python, version = own if number % 2 else (installation.python, installation.version)
        await upgrade(gateway, python, version)
        assert driver.faults == []
    left = held(gateway.child.pid) - before - Counter({COUNTS: 4 * workers})
    # Connections to Consul and to those who ask come and go.
    assert left.total() - left["socket"] <= 2, left


@pytest.mark.timeout(300)
@pytest.mark.parametrize("workers", [1, 2])
async def test_no_stream_notices_an_upgrade_and_the_way_back(
    world: World, installation: Installation, workers: int
) -> None:
    async with under_load(world, workers, streams=80, pace=0.3) as (gateway, driver):
        await back_and_forth(gateway, driver, installation, 2)
        await driver.moved(1)


@pytest.mark.timeout(1800)
@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 4])
async def test_no_stream_notices_twenty_upgrades_in_a_row(
    world: World, installation: Installation, workers: int
) -> None:
    async with under_load(world, workers) as (gateway, driver):
        await back_and_forth(gateway, driver, installation, 20)
        await driver.moved(1)


async def test_a_tls_stream_between_sidecars_lives_on_while_both_gateways_on_its_way_are_upgraded(world: World) -> None:
    """Consul's own proxy at the far end, and a leaf of Consul's at the near one."""
    async with (
        sidecar_for(world.federation.dc2, "web"),
        world.gateways(MESHGATE_WORKERS="2") as gateways,
    ):
        caller = await world.caller()
        async with caller.connect(gateways[0].address, world.sni(), expect=world.spiffe(), seconds=PATIENCE) as stream:
            said = heard = 0

            async def talk() -> None:
                nonlocal said, heard
                while True:
                    data = f"{said} of many lines\n".encode() * 300
                    await stream.send_all(data)
                    said += 1
                    back = b""
                    while len(back) < len(data):
                        more = await stream.receive_some()
                        assert more, f"it ended after {heard} messages"
                        back += more
                    assert back == data
                    heard += 1

            async def more() -> bool:
                return heard > enough

            async with trio.open_nursery() as nursery:
                nursery.start_soon(talk)
                for gateway in gateways * 2:
                    enough = heard + 5
                    await until_equal("messages", more, True, PATIENCE)
                    done = await gateway.upgrade()
                    assert done.returncode == 0, done.stderr
                    enough = heard + 5
                    await until_equal("messages after an upgrade", more, True, PATIENCE)
                nursery.cancel_scope.cancel()
        for gateway in gateways:
            assert await gateway.counter("meshgate_worker_restarts_total") == 0
            assert await gateway.counter("meshgate_upgrades_total", result="done") == 2
