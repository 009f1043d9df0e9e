"""A double of Consul's HTTP API with namespaces, admin partitions and cluster peering, on top of `fake_consul`.

What it imitates, all of it documented or read in Consul's source:

- the query parameters `ns` and `partition` choose where a request looks, `default` where they are left out; the
  community edition answers 400 to any value of them;
- `/v1/namespaces` can be held; `/v1/partitions` has no index, and is 404 in the community edition, as namespaces are;
- `peer` on `/v1/health/connect` shows what was imported, each row with the SNIs that its exporter gave it;
- a config entry that is absent is a 404 with an index, which can be held; an unknown path is a 404 without one;
- `/v1/peerings`: before 1.13 there is none; what a peering imports moves no index; without `peering:read` 403;
- `/v1/exported-services` since 1.17.3; before, only the entry as it was written (`exports_as_written`);
- `/v1/config/sameness-group/:name` since 1.16; before, 500 for a kind that is not known. The community edition refuses
  to write such an entry, so there it is always absent;
- `/v1/discovery-chain/:service` with the compiled chain.

A registration with the agent is kept, and shows up in the catalog of its partition.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from .fake_consul import KIND, FakeConsul, Resource, Seen, row

TRUST_DOMAIN = "11111111-2222-3333-4444-555555555555.consul"
_PLACE = ("dc", "ns", "partition", "peer")
_WITHOUT_NAMESPACE = ("/v1/agent/", "/v1/catalog/nodes", "/v1/namespaces", "/v1/peerings", "/v1/exported-services")


class MeshDouble(FakeConsul):
    """The double. `place` arguments are `ns`, `partition`, `peer` and `dc`."""

    def __init__(self, *, enterprise: bool = True, version: str = "") -> None:
        super().__init__()
        self.enterprise = enterprise
        self.version = version or ("1.18.2+ent" if enterprise else "1.18.2")
        self.on_put = self._register
        self._held_back: dict[str, trio.Event] = {}
        self._services: dict[tuple[str, str], dict[str, list[str]]] = {}
        self.set("/v1/catalog/datacenters", ["dc1"], index=None)
        root = {"TrustDomain": TRUST_DOMAIN, "ActiveRootID": "", "Roots": None}
        self.set("/v1/connect/ca/roots", root)
        self.set("/v1/internal/federation-states/mesh-gateways", {"dc1": []})
        self.tenant()

    # --- how it answers ------------------------------------------------------------------------------------------

    def key_of(self, seen: Seen) -> str:
        if seen.path.startswith(("/v1/catalog/datacenters", "/v1/connect/ca/", "/v1/partitions")):
            return seen.path
        return key(seen.path, **{name: seen.query.get(name, "") for name in _PLACE})

    def refusal(self, seen: Seen) -> Resource | None:
        asked = [name for name in ("ns", "partition") if seen.query.get(name)]
        if asked and not self.enterprise:
            what = "Namespaces" if asked[0] == "ns" else "Partitions"
            text = f'Invalid query parameter: "{asked[0]}" - {what} are a Consul Enterprise feature'
            return Resource(text.encode(), index=None, status=400)
        if seen.path.startswith("/v1/config/sameness-group") and self._before(1, 16):
            return Resource(b"invalid config entry kind: sameness-group", index=None, status=500)
        if (
            seen.path.startswith("/v1/config/")
            and self.key_of(seen) not in self.resources
            and not KIND.fullmatch(seen.path)
        ):
            self.set_at(seen.path, b"Config entry not found", **_place_of(seen), status=404)
        return None

    def hold_back(self, path: str) -> trio.Event:
        """Let a path be answered only when the event is set, at whatever place."""
        return self._held_back.setdefault(path, trio.Event())

    async def _answer_of(self, seen: Seen) -> Resource:
        if seen.method == "GET" and seen.path in self._held_back:
            await self._held_back[seen.path].wait()
        return await super()._answer_of(seen)

    def set_at(self, path: str, body: Any = None, *, status: int = 200, index: int | None = -1, **place: str) -> None:
        """Give a path a new answer at a place."""
        fields = {} if index == -1 else {"index": index}
        self.set(key(path, **place), body, status=status, **fields)

    # --- the world -----------------------------------------------------------------------------------------------

    def tenant(self, partition: str = "default", ns: str = "default") -> None:
        """A partition or namespace in which nothing is registered."""
        place: dict[str, Any] = {"partition": partition, "ns": ns}
        self._services.setdefault((partition, ns), {})
        agent = {"Config": {"Datacenter": "dc1", "NodeName": "n1", "Version": self.version}, "DebugConfig": {}}
        self.set_at("/v1/agent/self", agent, index=None, partition=partition)
        self.set_at("/v1/agent/checks", {}, index=None, **place)
        self.set_at("/v1/agent/services", {}, index=None, **place)
        self.set_at("/v1/catalog/nodes", [{"Node": "n1"}], partition=partition)
        self.set_at("/v1/config/service-resolver", [], **place)
        self.set_at("/v1/internal/ui/services", [], **place)
        self.set_at("/v1/health/service/consul", [], **place)
        self.set_at("/v1/health/service/mesh-gateway", [], **place)
        if (partition, ns) == ("default", "default"):
            server = row("consul", address="127.0.0.1", port=8300, kind="")
            self.set_at("/v1/health/service/consul", [server])
        self._list_services(partition, ns)
        if self.enterprise:
            names = sorted({tenant_ns for at, tenant_ns in self._services if at == partition})
            self.set_at("/v1/namespaces", [{"Name": name} for name in names], partition=partition)
            partitions = sorted({at for at, _ in self._services})
            self.set("/v1/partitions", [{"Name": name} for name in partitions], index=None)

    def serve(
        self, service: str, *rows: dict[str, Any], partition: str = "default", ns: str = "default", sidecar: str = ""
    ) -> None:
        """Register a service with sidecars; without rows it goes."""
        known = self._services[partition, ns]
        known[service] = []
        if not rows:
            del known[service]
        for one in rows:
            one["Node"]["Partition"] = partition
        self.set_at(f"/v1/health/connect/{service}", list(rows), partition=partition, ns=ns)
        self._list_services(partition, ns)

    def gateway(
        self, partition: str, address: str, port: int, *, name: str = "mesh-gateway", instance: str = ""
    ) -> None:
        """Register a mesh gateway of a partition; its LAN address is one that nobody answers at."""
        found = row(name, address="192.0.2.1", port=1, kind="mesh-gateway")
        found["Node"]["Partition"] = partition
        found["Service"]["ID"] = instance or name
        found["Service"]["TaggedAddresses"] = {"wan": {"Address": address, "Port": port}}
        self.set_at(f"/v1/health/service/{name}", [found], partition=partition)
        self.set_at("/v1/internal/ui/services", [{"Name": name, "Kind": "mesh-gateway"}], partition=partition)

    def peering(self, *peerings: dict[str, Any], partition: str = "default") -> None:
        """The peerings of a partition. Without an index, as before 1.14.8."""
        self.set_at("/v1/peerings", list(peerings), index=None, partition=partition)

    def import_from(self, peer: str, service: str, *addresses: tuple[str, int], sni: str = "", ns: str = "") -> str:
        """What a peer's gateways stand for; the name to ask for."""
        name = sni or f"{service}.{ns or 'default'}.default.us.external.22222222-3333-4444-5555-666666666666.consul"
        rows = []
        for number, (address, port) in enumerate(addresses):
            one = row(f"{service}-sidecar-proxy", address="192.0.2.2", port=1)
            one["Node"]["PeerName"] = peer
            one["Service"] |= {
                "ID": f"{service}-sidecar-proxy-{number}",
                "PeerName": peer,
                "TaggedAddresses": {"wan": {"Address": address, "Port": port}},
                "Connect": {"PeerMeta": {"SNI": [name], "SpiffeID": ["spiffe://x/"], "Protocol": "http"}},
            }
            rows.append(one)
        self.set_at(f"/v1/health/connect/{service}", rows, peer=peer, ns=ns)
        return name

    def exports_as_written(self, *services: dict[str, Any], partition: str = "default") -> None:
        """An exported-services entry of a Consul before 1.17.3."""
        assert self._before(1, 17, 3)
        missing = b"Invalid URL path: not a recognized HTTP API endpoint"
        self.set_at("/v1/exported-services", missing, status=404, index=None, partition=partition)
        entry = {"Kind": "exported-services", "Name": partition, "Services": list(services)}
        self.set_at(f"/v1/config/exported-services/{partition}", entry, partition=partition)

    def sameness_group(self, name: str, *members: dict[str, str], partition: str = "default") -> None:
        """A sameness group as a partition sees it."""
        entry = {"Kind": "sameness-group", "Name": name, "Partition": partition, "Members": list(members)}
        self.set_at(f"/v1/config/sameness-group/{name}", entry, partition=partition)

    def _before(self, *version: int) -> bool:
        return tuple(map(int, self.version.removesuffix("+ent").split("."))) < version

    def _list_services(self, partition: str, ns: str) -> None:
        listed = dict(self._services[partition, ns])
        if (partition, ns) == ("default", "default"):
            listed["consul"] = []
            self.set_at("/v1/health/connect/consul", [])
        self.set_at("/v1/catalog/services", listed, partition=partition, ns=ns)

    def _register(self, seen: Seen) -> None:
        if seen.path.startswith("/v1/agent/service/deregister/"):
            self.set_at(seen.path, None, index=None, **_place_of(seen))
            self.set_at("/v1/agent/services", {}, index=None, **_place_of(seen))
        if seen.path != "/v1/agent/service/register":
            return
        self.set_at(seen.path, None, index=None, **_place_of(seen))
        payload = json.loads(seen.body)
        partition = payload.get("Partition") or seen.query.get("partition", "") or "default"
        held = {"ID": payload["ID"], "Service": payload["Name"], "Port": payload["Port"], "ContentHash": "h1"}
        held |= {name: payload[name] for name in ("Address", "TaggedAddresses", "Meta", "Proxy") if name in payload}
        self.set(key(f"/v1/agent/service/{payload['ID']}", **_place_of(seen)), held, index=None, hash="h1")
        self.set_at("/v1/agent/services", {payload["ID"]: held}, index=None, **_place_of(seen))
        address = payload.get("Address") or "127.0.0.1"
        self.gateway(partition, address, payload["Port"], name=payload["Name"], instance=payload["ID"])


def key(path: str, **place: str) -> str:
    """The key of a path at a place; defaults are left out."""
    said = {name: place.get(name, "") for name in _PLACE}
    if path.startswith(_WITHOUT_NAMESPACE):
        said["ns"] = ""
    named = [f"{name}={value}" for name, value in said.items() if value and value != "default"]
    return path + ("?" + "&".join(named) if named else "")


def _place_of(seen: Seen) -> dict[str, Any]:
    return {name: seen.query[name] for name in _PLACE if name in seen.query}


def peering(name: str, *imported: str, **fields: Any) -> dict[str, Any]:
    """A row of `/v1/peerings`."""
    ordinary = {
        "ID": f"id-of-{name}",
        "Name": name,
        "State": "ACTIVE",
        "PeerServerName": "",
        "PeerServerAddresses": None,
        "StreamStatus": {"ImportedServices": list(imported), "ExportedServices": None},
        "CreateIndex": 5,
        "ModifyIndex": 7,
    }
    return ordinary | fields


def chain(
    service: str, *, protocol: str = "tcp", target: str = "", subset: str = "", start: str = "resolver", **place: object
) -> dict[str, Any]:
    """The answer of `/v1/discovery-chain`: `service` leads to `target`; `place` is where that is, if not here."""
    here = {"Namespace": "default", "Partition": "default", "Datacenter": "dc1"}
    found = {"ID": "t", "Service": target or service, "ServiceSubset": subset, **here, **place}
    nodes: dict[str, Any] = {"r": {"Type": "resolver", "Name": "r", "Resolver": {"Target": "t"}}}
    if start != "resolver":
        nodes["s"] = {"Type": start, "Name": "s"}
    compiled = {
        "ServiceName": service,
        "Protocol": protocol,
        "StartNode": "r" if start == "resolver" else "s",
        "Nodes": nodes,
        "Targets": {"t": found},
    }
    return {"Chain": here | compiled}


def exported(service: str, *, peers: tuple[str, ...] = (), partitions: tuple[str, ...] = (), ns: str = "") -> Any:
    """A row of `/v1/exported-services`."""
    return {"Service": service, "Namespace": ns, "Consumers": {"Peers": list(peers), "Partitions": list(partitions)}}


@asynccontextmanager
async def mesh_double(*, enterprise: bool = True, version: str = "") -> AsyncIterator[MeshDouble]:
    """The double, listening on 127.0.0.1."""
    double = MeshDouble(enterprise=enterprise, version=version)
    sock = trio.socket.socket()
    await sock.bind(("127.0.0.1", 0))
    double.port = sock.getsockname()[1]
    sock.listen(128)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, double.serve_stream, [trio.SocketListener(sock)])
        yield double
        nursery.cancel_scope.cancel()
