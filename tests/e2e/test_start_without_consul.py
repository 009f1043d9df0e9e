"""A gateway that starts while Consul does not answer serves the last known catalog, and lets go of it in time."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import httpx
import pytest
import trio

from meshgate.adapters.state import NAME, Kept, StateFileError, read, write
from meshgate.core.catalog import Instance, Remote, Service, Snapshot
from tests.adapters.consul.fake_consul import FakeConsul, defaults, fake_consul, row
from tests.harness.gateway import GatewayProcess, gateway_beside
from tests.harness.native import native_service

from .world import World, until_equal

if TYPE_CHECKING:
    from tests.harness.agent import Consul

pytestmark = pytest.mark.own_consul

WEB = "web.default.dc1.internal.td.consul"
API = "api.default.dc1.internal.td.consul"
DC2 = "*.dc2.internal.td.consul"


async def answer(gateway: GatewayProcess) -> dict[str, Any]:
    """What `/readyz` says; an empty answer while the gateway is only starting."""
    try:
        return cast("dict[str, Any]", await gateway.ask("/readyz"))
    except httpx.TransportError:
        return {}


async def until_ready(gateway: GatewayProcess, *, from_disk: bool, seconds: float) -> None:
    async def state() -> tuple[bool, bool]:
        said = await answer(gateway)
        return said.get("ready", False), said.get("from_disk", False)

    await until_equal("readiness", state, (True, from_disk), seconds)


# --- with the real Consul --------------------------------------------------------------------------------------------


@pytest.mark.consul
async def test_gateway_serves_from_disk_until_consul_returns_and_then_what_consul_has(
    world: World, tmp_path: Path
) -> None:
    dc2, folder = world.federation.dc2, world.federation.folder
    state = {"MESHGATE_STATE_DIR": str(tmp_path / "state")}
    async with native_service(dc2, "web", folder, named=True) as web:
        async with native_service(dc2, "gone", folder) as gone, gateway_beside(dc2, world.token, **state) as first:
            await until_equal("web", lambda: first.endpoints(world.sni()), {web.port: True})
            await until_equal("gone", lambda: first.endpoints(world.sni("gone")), {gone.port: True})
            await until_equal("the file", lambda: kept_services(tmp_path / "state"), {"web", "gone"})
            await first.stop()
        content = (tmp_path / "state" / NAME).read_text()
        assert world.token not in content
        assert "PRIVATE KEY" not in content

        caller = await world.caller()
        await dc2.kill()
        gateway = GatewayProcess(dc2, world.token)
        gateway.spawn(state)
        try:
            await until_ready(gateway, from_disk=True, seconds=30)
            said = await gateway.ask("/readyz")
            assert (said["catalog_stale"], said["listening"]) == (True, True)
            assert 0 <= said["age_seconds"] < 60
            assert any("cannot reach Consul" in problem for problem in said["problems"])
            assert await gateway.counter("meshgate_catalog_stale") == 1
            assert await gateway.endpoints(world.sni("gone")) == {gone.port: True}
            # The service cannot ask about intentions now, but the handshake shows who answers.
            async with caller.connect(gateway.address, world.sni(), expect=world.spiffe()):
                pass

            await dc2.restart()
            await until_ready(gateway, from_disk=False, seconds=40)
            assert "age_seconds" not in await gateway.ask("/readyz")
            await until_equal("what Consul no longer has", lambda: gateway.endpoints(world.sni("gone")), {})
            assert await gateway.endpoints(world.sni()) == {web.port: True}
            await until_equal("freshness", lambda: gateway.counter("meshgate_catalog_stale"), 0, 20)

            async def registered() -> bool:
                return bool(await dc2.ask("/v1/health/service/mesh-gateway"))

            await until_equal("the registration", registered, True, 30)
            await until_equal("the file", lambda: kept_services(tmp_path / "state"), {"web"}, 5)
            with trio.fail_after(10):
                assert (await caller.call(gateway.address, world.sni(), b"new")).data == b"web\nnew"
            log = gateway.child.log.read_text()
            assert "Consul does not answer: serving the last known catalog from disk" in log
            assert "Consul answers: its catalog replaces the one from disk" in log
        finally:
            await gateway.stop()


async def kept_services(folder: Path) -> set[str] | str:
    """The names in the state file; what is wrong with one that is not to be used."""
    try:
        kept = await trio.to_thread.run_sync(read, folder)
    except StateFileError as error:
        return str(error)
    return set() if kept is None else {service.name for service in kept.snapshot.services} - {"consul"}


# --- with a double of Consul's API -----------------------------------------------------------------------------------


def instance(service: str, port: int, *, kind: str = "connect-proxy", datacenter: str = "dc1") -> Instance:
    return Instance("n1", datacenter, f"{service}-{port}", service, "10.0.0.7", port, "10.0.0.1", kind=kind)


def last_known(**fields: Any) -> Kept:
    """A catalog with two services and another datacenter."""
    snapshot = Snapshot(
        **{
            "datacenter": "dc1",
            "trust_domain": "td.consul",
            "services": (Service("api", (instance("api", 1001),)), Service("web", (instance("web", 1002),))),
            "remotes": (Remote("dc2", (instance("mesh-gateway", 1003, kind="mesh-gateway", datacenter="dc2"),)),),
        }
        | fields
    )
    return Kept(snapshot, "mesh-gateway", 1_700_000_000.0)


@contextmanager
def hanging_agent(double: FakeConsul) -> Iterator[None]:
    """The agent accepts and never answers, until the end of the block."""
    double.set("/v1/agent/self", hang=True)
    yield
    agent_answers(double)
    double.drop_connections()


def agent_answers(double: FakeConsul, datacenter: str = "dc1") -> None:
    double.set("/v1/agent/self", {"Config": {"Datacenter": datacenter, "NodeName": "n1"}})
    double.set("/v1/agent/services", {}, index=None)
    double.set("/v1/agent/checks", {}, index=None)
    double.set("/v1/health/service/mesh-gateway", [])
    double.set("/v1/config/service-defaults", [])
    double.set("/v1/agent/service/register", None)
    double.set("/v1/agent/service/deregister/mesh-gateway", None)
    held = {"ID": "mesh-gateway", "Service": "mesh-gateway", "Port": 8443, "ContentHash": "a"}
    double.set("/v1/agent/service/mesh-gateway", held, hash="a", index=None)


def leaderless(double: FakeConsul) -> None:
    for path in ("connect/ca/roots", "catalog/services", "config/service-resolver", "catalog/datacenters"):
        double.set(f"/v1/{path}", "No cluster leader", status=500)


def services(double: FakeConsul, **ports: int) -> None:
    """The catalog of the double."""
    double.set("/v1/catalog/services", {name: [] for name in ("consul", *ports)})
    for name, port in ports.items():
        double.set(f"/v1/health/connect/{name}", [row(f"{name}-sidecar-proxy", port=port)])


@asynccontextmanager
async def spawned(double: FakeConsul, folder: Path) -> AsyncIterator[GatewayProcess]:
    agent = SimpleNamespace(http_addr=f"127.0.0.1:{double.port}", folder=folder, datacenter="the double")
    gateway = GatewayProcess(cast("Consul", agent), token="")
    gateway.spawn({"MESHGATE_STATE_DIR": str(folder)})
    try:
        yield gateway
    finally:
        await gateway.stop()


async def test_agent_that_never_answers_is_waited_for_three_seconds_and_nothing_is_registered(tmp_path: Path) -> None:
    write(tmp_path, last_known())
    async with fake_consul() as double, spawned(double, tmp_path) as gateway:
        defaults(double)
        with hanging_agent(double):
            await until_equal("the admin address", lambda: is_up(gateway), True, 10)
            assert (await answer(gateway))["ready"] is False
            await until_ready(gateway, from_disk=True, seconds=4)
            assert await gateway.endpoints(WEB) == {1002: True}
            assert await gateway.endpoints(DC2) == {1003: True}
            said = (await gateway.ask(f"/explain?sni={WEB}"))["steps"][-1]["outcome"]
            assert said.startswith("from disk, ")
        services(double, web=2002)
        await until_ready(gateway, from_disk=False, seconds=30)
        assert await gateway.endpoints(WEB) == {2002: True}
        assert await gateway.endpoints(API) == {}
        await until_equal("the registration", lambda: registrations(double), 1, 5)


async def is_up(gateway: GatewayProcess) -> bool:
    return bool(await answer(gateway))


async def registrations(double: FakeConsul) -> int:
    return len(double.requests("/v1/agent/service/register"))


async def test_agent_without_a_leader_is_as_good_as_none(tmp_path: Path) -> None:
    write(tmp_path, last_known())
    async with fake_consul() as double:
        agent_answers(double)
        leaderless(double)
        async with spawned(double, tmp_path) as gateway:
            await until_ready(gateway, from_disk=True, seconds=20)
            assert await gateway.endpoints(WEB) == {1002: True}
            defaults(double)
            services(double, web=2002)
            await until_ready(gateway, from_disk=False, seconds=60)
            assert await gateway.endpoints(WEB) == {2002: True}


async def test_what_consul_cannot_answer_yet_stays_from_disk_and_the_rest_does_not(tmp_path: Path) -> None:
    write(tmp_path, last_known())
    async with fake_consul() as double:
        defaults(double)
        agent_answers(double)
        services(double, api=2001, web=2002)
        double.set("/v1/health/connect/web", "rpc error: no connection", status=500)
        async with spawned(double, tmp_path) as gateway:
            await until_ready(gateway, from_disk=False, seconds=15)
            assert await gateway.endpoints(API) == {2001: True}
            assert await gateway.endpoints(WEB) == {1002: True}
            # Of the other datacenter Consul's gossip may not have heard yet.
            assert await gateway.endpoints(DC2) == {1003: True}
            assert "2 services and datacenters are served from disk" in " ".join((await answer(gateway))["problems"])
            double.set("/v1/health/connect/web", [])
            await until_equal("the answer", lambda: gateway.endpoints(WEB), {}, 60)


async def test_file_of_another_datacenter_is_given_up_as_soon_as_the_agent_says_where_it_is(tmp_path: Path) -> None:
    write(tmp_path, last_known(datacenter="dc9", remotes=()))
    async with fake_consul() as double, spawned(double, tmp_path) as gateway:
        leaderless(double)
        with hanging_agent(double):
            await until_ready(gateway, from_disk=True, seconds=15)
        # The agent is back, the catalog is not.
        await until_equal("the end of the wrong catalog", lambda: routes(gateway), [], 30)
        assert (await answer(gateway))["ready"] is False
        assert "it is of datacenter dc9, this is dc1" in gateway.child.log.read_text()
        defaults(double)
        services(double, web=2002)
        await until_ready(gateway, from_disk=False, seconds=60)
        assert await routes(gateway) == [WEB]


async def routes(gateway: GatewayProcess) -> list[str]:
    return [route["sni"] for route in (await gateway.ask("/routes"))["routes"]]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "it is damaged or cut off"),
        (
            lambda path: write(path.parent, Kept(last_known().snapshot, "other", 0.0)),
            "it is of the gateway service other",
        ),
    ],
    ids=["damaged", "of another service"],
)
async def test_file_that_is_not_to_be_used_is_one_line_and_no_end(tmp_path: Path, spoil: Any, said: str) -> None:
    write(tmp_path, last_known())
    spoil(tmp_path / NAME)
    async with fake_consul() as double, spawned(double, tmp_path) as gateway:
        defaults(double)
        with hanging_agent(double):
            await until_equal("the admin address", lambda: is_up(gateway), True, 10)
            await trio.sleep(3)
            assert await answer(gateway) | {"problems": []} == {
                "ready": False,
                "catalog_known": False,
                "catalog_stale": False,
                "from_disk": False,
                "listening": False,
                "draining": False,
                "problems": [],
            }
            (line,) = [line for line in gateway.child.log.read_text().splitlines() if "is not used" in line]
            assert said in line
        services(double, web=2002)
        await until_ready(gateway, from_disk=False, seconds=30)
        await until_equal("a good file", lambda: kept_services(tmp_path), {"web"}, 5)


async def test_disk_that_cannot_be_written_is_said_and_serves_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    agent = SimpleNamespace(http_addr="", folder=tmp_path, datacenter="the double")
    async with fake_consul() as double:
        defaults(double)
        agent_answers(double)
        services(double, web=2002)
        agent.http_addr = f"127.0.0.1:{double.port}"
        gateway = GatewayProcess(cast("Consul", agent), token="")
        gateway.spawn({"MESHGATE_STATE_DIR": str(tmp_path / "state"), "MESHGATE_LOG_JSON": "true"})
        try:
            await until_ready(gateway, from_disk=False, seconds=15)

            async def problems() -> list[str]:
                return cast("list[str]", (await answer(gateway))["problems"])

            await until_equal("the problem", problems, ["the catalog cannot be kept on disk: File exists"], 5)
            lines = [json.loads(line) for line in gateway.child.log.read_text().splitlines()]
            assert sum("cannot be kept" in json.dumps(line) for line in lines) == 1
        finally:
            await gateway.stop()
