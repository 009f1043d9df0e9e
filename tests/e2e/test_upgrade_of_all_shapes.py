"""Upgrades in a row, to another installation and back, under streams of all shapes: no stream notices one.

No digest is made of what the streams carry: each byte is random and is compared with what was sent at its place
(`tests.harness.shapes`), which finds whatever a digest finds and says where it is. The streams that wait for their
names do so because Consul has not said anything of them: what the gateway asks it goes through `LateNames`.
"""

import json
import re
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import count
from random import Random
from typing import TypeAlias

import pytest
import trio

from meshgate.adapters.consul.api.client import SHORT_CONNECTIONS
from tests.harness.gateway import GatewayProcess
from tests.harness.installation import Installation
from tests.harness.instance import HOST
from tests.harness.shapes import Driver, Names, Shape, driving, endpoints, not_as_told
from tests.harness.sidecar import sidecar_for
from tests.security.processes import COUNTS, children, held, left_over, workers as workers_of

from .test_upgrade import grows_only, installed, registration_of
from .world import World, until_equal

pytestmark = pytest.mark.consul

PATIENCE = 60.0
Versions: TypeAlias = tuple[Installation, Installation]
_LATE = re.compile(rb"GET /v1/health/connect/(late-\d+)[? ]")


@pytest.fixture(scope="module")
def versions() -> Iterator[Versions]:
    """Two installations for a busy machine.

    It takes longer for an upgrade than a stream waits for its name elsewhere, and for an answer of Consul so long that
    the new version would take it for away, and refuse what the last known catalog does not have.
    """
    with installed("7.0.0") as one, installed("7.1.0") as other:
        for each in (one, other):
            each.replace("adapters/relay/on_demand.py", "WAIT_SECONDS: Final = 1.5", "WAIT_SECONDS: Final = 60")
            patience = "AGENT_PATIENCE: Final = {}\nCATALOG_PATIENCE: Final = {}"
            each.replace("app/gateway/last_known.py", patience.format(2.5, 8.0), patience.format(60, 60))
        yield one, other


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


class LateNames:
    """Services that Consul hears of while streams wait for their names, and the gateway's way to Consul.

    Consul itself says at once that it does not know a service. So a question about one of these goes no further until
    the service is registered; everything else passes. `waiting` has those that were asked for and are not registered,
    `connections` is how many the gateway has.
    """

    def __init__(self, world: World, port: int, nursery: trio.Nursery) -> None:
        self.connections = 0
        self.waiting: set[str] = set()
        self._world, self._port, self._nursery = world, port, nursery
        self._consul = world.federation.dc2
        self._numbers, self._rng = count(), Random("late names")
        self._known: dict[str, trio.Event] = {}
        self._held: set[str] = set()
        self._free = trio.Event()
        self._free.set()

    async def listen(self) -> str:
        """The address of the way."""
        (listener,) = await trio.open_tcp_listeners(0, host=HOST)
        self._nursery.start_soon(trio.serve_listeners, self._serve, [listener])
        return f"{HOST}:{listener.socket.getsockname()[1]}"

    def name(self) -> str:
        """A new one, for which a stream of now has to wait."""
        number = next(self._numbers)
        service = f"late-{number}"
        self._known[service] = trio.Event()
        if number % 3 == 0:  # Others go on, so that streams begin to wait at any time of an upgrade.
            self._held.add(service)
        self._nursery.start_soon(self._appear, service)
        return self._world.sni(service)

    async def _appear(self, service: str) -> None:
        await trio.sleep(self._rng.uniform(0.1, 1.5))
        if service in self._held:
            await self._free.wait()
        await registered(self._world, service, self._port)
        self.waiting.discard(service)
        self._held.discard(service)
        self._known[service].set()

    @asynccontextmanager
    async def held_back(self) -> AsyncIterator[None]:
        """Some streams wait for their names from before the block until behind it."""
        self._free = trio.Event()
        await until_equal("a stream that waits for its name", self._some_are_held, True, PATIENCE)
        yield
        self._free.set()

    async def _some_are_held(self) -> bool:
        return bool(self.waiting & self._held)

    async def forget_used(self, driver: Driver) -> None:
        """Have Consul forget each whose stream has its endpoint, until all streams are over."""
        used = 0
        while driver.open or not driver.over.is_set() or used < len(driver.lives):
            for life in driver.lives[used:]:
                if life.shape is Shape.WAITING:
                    while not (life.greeted or life.ended):
                        await trio.sleep(0.05)
                    service = life.name.partition(".")[0]
                    await self._known[service].wait()
                    await self._consul.deregister(f"{service}-{self._port}")
                used += 1
            await trio.sleep(0.05)

    async def _serve(self, client: trio.SocketStream) -> None:
        self.connections += 1
        try:
            async with client, await trio.open_tcp_stream(HOST, self._consul.ports.http) as consul:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pass_on, consul, client, nursery.cancel_scope)
                    nursery.start_soon(self._pass_on, client, consul, nursery.cancel_scope)
        except* OSError:
            pass
        finally:
            self.connections -= 1

    async def _pass_on(self, source: trio.SocketStream, to: trio.SocketStream, both: trio.CancelScope) -> None:
        with suppress(trio.BrokenResourceError):
            while data := await source.receive_some():
                if asked := _LATE.match(data):
                    await self._hold(asked[1].decode())
                await to.send_all(data)
        both.cancel()

    async def _hold(self, service: str) -> None:
        known = self._known[service]
        if not known.is_set():
            self.waiting.add(service)
        await known.wait()


@asynccontextmanager
async def under_load(
    world: World, versions: Versions, workers: int, **options: float
) -> AsyncIterator[tuple[GatewayProcess, Driver, LateNames]]:
    """A gateway of dc2 with the streams; after the block all must have ended well, and be told of rightly."""
    dc2 = world.federation.dc2
    log = world.federation.folder / f"access-{uuid.uuid4().hex}.log"
    gateway = GatewayProcess(dc2, world.token)
    gateway.python = versions[1].python
    async with endpoints() as servers, trio.open_nursery() as nursery:
        late = LateNames(world, servers.port, nursery)
        names = Names(world.sni("plain"), world.sni("slow"), late.name)
        for name, port in (("plain", servers.port), ("slow", servers.slow_port)):
            await registered(world, name, port)
        try:
            # A busy machine takes its time, which must not end streams whose hello is slow on purpose.
            patient = {"MESHGATE_HELLO_TIMEOUT": "120s", "MESHGATE_CONNECT_TIMEOUT": "60s"}
            told_to = {"CONSUL_HTTP_ADDR": await late.listen(), "MESHGATE_ACCESS_LOG": str(log)}
            await gateway.start({"MESHGATE_WORKERS": str(workers), **told_to, **patient})
            for sni in (world.sni("plain"), world.sni("slow")):
                await until_equal(sni, partial(routed, gateway, sni), True, PATIENCE)
            registration, pid = await registration_of(gateway), gateway.child.pid
            await until_equal("the workers", partial(serving, pid), workers, PATIENCE)
            normal = held(workers_of(pid)[0])

            async def own() -> Counter[str]:
                return held(pid) - Counter({"socket": late.connections})

            before, connections = await own(), late.connections
            async with trio.open_nursery() as forgetting:
                async with driving(servers, gateway.address, names, seed=workers, **options) as driver:  # type: ignore[arg-type]
                    forgetting.start_soon(late.forget_used, driver)
                    yield gateway, driver, late
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
            # Of the connections that the late services had some are kept for others, by the same process.
            await upgrade(gateway, versions[0])
            # Rows of two descriptors are kept for as many workers as stand side by side in an upgrade.
            after = before + Counter({COUNTS: 2 * workers})
            await until_equal("the gateway's own descriptors", own, after, PATIENCE)

            async def more() -> bool:
                # Of those for short requests there are some or all; each other one is a held query.
                return late.connections >= connections + SHORT_CONNECTIONS

            await until_equal("more connections to Consul", more, False, PATIENCE)
        finally:
            await gateway.stop()
            for name, port in (("plain", servers.port), ("slow", servers.slow_port)):
                await dc2.deregister(f"{name}-{port}")
            nursery.cancel_scope.cancel()


async def serving(pid: int) -> int:
    """How many workers have come so far that they have their listener, which keeps a spare descriptor."""
    return sum(held(worker)["anon_inode:[eventfd]"] > 1 for worker in workers_of(pid))


async def routed(gateway: GatewayProcess, name: str) -> bool:
    return any((await gateway.endpoints(name)).values())


async def upgrade(gateway: GatewayProcess, to: Installation) -> None:
    before = await gateway.series()
    done = await gateway.upgrade("--python", to.python)
    assert done.returncode == 0, done.stderr
    assert (await gateway.ask("/server_info"))["version"] == to.version
    assert await gateway.counter("meshgate_upgrades_total", result="done") == before_done(before) + 1
    assert grows_only(before, await gateway.series()) == []


def before_done(series: dict[str, float]) -> float:
    return sum(value for name, value in series.items() if "meshgate_upgrades_total" in name and "done" in name)


async def back_and_forth(
    gateway: GatewayProcess, driver: Driver, late: LateNames, to: Versions, times: int, least: int
) -> None:
    async def enough() -> bool:
        return driver.open >= least

    for number in range(times):
        async with late.held_back():
            await upgrade(gateway, to[number % 2])
            assert driver.faults == [], "\n".join(driver.faults)
        assert driver.faults == []
        await until_equal("open streams", enough, True, PATIENCE)
    await driver.moved(1)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("workers", [1, 2])
async def test_no_stream_notices_an_upgrade_and_the_way_back(world: World, versions: Versions, workers: int) -> None:
    async with under_load(world, versions, workers, streams=80, pace=0.3) as (gateway, driver, late):
        await back_and_forth(gateway, driver, late, versions, 2, least=70)


@pytest.mark.timeout(1800)
@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 4])
async def test_no_stream_notices_twenty_upgrades_in_a_row(world: World, versions: Versions, workers: int) -> None:
    # Of which some are between one and the next.
    async with under_load(world, versions, workers, streams=220) as (gateway, driver, late):
        await back_and_forth(gateway, driver, late, versions, 20, least=200)


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
