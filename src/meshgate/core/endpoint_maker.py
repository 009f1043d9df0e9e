"""From instances in the catalog to endpoints that can be dialed: what all makers of routes stand on.

Which of an instance's addresses counts, and whether it is healthy, is what Consul's gateway makes of it
(`agent/xds/endpoints.go` calculateEndpointHealthAndWeight, `agent/structs` BestAddress): Consul's checks decide,
nothing is probed here. Host names become the addresses that they stand for, and what leads back to this gateway, or is
denied, is taken out. Streams dial nothing but what was judged here, so a host name that comes to mean something else is
judged again first.

How far gateways elsewhere are is known where Consul knows the region and the zone of both sides. Consul's own gateway
does not look at localities; its sidecars do (Enterprise), in these steps: the same zone, the same region, anywhere.
Where this gateway's own region is not known, everything is equally far.

Consul's own gateway uses one host name of a datacenter's gateways and drops their IP addresses beside it, unless
`envoy_dns_discovery_type` is `STRICT_DNS` (`agent/xds/clusters.go`). This one uses all of both, and keeps to one name
only where `LOGICAL_DNS` is set in so many words; addresses that are numeric stay.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from types import MappingProxyType

from .addresses import (
    IS_ADMIN,
    LEADS_BACK,
    NOTHING_DENIED,
    PORTS,
    UNKNOWN,
    DeniedAddresses,
    OwnAddresses,
    is_numeric,
)
from .catalog import NOWHERE, Instance, Locality
from .routes import Endpoint
from .sni import DEFAULT

Addresses = Mapping[str, tuple[str, ...]]
Hosts = tuple[tuple[str, tuple[str, ...]], ...]
"""Host names, and what they stood for when routes were made."""

NO_ADDRESSES: Addresses = MappingProxyType({})
MAX_WEIGHT = 128
_FAR = 1 << 31  # Numbers have no bound in JSON, and one in messages to workers.
_ORDER = attrgetter("address", "port", "node", "instance")


@dataclass(frozen=True, slots=True)
class Verdict:
    """`weight` is 1..128, also of an unhealthy instance: in panic mode it gets traffic by it.

    `cause` says which check made the instance unhealthy; empty while it is healthy.
    """

    healthy: bool
    weight: int
    cause: str = ""


def assess(instance: Instance, *, only_passing: bool = False) -> Verdict:
    """Health and weight of an instance, from all checks of its node and its service.

    Any critical check makes it unhealthy; with a subset's `OnlyPassing`, any check that is not passing does. A
    warning selects `Weights.Warning`. A weight below 1 means unhealthy, above 128 counts as 128.
    """
    cause, warning = "", False
    for check in instance.checks:
        warning = warning or check.status == "warning"
        if check.status == "critical" or (only_passing and check.status != "passing"):
            cause = cause or f"check {check.id} is {check.status}"
    weight = instance.weight_warning if warning else instance.weight_passing
    if weight < 1:
        cause = cause or f"weight {weight}"
    return Verdict(healthy=not cause, weight=min(max(weight, 1), MAX_WEIGHT), cause=cause)


def best_address(instance: Instance, *, wan: bool) -> tuple[str, int]:
    """Where to dial an instance: host and port.

    From the same datacenter and partition (`wan=False`): the service's address, else its node's. From elsewhere: the
    service's `wan` tag where there is one, with the service's port if the tag has none, else the service's own
    address; an empty result falls to the node's `wan` tag, then to the node's address. A `wan` tag without an address
    therefore leads to the node even if the service has an address.
    """
    address, port = instance.address, instance.port
    if not wan:
        return address or instance.node_address, port
    if instance.wan is not None:
        address, port = instance.wan.address, instance.wan.port or port
    return address or instance.node_wan or instance.node_address, port


@dataclass(frozen=True, slots=True)
class Viewpoint:
    """Whose endpoints these are: the gateway that dials them.

    Attributes:
        panic_threshold: percent of healthy endpoints under which all are tried, 0 for never.
        own: addresses that lead back to it.
        one_host_name: of several host names that a destination's gateways have, only one is to be used.
        node: its node in the catalog; "" where that is not known.
    """

    datacenter: str
    partition: str = DEFAULT
    panic_threshold: int = 0
    own: OwnAddresses = UNKNOWN
    locality: Locality = NOWHERE
    one_host_name: bool = False
    node: str = ""
    denied: DeniedAddresses = NOTHING_DENIED


class EndpointMaker:
    """Makes endpoints in a stable order, so that equal catalogs make equal tables.

    Every one of the `addresses` that a host name stands for is an endpoint of its own; a name without any makes one
    that is not healthy.
    """

    def __init__(self, view: Viewpoint, addresses: Addresses) -> None:
        self.view = view
        self._addresses = addresses
        self._hosts: dict[str, tuple[str, ...]] = {}

    def hosts(self) -> Hosts:
        """The host names that were met since this was asked last, and what they stand for."""
        hosts = tuple(self._hosts.items())
        self._hosts.clear()
        return hosts

    def of_services(self, instances: Iterable[Instance], *, only_passing: bool = False) -> tuple[Endpoint, ...]:
        """Those of instances that are meant themselves; `only_passing`: any check that does not pass makes them ill."""
        return self._sorted(
            endpoint for instance in instances for endpoint in self._endpoints(instance, only_passing=only_passing)
        )

    def of_gateways(self, gateways: Iterable[Instance], *, one_name: bool = True) -> tuple[Endpoint, ...]:
        """Those of gateways elsewhere, with their distance; `one_name`: the choice of one host name concerns them."""
        here = self.view.locality
        chosen = _with_one_name(gateways) if one_name and self.view.one_host_name else gateways
        return self._sorted(
            endpoint
            for gateway in chosen
            for endpoint in self._endpoints(gateway, distance(here, gateway.locality) if here.region else 0)
        )

    def _sorted(self, endpoints: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
        return tuple(sorted(endpoints, key=_ORDER))

    def _endpoints(self, instance: Instance, far: int = 0, *, only_passing: bool = False) -> Iterator[Endpoint]:
        view = self.view
        elsewhere = (instance.datacenter, instance.partition) != (view.datacenter, view.partition)
        address, port = best_address(instance, wan=elsewhere)
        verdict = assess(instance, only_passing=only_passing)
        where = (instance.node, instance.id)
        if not 0 < port < PORTS:
            port = max(-_FAR, min(port, _FAR))
            yield Endpoint(address, port, False, verdict.weight, *where, verdict.cause or f"{port} is no port")
            return
        name = "" if is_numeric(address) else address
        known: tuple[str, ...] = (address,)
        if name:
            known = self._hosts[name] = self._addresses.get(name, ())
        elif not address:
            known = ()
        for numeric in known:
            if never := self._never(numeric, port, instance, elsewhere=elsewhere):
                yield Endpoint(numeric, port, False, 0, *where, never)
            else:
                yield Endpoint(numeric, port, verdict.healthy, verdict.weight, *where, verdict.cause, far, name)
        if not known:
            # Weight 0: whoever dialed it all the same would ask for its address, and nobody would judge that.
            cause = f"no address is known for the host name {address}" if name else "it has no address"
            yield Endpoint(address, port, False, 0, *where, verdict.cause or cause)

    def _never(self, address: str, port: int, instance: Instance, *, elsewhere: bool) -> str:
        """Why an address is never dialed, whatever its health; "" for nearly all."""
        view = self.view
        if view.own.leads_back(address, port, elsewhere=elsewhere):
            return LEADS_BACK
        if view.own.is_admin(address, port):
            return IS_ADMIN
        return view.denied.why(address, own_node=not elsewhere and bool(view.node) and instance.node == view.node)


def distance(here: Locality, there: Locality) -> int:
    """0 for the same zone, 1 for the same region, 2 for anywhere else."""
    if not here.region or here.region != there.region:
        return 2
    return 0 if here.zone == there.zone else 1


def _with_one_name(gateways: Iterable[Instance]) -> Iterator[Instance]:
    """The name is that of the first healthy gateway that has one, else of the last one, as in Consul."""
    listed = tuple(gateways)
    named = [gateway for gateway in listed if not is_numeric(best_address(gateway, wan=True)[0])]
    chosen = next((gateway for gateway in named if assess(gateway).healthy), named[-1] if named else None)
    return (gateway for gateway in listed if gateway not in named or gateway is chosen)
