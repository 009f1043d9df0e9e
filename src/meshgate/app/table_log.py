"""Says in the log what a new route table changes."""

import structlog

from meshgate.core.changes import difference
from meshgate.core.own_addresses import LEADS_BACK
from meshgate.core.routes import Endpoint, Route, RouteTable

log = structlog.get_logger(module="meshgate")


def tell_table(before: RouteTable, after: RouteTable) -> None:
    """One line with the numbers, and one for each name that two things in Consul claim since now."""
    change = difference(before, after)
    added = len(after) - (len(before) - len(change.removed))
    if change.routes or change.removed:
        log.info(
            "routes changed",
            total=len(after),
            added=added,
            removed=len(change.removed),
            changed=len(change.routes) - added,
        )
    for route in change.routes:
        known = _circles((before.suffixes if route.suffix else before.exact).get(route.name))
        for endpoint in _circles(route) - known:
            log.warning(
                "an endpoint in Consul is this gateway itself and gets no streams, they would go in circles",
                sni=route.sni,
                endpoint=f"{endpoint.address}:{endpoint.port}",
                node=endpoint.node,
                instance=endpoint.instance,
            )
    for name in set(after.conflicts) - set(before.conflicts):
        log.warning("two things in Consul claim one name; the one without a dot in its name has it", sni=name)


def _circles(route: Route | None) -> set[Endpoint]:
    return set() if route is None else {each for each in route.endpoints if each.cause == LEADS_BACK}
