"""Sidecars as people run them: real Envoys that a real Consul configures over xDS, and meshgate as the only gateways.

Which gateways a stream takes is Envoy's doing, by what Consul tells it; the gateways' own counters show it.
"""

import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
import pytest
import trio

from meshgate.adapters.consul.policy import acl_policy
from tests.harness.envoy_sidecar import EnvoySidecar, XdsFederation, envoy_sidecar_for
from tests.harness.gateway import LONG_DRAIN, GatewayProcess
from tests.harness.waiting import until
from tests.harness.web_backend import SLOW_SECONDS, web_backend
from tests.versions import XDS

from ..adapters.relay.test_endpoints import black_hole
from .world import World, until_equal

pytestmark = [pytest.mark.consul, pytest.mark.envoy, pytest.mark.since_consul(*XDS), pytest.mark.timeout(240)]

PATIENCE = 60.0


@pytest.fixture(scope="module")
def mesh(consul_binary: str) -> Iterator[World]:
    """Two datacenters with a gRPC port each; `shop` may call everybody."""
    federation = trio.run(XdsFederation.start, consul_binary)

    async def prepare() -> World:
        token = await federation.create_policy_token(acl_policy(), "mesh-gateway")
        await federation.set_intention("shop", "*", "allow")
        return World(federation, token)

    try:
        yield trio.run(prepare)
    finally:
        trio.run(federation.stop)


@asynccontextmanager
async def served(mesh: World, datacenter: int, service: str) -> AsyncIterator[EnvoySidecar]:
    """`service` in dc1 (0) or dc2 (1), which says where it is."""
    consul = mesh.federation.datacenters[datacenter]
    async with (
        web_backend(f"{service} in {consul.datacenter}") as port,
        envoy_sidecar_for(consul, service, backend_port=port) as sidecar,
    ):
        yield sidecar


def upstream(mode: str, **fields: Any) -> dict[str, Any]:
    return {"DestinationName": "web", "MeshGateway": {"Mode": mode}, **fields}


async def get(port: int, path: str = "/", seconds: float = 10) -> str:
    """One request over a connection of its own; what the answer says, or its status."""
    async with httpx.AsyncClient(trust_env=False, timeout=seconds) as client:
        try:
            answer = await client.get(f"http://127.0.0.1:{port}{path}")
        except httpx.TransportError as error:
            return repr(error)
    return answer.text if answer.is_success else f"{answer.status_code} {answer.text}"


async def carried(*gateways: GatewayProcess) -> list[float]:
    return [await gateway.counter("meshgate_connections_total") for gateway in gateways]


async def test_envoys_streams_take_the_gateways_of_their_mode(mesh: World) -> None:
    """One Envoy, whose registration is changed from mode to mode while it runs."""
    async with (
        served(mesh, 1, "web") as web,
        mesh.gateways() as (local, remote),
        envoy_sidecar_for(mesh.federation.dc1, "shop", upstreams=[upstream("local", Datacenter="dc2")]) as shop,
    ):
        there = {"local": local.address[1], "remote": remote.address[1], "none": web.port}
        passed = {"local": [1, 1], "remote": [0, 1], "none": [0, 0]}
        for mode, port in there.items():
            await shop.register([upstream(mode, Datacenter="dc2")])
            await until_equal(f"mode {mode}", partial(shop.endpoints, mesh.sni()), {port: True}, PATIENCE)
            before = await carried(local, remote)
            assert await get(shop.listens["web"]) == "web in dc2"
            after = await carried(local, remote)
            assert [now - then for now, then in zip(after, before, strict=True)] == passed[mode], mode


async def test_failover_to_the_other_datacenter_and_back(mesh: World) -> None:
    entry = {"Kind": "service-resolver", "Name": "web", "Failover": {"*": {"Datacenters": ["dc2"]}}}
    async with (
        served(mesh, 0, "web") as near,
        served(mesh, 1, "web"),
        mesh.gateways() as (local, remote),
        envoy_sidecar_for(mesh.federation.dc1, "shop", upstreams=[upstream("local")]) as shop,
    ):
        await mesh.federation.write_config_entry(entry)
        try:
            answer = partial(get, shop.listens["web"])
            await until_equal("the near one", answer, "web in dc1", PATIENCE)
            known = partial(shop.endpoints, mesh.sni(datacenter="dc1"))
            await until_equal("both ways", known, {near.port: True, local.address[1]: True}, PATIENCE)
            assert await carried(local, remote) == [0, 0]
            await near.set_health("critical")
            await until_equal("the far one", answer, "web in dc2", PATIENCE)
            before = await carried(local, remote)
            assert await get(shop.listens["web"]) == "web in dc2"
            assert await carried(local, remote) == [count + 1 for count in before]
            await near.set_health("passing")
            await until_equal("the near one again", answer, "web in dc1", PATIENCE)
        finally:
            await mesh.federation.delete_config_entry("service-resolver", "web")


@pytest.mark.parametrize("workers", ["1", "4"])
async def test_no_call_is_lost_to_an_instance_that_swallows_connections(mesh: World, workers: str) -> None:
    """Consul takes both instances for healthy, and nothing ever comes back from one of them."""
    dc2 = mesh.federation.dc2
    async with (
        served(mesh, 1, "web") as web,
        mesh.gateways(MESHGATE_WORKERS=workers) as (_, remote),
        envoy_sidecar_for(mesh.federation.dc1, "shop", upstreams=[upstream("local", Datacenter="dc2")]) as shop,
    ):
        with black_hole() as hole:
            proxy = {"DestinationServiceName": "web", "DestinationServiceID": "web-hole"}
            there = {"Kind": "connect-proxy", "Name": "web-sidecar-proxy", "Address": "127.0.0.1", "Port": hole}
            await dc2.register({"ID": "web-hole", "Name": "web", "Port": hole})
            await dc2.register({"ID": "web-hole-sidecar-proxy", "Proxy": proxy, **there})
            try:
                known = partial(remote.endpoints, mesh.sni())
                await until_equal("both instances", known, {web.port: True, hole: True}, PATIENCE)
                await until_equal("the way", partial(get, shop.listens["web"]), "web in dc2", PATIENCE)
                answers = [await get(shop.listens["web"], seconds=5) for _ in range(40)]
                assert answers == ["web in dc2"] * 40
            finally:
                for instance in ("web-hole-sidecar-proxy", "web-hole"):
                    await dc2.deregister(instance)


class Endless:
    """An answer that has no end, read for as long as it is open; each line is the number after the last one."""

    def __init__(self) -> None:
        self.lines = 0

    async def read(self, port: int) -> None:
        async with (
            httpx.AsyncClient(trust_env=False, timeout=10) as client,
            client.stream("GET", f"http://127.0.0.1:{port}/endless") as answer,
        ):
            async for line in answer.aiter_lines():
                assert line == str(self.lines)
                self.lines += 1
        pytest.fail(f"it ended after {self.lines} lines")

    async def until_more(self) -> None:
        wanted = self.lines + 20

        async def missing() -> str | None:
            return None if self.lines >= wanted else f"{self.lines} lines, not {wanted}"

        await until("more of the endless answer", missing)


@asynccontextmanager
async def upgraded(port: int) -> AsyncIterator[trio.SocketStream]:
    """A connection after an upgrade as WebSockets ask for it: whatever is sent comes back."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(
            b"GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            data = await stream.receive_some(1)
            assert data, head
            head += data
        assert head.startswith(b"HTTP/1.1 101 ")
        yield stream


async def echoes(stream: trio.SocketStream, text: bytes) -> None:
    await stream.send_all(text)
    received = b""
    with trio.fail_after(10):
        while len(received) < len(text):
            data = await stream.receive_some()
            assert data, "it ended"
            received += data
    assert received == text


@asynccontextmanager
async def protocol(mesh: World, which: str) -> AsyncIterator[None]:
    """`web` speaks http, or plain bytes, for the length of the block; an answer may take as long as it likes.

    Envoy ends a request of http after 15 s, where Consul does not tell it otherwise, on either side.
    """
    entries: list[dict[str, object]] = [{"Kind": "service-defaults", "Name": "web", "Protocol": which}]
    if which == "http":
        route = {"Match": {"HTTP": {"PathPrefix": "/"}}, "Destination": {"RequestTimeout": "600s"}}
        entries.append({"Kind": "service-router", "Name": "web", "Routes": [route]})
        entries.append({"Kind": "proxy-defaults", "Name": "global", "Config": {"local_request_timeout_ms": 600_000}})
    async with AsyncExitStack() as stack:
        for entry in entries:
            await mesh.federation.write_config_entry(entry)
            stack.push_async_callback(mesh.federation.delete_config_entry, str(entry["Kind"]), str(entry["Name"]))
        yield


@pytest.mark.parametrize("which", ["tcp", "http"])
async def test_long_lived_streams_outlive_signals_writes_and_the_death_of_every_agent(mesh: World, which: str) -> None:
    dc1, dc2 = mesh.federation.datacenters
    async with (
        protocol(mesh, which),
        served(mesh, 1, "web"),
        mesh.gateways() as (local, remote),
        envoy_sidecar_for(dc1, "shop", upstreams=[upstream("local", Datacenter="dc2")]) as shop,
    ):
        port = shop.listens["web"]
        await until_equal("the way", partial(get, port), "web in dc2", PATIENCE)
        endless = Endless()
        async with trio.open_nursery() as nursery, upgraded(port) as socket:
            nursery.start_soon(endless.read, port)

            async def lives() -> None:
                await endless.until_more()
                await echoes(socket, b"still here")

            await lives()
            for gateway in (local, remote):
                gateway.child.signal(signal.SIGHUP)
            await lives()
            for gateway in (local, remote):
                done = await gateway.upgrade()
                assert done.returncode == 0, done.stderr
                await lives()
            resolver = {"Kind": "service-resolver", "Name": "web", "ConnectTimeout": "7s"}
            await mesh.federation.write_config_entry(resolver)
            await dc2.register({"ID": "another", "Name": "another", "Port": 1, "Connect": {"Native": True}})
            await until_equal("the news", partial(remote.endpoints, mesh.sni("another")), {1: True}, PATIENCE)
            await lives()
            for consul in (dc1, dc2):
                await consul.kill()
            await lives()
            for consul in (dc1, dc2):
                consul.start()
            await mesh.federation.until_ready()
            await lives()
            await mesh.federation.delete_config_entry("service-resolver", "web")
            await dc2.deregister("another")
            nursery.cancel_scope.cancel()


@dataclass
class Load:
    """Callers who go on and on, over connections that their client keeps."""

    port: int
    done: int = 0
    lost: list[str] = field(default_factory=list)

    async def run(self, callers: int) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(callers):
                nursery.start_soon(self._call_on_and_on)

    async def _call_on_and_on(self) -> None:
        async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
            while True:
                try:
                    answer = await client.get(f"http://127.0.0.1:{self.port}/slow")
                    if answer.status_code != 200:
                        self.lost.append(f"{trio.current_time():.2f} {answer.status_code} {answer.text}")
                except httpx.TransportError as error:
                    self.lost.append(f"{trio.current_time():.2f} {error!r}")
                self.done += 1


async def test_replacing_all_gateways_of_both_datacenters_loses_no_slow_request(mesh: World) -> None:
    """Two gateways in each of two datacenters, twelve callers whose requests take their time, over kept connections."""
    datacenters = mesh.federation.datacenters
    callers = 12
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(protocol(mesh, "http"))
        await stack.enter_async_context(served(mesh, 1, "web"))
        rows: list[list[GatewayProcess]] = []
        for consul in datacenters:
            rows.append([GatewayProcess(consul, mesh.token, instance=f"mesh-gateway-{number}") for number in (1, 2)])
            for gateway in rows[-1]:
                stack.push_async_callback(gateway.stop)
                await gateway.start(LONG_DRAIN)
        shop = await stack.enter_async_context(
            envoy_sidecar_for(datacenters[0], "shop", upstreams=[upstream("local", Datacenter="dc2")])
        )

        async def known() -> dict[int, bool]:
            return await shop.endpoints(mesh.sni())

        async def reach(gateway: GatewayProcess) -> int:
            return sum((await gateway.endpoints(f"*.dc2.internal.{mesh.federation.trust_domain}")).values())

        await until_equal("both gateways", known, {gateway.address[1]: True for gateway in rows[0]}, PATIENCE)
        for gateway in rows[0]:
            await until_equal("both gateways of dc2", partial(reach, gateway), 2, PATIENCE)
        await until_equal("the way", partial(get, shop.listens["web"]), "web in dc2", PATIENCE)
        load = Load(shop.listens["web"])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load.run, callers)
            for consul, gateways in zip(reversed(datacenters), reversed(rows), strict=True):
                for number in (3, 4):
                    new = GatewayProcess(consul, mesh.token, instance=f"mesh-gateway-{number}")
                    stack.push_async_callback(new.stop)
                    gateways.append(await new.start(LONG_DRAIN))
                    old = gateways.pop(0)
                    before = load.done
                    started = trio.current_time()
                    await old.stop(20)
                    ended = trio.current_time()
                    print(f"{consul.datacenter}: {old.instance} stopped from {started:.2f} to {ended:.2f}")
                    assert old.child.returncode == 0
                    assert load.done > before
            await trio.sleep(4 * SLOW_SECONDS)
            nursery.cancel_scope.cancel()
        print(f"{load.done} requests of {SLOW_SECONDS} s, {len(load.lost)} lost", *load.lost, sep="\n")
        assert load.lost == []
        assert load.done > 12 * callers
