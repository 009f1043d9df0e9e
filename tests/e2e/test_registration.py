"""Whose registration it is: two gateways of one ID, several agents behind one address, one that no agent holds."""

import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio

from tests.harness.agent import Consul, Json, Ports
from tests.harness.gateway import GatewayProcess, gateway_beside
from tests.harness.instance import HOST
from tests.harness.ports import free_ports
from tests.harness.process import child_environment

from .world import World, until_equal

pytestmark = [pytest.mark.consul, pytest.mark.xdist_group("registration")]


async def problems(gateway: GatewayProcess) -> list[str]:
    try:
        return list((await gateway.ask("/readyz"))["problems"])
    except httpx.TransportError:
        return ["it does not answer"]


async def doctor(gateway: GatewayProcess, **extra: str) -> str:
    """What `meshgate doctor` says with the settings of a gateway."""
    ended = await trio.run_process(
        [sys.executable, "-m", "meshgate", "doctor"],
        env=child_environment(**(gateway.environment() | extra)),
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    return bytes(ended.stdout).decode() + bytes(ended.stderr).decode()


async def held(consul: Consul, identity: str = "mesh-gateway") -> Json:
    return await consul.ask(f"/v1/agent/service/{identity}")


# --- two of one ID ------------------------------------------------------------------------------------------------


async def test_second_gateway_of_one_id_is_refused_and_the_first_one_keeps_its_registration(world: World) -> None:
    dc1 = world.federation.dc1
    async with gateway_beside(dc1, world.token) as first:
        second = GatewayProcess(dc1, world.token)
        second.spawn()
        try:
            with trio.fail_after(20):
                assert await second.child.wait() == 1
        finally:
            await second.stop()
        said = f"'mesh-gateway' is registered at {HOST}:{first.address[1]} by another process, which answers there"
        lines = second.child.log.read_text()
        assert said in lines
        assert "--proxy-id" in lines
        assert "Traceback" not in lines
        assert (await held(dc1))["Port"] == first.address[1]
        assert await problems(first) == []
        told = await doctor(second)
        assert said in told
        assert "give this gateway a --proxy-id of its own" in told
        # Beside the running one, with its settings, there is nothing wrong.
        assert "by another process" not in await doctor(first)
        async with gateway_beside(dc1, world.token, instance="another"):
            assert (await held(dc1))["Port"] == first.address[1]


async def test_gateway_that_was_killed_and_moved_takes_its_registration_over(world: World) -> None:
    dc1 = world.federation.dc1
    first = GatewayProcess(dc1, world.token)
    try:
        await first.start()
        await first.child.kill()
        assert (await held(dc1))["Port"] == first.address[1]
        async with gateway_beside(dc1, world.token) as second:
            assert (await held(dc1))["Port"] == second.address[1]
        assert await held(dc1) is None
    finally:
        await first.stop()


async def test_gateway_that_restarts_again_and_again_is_registered_and_locks_nobody_out(world: World) -> None:
    """Consul 1.8 grants a client 200 connections, and keeps those of queries that it holds when the client is gone."""
    dc1 = world.federation.dc1
    names = [f"restarts-{number}" for number in range(40)]
    for number, name in enumerate(names):
        sidecar = {"SidecarService": {"Port": 20000 + number}}
        await dc1.register({"Name": name, "Port": 80, "Connect": sidecar})
    gateway = GatewayProcess(dc1, world.token)
    environment = child_environment(CONSUL_HTTP_ADDR=dc1.http_addr, CONSUL_HTTP_TOKEN=dc1.master_token)
    try:
        for _ in range(4):
            await gateway.start()
            assert (await held(dc1))["Port"] == gateway.address[1]
            # All watches hold their queries, and nobody is locked out.
            await until_equal("its watches", partial(watches, gateway), True, seconds=20)
            await trio.run_process([dc1.binary, "catalog", "nodes"], capture_stdout=True, env=environment)
            await gateway.child.kill()
    finally:
        await gateway.stop()
        # The last one was killed, so its registration is there still.
        for name in (gateway.instance, *names):
            await dc1.deregister(name)


async def watches(gateway: GatewayProcess) -> bool:
    """Whether they hold their queries."""
    rows = (await gateway.ask("/config_dump"))["watches"]
    return len([row for row in rows if row["answered"]]) > 80


# --- several agents behind one address ------------------------------------------------------------------------------


@asynccontextmanager
async def client_agent(server: Consul, name: str) -> AsyncIterator[Consul]:
    """A client agent of a server's datacenter."""
    agent = Consul(
        server.binary, server.version, server.datacenter, Ports.pick(), server.folder.parent / name, server.master_token
    )
    agent.node = name
    agent.configure(
        server.datacenter, [], server=False, bootstrap_expect=0, retry_join=[f"{HOST}:{server.ports.serf_lan}"]
    )
    agent.start()
    try:
        await agent.until_leader()
        yield agent
    finally:
        await agent.stop()


@asynccontextmanager
async def balancer(*agents: Consul) -> AsyncIterator[str]:
    """An address that leads each new connection to the next of them."""
    turns = 0

    async def pass_on(client: trio.SocketStream) -> None:
        nonlocal turns
        agent = agents[turns % len(agents)]
        turns += 1
        async with client, await trio.open_tcp_stream(HOST, agent.ports.http) as server, trio.open_nursery() as nursery:

            async def copy(source: trio.SocketStream, target: trio.SocketStream) -> None:
                try:
                    async for chunk in source:
                        await target.send_all(chunk)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
                nursery.cancel_scope.cancel()

            nursery.start_soon(copy, client, server)
            nursery.start_soon(copy, server, client)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, host=HOST), pass_on, 0)
        yield f"{HOST}:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_one_of_several_agents_has_the_registration_and_nothing_is_left_behind(world: World) -> None:
    dc1 = world.federation.dc1

    async def holders() -> list[str]:
        return [each.node for each in (dc1, other) if await held(each)]

    async with client_agent(dc1, "dc1-client") as other, balancer(dc1, other) as address:
        gateway = GatewayProcess(dc1, world.token)
        try:
            await gateway.start({"CONSUL_HTTP_ADDR": address})
            (holder,) = await holders()
            told = await doctor(gateway, CONSUL_HTTP_ADDR=address)
            assert f"the address leads to the agents of {other.node}, {dc1.node} by turns" in told
            # Its agent loses the registration, and every connection is made anew.
            lost = dc1 if holder == dc1.node else other
            await lost.deregister("mesh-gateway")
            await until_equal("the registration", holders, [holder], seconds=60)
        finally:
            await gateway.stop()
        await until_equal("the end of it", holders, [], seconds=20)
        assert "the registration stays behind" not in gateway.child.log.read_text()


# --- a registration that no agent holds -----------------------------------------------------------------------------


def in_catalog(port: int, *checks: Json) -> Json:
    """What consul-k8s writes for a gateway's pod, on a node that there is not."""
    readiness = {"CheckID": "mesh/pod-1", "Name": "Kubernetes Readiness Check", "Type": "kubernetes-readiness"}
    return {
        "Node": "machine-virtual",
        "Address": HOST,
        "NodeMeta": {"synthetic-node": "true"},
        "Service": {
            "Kind": "mesh-gateway",
            "Service": "mesh-gateway",
            "ID": "pod-1",
            "Address": HOST,
            "Port": port,
            "TaggedAddresses": {"lan": {"Address": HOST, "Port": port}, "wan": {"Address": HOST, "Port": port}},
        },
        "Checks": [{"ServiceID": "pod-1", "Status": "passing"} | check for check in (readiness, *checks)],
    }


async def test_registration_in_the_catalog_is_waited_for_and_followed_and_left_behind(world: World) -> None:
    dc2 = world.federation.dc2
    first, second = free_ports(2)
    gateway = GatewayProcess(dc2, world.token, instance="pod-1")
    extra = {"MESHGATE_REGISTER": "false", "MESHGATE_NODE_NAME": "machine-virtual"}
    gateway.spawn(extra)
    read = partial(problems, gateway)
    try:
        missing = "the catalog has no registration 'pod-1' on node 'machine-virtual' that the token may see"
        await until_equal("the wait", read, [f"{missing}, and MESHGATE_REGISTER is false"], seconds=20)
        told = await doctor(gateway, **extra)
        assert missing in told
        assert "the token needs service:read and node:read" in told
        await dc2.put("/v1/catalog/register", in_catalog(first))
        assert f"pod-1 at {HOST}:{first}" in await doctor(gateway, **extra)
        await gateway.until_ready()

        await until_equal("its listener", partial(answers, first, second), [True, False], seconds=20)
        if dc2.version >= (1, 13, 0):
            await world.federation.write_config_entry(
                {"Kind": "proxy-defaults", "Name": "global", "Config": {"connect_timeout_ms": 777}}
            )

            async def timeout() -> object:
                return (await gateway.ask("/config_dump"))["limits"]["connect_timeout"]

            await until_equal("central configuration", timeout, 0.777, seconds=20)
        maintenance = {"CheckID": "_service_maintenance:pod-1", "Status": "critical", "Notes": "a disk"}
        await dc2.put("/v1/catalog/register", in_catalog(second, maintenance))
        await until_equal("the moved listener", partial(answers, first, second), [False, True], seconds=20)
        said = "it is in maintenance in Consul, so other gateways send it no new streams: a disk"
        await until_equal("the maintenance", read, [said], seconds=20)
        await dc2.put("/v1/catalog/deregister", {"Node": "machine-virtual", "CheckID": "_service_maintenance:pod-1"})
        await until_equal("its end", read, [], seconds=20)
        await gateway.stop()
        rows = await dc2.get("/v1/health/service/mesh-gateway")
        assert [row["Service"]["ID"] for row in rows] == ["pod-1"]
        assert await held(dc2, "pod-1") is None
    finally:
        await gateway.stop()
        await world.federation.delete_config_entry("proxy-defaults", "global")
        await dc2.put("/v1/catalog/deregister", {"Node": "machine-virtual"})


async def answers(*ports: int) -> list[bool]:
    """Where somebody takes connections."""
    found = []
    for port in ports:
        try:
            await (await trio.open_tcp_stream(HOST, port)).aclose()
        except OSError:
            found.append(False)
        else:
            found.append(True)
    return found


# --- settings that change -------------------------------------------------------------------------------------------


def children_of(pid: int) -> int:
    return len(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


async def test_settings_that_changed_are_in_force_after_a_sighup_or_named(world: World, tmp_path: Path) -> None:
    dc1 = world.federation.dc1
    file = tmp_path / "gateway.env"
    wan, moved = free_ports(2)

    def write(**values: str) -> None:
        file.write_text("".join(f"MESHGATE_{name}={value}\n" for name, value in values.items()))

    gateway = GatewayProcess(dc1, world.token)
    unset = {"MESHGATE_WAN_ADDRESS": "", "MESHGATE_ADDRESS": "", "MESHGATE_WORKERS": "", "MESHGATE_ENV_FILE": str(file)}
    write(ADDRESS=f"{HOST}:{gateway.address[1]}", WAN_ADDRESS=f"192.0.2.1:{wan}", WORKERS="1", SANDBOX="off")

    async def addresses() -> object:
        registration = await held(dc1)
        return registration["Port"], registration["TaggedAddresses"]["wan"]["Address"]

    async def in_force() -> object:
        dump = await gateway.ask("/config_dump")
        memory = dump["settings"]["MESHGATE_WORKER_MEMORY"]["value"]
        return dump["limits"]["hello_timeout"], memory, (await gateway.ask("/logging"))["level"]

    async def workers() -> int:
        return children_of(gateway.child.pid)

    try:
        await gateway.start(unset)
        assert (await addresses(), await workers()) == ((gateway.address[1], "192.0.2.1"), 1)
        write(
            ADDRESS=f"{HOST}:{moved}",
            WAN_ADDRESS=f"192.0.2.2:{wan}",
            HELLO_TIMEOUT="3s",
            LOG_LEVEL="debug",
            WORKERS="2",
            WORKER_MEMORY="2G",
        )
        gateway.child.signal(signal.SIGHUP)
        await until_equal("the registration", addresses, (moved, "192.0.2.2"), seconds=20)
        await until_equal("its listeners", partial(answers, gateway.address[1], moved), [False, True], seconds=20)
        await until_equal("its workers", workers, 2, seconds=20)
        assert await in_force() == (3.0, "2G", "debug")
        await until_equal("no problem", partial(problems, gateway), [], seconds=20)
        write(ADDRESS=f"{HOST}:{moved}", HELLO_TIMEOUT="nonsense")
        gateway.child.signal(signal.SIGHUP)
        failed = "settings cannot be read again, the old ones stay in use: MESHGATE_HELLO_TIMEOUT='nonsense'"

        async def told() -> list[bool]:
            return [line.startswith(failed) for line in await problems(gateway)]

        await until_equal("the error", told, [True], seconds=20)
        assert await addresses() == (moved, "192.0.2.2")
        write(ADDRESS=f"{HOST}:{moved}", WAN_ADDRESS=f"192.0.2.2:{wan}", WORKERS="2", STATE_DIR=str(tmp_path))
        gateway.child.signal(signal.SIGHUP)
        waiting = ["changed, and in force only after meshgate upgrade or a restart: MESHGATE_STATE_DIR"]
        await until_equal("what waits", partial(problems, gateway), waiting, seconds=20)
        assert await in_force() == (15.0, "0", "info")
    finally:
        await gateway.stop()
    said = gateway.child.log.read_text()
    assert "SIGHUP: changed settings are in force" in said
    assert "SIGHUP: changed settings wait for meshgate upgrade or a restart: settings=MESHGATE_STATE_DIR" in said
