"""A double of Consul's HTTP API on a real socket: h11 on trio.

It imitates what Consul's documentation says of blocking queries (an index per resource; a query with `index` at or
above it is held until a change or the end of `wait`), of hash-blocking (`hash`, `X-Consul-ContentHash`), and the status
codes of its API. Beyond that it misbehaves on demand: bodies that are cut, garbage, an index that goes backwards or is
left out, answers that never block, no answer at all.
"""

import json
import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import h11
import trio

from meshgate.core.durations import parse_duration

_KINDS = "mesh|exported-services|sameness-group|service-defaults|proxy-defaults"
KIND = re.compile(rf"/v1/config/(?:{_KINDS})")
_ENTRY = re.compile(rf"(/v1/config/(?:{_KINDS}))/[^/?]+(\?.*)?")


@dataclass
class Resource:
    """What a path answers. `body` is sent as JSON unless it is bytes."""

    body: Any = None
    index: int | None = 10
    hash: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    holds: bool = True
    cut: bool = False
    hang: bool = False
    changed: trio.Event = field(default_factory=trio.Event)


@dataclass(frozen=True)
class Seen:
    """A request as it arrived."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        return {key: values[0] for key, values in parse_qs(urlsplit(self.target).query).items()}


class FakeConsul:
    """The double; `port` or the socket's path is where it listens."""

    def __init__(self) -> None:
        # An agent always has a list of checks, and it can be empty.
        self.resources: dict[str, Resource] = {"/v1/agent/checks": Resource({}, index=None)}
        self.seen: list[Seen] = []
        self.held = 0
        self.on_put: Callable[[Seen], None] = lambda _: None
        self.port = 0
        self._scopes: list[trio.CancelScope] = []
        self._connections = 0
        self._stopped = False

    def set(self, path: str, body: Any = None, **fields: Any) -> Resource:
        """Give a path a new answer and wake the queries that are held on it. The index grows unless it is given."""
        before = self.resources.get(path)
        if before is not None and "index" not in fields and before.index is not None:
            fields["index"] = before.index + 1
        self.resources[path] = Resource(body, **fields)
        if before is not None:
            before.changed.set()
        if entry := _ENTRY.fullmatch(path):
            self._list_entries(*entry.groups(default=""))
        return self.resources[path]

    def _list_entries(self, kind: str, place: str) -> None:
        """The list of a kind of config entries, by what is set for each of them: it leaves out what is forbidden."""
        ours = {key: each for key, each in self.resources.items() if (it := _ENTRY.fullmatch(key)) and it[1] == kind}
        named = {
            key.partition("?")[0].rpartition("/")[2]: each
            for key, each in ours.items()
            if key.partition("?")[1:] == place.partition("?")[1:]
        }
        entries = list(named.values())
        rows = [{"Name": name, **each.body} for name, each in named.items() if each.status == 200]
        filtered = any(each.status == 403 for each in entries)
        headers = {"X-Consul-Results-Filtered-By-ACLs": "true"} if filtered else {}
        broken = next((each for each in entries if each.status not in (200, 403, 404)), None)
        if broken is None:
            self.set(kind + place, rows, headers=headers)
        else:
            self.set(kind + place, broken.body, status=broken.status)

    def paths(self) -> list[str]:
        return [seen.path for seen in self.seen]

    def requests(self, path: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.path == path]

    def drop_connections(self) -> None:
        """Close every connection at once, as a killed agent does."""
        for scope in self._scopes:
            scope.cancel()
        self._scopes.clear()

    def stop(self) -> None:
        """Close every connection, those too that the kernel has queued for a listener that is still open."""
        self._stopped = True
        self.drop_connections()

    async def serve_stream(self, stream: trio.abc.Stream) -> None:
        if self._stopped:
            await trio.aclose_forcefully(stream)
            return
        self._connections += 1
        number = self._connections
        scope = trio.CancelScope()
        self._scopes.append(scope)
        connection = h11.Connection(h11.SERVER)
        with scope:
            try:
                while await self._exchange(stream, connection, number):
                    connection.start_next_cycle()
            except (trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError, ssl.SSLError):
                pass
        with trio.CancelScope(shield=True), trio.move_on_after(1):
            await trio.aclose_forcefully(stream)

    async def _exchange(self, stream: trio.abc.Stream, connection: h11.Connection, number: int) -> bool:
        seen = await self._receive(stream, connection, number)
        if seen is None:
            return False
        self.seen.append(seen)
        if seen.method in ("PUT", "POST"):
            self.on_put(seen)
        resource = await self._answer_of(seen)
        if resource.hang:
            await trio.sleep_forever()
        body = resource.body if isinstance(resource.body, bytes) else json.dumps(resource.body).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        if resource.index is not None:
            headers.append(("X-Consul-Index", str(resource.index)))
        if resource.hash:
            headers.append(("X-Consul-ContentHash", resource.hash))
        headers += list(resource.headers.items())
        send = connection.send
        await stream.send_all(send(h11.Response(status_code=resource.status, headers=headers)) or b"")
        if resource.cut:
            await stream.send_all(send(h11.Data(body[: len(body) // 2])) or b"")
            return False
        await stream.send_all((send(h11.Data(body)) or b"") + (send(h11.EndOfMessage()) or b""))
        return connection.our_state is h11.DONE

    async def _receive(self, stream: trio.abc.Stream, connection: h11.Connection, number: int) -> Seen | None:
        request, body = None, b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(bytes(await stream.receive_some()))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage) and request is not None:
                headers = {key.decode().lower(): value.decode() for key, value in request.headers}
                return Seen(request.method.decode(), request.target.decode(), headers, body, number)
            else:
                return None

    def key_of(self, seen: Seen) -> str:
        """Under which key of `resources` the answer to a request is."""
        return seen.path + (f"?dc={seen.query['dc']}" if "dc" in seen.query else "")

    def refusal(self, seen: Seen) -> Resource | None:
        """The answer to a request that is refused whatever it asks for."""
        return None

    async def _answer_of(self, seen: Seen) -> Resource:
        if (refusal := self.refusal(seen)) is not None:
            return refusal
        key = self.key_of(seen)
        missing = Resource("Invalid URL path: not a recognized HTTP API endpoint", index=None, status=404)
        if seen.method == "GET" and KIND.fullmatch(seen.path):
            self.resources.setdefault(key, Resource([]))
        if seen.path.startswith("/v1/discovery-chain/"):
            missing = Resource({"Chain": None})  # Every name has a chain; what it looks like matters to few.
        resource = self.resources.get(key, missing)
        query = seen.query
        waits = ("index" in query and resource.index is not None and int(query["index"]) >= resource.index) or (
            "hash" in query and query["hash"] == resource.hash
        )
        # The absence of a config entry has an index too.
        if waits and resource.holds and resource.status in (200, 404):
            self.held += 1
            with trio.move_on_after(parse_duration(query.get("wait", "5m"))):
                await resource.changed.wait()
            self.held -= 1
        return self.resources.get(key, missing)


@asynccontextmanager
async def fake_consul(*, tls: ssl.SSLContext | None = None, unix: Path | None = None) -> AsyncIterator[FakeConsul]:
    """The double, listening on 127.0.0.1 or on a Unix socket, over TLS if there is a context."""
    double = FakeConsul()
    if unix is None:
        sock = trio.socket.socket()
        await sock.bind(("127.0.0.1", 0))
        double.port = sock.getsockname()[1]
    else:
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        await sock.bind(str(unix))
    sock.listen(128)
    listener: trio.abc.Listener[Any] = trio.SocketListener(sock)
    if tls is not None:
        listener = trio.SSLListener(listener, tls, https_compatible=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, double.serve_stream, [listener])
        yield double
        nursery.cancel_scope.cancel()


def defaults(double: FakeConsul) -> None:
    """A Consul without any service of ours: what a datacenter answers that has just started."""
    double.set("/v1/connect/ca/roots", {"TrustDomain": "td.consul", "ActiveRootID": "", "Roots": None})
    double.set("/v1/catalog/services", {"consul": []})
    double.set("/v1/health/connect/consul", [])
    double.set("/v1/health/service/consul", [row("consul", address="10.0.0.1", port=8300, kind="")])
    double.set("/v1/config/service-resolver", [])
    double.set("/v1/catalog/datacenters", ["dc1"], index=None)
    double.set("/v1/internal/federation-states/mesh-gateways", {"dc1": []})


def row(service: str, *, address: str = "10.0.0.7", port: int = 21000, kind: str = "connect-proxy") -> dict[str, Any]:
    """A row of a health endpoint, with the nulls that Consul writes."""
    return {
        "Node": {"Node": "n1", "Address": "10.0.0.1", "Datacenter": "dc1", "TaggedAddresses": None, "Meta": None},
        "Service": {
            "ID": f"{service}-1",
            "Service": service,
            "Kind": kind,
            "Tags": None,
            "Address": address,
            "Port": port,
            "Weights": None,
            "Meta": None,
            "TaggedAddresses": None,
            "ModifyIndex": 5,
        },
        "Checks": None,
    }
