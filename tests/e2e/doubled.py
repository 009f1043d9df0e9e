"""Gateways as processes that follow the double of Enterprise and peering, and mTLS streams through them.

What is real: the gateway with its registration, watches and relay, and the TLS of both ends. What is not: Consul.
"""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from tests.adapters.consul.fake_consul import row
from tests.adapters.consul.mesh_double import MeshDouble, key
from tests.adapters.mesh_ca import Signer, mesh_root
from tests.harness.backend import serving
from tests.harness.gateway import GatewayProcess

PATIENCE = 30


@dataclass(frozen=True)
class Agent:
    """What a `GatewayProcess` needs to know of its agent."""

    double: MeshDouble
    folder: Path
    partition: str = "default"
    datacenter: str = "dc1"

    @property
    def http_addr(self) -> str:
        return f"127.0.0.1:{self.double.port}"

    async def ask(self, path: str) -> Any:
        found = self.double.resources.get(key(path, partition=self.partition))
        return found.body if found else None


class Mesh:
    """One CA, and what has certificates of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._root = mesh_root()
        self._client = self._context("caller", ssl.PROTOCOL_TLS_CLIENT)

    @asynccontextmanager
    async def service(self, name: str) -> AsyncIterator[dict[str, Any]]:
        """A sidecar that greets each caller with its name over mTLS; its row for the catalog."""
        context = self._context(name, ssl.PROTOCOL_TLS_SERVER)

        async def greet(stream: trio.SocketStream) -> None:
            tls = trio.SSLStream(stream, context, server_side=True)
            try:
                await tls.send_all(f"I am {name}".encode())
                await tls.send_all(b"; you said " + await tls.receive_some(1000))
                await tls.aclose()
            except (trio.BrokenResourceError, ssl.SSLError):
                return

        async with serving(greet) as port:
            yield row(f"{name}-sidecar-proxy", address="127.0.0.1", port=port)

    async def call(self, address: tuple[str, int], sni: str) -> str:
        """What a caller hears; the alert's text where it is refused."""
        with trio.fail_after(PATIENCE):
            stream = await trio.open_tcp_stream(*address)
            tls = trio.SSLStream(stream, self._client, server_hostname=sni)
            try:
                await tls.send_all(b"hello")
                heard = b""
                while data := await tls.receive_some(1000):
                    heard += data
                return heard.decode()
            except trio.BrokenResourceError as error:
                return str(error.__cause__)
            finally:
                await trio.aclose_forcefully(tls)

    def _context(self, name: str, protocol: Any) -> ssl.SSLContext:
        leaf: Signer = self._root.leaf(f"spiffe://x.consul/ns/default/dc/dc1/svc/{name}")
        pem = self._folder / f"{name.replace('/', '-')}.pem"
        pem.write_text(leaf.pem + leaf.key_pem)
        context = ssl.SSLContext(protocol)
        context.load_cert_chain(pem)
        context.load_verify_locations(cadata=self._root.pem)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        return context


@asynccontextmanager
async def gateway_of(
    double: MeshDouble, folder: Path, partition: str = "", **extra: str
) -> AsyncIterator[GatewayProcess]:
    """A ready, registered gateway for the length of the block."""
    where = folder / (partition or f"at-{double.port}")
    where.mkdir(exist_ok=True)
    gateway = GatewayProcess(Agent(double, where, partition or "default"), "")  # type: ignore[arg-type]
    try:
        yield await gateway.start(extra | ({"CONSUL_PARTITION": partition} if partition else {}))
    finally:
        await gateway.stop()


async def until_routed(gateway: GatewayProcess, *names: str) -> dict[str, str]:
    """Wait until a gateway has healthy routes of these names; the kind of each."""
    kinds: dict[str, str] = {}
    with trio.move_on_after(PATIENCE):
        while not set(names) <= kinds.keys():
            await trio.sleep(0.05)
            listed = (await gateway.ask("/routes"))["routes"]
            kinds = {it["sni"]: it["kind"] for it in listed if any(one["healthy"] for one in it["endpoints"])}
    assert set(names) <= kinds.keys(), f"missing {set(names) - kinds.keys()}, there are {sorted(kinds)}"
    return kinds
