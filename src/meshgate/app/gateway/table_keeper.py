"""The route table in force: made anew whenever something that it depends on has changed, installed, and told of.

It depends on the catalog, on what the registration makes of that, on what host names stand for, and on the addresses
that lead back to this gateway.
"""

import gc
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

import structlog
import trio

from meshgate.adapters.names import NameKeeper
from meshgate.adapters.relay.pool import RelayPool
from meshgate.adapters.sd_notify import Notifier
from meshgate.app.gateway.from_settings import export_rules
from meshgate.app.gateway.last_known import LastKnown
from meshgate.app.gateway.listeners import OwnAddressKeeper
from meshgate.app.settings.settings import Settings
from meshgate.core import export_routes
from meshgate.core.addresses import host_port, is_numeric
from meshgate.core.catalog import NOWHERE, Locality, Snapshot, in_namespace
from meshgate.core.planner import Planner
from meshgate.core.routes import NO_ROUTES, Endpoint, Route, RouteTable, TableChange
from meshgate.core.sni import PeeredServiceSni, parse
from meshgate.core.text import counted

log = structlog.get_logger(module="meshgate")

# Routes.
_LARGE: Final = 1000
_MOST_PROBLEMS: Final = 10
_MOST_ENDPOINTS: Final = 10  # Of one route, at once.
# Why there may be no route at a start that went well.
_NOTHING_YET: Final = "the catalog has no mesh service and no gateway elsewhere yet that the token sees"


class TableKeeper:
    """Keeps the table.

    `table` is empty and `known` not set before there is a catalog. `snapshot` is the catalog in use, `health` what was
    seen of its endpoints over time, `names` what host names stand for.
    """

    def __init__(self, settings: Settings, relay: RelayPool, notifier: Notifier, last_known: LastKnown) -> None:
        self.table = NO_ROUTES
        self.snapshot: Snapshot | None = None
        self.known = trio.Event()
        self.health = HealthHistory()
        self.names = NameKeeper(self.renew)
        self._settings = settings
        self._locality = NOWHERE
        self._one_host_name = False
        self._relay = relay
        self._notifier = notifier
        self._last_known = last_known
        self._planner = Planner()
        self._own_addresses = OwnAddressKeeper(settings)
        self._admin: tuple[tuple[str, int], ...] = ()
        self._settled = 0
        self._left_alone: dict[str, str] = {}

    def use(self, snapshot: Snapshot) -> None:
        """Place new streams by this catalog."""
        self.snapshot = snapshot
        self.renew()

    def go_on(self, snapshot: Snapshot, unhealthy: Iterable[tuple[str, Endpoint, float, bool]]) -> None:
        """Place new streams by the catalog of the version before, of which all has been told; `HealthHistory.left`."""
        self.snapshot = snapshot
        self.renew(tell=False)
        self.health.remember(unhealthy)

    def look_from(self, one_host_name: bool, locality: Locality) -> None:
        """Make tables for a gateway in this place from now on, as for `plan`."""
        self._locality, self._one_host_name = locality, one_host_name
        self.renew()

    def guard(self, admin: tuple[str, int]) -> None:
        """Let no stream reach this address, where the admin address listens."""
        self._admin = (admin,)
        self.renew()

    def use_settings(self, settings: Settings) -> None:
        """Make tables by other settings from now on."""
        self._settings, self._own_addresses = settings, OwnAddressKeeper(settings)
        self.renew()

    def clear(self) -> None:
        """Place no streams until there is another catalog."""
        self.snapshot, self.table, self.known = None, NO_ROUTES, trio.Event()
        self.health.note(self._relay.install(self.table))

    def renew(self, *, tell: bool = True) -> None:
        """Make the table of what is known now, and place new streams by it."""
        if self.snapshot is None:
            return
        table = self._planner.plan(
            self.snapshot,
            panic_threshold=self._settings.panic_threshold,
            rules=export_rules(self._settings),
            addresses=self.names.addresses,
            own=self._own_addresses.now(self._relay.addresses, self._admin),
            denied=self._settings.deny_endpoints,
            locality=self._locality,
            one_host_name=self._one_host_name,
        )
        self.names.want(self._planner.host_names)
        before, self.table = self.table, table
        change = self._relay.install(table)
        self.known.set()
        self._last_known.keep(self.snapshot, self.names.addresses)
        self.health.note(change)
        if tell:
            tell_table(before, table, change)
        self._tell_left_alone(self.snapshot, tell=tell)
        self._notifier.status(f"{counted(len(table), 'route')} in {table.datacenter}")
        self._settle(len(table))

    def _tell_left_alone(self, snapshot: Snapshot, *, tell: bool) -> None:
        """A line for each export to peers that gets no route because of its protocol, when it appears."""
        rules = export_rules(self._settings)
        left_alone = {
            in_namespace(it.namespace, it.service): it.protocol
            for it in snapshot.exports
            if export_routes.left_alone(it, rules)
        }
        for service, protocol in sorted(left_alone.items() - self._left_alone.items()) if tell else ():
            log.warning("an export is left alone", why=export_routes.why_left_alone(service, protocol))
        self._left_alone = left_alone

    def _settle(self, size: int) -> None:
        """Leave a large catalog out of what is searched for garbage: searching takes a quarter of the processor time.

        Nearly all of it stays, and what goes is freed without a search, for its records hold no cycles.
        """
        if size >= max(_LARGE, 2 * self._settled):
            self._settled = size
            gc.collect()
            gc.freeze()


@dataclass(frozen=True, slots=True)
class Since:
    """When an endpoint was first seen unhealthy, on trio's clock; `seen` is whether it had been seen healthy before."""

    time: float
    seen: bool


class HealthHistory:
    """Follows the tables, by what changes in them."""

    def __init__(self) -> None:
        self._routes: dict[str, tuple[Route, dict[Endpoint, Since]]] = {}

    def note(self, change: TableChange) -> None:
        """Take the next table: what makes it of the last one, an empty table at first."""
        for name in change.removed:
            self._routes.pop(name, None)
        now = trio.current_time()
        for route in change.routes:
            self._routes[route.sni] = route, self._unhealthy(route, now)

    def left(self) -> list[tuple[str, Endpoint, float, bool]]:
        """For another program: route, endpoint, the seconds for which it is unhealthy, and `Since.seen`."""
        now = trio.current_time()
        return [
            (name, endpoint, now - since.time, since.seen)
            for name, (_, unhealthy) in self._routes.items()
            for endpoint, since in unhealthy.items()
        ]

    def remember(self, left: Iterable[tuple[str, Endpoint, float, bool]]) -> None:
        """Go on with what another program has seen of the endpoints that are unhealthy now."""
        now = trio.current_time()
        for name, endpoint, seconds, seen in left:
            _, unhealthy = self._routes.get(name, (None, {}))
            if endpoint in unhealthy:
                unhealthy[endpoint] = Since(now - seconds, seen)

    def since(self, route: Route, endpoint: Endpoint) -> Since | None:
        """Since when an endpoint of a route is unhealthy; None where it is not, or nothing is known."""
        return self._routes.get(route.sni, (route, {}))[1].get(_same(endpoint))

    def _unhealthy(self, route: Route, now: float) -> dict[Endpoint, Since]:
        before, since = self._routes.get(route.sni, (None, {}))
        known = {} if before is None else {_same(each): each.healthy for each in before.endpoints}
        return {
            key: since.get(key) or Since(now, seen=known.get(key, False))
            for key in (_same(each) for each in route.endpoints if not each.healthy)
        }


def _same(endpoint: Endpoint) -> Endpoint:
    """The endpoint without what may change of it."""
    return Endpoint(endpoint.address, endpoint.port, True, 0, endpoint.node, endpoint.instance)


def export_problems(table: RouteTable) -> list[str]:
    """Why services that are exported to peers have no route, a line each, without repetition."""
    lines = {
        reason: None
        for name, reason in sorted(table.unroutable.items())
        if isinstance(parse(name, trust_domain=table.trust_domain.lower()), PeeredServiceSni)
    }
    found = list(lines)
    more = len(found) - _MOST_PROBLEMS
    return found[:_MOST_PROBLEMS] + ([f"no route: {counted(more, 'more exported service')}"] if more > 0 else [])


def tell_ready(table: RouteTable) -> None:
    """The line that says that streams are taken from now on."""
    if len(table):
        log.info("ready", routes=len(table))
    else:
        log.info("ready", routes=0, why=_NOTHING_YET)


def tell_table(before: RouteTable, after: RouteTable, change: TableChange) -> None:
    """One line with the numbers, and one for each name that two things in Consul claim since now."""
    pairs = [((before.suffixes if each.suffix else before.exact).get(each.name), each) for each in change.routes]
    added = sum(old is None for old, _ in pairs)
    # Whether a route is followed closely is no news.
    changed = sum(old is not None and replace(old, stale=new.stale) != new for old, new in pairs)
    if added or changed or change.removed:
        log.info("routes changed", total=len(after), added=added, removed=len(change.removed), changed=changed)
    for old, route in pairs:
        new = _never_dialed(route) - _never_dialed(old)
        for endpoint in sorted(new, key=lambda each: (each.node, each.instance))[:_MOST_ENDPOINTS]:
            log.warning(
                "an endpoint in Consul gets no streams",
                why=endpoint.cause,
                sni=route.sni,
                endpoint=host_port(endpoint.address, endpoint.port),
                node=endpoint.node,
                instance=endpoint.instance,
            )
        if len(new) > _MOST_ENDPOINTS:
            log.warning("more endpoints in Consul get no streams", sni=route.sni, more=len(new) - _MOST_ENDPOINTS)
    for name in set(after.conflicts) - set(before.conflicts):
        log.warning("two things in Consul claim one name; the one without a dot in its name has it", sni=name)


def _never_dialed(route: Route | None) -> set[Endpoint]:
    if route is None:
        return set()
    # A host name that is not known yet is said by who asks for it.
    return {each for each in route.endpoints if not each.weight and is_numeric(each.address)}
