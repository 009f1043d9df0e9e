"""Two real clusters, each with a certificate authority of its own, peered through their gateways and nothing else.

Needs Consul 1.17 or newer (cluster peering with its control plane through mesh gateways, and the list of exports). The
one that this repository fetches is 1.8, so name a newer one in CONSUL_BIN to run this.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trio

from meshgate.adapters.consul.policy import acl_policy
from meshgate.adapters.mesh_tls import RefusedError
from tests.harness.agent import Consul, Ports, consul_version
from tests.harness.backend import echo, serving
from tests.harness.caller import Caller
from tests.harness.gateway import GatewayProcess, gateway_beside
from tests.harness.instance import HOST
from tests.harness.ports import free_ports
from tests.harness.tls import TlsStream, mesh_context
from tests.harness.waiting import until

pytestmark = pytest.mark.consul

OLDEST = (1, 17, 0)
PATIENCE = 60.0


@dataclass(frozen=True)
class Cluster:
    consul: Consul
    token: str
    folder: Path

    async def roots(self) -> Any:
        return await self.consul.get("/v1/agent/connect/ca/roots")

    async def write(self, **entry: object) -> None:
        await self.consul.put("/v1/config", entry)

    async def until(self, what: str, path: str, wanted: Callable[[Any], object]) -> Any:
        """The answer at `path`, once it is as wanted."""
        seen: list[Any] = []

        async def missing() -> str | None:
            seen[:] = [await self.consul.ask(path)]
            return None if seen[0] is not None and wanted(seen[0]) else f"it is {seen[0]!r}"

        await until(f"{what} in {self.consul.datacenter}", missing, seconds=PATIENCE)
        return seen[0]


@asynccontextmanager
async def cluster(binary: str, name: str, folder: Path) -> AsyncIterator[Cluster]:
    """A datacenter alone, its own primary; the gateways' token has the documented policy."""
    consul = Consul(binary, consul_version(binary), name, Ports.pick(), folder / name, str(uuid4()))
    ports = consul.ports
    listening = {"http": ports.http, "server": ports.server, "serf_lan": ports.serf_lan, "serf_wan": ports.serf_wan}
    closed = {"dns": -1, "https": -1, "grpc": -1}
    consul.configure(name, [], ports=listening | closed | {"grpc_tls": free_ports(1)[0]}, retry_join_wan=[])
    try:
        consul.start()
        await consul.until_leader(seconds=PATIENCE)
        policy = await consul.put("/v1/acl/policy", {"Name": "mesh-gateway", "Rules": acl_policy()})
        token = await consul.put("/v1/acl/token", {"Policies": [{"ID": policy["ID"]}]})
        made = Cluster(consul, token["SecretID"], folder)
        await made.until("trust domain", "/v1/agent/connect/ca/roots", lambda roots: roots["TrustDomain"])
        await made.write(Kind="mesh", Peering={"PeerThroughMeshGateways": True})
        yield made
    finally:
        await consul.stop()


@asynccontextmanager
async def exported_service(here: Cluster, service: str, peer: Cluster) -> AsyncIterator[None]:
    """A service whose sidecar echoes to callers that have an identity of the peer."""
    leaf = await here.consul.get(f"/v1/agent/connect/ca/leaf/{service}")
    context = mesh_context(leaf, await peer.roots(), here.folder, server=True)

    async def serve(transport: trio.SocketStream) -> None:
        stream = TlsStream(transport, context, server=True)
        with suppress(RefusedError):
            await stream.do_handshake()
            await echo(stream)

    async with serving(serve) as port:
        check = {"CheckID": f"{service}-up", "Name": "up", "TTL": "24h", "Status": "passing"}
        sidecar = {"Address": HOST, "Port": port, "Checks": [check]}
        registration = {"ID": service, "Name": service, "Address": HOST, "Port": 1}
        await here.consul.register(registration | {"Connect": {"SidecarService": sidecar}})
        yield


async def peer_with_each_other(us: Cluster, eu: Cluster) -> None:
    """`eu` dials `us` with a token that names the gateways of `us`, not its servers."""
    token = await us.consul.post("/v1/peering/token", {"PeerName": "eu"})
    body = {"PeerName": "us", "PeeringToken": token["PeeringToken"]}

    async def missing() -> str | None:
        # The dialer goes through its own gateway, which learns of the peering only now.
        with suppress(Exception):
            await eu.consul.post("/v1/peering/establish", body)
        found = await eu.consul.ask("/v1/peering/us")
        return None if found and found["State"] == "ACTIVE" else f"it is {found!r}"

    await until("the peering", missing, seconds=PATIENCE)


async def until_routed(gateway: GatewayProcess, kind: str, begins: str) -> Mapping[str, Any]:
    """The route of a kind whose name begins so, once it has a healthy endpoint."""
    found: list[Any] = []

    async def missing() -> str | None:
        listed = (await gateway.ask("/routes"))["routes"]
        found[:] = [it for it in listed if it["kind"] == kind and it["sni"].startswith(begins)]
        healthy = found and any(one["healthy"] for one in found[0]["endpoints"])
        return None if healthy else f"there are {[(it['kind'], it['sni']) for it in listed]}"

    await until(f"route {kind} {begins}", missing, seconds=PATIENCE)
    return found[0]  # type: ignore[no-any-return]


async def test_two_real_clusters_peer_and_exchange_tcp_services_through_their_gateways_alone(
    consul_binary: str, tmp_path: Path
) -> None:
    version = consul_version(consul_binary)
    if version < OLDEST:
        shown = ".".join(map(str, version))
        pytest.skip(
            f"cluster peering through gateways needs Consul 1.17 or newer, this is {shown}: name one in CONSUL_BIN"
        )
    async with (
        cluster(consul_binary, "us", tmp_path) as us,
        cluster(consul_binary, "eu", tmp_path) as eu,
        gateway_beside(us.consul, us.token) as exporter,
        gateway_beside(eu.consul, eu.token) as importer,
        exported_service(us, "web", eu),
        exported_service(us, "shop", eu),
    ):
        await us.write(Kind="service-defaults", Name="web", Protocol="tcp")
        await us.write(Kind="service-defaults", Name="shop", Protocol="http")
        consumers = [{"Peer": "eu"}]
        rows = [{"Name": name, "Consumers": consumers} for name in ("web", "shop")]
        await us.write(Kind="exported-services", Name="default", Services=rows)
        await until_routed(exporter, "peer-server", "server.us.peering.")
        await peer_with_each_other(us, eu)
        await until_routed(importer, "peer-server", "server.us.peering.")

        exported = await until_routed(exporter, "peer-export", "web.")
        imported = await until_routed(importer, "peer-import", "web.")
        assert imported["sni"] == exported["sni"]
        assert [one["port"] for one in imported["endpoints"]] == [exporter.address[1]]

        roots, leaf = await us.roots(), await eu.consul.get("/v1/agent/connect/ca/leaf/caller")
        caller = Caller("caller", leaf["ServiceURI"], roots["TrustDomain"], mesh_context(leaf, roots, tmp_path))
        web = f"spiffe://{roots['TrustDomain']}/ns/default/dc/us/svc/web"
        answer = await caller.call(importer.address, imported["sni"], expect=web)
        assert answer.data == b"hello\n"

        shop = await until_routed(importer, "peer-import", "shop.")
        with pytest.raises(RefusedError):
            await caller.call(importer.address, shop["sni"])
        told = await exporter.ask(f"/explain?sni={shop['sni']}")
        assert "exported with protocol http" in str(told["steps"])

        # What is no longer exported is no longer routed, on either side.
        await us.write(Kind="exported-services", Name="default", Services=[rows[1]])

        async def still_routed() -> str | None:
            for gateway in (exporter, importer):
                listed = (await gateway.ask("/routes"))["routes"]
                if any(it["sni"] == imported["sni"] for it in listed):
                    return "still routed"
            return None

        await until("web to be withdrawn", still_routed, seconds=PATIENCE)
