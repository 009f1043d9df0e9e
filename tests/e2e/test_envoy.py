"""A real Envoy as the caller's sidecar: its TLS, its SNI, through both gateways to a real sidecar."""

import json
import shutil
import sysconfig
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio

from tests.harness.ports import free_ports
from tests.harness.process import Child, child_process
from tests.harness.sidecar import sidecar_for
from tests.harness.waiting import until

from .world import Pair, World

pytestmark = [pytest.mark.consul, pytest.mark.envoy]


@asynccontextmanager
async def envoy_beside(world: World, sni: str, expect: str, gateway: tuple[str, int]) -> AsyncIterator[tuple[str, int]]:
    """An Envoy that takes plain bytes and sends them as mTLS of `shop` to a gateway; yields where it listens."""
    binary = shutil.which("envoy", path=sysconfig.get_path("scripts"))
    assert binary is not None, "no envoy beside this Python; scripts/test installs it"
    leaf = await world.federation.dc1.get("/v1/agent/connect/ca/leaf/shop")
    roots = await world.federation.dc1.get("/v1/agent/connect/ca/roots")
    port, admin = free_ports(2)
    tls = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": sni,
        "common_tls_context": {
            "tls_certificates": [
                {
                    "certificate_chain": {"inline_string": leaf["CertPEM"]},
                    "private_key": {"inline_string": leaf["PrivateKeyPEM"]},
                }
            ],
            "validation_context": {
                "trusted_ca": {"inline_string": "".join(root["RootCert"] for root in roots["Roots"])},
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": expect}}],
            },
        },
    }
    listener = {
        "name": "plain",
        "address": socket_address("127.0.0.1", port),
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.tcp_proxy",
                        "typed_config": {
                            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                            "stat_prefix": "plain",
                            "cluster": "gateway",
                        },
                    }
                ]
            }
        ],
    }
    cluster = {
        "name": "gateway",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": "gateway",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket_address(*gateway)}}]}],
        },
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
    }
    config = {
        "admin": {"address": socket_address("127.0.0.1", admin)},
        "static_resources": {"listeners": [listener], "clusters": [cluster]},
    }
    folder = trio.Path(world.federation.folder / "envoy")
    await folder.mkdir(mode=0o700, exist_ok=True)
    await (folder / "envoy.json").write_text(json.dumps(config))
    arguments = ["-c", str(folder / "envoy.json"), "--concurrency", "1", "--disable-hot-restart", "-l", "warn"]
    async with child_process([binary, *arguments], name="Envoy", log=Path(folder / "log")) as envoy:
        await until_ready(envoy, admin)
        yield "127.0.0.1", port


def socket_address(host: str, port: int) -> dict[str, object]:
    return {"socket_address": {"address": host, "port_value": port}}


async def until_ready(envoy: Child, admin: int) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:

        async def missing() -> str | None:
            assert envoy.running, envoy.last_lines()
            try:
                answer = await client.get(f"http://127.0.0.1:{admin}/ready")
            except httpx.TransportError:
                return "no answer"
            return None if answer.is_success else answer.text

        await until("Envoy to be ready", missing, seconds=20)


@pytest.mark.parametrize("mode", ["local", "remote"])
async def test_envoy_as_the_caller_reaches_the_service(world: World, gateways: Pair, mode: str) -> None:
    entry = gateways[0] if mode == "local" else gateways[1]
    before = await entry.counter("meshgate_connections_total")
    async with sidecar_for(world.federation.dc2, "web", named=True) as web:
        await world.until_known(gateways[1], web.port)
        async with envoy_beside(world, world.sni(), world.spiffe(), entry.address) as (host, port):
            for _ in range(3):
                async with await trio.open_tcp_stream(host, port) as stream:
                    await stream.send_all(b"from Envoy\n")
                    received = b""
                    while not received.endswith(b"from Envoy\n"):
                        chunk = await stream.receive_some()
                        assert chunk, received
                        received += chunk
                    assert received == b"web\nfrom Envoy\n"
        assert await entry.counter("meshgate_connections_total") == before + 3


async def test_envoy_with_a_name_that_is_not_routed_gets_nothing(world: World, gateways: Pair) -> None:
    _, remote = gateways

    async def counts() -> tuple[float, float]:
        refused = await remote.counter("meshgate_refused_total", reason="unknown_sni")
        return refused, await remote.counter("meshgate_connections_total")

    refused, connections = await counts()
    async with envoy_beside(world, world.sni("nosuch"), world.spiffe(), remote.address) as (host, port):
        async with await trio.open_tcp_stream(host, port) as stream:
            await stream.send_all(b"anyone?")
            try:
                received = await stream.receive_some()
            except trio.BrokenResourceError:
                received = b""
            assert received == b""
    assert await counts() == (refused + 1, connections)
