"""Two real clusters, each with a certificate authority of its own, peered through their gateways and nothing else.

Whatever a test asks of them needs Consul 1.17 or newer: cluster peering with its control plane through mesh gateways,
and the list of exports.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from meshgate.adapters.consul.policy import acl_policy
from tests.harness.agent import Consul, Ports, consul_version
from tests.harness.gateway import GatewayProcess
from tests.harness.ports import free_ports
from tests.harness.waiting import until

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
    grpc, grpc_tls = free_ports(2)
    listening = {"http": ports.http, "server": ports.server, "serf_lan": ports.serf_lan, "serf_wan": ports.serf_wan}
    listening |= {"grpc": grpc, "grpc_tls": grpc_tls}
    consul.configure(name, [], grpc=grpc, ports=listening | {"dns": -1, "https": -1}, retry_join_wan=[])
    try:
        consul.start()
        await consul.until_leader(seconds=PATIENCE)
        made = Cluster(consul, "", folder)
        await made.until("ACLs", "/v1/acl/token/self", bool)
        policy = await consul.put("/v1/acl/policy", {"Name": "mesh-gateway", "Rules": acl_policy()})
        token = await consul.put("/v1/acl/token", {"Policies": [{"ID": policy["ID"]}]})
        made = replace(made, token=token["SecretID"])
        await made.until("trust domain", "/v1/agent/connect/ca/roots", lambda roots: roots["TrustDomain"])
        await made.write(Kind="mesh", Peering={"PeerThroughMeshGateways": True})
        yield made
    finally:
        await consul.stop()


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


async def until_routed(
    gateway: GatewayProcess, kind: str, begins: str, *, seconds: float = PATIENCE
) -> Mapping[str, Any]:
    """The route of a kind whose name begins so, once it has a healthy endpoint."""
    found: list[Any] = []

    async def missing() -> str | None:
        listed = (await gateway.ask("/routes"))["routes"]
        found[:] = [it for it in listed if it["kind"] == kind and it["sni"].startswith(begins)]
        healthy = found and any(one["healthy"] for one in found[0]["endpoints"])
        return None if healthy else f"there are {[(it['kind'], it['sni']) for it in listed]}"

    await until(f"route {kind} {begins}", missing, seconds=seconds)
    return found[0]  # type: ignore[no-any-return]
