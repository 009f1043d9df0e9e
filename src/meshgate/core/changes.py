"""What is different between two route tables, so that a large table need not be sent again for a small change."""

from dataclasses import dataclass
from operator import itemgetter
from types import MappingProxyType
from typing import Final

from .routes import Route, RouteTable

_ANY: Final = "*."  # How `Route.sni` writes a suffix; no exact name begins so.


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
    routes: list[Route] = []
    removed: list[str] = []
    for old, new in ((before.exact, after.exact), (before.suffixes, after.suffixes)):
        # Nearly all routes are the same objects as before, and tables are large: `is` comes first.
        get = old.get
        fresh = [(name, route) for name, route in new.items() if get(name) is not route]
        routes += [route for name, route in sorted(fresh, key=itemgetter(0)) if get(name) != route]
        if len(new) - sum(name not in old for name, _ in fresh) < len(old):
            removed += [old[name].sni for name in sorted(old.keys() - new.keys())]
    return TableChange(
        after.datacenter,
        after.trust_domain,
        after.partition,
        routes=tuple(routes),
        removed=tuple(removed),
        conflicts=after.conflicts,
    )


def changed(table: RouteTable, change: TableChange) -> RouteTable:
    """The table that a change makes of another one."""
    # Copies: streams that are being placed hold the table.
    exact, suffixes = table.exact.copy(), table.suffixes.copy()
    for name in change.removed:
        (suffixes if name.startswith(_ANY) else exact).pop(name.removeprefix(_ANY), None)
    for route in change.routes:
        (suffixes if route.suffix else exact)[route.name] = route
    return RouteTable(
        change.datacenter,
        change.trust_domain,
        change.partition,
        MappingProxyType(exact),
        MappingProxyType(suffixes),
        conflicts=change.conflicts,
    )
