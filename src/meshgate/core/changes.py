"""What is different between two route tables, so that a large table need not be sent again for a small change."""

from dataclasses import dataclass

from .routes import Route, RouteTable


@dataclass(frozen=True, slots=True)
class TableChange:
    """The way from one table to another: routes that are new or different, and names (as in `Route.sni`) that go."""

    datacenter: str
    trust_domain: str
    partition: str
    routes: tuple[Route, ...]
    removed: tuple[str, ...]
    conflicts: tuple[str, ...] = ()


def difference(before: RouteTable, after: RouteTable) -> TableChange:
    """The change that makes `after` of `before`."""
    old = {route.sni: route for route in before}
    new = {route.sni: route for route in after}
    return TableChange(
        after.datacenter,
        after.trust_domain,
        after.partition,
        routes=tuple(route for name, route in new.items() if old.get(name) != route),
        removed=tuple(name for name in old if name not in new),
        conflicts=after.conflicts,
    )


def changed(table: RouteTable, change: TableChange) -> RouteTable:
    """The table that a change makes of another one."""
    routes = {route.sni: route for route in table}
    for name in change.removed:
        routes.pop(name, None)
    routes.update((route.sni, route) for route in change.routes)
    made = RouteTable.of(change.datacenter, change.trust_domain, change.partition, iter(routes.values()))
    return RouteTable(
        made.datacenter, made.trust_domain, made.partition, made.exact, made.suffixes, conflicts=change.conflicts
    )
