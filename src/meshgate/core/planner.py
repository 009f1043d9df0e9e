"""From a snapshot of the catalog to the route table: what Consul's own gateway would route, and nothing else.

The routes to services of the gateway's own datacenter and partition are made here, the others by `federation_routes`,
`peering_routes` and `export_routes`, all of them by `endpoint_maker`; then they become a table. A catalog is large and
its changes are small, so a `Planner` keeps the routes of each service and makes them again only where the record of the
service is another one. What did not change is the same object in the next table, and where only services changed the
table is a copy of the last one with their routes exchanged.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from types import MappingProxyType

from .addresses import NOTHING_DENIED, UNKNOWN, DeniedAddresses, OwnAddresses
from .catalog import NOWHERE, Locality, Service, Snapshot, Subset, in_namespace
from .endpoint_maker import NO_ADDRESSES, Addresses, EndpointMaker, Hosts, Viewpoint
from .export_routes import AS_CONSUL, ExportRules, Exports
from .federation_routes import remote_routes, server_routes
from .peering_routes import peering_routes
from .routes import Route, RouteKind, RouteTable
from .sni import ServiceSni


@dataclass(frozen=True, slots=True)
class _Made:
    """The routes of a service, and what the host names in them stood for when they were made."""

    service: Service
    routes: tuple[Route, ...]
    hosts: Hosts


@dataclass(frozen=True, slots=True)
class _World:
    """All but the services that a table depends on, host names left out."""

    catalog: Snapshot
    view: Viewpoint
    rules: ExportRules

    @property
    def stands_apart(self) -> bool:
        """Whether nothing but the routes of a service depends on that service."""
        return bool(self.catalog.trust_domain) and not self.catalog.exports and not self.rules.enforce

    @property
    def of_services(self) -> tuple[object, ...]:
        """What the routes of services depend on."""
        return self.catalog.trust_domain, self.view


class Planner:
    """Plans one snapshot after the other. `host_names` are those that the last one's routes would dial."""

    def __init__(self) -> None:
        self.host_names: frozenset[str] = frozenset()
        # By the identity of the service's record, which lives on in what was made of it.
        self._made: dict[int, _Made] = {}
        self._named: dict[int, Hosts] = {}
        self._other_hosts: Hosts = ()
        self._services: tuple[Service, ...] = ()
        self._world: _World | None = None
        self._table: RouteTable | None = None

    def plan(
        self,
        snapshot: Snapshot,
        *,
        panic_threshold: int = 0,
        addresses: Addresses = NO_ADDRESSES,
        rules: ExportRules = AS_CONSUL,
        own: OwnAddresses = UNKNOWN,
        locality: Locality = NOWHERE,
        one_host_name: bool = False,
        denied: DeniedAddresses = NOTHING_DENIED,
    ) -> RouteTable:
        """Make the route table of a snapshot. Without a trust domain there is no name to route, and it is empty.

        `addresses` are what the host names in the catalog stand for, `rules` what the operator wants of exported
        services; the others are those of `Viewpoint`.
        """
        place = (snapshot.datacenter, snapshot.partition)
        view = Viewpoint(*place, panic_threshold, own, locality, one_host_name, snapshot.node, denied)
        world = _World(replace(snapshot, services=()), view, rules)
        maker = EndpointMaker(view, addresses)
        table = self._patched(world, snapshot, maker, addresses)
        if table is None:
            table = self._planned(world, snapshot, maker, addresses)
        hosts = (dict(hosts) for hosts in (self._other_hosts, *self._named.values()))
        self._world, self._table, self.host_names = world, table, frozenset().union(*hosts)
        self._services = snapshot.services
        return table

    def _patched(
        self, world: _World, snapshot: Snapshot, maker: EndpointMaker, addresses: Addresses
    ) -> RouteTable | None:
        """The last table with the routes of some services exchanged; None where that would not be the right one."""
        last = self._table
        same = last is not None and not last.conflicts and world.stands_apart and world == self._world
        if not same or last is None or not _hold(self._other_hosts, addresses):
            return None
        made = self._made
        fresh, gone = _exchanged(self._services, snapshot.services)
        for key, hosts in self._named.items():
            if key not in gone and not _hold(hosts, addresses):
                gone.add(key)
                fresh.append(made[key].service)
        exact = last.exact.copy()
        for key in gone:
            for route in made[key].routes:
                del exact[route.name]
        remade = {id(service): _make(service, snapshot, maker) for service in fresh}
        for each in remade.values():
            for route in each.routes:
                if exact.setdefault(route.name, route) is not route:
                    return None  # Two claims to one name: which one wins depends on all services.
        for key in gone:
            del made[key]
            self._named.pop(key, None)
        made.update(remade)
        self._named.update({key: it.hosts for key, it in remade.items() if it.hosts})
        return replace(last, exact=MappingProxyType(exact))

    def _planned(self, world: _World, snapshot: Snapshot, maker: EndpointMaker, addresses: Addresses) -> RouteTable:
        """The table made from the beginning, with what is known of services that did not change."""
        known = self._made if self._world is not None and self._world.of_services == world.of_services else {}
        made: dict[int, _Made] = {}
        exports = Exports(snapshot, world.rules)

        def routes() -> Iterator[Route]:
            # A service whose name holds a dot can spell another one's subset ("v2.web"). Names without dots come first,
            # and the first claim to a name wins: the odd one out is reported and not routed.
            services = sorted(snapshot.services, key=attrgetter("name"))
            for service in [it for it in services if "." not in it.name] + [it for it in services if "." in it.name]:
                if exports.admits(service):
                    before = known.get(id(service))
                    if before is None or not _hold(before.hosts, addresses):
                        before = _make(service, snapshot, maker)
                    made[id(service)] = before
                    yield from before.routes
            yield from remote_routes(snapshot, maker)
            yield from server_routes(snapshot, maker)
            yield from exports.routes(maker)
            yield from peering_routes(snapshot, maker)

        found = list(routes())
        self._made, self._named = made, {key: it.hosts for key, it in made.items() if it.hosts}
        self._other_hosts = maker.hosts()
        return RouteTable.of(
            snapshot.datacenter,
            snapshot.trust_domain,
            snapshot.partition,
            iter(found if snapshot.trust_domain else ()),
            exports.unroutable(),
        )


def service_routes(service: Service, snapshot: Snapshot, maker: EndpointMaker) -> Iterator[Route]:
    """Those of a service and its subsets; none without instances.

    Sources: `agent/xds` makeMeshGatewayListener, clustersFromSnapshotMeshGateway and endpointsFromServicesAndResolvers.
    """
    if not service.instances:
        return
    place = (snapshot.datacenter, snapshot.trust_domain, service.namespace, snapshot.partition)
    unnamed = replace(service.subset(service.default_subset) or Subset("", instances=service.instances), name="")
    for kind, subset in ((RouteKind.SERVICE, unnamed), *((RouteKind.SUBSET, each) for each in service.subsets)):
        if subset.instances is None:
            continue
        yield Route(
            name=str(ServiceSni(service.name, *place, subset=subset.name)).lower(),
            kind=kind,
            destination=in_namespace(service.namespace, f"{subset.name}.{service.name}".removeprefix(".")),
            endpoints=maker.of_services(subset.instances, only_passing=subset.only_passing),
            connect_timeout=service.connect_timeout,
            policy=service.policy,
            choice_count=service.choices,
            panic_threshold=maker.view.panic_threshold,
            stale=service.cold,
            service=service.name,
            namespace=service.namespace,
        )


def _make(service: Service, snapshot: Snapshot, maker: EndpointMaker) -> _Made:
    return _Made(service, tuple(service_routes(service, snapshot, maker)), maker.hosts())


def _exchanged(before: tuple[Service, ...], after: tuple[Service, ...]) -> tuple[list[Service], set[int]]:
    """The records that are only in the second, and the identities of those that are only in the first."""
    if len(before) == len(after):
        pairs = [(old, new) for old, new in zip(before, after, strict=True) if old is not new]
        before, after = tuple(old for old, _ in pairs), tuple(new for _, new in pairs)
    known, wanted = set(map(id, before)), set(map(id, after))
    return [service for service in after if id(service) not in known], known - wanted


def _hold(hosts: Hosts, addresses: Addresses) -> bool:
    """Whether host names stand for what they stood for."""
    return all(addresses.get(name, ()) == known for name, known in hosts)
