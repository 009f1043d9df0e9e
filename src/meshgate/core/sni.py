"""The names a mesh gateway routes by: every SNI form of Consul, built and parsed.

The forms are Consul's (`agent/connect/sni.go`, `agent/connect/uri_server.go`, `tlsutil` ServerSNI). A form is a
frozen record whose `str()` is the SNI; `parse` is its inverse. An empty namespace or partition means `default`. The
default partition is left out of a service's name and selects the label `internal`; any other one is written and
selects `internal-v1`; a peered name always carries its partition. Comparison of names is the route table's business
and happens in lower case; this module neither folds case nor routes.

Routing never needs `parse`: the table is made of built names. Parsing serves explanations, and says of a name without a
route which service Consul could be asked for.
"""

from dataclasses import dataclass

DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class ServiceSni:
    """A service, or a subset of it, in a datacenter of the same federation."""

    service: str
    datacenter: str
    trust_domain: str
    namespace: str = DEFAULT
    partition: str = DEFAULT
    subset: str = ""

    def __str__(self) -> str:
        subset = f"{self.subset}." if self.subset else ""
        place = GatewaySni(self.datacenter, self.trust_domain, self.partition)
        return f"{subset}{self.service}.{self.namespace or DEFAULT}.{place}"


@dataclass(frozen=True, slots=True)
class GatewaySni:
    """All of a datacenter, or of a partition in it. Listeners match `*.` in front of it."""

    datacenter: str
    trust_domain: str
    partition: str = DEFAULT

    def __str__(self) -> str:
        if self.partition in ("", DEFAULT):
            return f"{self.datacenter}.internal.{self.trust_domain}"
        return f"{self.partition}.{self.datacenter}.internal-v1.{self.trust_domain}"


@dataclass(frozen=True, slots=True)
class QuerySni:
    """A prepared query. Consul's gateways have no route for these; neither have ours."""

    query: str
    datacenter: str
    trust_domain: str

    def __str__(self) -> str:
        return f"{self.query}.{DEFAULT}.{self.datacenter}.query.{self.trust_domain}"


@dataclass(frozen=True, slots=True)
class PeeredServiceSni:
    """A service exported to a peer. `peer` is the importer's name as the exporter knows it."""

    service: str
    peer: str
    trust_domain: str
    namespace: str = DEFAULT
    partition: str = DEFAULT

    def __str__(self) -> str:
        namespace, partition = self.namespace or DEFAULT, self.partition or DEFAULT
        return f"{self.service}.{namespace}.{partition}.{self.peer}.external.{self.trust_domain}"


@dataclass(frozen=True, slots=True)
class ServerSni:
    """The Consul servers of a datacenter (WAN federation), or one of them when `node` is given.

    `domain` is the agent's DNS domain, with or without its final dot; it is not the trust domain.
    """

    datacenter: str
    domain: str
    node: str = ""

    def __str__(self) -> str:
        node = f"{self.node}." if self.node not in ("", "*") else ""
        return f"{node}server.{self.datacenter}.{self.domain.rstrip('.')}"


@dataclass(frozen=True, slots=True)
class PeeringServerSni:
    """The control plane of a datacenter as its peers dial it."""

    datacenter: str
    trust_domain: str

    def __str__(self) -> str:
        return f"server.{self.datacenter}.peering.{self.trust_domain}"


Sni = ServiceSni | GatewaySni | QuerySni | PeeredServiceSni | ServerSni | PeeringServerSni


def parse(name: str, *, trust_domain: str = "", domain: str = "consul") -> Sni | None:
    """What an SNI says, or None where it is none that Consul builds: `str()` of the result is the name again.

    Args:
        name: the SNI, lower case.
        trust_domain: the one to expect. Without it the last two labels are taken, as Consul's trust domains are
            `<cluster id>.consul`.
        domain: the agent's DNS domain, for the names of servers.
    """
    labels = name.split(".")
    if not all(labels):
        return None
    tail = trust_domain.split(".") if trust_domain else labels[-2:]
    found: Sni | None = None
    if len(labels) > len(tail) and labels[-len(tail) :] == tail:
        found = _parse_mesh(labels[: -len(tail)], ".".join(tail))
    found = found or _parse_server(name, domain.rstrip("."))
    # The default partition written out, or `*` for a node: the shape is right, but nothing builds it.
    return found if str(found) == name else None


def _parse_mesh(head: list[str], trust_domain: str) -> Sni | None:
    """The labels in front of the trust domain; the last of them names the form."""
    *rest, form = head
    match form, rest:
        case "internal", [datacenter]:
            return GatewaySni(datacenter, trust_domain)
        case "internal", [service, namespace, datacenter]:
            return ServiceSni(service, datacenter, trust_domain, namespace)
        case "internal", [subset, service, namespace, datacenter]:
            return ServiceSni(service, datacenter, trust_domain, namespace, subset=subset)
        case "internal-v1", [partition, datacenter]:
            return GatewaySni(datacenter, trust_domain, partition)
        case "internal-v1", [service, namespace, partition, datacenter]:
            return ServiceSni(service, datacenter, trust_domain, namespace, partition)
        case "internal-v1", [subset, service, namespace, partition, datacenter]:
            return ServiceSni(service, datacenter, trust_domain, namespace, partition, subset)
        case "external", [service, namespace, partition, peer]:
            return PeeredServiceSni(service, peer, trust_domain, namespace, partition)
        case "query", [query, "default", datacenter]:
            return QuerySni(query, datacenter, trust_domain)
        case "peering", ["server", datacenter]:
            return PeeringServerSni(datacenter, trust_domain)
        case _:
            return None


def _parse_server(name: str, domain: str) -> ServerSni | None:
    head = name.removesuffix("." + domain)
    match head.split(".") if head != name else []:
        case ["server", datacenter]:
            return ServerSni(datacenter, domain)
        case [node, "server", datacenter]:
            return ServerSni(datacenter, domain, node)
        case _:
            return None
