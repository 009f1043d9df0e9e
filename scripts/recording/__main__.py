"""The command. See `scripts/record-consul`."""

import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import trio
from tests.adapters.consul.recorded import DATA, QUESTIONS, RecordingTransport, TapedClient
from tests.harness.agent import Consul, Ports, consul_version
from tests.harness.cluster import Federation, find_consul
from tests.harness.ports import free_ports
from tests.harness.waiting import until

from meshgate.adapters.consul import acl_policy
from meshgate.adapters.consul.api import ConsulAddress, ConsulError

PATIENCE: Final = 60.0
NARROW: Final = 'service "mesh-gateway" { policy = "write" }'


async def record(binary: str) -> Path:
    """Ask everything, and write the answers; where they are."""
    version = consul_version(binary)
    folder = DATA / f"consul-{'.'.join(map(str, version))}"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.json"):
        old.unlink()
    async with AsyncExitStack() as stack:
        federation = await Federation.start(binary)
        stack.push_async_callback(federation.stop)
        await _fill(federation)
        token = await federation.create_policy_token(acl_policy(), "gateway")
        narrow = await federation.create_policy_token(NARROW, "narrow")
        places = {
            "dc1": (federation.dc1, token),
            "dc2": (federation.dc2, token),
            "dc1-narrow": (federation.dc1, narrow),
            "dc1-unknown": (federation.dc1, str(uuid4())),
        }
        blocked = await stack.enter_async_context(_alone(binary, "blocked", ["/v1/internal"]))
        places["dc1-blocked"] = blocked, blocked.master_token
        if version >= (1, 13, 0):
            us = await stack.enter_async_context(_alone(binary, "us"))
            eu = await stack.enter_async_context(_alone(binary, "eu"))
            await _peer(us, eu)
            places |= {"us": (us, us.master_token), "eu": (eu, eu.master_token)}
            places["eu-narrow"] = eu, await _token(eu, NARROW)
        for name, (place, ask) in QUESTIONS.items():
            if place not in places:
                continue
            consul, secret = places[place]
            # The certificates of a service are only for who may write it.
            secret = consul.master_token if name in ("leaf", "intention", "intention-denied") else secret
            address = ConsulAddress.from_settings({"CONSUL_HTTP_ADDR": consul.http_addr, "CONSUL_HTTP_TOKEN": secret})
            async with TapedClient(address, RecordingTransport) as client:
                try:
                    await ask(client)
                except ConsulError as error:
                    print(f"{name}: {error}")
                client.tape.write(folder / f"{name}.json", [token, narrow, secret, consul.master_token])
    return folder


async def _fill(federation: Federation) -> None:
    """Services with sidecars, gateways, and config entries of all kinds that are read."""
    dc1, dc2 = federation.dc1, federation.dc2
    for consul in (dc1, dc2):
        for service, versions in (("web", ("1", "2")), ("api", ("1",))):
            for version in versions:
                await consul.register(_with_sidecar(service, version))
        await consul.register(_gateway())
    await federation.write_config_entry({"Kind": "proxy-defaults", "Name": "global", "MeshGateway": {"Mode": "local"}})
    failover: dict[str, Any] = {"*": {"Datacenters": ["dc2"]}}
    subsets = {"v2": {"Filter": 'Service.Meta.version == "2"', "OnlyPassing": True}}
    resolver = {"Kind": "service-resolver", "Name": "web", "ConnectTimeout": "3s", "Subsets": subsets}
    await federation.write_config_entry(resolver | {"DefaultSubset": "v2", "Failover": failover})
    redirect = {"Kind": "service-resolver", "Name": "old", "Redirect": {"Service": "web", "Datacenter": "dc2"}}
    await federation.write_config_entry(redirect)
    mode = {"Kind": "service-defaults", "Name": "api", "MeshGateway": {"Mode": "remote"}, "Protocol": "tcp"}
    await federation.write_config_entry(mode)
    if dc1.version >= (1, 10, 0):
        limits = {"Limits": {"MaxConnections": 512, "MaxPendingRequests": 7}}
        entry = {"Kind": "service-defaults", "Name": "mesh-gateway", "UpstreamConfig": {"Defaults": limits}}
        await federation.write_config_entry(entry)
    await federation.set_intention("api", "web", "allow")

    async def missing() -> str | None:
        states = await dc1.ask("/v1/internal/federation-states/mesh-gateways")
        names = await dc2.ask("/v1/health/service/mesh-gateway")
        return None if states and states.get("dc2") and names else f"federation states are {states}"

    await until("the federation states", missing, seconds=PATIENCE)


def _with_sidecar(service: str, version: str) -> dict[str, Any]:
    upstreams = [{"DestinationName": "api", "Datacenter": "dc2", "LocalBindPort": 9191}]
    proxy = {"Upstreams": upstreams if service == "web" else []}
    check = {"CheckID": f"{service}-{version}-up", "Name": "up", "TTL": "24h", "Status": "passing"}
    sidecar = {"Address": "127.0.0.1", "Port": 21000, "Proxy": proxy, "Checks": [check], "Meta": {"version": version}}
    registration = {"ID": f"{service}-{version}", "Name": service, "Address": "127.0.0.1", "Port": 8080}
    return registration | {"Meta": {"version": version}, "Connect": {"SidecarService": sidecar}}


def _gateway() -> dict[str, Any]:
    wan = {"Address": "198.51.100.7", "Port": 443}
    check = {"CheckID": "service:mesh-gateway", "Name": "listening", "TTL": "24h", "Status": "passing"}
    gateway = {
        "ID": "mesh-gateway",
        "Name": "mesh-gateway",
        "Kind": "mesh-gateway",
        "Address": "10.0.0.7",
        "Port": 8443,
    }
    return gateway | {"TaggedAddresses": {"wan": wan, "lan": {"Address": "10.0.0.7", "Port": 8443}}, "Check": check}


@asynccontextmanager
async def _alone(binary: str, name: str, blocked: list[str] | None = None) -> AsyncIterator[Consul]:
    """A datacenter that is joined with no other."""
    with tempfile.TemporaryDirectory() as folder:
        version, ports = consul_version(binary), Ports.pick()
        consul = Consul(binary, version, name, ports, Path(folder) / name, str(uuid4()))
        grpc, grpc_tls = free_ports(2)
        listening = {"http": ports.http, "server": ports.server, "serf_lan": ports.serf_lan}
        listening |= {"serf_wan": ports.serf_wan, "dns": -1, "https": -1, "grpc": grpc}
        if version >= (1, 14, 0):
            listening["grpc_tls"] = grpc_tls
        http: dict[str, Any] = {"http_config": {"block_endpoints": blocked}} if blocked else {}
        consul.configure(name, [], ports=listening, retry_join_wan=[], **http)
        try:
            consul.start()
            await consul.until_leader(seconds=PATIENCE)

            async def missing() -> str | None:
                roots = await consul.ask("/v1/connect/ca/roots")
                return (
                    None if roots and roots["TrustDomain"] and await consul.ask("/v1/acl/token/self") else "it starts"
                )

            await until(f"datacenter {name}", missing, seconds=PATIENCE)
            yield consul
        finally:
            await consul.stop()


async def _peer(us: Consul, eu: Consul) -> None:
    """Peer the two, server to server; `us` exports web."""
    await us.register(_with_sidecar("web", "1"))
    await us.register(_gateway())
    await eu.put("/v1/config", {"Kind": "mesh", "Peering": {"PeerThroughMeshGateways": True}})
    exports = [{"Name": "web", "Consumers": [{"Peer": "eu"}]}]
    await us.put("/v1/config", {"Kind": "exported-services", "Name": "default", "Services": exports})
    await eu.put("/v1/config", {"Kind": "mesh", "Peering": {"PeerThroughMeshGateways": False}})
    token = await us.post("/v1/peering/token", {"PeerName": "eu"})
    await eu.post("/v1/peering/establish", {"PeerName": "us", "PeeringToken": token["PeeringToken"]})

    async def missing() -> str | None:
        rows = await eu.ask("/v1/health/connect/web", peer="us")
        return None if rows else "nothing is imported yet"

    await until("the import", missing, seconds=PATIENCE)
    await eu.put("/v1/config", {"Kind": "mesh", "Peering": {"PeerThroughMeshGateways": True}})


async def _token(consul: Consul, rules: str) -> str:
    policy = await consul.put("/v1/acl/policy", {"Name": str(uuid4()), "Rules": rules})
    return str((await consul.put("/v1/acl/token", {"Policies": [{"ID": policy["ID"]}]}))["SecretID"])


def main() -> int:
    """Run the command line."""
    folder = trio.run(record, find_consul(DATA.parents[1] / ".cache" / "consul" / "consul"))
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{len(list(folder.iterdir()))} recordings of {size / 1024:.0f} kB in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
