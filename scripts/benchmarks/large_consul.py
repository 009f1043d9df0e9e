"""A Consul with a large catalog, as far as a gateway asks it: HTTP on a port of 127.0.0.1, in a process of its own.

It holds blocking queries by an index for each answer, and resets what goes beyond 200 connections, as Consul does. Its
first line of input has the size of the catalog and the gateway's port, and it answers with its own. Then
`{"do": "change", "service": N}` moves the instances of a service to another port, which it answers with, and
`{"do": "count"}` tells how many requests were answered and how many connections were open at most.
"""

import asyncio
import json
import sys
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from meshgate.core.durations import parse_duration

from .peers import TRUST_DOMAIN

MOST_CONNECTIONS = 200
PORTS = (20001, 20002)  # Of the instances, in turn.
GREETING = b"+"


class LargeConsul:
    """The catalog, and who waits for it to change."""

    def __init__(self, services: int, instances: int, datacenters: int, gateway: int, ports: tuple[int, int]) -> None:
        self.index = 1000
        self.requests = 0
        self.most_connections = 0
        self._connections = 0
        self._gateway_port = gateway
        self._ports = ports
        self._each = instances // services
        self._moved = [0] * services
        self._indexes = [self.index] * services
        self._names = [f"service-{number}" for number in range(services)]
        self._remotes = [f"dc{number}" for number in range(2, datacenters + 1)]
        self._change = asyncio.Event()
        self._changes: dict[int, asyncio.Event] = {}
        self._summaries = b""

    def port_of(self, number: int) -> int:
        """Where the instances of a service are now."""
        return self._ports[self._moved[number] % 2]

    def change(self, number: int) -> None:
        """Move the instances of a service to another port, and one of them to another node."""
        self._moved[number] += 1
        self.index += 1
        self._indexes[number] = self.index
        self._summaries = b""
        self._changes.pop(number, self._change).set()
        self._change.set()
        self._change = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        if self._connections >= MOST_CONNECTIONS:
            writer.transport.abort()
            return
        self._connections += 1
        self.most_connections = max(self.most_connections, self._connections)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await self._answer(head.decode(), reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._connections -= 1
            writer.close()

    async def _answer(self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = head.split("\r\n")
        for line in lines[1:]:
            name, _, value = line.partition(":")
            if name.lower() == "content-length":
                await reader.readexactly(int(value))
        target = urlsplit(lines[0].split()[1])
        query = {key: values[0] for key, values in parse_qs(target.query).items()}
        path = unquote(target.path)
        self.requests += 1
        await self._hold(path, query)
        status, body, index = self._content(path, query)
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        writer.write(
            f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nX-Consul-Index: {index}\r\n"
            f"X-Consul-ContentHash: 1\r\nX-Consul-KnownLeader: true\r\n\r\n".encode()
            + body
        )
        await writer.drain()

    async def _hold(self, path: str, query: Mapping[str, str]) -> None:
        wait = parse_duration(query.get("wait", "5m"))
        number = self._number(path)
        if number is not None and int(query.get("index", "0")) >= self._indexes[number]:
            change = self._changes.setdefault(number, asyncio.Event())
        elif path.endswith(("/catalog/services", "/ui/services")) and int(query.get("index", "0")) >= self.index:
            change = self._change
        elif "hash" in query or (number is None and query.get("index") == "1000"):
            change = asyncio.Event()
        else:
            return
        try:
            async with asyncio.timeout(wait):
                await change.wait()
        except TimeoutError:
            pass

    def _number(self, path: str) -> int | None:
        name = path.removeprefix("/v1/health/connect/")
        return int(name.removeprefix("service-")) if name.startswith("service-") and name[8:].isdigit() else None

    def _content(self, path: str, query: Mapping[str, str]) -> tuple[str, Any, int]:
        number = self._number(path)
        if number is not None:
            return "200 OK", [self._row(number, each) for each in range(self._each)], self._indexes[number]
        if path == "/v1/catalog/services":
            names = [*self._names, *(f"{name}-sidecar-proxy" for name in self._names), "consul", "mesh-gateway"]
            return "200 OK", {name: [] for name in names}, self.index
        if path == "/v1/internal/ui/services":
            if "dc" in query:
                return "200 OK", [{"Name": "mesh-gateway", "Kind": "mesh-gateway"}], 1000
            return "200 OK", self._summarize(), self.index
        datacenter = query.get("dc", "dc1")
        registration = {
            "Kind": "mesh-gateway",
            "ID": "mesh-gateway",
            "Service": "mesh-gateway",
            "Address": "127.0.0.1",
            "Port": self._gateway_port,
            "ContentHash": "1",
        }
        answers: dict[str, Any] = {
            "/v1/agent/self": {
                "Config": {"Datacenter": "dc1", "NodeName": "node", "Version": "1.22.6"},
                "DebugConfig": {"UseStreamingBackend": True},
            },
            "/v1/connect/ca/roots": {"TrustDomain": TRUST_DOMAIN, "ActiveRootID": "", "Roots": []},
            "/v1/catalog/datacenters": ["dc1", *self._remotes],
            "/v1/config/service-resolver": [],
            "/v1/internal/federation-states/mesh-gateways": {name: [self._gateway(name)] for name in self._remotes},
            "/v1/health/service/consul": [self._gateway(datacenter, "consul")],
            "/v1/health/service/mesh-gateway": [self._gateway(datacenter)],
            "/v1/agent/checks": {},
            "/v1/agent/services": {"mesh-gateway": registration},
            "/v1/agent/service/mesh-gateway": registration,
            "/v1/config/service-defaults": [],
        }
        if path in answers:
            return "200 OK", answers[path], 1000
        if path.startswith("/v1/health/connect/"):
            return "200 OK", [], self.index
        return "404 Not Found", b"not here", self.index

    def _row(self, number: int, each: int) -> dict[str, Any]:
        node = f"node-{(number * self._each + each + self._moved[number] * (each == 0)) % 997}"
        name = f"{self._names[number]}-sidecar-proxy"
        checks = [
            {"Node": node, "CheckID": check, "Name": title, "Status": "passing", "Notes": "", "Output": "Agent alive"}
            for check, title in (("serfHealth", "Serf Health Status"), (f"service:{name}", "Connect Sidecar Listening"))
        ]
        return {
            "Node": {"ID": node, "Node": node, "Address": "127.0.0.1", "Datacenter": "dc1", "Meta": {"az": "a"}},
            "Service": {
                "Kind": "connect-proxy",
                "ID": f"{name}-{each}",
                "Service": name,
                "Tags": [],
                "Address": "127.0.0.1",
                "Port": self.port_of(number),
                "Weights": {"Passing": 1, "Warning": 1},
                "Meta": {"version": "1"},
                "Proxy": {"DestinationServiceName": self._names[number], "LocalServicePort": 8080, "Config": {}},
                "ModifyIndex": self._indexes[number],
            },
            "Checks": checks,
        }

    def _gateway(self, datacenter: str, name: str = "mesh-gateway") -> dict[str, Any]:
        service = {"ID": name, "Service": name, "Kind": "mesh-gateway", "Address": "10.0.0.1", "Port": 8443}
        return {"Node": {"Node": "gw", "Address": "10.0.0.1", "Datacenter": datacenter}, "Service": service}

    def _summarize(self) -> bytes:
        if not self._summaries:
            rows: list[dict[str, Any]] = []
            for number, name in enumerate(self._names):
                nodes = [self._row(number, each)["Node"]["Node"] for each in range(self._each)]
                common = {"Tags": [], "Nodes": nodes, "InstanceCount": self._each, "ExternalSources": []}
                counts = {"ChecksPassing": 2 * self._each, "ChecksWarning": 0, "ChecksCritical": 0}
                rows.append({"Kind": "", "Name": name, **common, **counts})
                rows.append({"Kind": "connect-proxy", "Name": f"{name}-sidecar-proxy", **common, **counts})
            self._summaries = json.dumps(rows).encode()
        return self._summaries


async def main() -> None:
    """Serve until standard input ends."""
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    size = json.loads(await lines.readline())
    backends = [await asyncio.start_server(_greet, "127.0.0.1", 0) for _ in PORTS]
    ports = tuple(server.sockets[0].getsockname()[1] for server in backends)
    consul = LargeConsul(**size, ports=(ports[0], ports[1]))
    server = await asyncio.start_server(consul.serve, "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    while line := await lines.readline():
        message = json.loads(line)
        match message["do"]:
            case "change":
                consul.change(message["service"])
                print(consul.port_of(message["service"]), flush=True)
            case "count":
                print(json.dumps([consul.requests, consul.most_connections]), flush=True)


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A service's instance: answers a stream's first bytes with `GREETING`, and takes whatever comes then."""
    try:
        await reader.read(1 << 16)
        writer.write(GREETING)
        while await reader.read(1 << 16):
            pass
    except ConnectionError:
        pass
    finally:
        writer.close()


if __name__ == "__main__":
    asyncio.run(main())
