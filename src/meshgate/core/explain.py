"""Why a server name is routed or refused, told step by step to a person.

The decision itself is made by what the relay uses, `RouteTable.find` and `Route.candidates`, so an explanation cannot
disagree with what happens to a stream. Everything else here is words: the name is taken apart only to say what it asks
for and, where nothing matched, what is wrong with it. Outcomes are one line of printable ASCII each, whatever a
stranger put into the name and whatever Consul holds; texts from outside are cut after `MAX_SHOWN` characters.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final, Literal

from .addresses import host_port
from .hello import host_name_fault
from .reasons import Reason
from .routes import Endpoint, Policy, Route, RouteKind, RouteTable
from .sni import (
    DEFAULT,
    GatewaySni,
    PeeredServiceSni,
    PeeringServerSni,
    QuerySni,
    ServerSni,
    ServiceSni,
    parse,
)
from .text import counted

MAX_SHOWN: Final = 255
_MAX_LISTED: Final = 10
_POLICIES: Final = {
    Policy.ROUND_ROBIN: "weighted round robin",
    Policy.RANDOM: "at random, by weight,",
    Policy.LEAST_REQUEST: "fewest streams for its weight of {choices} drawn at random",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One line: `rule` says what was looked at, `outcome` what was found."""

    rule: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The decision for a server name and how it came about.

    `sni` is the name as asked, neither folded nor escaped. `reason` is None where the name is routed. `route` is there
    also where it was found and refused because none of its endpoints may get traffic.
    """

    sni: str
    decision: Literal["routed", "refused"]
    reason: Reason | None
    route: Route | None
    steps: tuple[Step, ...]

    @property
    def kind(self) -> RouteKind | None:
        return self.route.kind if self.route else None

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        return self.route.endpoints if self.route else ()


def explain(table: RouteTable, server_name: str, *, domain: str = "consul", notes: Iterable[Step] = ()) -> Explanation:
    """Explain what the gateway does with a stream that asks for `server_name`: the SNI as sent, "" where it sent none.

    `domain` is the agent's DNS domain, by which names of Consul servers are recognized. `notes` come first: what the
    caller knows and the table does not, for instance that the catalog is stale.
    """
    if not server_name:
        step = Step("server name", "the client sent none, and a gateway has nothing else to route by")
        return Explanation(server_name, "refused", Reason.NO_SNI, None, (*notes, step))
    name = _Name(table, server_name, domain)
    compared = Step("server name", f"compared as {_shown(name.text)}")
    fault = host_name_fault(server_name.encode("utf-8", "surrogatepass"))
    if fault:
        step = Step("host name", f"{fault}: no name of the mesh is one, and a hello with it is refused before routing")
        return Explanation(server_name, "refused", Reason.HELLO_MALFORMED, None, (*notes, compared, step))
    route = table.find(server_name)
    steps = [*notes, compared, Step("form", name.form()), *_matching(route)]
    if route is None:
        return Explanation(server_name, "refused", Reason.UNKNOWN_SNI, None, (*steps, name.why_unknown()))
    if route.sni in table.conflicts:
        steps.append(Step("conflict", "more than one thing in Consul claims this name; only the one above gets it"))
    steps += _endpoints(route)
    if not route.candidates:
        return Explanation(server_name, "refused", Reason.NO_HEALTHY_ENDPOINT, route, tuple(steps))
    return Explanation(server_name, "routed", None, route, tuple(steps))


def _matching(route: Route | None) -> Iterator[Step]:
    """The two ways a name can match, in the order in which they are tried."""
    if route is not None and not route.suffix:
        yield Step("exact match", f"yes: {route.kind} {_shown(route.destination)}")
        yield Step("longest suffix match", "not tried: an exact match wins")
        return
    yield Step("exact match", "no")
    if route is not None:
        yield Step("longest suffix match", f"yes, {_shown(route.sni)}: {route.kind} {_shown(route.destination)}")
    else:
        yield Step("longest suffix match", "no")


def _endpoints(route: Route) -> Iterator[Step]:
    """Who could get the stream, who may, and why not the others."""
    if not route.endpoints:
        yield Step("endpoints", "none known: Consul has no instance that belongs to it")
        return
    unhealthy = [endpoint for endpoint in route.endpoints if not endpoint.healthy]
    healthy = len(route.endpoints) - len(unhealthy)
    yield Step("endpoints", f"{len(route.endpoints)} known, {healthy} healthy")
    for endpoint in unhealthy:
        address = host_port(endpoint.address, endpoint.port)
        who = f"{_shown(address)}, {_shown(endpoint.instance)} on {_shown(endpoint.node)}"
        yield Step("unhealthy endpoint", f"{who}: {_shown(endpoint.cause)}")
    count = len(route.candidates)
    yield Step("panic mode", _panic(route, healthy, count))
    if count:
        policy = _POLICIES[route.policy].format(choices=route.choice_count)
        yield Step("balancing", f"{policy} over {counted(count, 'endpoint')}")


def _panic(route: Route, healthy: int, count: int) -> str:
    if not route.panic_threshold:
        return "switched off: unhealthy endpoints get no traffic"
    if count > healthy:
        return f"in force: under {route.panic_threshold} % are healthy, so all get traffic"
    return f"not in force: {route.panic_threshold} % or more are healthy, only they get traffic"


class _Name:
    """A server name, taken apart in lower case against the table it was looked up in."""

    def __init__(self, table: RouteTable, server_name: str, domain: str) -> None:
        self.text = text = server_name.lower()
        self._table = table
        self._trust_domain = table.trust_domain.lower()
        self._partition = table.partition.lower() or DEFAULT
        own = parse(text, trust_domain=self._trust_domain, domain=domain)
        self._sni = own or parse(text, domain=domain)
        self._here = table.datacenter.lower() if own else None

    def form(self) -> str:
        match self._sni:
            case None:
                return "none of Consul's"
            case ServiceSni(service, datacenter, _, namespace, partition, subset):
                what = f"subset {_shown(subset)} of " if subset else ""
                return f"{what}{_tenant(service, namespace, partition)}, {self._place(datacenter)}"
            case GatewaySni(datacenter, _, partition):
                return f"all of {self._place(datacenter)}, partition {_shown(partition)}"
            case QuerySni(query, datacenter):
                return f"prepared query {_shown(query)}, {self._place(datacenter)}"
            case PeeredServiceSni(service, peer, _, namespace, partition):
                return f"{_tenant(service, namespace, partition)}, for peer {_shown(peer)}"
            case ServerSni(datacenter, _, node):
                return f"Consul server{f' {_shown(node)}' if node else 's'}, {self._place(datacenter)}"
            case control_plane:
                return f"peering control plane, {self._place(control_plane.datacenter)}"

    def why_unknown(self) -> Step:
        """The first thing that keeps the name from matching; only for a name without a route."""
        if not self._trust_domain:
            return Step("trust domain", "this mesh's is not known yet, so no name has a route")
        if (reason := self._table.unroutable.get(self.text)) is not None:
            return Step("withheld", _shown(reason))
        match self._sni:
            case None if not self.text.endswith(f".{self._trust_domain}"):
                return Step("trust domain", f"the name does not end in this mesh's, {_shown(self._trust_domain)}")
            case None:
                return Step(
                    "form", "services are asked for as [subset.]service.namespace.datacenter.internal.trust-domain"
                )
            case QuerySni():
                return Step("prepared query", "gateways never route these; the upstream has to name a service")
            case PeeredServiceSni():
                routes = [it for it in self._table if it.kind in (RouteKind.PEER_EXPORT, RouteKind.PEER_IMPORT)]
                known = _listed([f"{route.kind} {route.destination}" for route in routes]) or "none"
                said = "no service that is exported to a peer or imported from one has this name"
                return Step("peering", f"{said}; known are {known}")
            case PeeringServerSni():
                lacking = "this gateway has no route to a control plane of this name; it has one only with "
                where = "Peering.PeerThroughMeshGateways in the mesh entry, and in the default partition"
                return Step("peering", lacking + where)
            case ServerSni() as server:
                return self._unknown_server(server)
            case place:
                return self._unplaced(place)

    def _unknown_server(self, sni: ServerSni) -> Step:
        routes = [route for route in self._table if route.kind is RouteKind.SERVER]
        if not routes:
            return Step("servers", "this gateway has no names of Consul servers: does it run with --expose-servers?")
        if sni.datacenter == self._here:
            here = f".server.{self._table.datacenter}"
            nodes = [route.destination.removesuffix(here) for route in routes if route.destination.endswith(here)]
            known = _listed(nodes) or "none"
            return Step("servers", f"no such Consul server is known in this datacenter; known are {known}")
        others = [route.destination.removeprefix("*.server.") for route in routes if route.suffix]
        known = _listed([f"{self._table.datacenter} (this one)", *others])
        place = self._place(sni.datacenter)
        return Step("servers", f"no gateway of {place} that exposes Consul servers is known; known are {known}")

    def _unplaced(self, sni: ServiceSni | GatewaySni) -> Step:
        """From the outside in: trust domain, datacenter, partition, and then what is in it."""
        if sni.trust_domain != self._trust_domain:
            ours = _shown(self._trust_domain)
            return Step("trust domain", f"the name's is {_shown(sni.trust_domain)}, this mesh's is {ours}")
        if sni.datacenter != self._here and sni.partition != DEFAULT:
            which = f"partition {_shown(sni.partition)} of {self._place(sni.datacenter)}"
            why = f"Consul federates datacenters in partition {DEFAULT} alone; from here, it takes cluster peering"
            return Step("partition", f"no gateway routes to {which}: {why}")
        remotes = [route for route in self._table.suffixes.values() if route.kind is RouteKind.DATACENTER]
        known = sorted(route.destination for route in remotes)
        if sni.datacenter != self._here and sni.datacenter not in map(str.lower, known):
            listed = _listed([f"{self._table.datacenter} (this one)", *known])
            if self._partition != DEFAULT:
                listed += f"; only gateways of partition {DEFAULT} know other datacenters"
            return Step("datacenter", f"no gateway of datacenter {_shown(sni.datacenter)} is known; known are {listed}")
        if isinstance(sni, GatewaySni):
            return Step("datacenter", "its bare name leads nowhere, only names of services in it do")
        if sni.partition != self._partition:
            ours = _shown(self._partition)
            others = [route.destination for route in self._table if route.kind is RouteKind.PARTITION]
            listed = _listed([f"{ours} (this gateway's)", *others])
            return Step("partition", f"no gateway of partition {_shown(sni.partition)} is known; known are {listed}")
        return self._unknown_service(sni)

    def _unknown_service(self, sni: ServiceSni) -> Step:
        """For a name of this datacenter and partition: the subset, the namespace or the service is unknown."""
        service = f"service {_shown(sni.service)}"
        namesakes = [known for known in self._services() if known.service == sni.service]
        siblings = [known.subset for known in namesakes if known.namespace == sni.namespace]
        if siblings:
            lacks = f"subset {_shown(sni.subset)}" if sni.subset else "default subset"
            subsets = _listed(sorted(filter(None, siblings))) or "none"
            return Step("subset", f"{service} has no {lacks} with a usable filter; known subsets: {subsets}")
        namespaces = sorted({known.namespace for known in namesakes})
        if namespaces:
            return Step("namespace", f"{service} is in {_listed(namespaces)}, not in {_shown(sni.namespace)}")
        services = (route.destination for route in self._table.exact.values() if route.kind is RouteKind.SERVICE)
        spelled = {name.lower(): name for name in services}
        similar = _listed([spelled[name] for name in get_close_matches(sni.service, spelled)]) or "none"
        return Step("service", f"no mesh instance of {service} is known in this datacenter; similar names: {similar}")

    def _services(self) -> Iterator[ServiceSni]:
        for route in self._table.exact.values():
            sni = parse(route.name, trust_domain=self._trust_domain)
            if isinstance(sni, ServiceSni):
                yield sni

    def _place(self, datacenter: str) -> str:
        return f"datacenter {_shown(datacenter)}{' (this one)' if datacenter == self._here else ''}"


def _tenant(service: str, namespace: str, partition: str) -> str:
    return f"service {_shown(service)}, namespace {_shown(namespace)}, partition {_shown(partition)}"


def _listed(names: list[str]) -> str:
    more = [f"{len(names) - _MAX_LISTED} more"] if len(names) > _MAX_LISTED else []
    return ", ".join([*map(_shown, names[:_MAX_LISTED]), *more])


def _shown(text: str) -> str:
    """A text from outside as printable ASCII, cut to `MAX_SHOWN`."""
    escaped = ascii(text[: MAX_SHOWN + 1])[1:-1]
    return escaped if len(escaped) <= MAX_SHOWN else f"{escaped[: MAX_SHOWN - 3]}..."
