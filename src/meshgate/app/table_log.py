"""Says in the log what a new route table changes."""

import structlog

from meshgate.core.routes import RouteTable

log = structlog.get_logger(module="meshgate")


def tell_table(before: RouteTable, after: RouteTable) -> None:
    """One line with the numbers, and one for each name that two things in Consul claim since now."""
    old = {route.sni: route for route in before}
    new = {route.sni: route for route in after}
    added, removed = len(new.keys() - old.keys()), len(old.keys() - new.keys())
    changed = sum(old[name] != new[name] for name in old.keys() & new.keys())
    if added or removed or changed:
        log.info("routes changed", total=len(new), added=added, removed=removed, changed=changed)
    for name in set(after.conflicts) - set(before.conflicts):
        log.warning("two things in Consul claim one name; the one without a dot in its name has it", sni=name)
