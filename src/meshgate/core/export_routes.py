"""What exported-services entries open: to peered clusters, and to the other admin partitions of the datacenter.

To a peer each exported service has an exact name of its own, which holds the peer's name; it leads where the service's
discovery chain leads, as in Consul's gateway (`agent/xds` makeMeshGatewayListener: redirects and subsets are followed,
failover is not, and there is no panic mode). That is so for the protocol tcp. For http, http2 and grpc Consul's gateway
ends TLS itself to apply routers, splitters and intentions to single requests; this one never ends TLS. Such exports are
withheld, or passed on as they are where the operator wants that.

Between partitions Consul's documents ask for an export before another partition can discover a service, and leave
authorization to the intentions at the destination; its gateway has no check of its own for such names. So there is none
here either, unless the operator wants one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from .catalog import Export, Instance, Service, Snapshot, in_namespace
from .endpoint_maker import EndpointMaker
from .routes import Route, RouteKind
from .sni import PeeredServiceSni, ServiceSni

_PASSTHROUGH: Final = "tcp"


@dataclass(frozen=True, slots=True)
class ExportRules:
    """What the operator wants of exports; the defaults are what Consul's gateway does, as far as passthrough can.

    `enforce`: services of this partition have a route only if they are exported to another partition. `pass_http`:
    services of http-like protocols are routed for peers too, unterminated.
    """

    enforce: bool = False
    pass_http: bool = False


AS_CONSUL: Final = ExportRules()


def left_alone(export: Export, rules: ExportRules = AS_CONSUL) -> bool:
    """Whether an export to peers gets no route because of its protocol."""
    return bool(export.peers) and export.protocol not in ("", _PASSTHROUGH) and not rules.pass_http


def why_left_alone(service: str, protocol: str) -> str:
    return (
        f"{service} is exported with protocol {protocol}, for which a gateway has to end TLS, and this one never does: "
        f"{remedy(service)}"
    )


def remedy(service: str) -> str:
    return f'set protocol = "tcp" in service-defaults/{service}, or use Envoy gateways in this cluster'


class Exports:
    def __init__(self, snapshot: Snapshot, rules: ExportRules) -> None:
        self._snapshot = snapshot
        self._rules = rules
        self._services = {(it.namespace, it.name.lower()): it for it in snapshot.services} if snapshot.exports else {}
        self._opened = {(it.namespace, it.service.lower()) for it in snapshot.exports if it.partitions}

    def admits(self, service: Service) -> bool:
        """Whether a service may have routes of its own names."""
        return not self._rules.enforce or (service.namespace, service.name.lower()) in self._opened

    def routes(self, maker: EndpointMaker) -> Iterator[Route]:
        for export in self._snapshot.exports:
            found = self._destination(export)
            if isinstance(found, str):
                continue
            service, only_passing, instances = found
            endpoints = maker.of_services(instances, only_passing=only_passing)
            for peer in export.peers:
                yield Route(
                    name=self._name(export, peer),
                    kind=RouteKind.PEER_EXPORT,
                    destination=f"{in_namespace(export.namespace, export.service)} to peer {peer}",
                    endpoints=endpoints,
                    connect_timeout=service.connect_timeout,
                    policy=service.policy,
                    choice_count=service.choices,
                    stale=service.cold,
                    service=service.name,
                    namespace=service.namespace,
                )

    def unroutable(self) -> Mapping[str, str]:
        """The names that somebody in Consul wants to have a route and that have none, with the reason."""
        here = self._snapshot
        reasons = {
            self._name(export, peer): found
            for export in here.exports
            if isinstance(found := self._destination(export), str)
            for peer in export.peers
        }
        for service in here.services if self._rules.enforce else ():
            if not self.admits(service):
                for subset in ("", *(it.name for it in service.subsets)):
                    place = (here.datacenter, here.trust_domain, service.namespace, here.partition)
                    reasons[str(ServiceSni(service.name, *place, subset=subset)).lower()] = (
                        f"{service.key} is in no exported-services entry that opens it to another partition, and this "
                        "gateway enforces exports"
                    )
        return reasons

    def _name(self, export: Export, peer: str) -> str:
        here = self._snapshot
        name = PeeredServiceSni(export.service, peer, here.trust_domain, export.namespace, here.partition)
        return str(name).lower()

    def _destination(self, export: Export) -> tuple[Service, bool, tuple[Instance, ...]] | str:
        """Who answers for an export: the service, `OnlyPassing`, the instances; or why nobody does."""
        name = in_namespace(export.namespace, export.service)
        if not export.protocol:
            return f"{name} is exported, but Consul has not said yet where its discovery chain leads"
        if left_alone(export, self._rules):
            return why_left_alone(name, export.protocol)
        if export.target is None:
            return f"{name} is exported, but its resolver leads out of this datacenter or partition"
        target = export.target
        name = in_namespace(target.namespace, target.service)
        service = self._services.get((target.namespace, target.service.lower()))
        if service is None or not service.instances:
            return f"no mesh instance of {name} is known"
        wanted = target.subset or service.default_subset
        subset = service.subset(wanted)
        if subset is None and not target.subset:
            return service, False, service.instances
        if subset is None or subset.instances is None:
            return f"{name} has no subset {wanted} with a usable filter"
        return service, subset.only_passing, subset.instances
