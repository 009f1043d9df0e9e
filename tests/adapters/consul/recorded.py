"""What is asked of a real Consul to be recorded, and how the recordings are written and played back.

A recording is one question: the requests that the client made for it, each with its answer as it came, status and
headers too. Tokens, keys and accessors are blanked, and of the agent's own configuration only what a gateway reads is
kept.
"""

import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from meshgate.adapters.consul.api import GATEWAY_KIND, ConsulAddress, ConsulClient, Cursor, Rule, Tenant
from meshgate.adapters.consul.api.endpoints import Request
from meshgate.adapters.consul.api.transport import Answer, Transport

DATA: Final = Path(__file__).parents[2] / "data"
# The headers that an answer is read by.
_HEADERS: Final = re.compile(r"x-consul-(index|contenthash|knownleader|results-filtered-by-acls)|content-type")
_BLANK: Final = "00000000-0000-0000-0000-000000000000"
_KEY: Final = re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(-----END [A-Z ]*PRIVATE KEY-----)", re.DOTALL)
_ACCESSOR: Final = re.compile(r"""(AccessorID(?: '|":"))[0-9a-f-]{36}""")
_DEBUG: Final = (
    "DNSDomain",
    "PrimaryDatacenter",
    "ConnectEnabled",
    "EnableCentralServiceConfig",
    "GRPCPort",
    "GRPCTLSPort",
    "HTTPMaxConnsPerClient",
    "ACLsEnabled",
    "HTTPBlockEndpoints",
    "UseStreamingBackend",
)

Ask = Callable[[ConsulClient], Awaitable[Any]]

WEB, EVERYTHING = Rule("service", "web"), Rule("service", "", "write", prefix=True)

# By name: whom to ask (`dc1`, `dc2`, the peered `us` and `eu`; `dc1-narrow` with a token for little, `dc1-blocked`
# where the agent blocks endpoints), and what.
QUESTIONS: Final[dict[str, tuple[str, Ask]]] = {
    "service-names": ("dc1", lambda it: it.service_names()),
    "service-names-filtered": ("dc1-narrow", lambda it: it.service_names()),
    "connect-instances": ("dc1", lambda it: it.connect_instances("web")),
    "connect-instances-of-a-subset": (
        "dc1",
        lambda it: it.connect_instances("web", subset_filter='Service.Meta.version == "2"'),
    ),
    "connect-instances-by-a-broken-filter": ("dc1", lambda it: it.connect_instances("web", subset_filter="x ==")),
    "connect-instances-denied": ("dc1-narrow", lambda it: it.connect_instances("web")),
    "connect-instances-of-nobody": ("dc1", lambda it: it.connect_instances("nobody")),
    "connect-instances-of-a-peer": ("eu", lambda it: it.at(Tenant(peer="us")).connect_instances("web")),
    "gateways-elsewhere": ("dc1", lambda it: it.instances("mesh-gateway", datacenter="dc2", kind=GATEWAY_KIND)),
    "no-such-datacenter": ("dc1", lambda it: it.instances("mesh-gateway", datacenter="dc9", kind=GATEWAY_KIND)),
    "consul-servers": ("dc1", lambda it: it.instances("consul")),
    "own-instances": ("dc1", lambda it: it.own_instances("mesh-gateway", "mesh-gateway")),
    "node-checks": ("dc1", lambda it: it.node_checks("dc1-server")),
    "visible-nodes": ("dc1", lambda it: it.visible_nodes()),
    "visible-nodes-filtered": ("dc1-narrow", lambda it: it.visible_nodes()),
    "datacenters": ("dc1", lambda it: it.datacenters()),
    "summaries": ("dc1", lambda it: it.summaries()),
    "gateway-names": ("dc1", lambda it: it.gateway_names("dc2")),
    "gateway-names-by-catalog": ("dc1", lambda it: it.gateway_names_by_catalog("dc2")),
    "gateway-names-blocked": ("dc1-blocked", lambda it: it.gateway_names()),
    "federated-gateways": ("dc1", lambda it: it.federated_gateways()),
    "resolvers": ("dc1", lambda it: it.resolvers()),
    "readable": ("dc1", lambda it: it.confirm_readable("web")),
    "readable-although-it-does-not-exist": ("dc1", lambda it: it.confirm_readable("nobody", datacenter="dc2")),
    "readable-denied": ("dc1-narrow", lambda it: it.confirm_readable("web")),
    "service-defaults": ("dc1", lambda it: it.service_defaults("api")),
    "service-defaults-that-do-not-exist": ("dc1", lambda it: it.service_defaults("nobody")),
    "destination-limits": ("dc1", lambda it: it.destination_limits("mesh-gateway")),
    "proxy-defaults": ("dc1", lambda it: it.proxy_defaults_mode()),
    "chain-with-failover": ("dc1", lambda it: it.discovery_chain("web")),
    "chain-with-redirect": ("dc1", lambda it: it.discovery_chain("old")),
    "chain-by-default": ("dc1", lambda it: it.discovery_chain("nobody")),
    "agent-self": ("dc1", lambda it: it.agent_self()),
    "agent-self-denied": ("dc1-narrow", lambda it: it.agent_self()),
    "agent-service": ("dc1", lambda it: it.agent_service("mesh-gateway")),
    "agent-service-that-does-not-exist": ("dc1", lambda it: it.agent_service("nobody")),
    "agent-registration": ("dc1", lambda it: it.agent_registration("mesh-gateway")),
    "agent-checks": ("dc1", lambda it: it.agent_checks("mesh-gateway")),
    "sidecars": ("dc1", lambda it: it.sidecars()),
    "ca-roots": ("dc1", lambda it: it.ca_roots()),
    "ca-roots-of-a-secondary": ("dc1", lambda it: it.ca_roots(datacenter="dc2")),
    "leaf": ("dc1", lambda it: it.leaf("web")),
    "token-self": ("dc1", lambda it: it.token_expiry()),
    "token-unknown": ("dc1-unknown", lambda it: it.token_expiry()),
    "allowed": ("dc1-narrow", lambda it: it.allowed([WEB, EVERYTHING])),
    "acl-replication": ("dc1", lambda it: it.acl_replication("dc2")),
    "intention": ("dc1", lambda it: it.intention("api", "web")),
    "intention-denied": ("dc1", lambda it: it.intention("web", "api")),
    "peerings": ("eu", lambda it: it.peerings()),
    "peerings-denied": ("eu-narrow", lambda it: it.peerings()),
    "peering-roots": ("eu", lambda it: it.peering_roots("us")),
    "peer-through": ("eu", lambda it: it.peer_through()),
    "peer-through-unset": ("dc1", lambda it: it.peer_through()),
    "exported-services": ("us", lambda it: it.exported_services()),
    "exported-entry": ("us", lambda it: it.exported_entry(Cursor(), "default")),
    "exported-entry-unset": ("dc1", lambda it: it.exported_entry(Cursor(), "default")),
    "no-namespaces": ("dc1", lambda it: it.namespaces()),
    "no-partitions": ("dc1", lambda it: it.partitions()),
    "no-sameness-group": ("dc1", lambda it: it.sameness_group("all")),
    "namespace-refused": ("dc1", lambda it: it.at(Tenant(namespace="default")).service_names()),
}


@dataclass
class Exchange:
    """A request and its answer."""

    method: str
    path: str
    params: list[list[str]]
    status: int
    headers: dict[str, str]
    body: Any
    sent: Any = None


@dataclass
class Tape:
    """The exchanges of one question."""

    exchanges: list[Exchange] = field(default_factory=list)

    def write(self, file: Path, secrets: list[str]) -> None:
        text = json.dumps([vars(each) for each in self.exchanges], separators=(",", ":"), ensure_ascii=False)
        for secret in secrets:
            text = text.replace(secret, _BLANK)
        text = _ACCESSOR.sub(rf"\g<1>{_BLANK}", _KEY.sub(r"\1\2", text))
        file.write_text(text + "\n")

    @classmethod
    def read(cls, file: Path) -> "Tape":
        return cls([Exchange(**each) for each in json.loads(file.read_text())])


class RecordingTransport(Transport):
    """Writes down what comes."""

    tape: Tape

    async def _exchange(self, connections: httpx.AsyncHTTPTransport, request: Request, uri: str) -> tuple[int, Answer]:
        status, answer = await super()._exchange(connections, request, uri)
        try:
            body = _kept(request.path, json.loads(answer.content))
        except ValueError:
            body = {"text": answer.content.decode()}
        headers = {name: value for name, value in answer.headers.items() if _HEADERS.fullmatch(name.lower())}
        sent = json.loads(request.body) if request.body else None
        params = [list(each) for each in request.params]
        self.tape.exchanges.append(Exchange(request.method, request.path, params, status, headers, body, sent))
        return status, answer


def _kept(path: str, body: Any) -> Any:
    if path == "/v1/agent/self":
        debug = {name: body["DebugConfig"].get(name) for name in _DEBUG}
        return {"Config": body["Config"], "DebugConfig": debug}
    if path == "/v1/acl/token/self":
        return {name: body[name] for name in ("AccessorID", "Local")}
    return body


class PlayingTransport(Transport):
    """Answers as the tape does; a request that is not on it is a failure of the test."""

    tape: Tape

    async def _exchange(self, connections: httpx.AsyncHTTPTransport, request: Request, uri: str) -> tuple[int, Answer]:
        asked = request.method, request.path, sorted(request.params)
        for each in self.tape.exchanges:
            if (each.method, each.path, sorted(map(tuple, each.params))) == asked:
                bare = isinstance(each.body, dict) and set(each.body) == {"text"}
                content = each.body["text"] if bare else json.dumps(each.body)
                return each.status, Answer(content.encode(), httpx.Headers(each.headers))
        raise AssertionError(f"{asked} was not recorded")


class TapedClient(ConsulClient):
    """The client over one of the two."""

    def __init__(self, address: ConsulAddress, transport: type[RecordingTransport | PlayingTransport]) -> None:
        self._kind = transport
        self.tape = Tape()
        super().__init__(address)

    def _connections(self, number: int) -> Transport:
        made = self._kind(self.address, self.token, self._tls, connections=number)
        made.tape = self.tape
        return made
