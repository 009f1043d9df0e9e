"""The requests of Consul's HTTP API as python-consul2 knows them, and those that it lacks in the same shape.

A method of python-consul2's endpoint groups returns whatever its HTTP client returns. Ours does no I/O: it returns the
`Request` that the method stands for, which `client` then sends with what all requests have in common and python-consul2
has no parameters for, or only here and there (an index to wait for, a filter, a partition), and decodes into records.

A name goes into a path by `segment` only.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partialmethod
from typing import Any, Final
from urllib.parse import quote

from consul import base

Params = Mapping[str, str] | Iterable[tuple[str, object]] | None
Headers = Mapping[str, str] | None


@dataclass(frozen=True, slots=True)
class Request:
    """A request as python-consul2 makes it. `path` is quoted already where a name is in it (`segment`).

    The headers hold a token where one was given to the method, and nothing else.
    """

    method: str
    path: str
    params: tuple[tuple[str, str], ...] = ()
    body: bytes = field(default=b"", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def asking(self, params: Mapping[str, str]) -> "Request":
        """The same request with further parameters, of which the empty ones are left out."""
        return replace(self, params=self.params + tuple((name, value) for name, value in params.items() if value))


def segment(name: str) -> str:
    """A name as one part of a path: no character of it means anything there."""
    return quote(name, safe="")


def askable(name: str) -> bool:
    """Whether a name can be asked for: servers and proxies take such parts out of a path, which makes another one."""
    return {"", ".", ".."}.isdisjoint(name.split("/"))


class _Requests(base.HTTPClient):
    """python-consul2's HTTP client, which hands the requests back."""

    # The callbacks are python-consul2's ways to decode an answer. They are left out: they make dictionaries by way of
    # `json`, drop the headers but the index, and know fewer failures than `consul_errors`.
    def _request(
        self, method: str, callback: object, path: str, params: Params = None, data: str = "", headers: Headers = None
    ) -> Request:
        query = params.items() if isinstance(params, Mapping) else params or ()
        return Request(method, path, tuple((name, str(value)) for name, value in query), data.encode(), headers or {})

    get = partialmethod(_request, "GET")
    put = partialmethod(_request, "PUT")
    delete = partialmethod(_request, "DELETE")
    post = partialmethod(_request, "POST")


class Consul(base.Consul):
    """python-consul2's client with the endpoint groups that are used, and groups for what it does not know.

    `base.Consul.__init__` is not called: it lets `CONSUL_HTTP_ADDR`, `CONSUL_HTTP_TOKEN` and others of the environment
    win over explicit arguments, reads them in another way than Consul does, and warns of two parts that it deprecates.
    """

    def __init__(self) -> None:
        self.http = _Requests()
        self.token = None  # the transport adds the credentials: one place, and a rotated token takes effect
        self.dc = None
        self.scheme = "http"
        self.consistency = "default"
        self.acl = Acl(self)
        self.agent = Agent(self)
        self.catalog = base.Consul.Catalog(self)
        self.config = base.Consul.Config(self)
        self.connect = base.Consul.Connect(self)
        self.discovery_chain = DiscoveryChain(self)
        self.health = Health(self)
        self.status = base.Consul.Status(self)
        self.exported_services = Listing(self, "/v1/exported-services")  # 1.17.3 and later
        self.internal = Internal(self)
        self.namespaces = Listing(self, "/v1/namespaces")  # Enterprise
        self.partitions = Listing(self, "/v1/partitions")  # Enterprise 1.11 and later
        self.peerings = Peerings(self, "/v1/peerings")  # 1.13 and later


class _Group:
    """A group of endpoints, as those of python-consul2 are: `agent` is the client that it belongs to."""

    def __init__(self, agent: base.Consul) -> None:
        self.agent = agent

    def _get(self, path: str, **params: str) -> Request:
        given = {name: value for name, value in params.items() if value}
        request: Request = self.agent.http.get(base.CB.json(index=True), path, params=given)
        return request


class Acl(base.Consul.ACL):
    """Without python-consul2's groups for management, one of which warns that it is deprecated."""

    def __init__(self, agent: base.Consul) -> None:
        self.agent = agent
        self.tokens = base.Consul.ACL.Tokens(agent)


class Agent(base.Consul.Agent):
    service: "AgentService"

    def __init__(self, agent: base.Consul) -> None:
        super().__init__(agent)
        self.service = AgentService(agent)
        self.connect = AgentConnect(agent)


class AgentService(_Group, base.Consul.Agent.Service):
    def get(self, service_id: str) -> Request:
        """It is held by its content hash instead of an index."""
        return self._get(f"/v1/agent/service/{service_id}")

    def register_definition(self, definition: Mapping[str, Any]) -> Request:
        """The method of python-consul2 knows no kind, weights or tagged addresses."""
        path = "/v1/agent/service/register"
        request: Request = self.agent.http.put(base.CB.bool(), path, data=json.dumps(definition))
        return request


class AgentConnect(base.Consul.Agent.Connect):
    def leaf_certificates(self, service: str, token: str | None = None) -> Request:
        """The path that python-consul2 asks for lacks the version."""
        request: Request = super().leaf_certificates(service, token)
        return replace(request, path=f"/v1{request.path}")


class DiscoveryChain(_Group, base.Consul.DiscoveryChain):
    """python-consul2 has the group without a method, and warns when it is made."""

    def get(self, service: str, compile_dc: str = "", dc: str = "") -> Request:
        return self._get(f"/v1/discovery-chain/{service}", **{"compile-dc": compile_dc, "dc": dc})


class Health(_Group, base.Consul.Health):
    def connect(self, service: str, dc: str = "") -> Request:
        return self._get(f"/v1/health/connect/{service}", dc=dc)


class Internal(_Group):
    """What Consul's own tools and pages ask for. None of it is documented; all of it is there since 1.8 or before."""

    def authorize(self, rights: Iterable[Mapping[str, str]], dc: str = "") -> Request:
        params = {"dc": dc} if dc else None
        data = json.dumps(list(rights))
        request: Request = self.agent.http.post(base.CB.json(), "/v1/internal/acl/authorize", params, data)
        return request

    def federation_states(self) -> Request:
        return self._get("/v1/internal/federation-states/mesh-gateways")

    def ui_services(self, dc: str = "") -> Request:
        return self._get("/v1/internal/ui/services", dc=dc)


class Listing(_Group):
    def __init__(self, agent: base.Consul, path: str) -> None:
        super().__init__(agent)
        self._path = path

    def list(self) -> Request:
        return self._get(self._path)


class Peerings(Listing):
    def get(self, name: str) -> Request:
        return self._get(f"/v1/peering/{name}")

    def options(self) -> Request:
        """It is answered 404 by versions that lack peerings; needs no right, and leaves no line in Consul's log."""
        # An HTTP client of python-consul2 has no such method.
        return Request("OPTIONS", "/v1/peerings")


CONSUL: Final = Consul()
"""It holds nothing of a client, so there is one."""
