"""Maintenance: how an operator takes a service or a node out of service in Consul, seen from the agent that holds it.

`consul maint` and `/v1/agent/service/maintenance/:id` add a critical check of a fixed name to the service, those for
the agent one to its node. It stands until somebody removes it, so it has to outlive whatever is registered again.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .api import NODE_MAINTENANCE, HealthCheck


@dataclass(frozen=True, slots=True)
class Maintenance:
    """Why a service is out of service. `node` where its whole node is; `reason` is anybody's text."""

    node: bool
    reason: str


def maintenance_check(service_id: str) -> str:
    """The ID of the check that stands for the maintenance of a service."""
    return f"_service_maintenance:{service_id}"


def maintenance_of(checks: Iterable[HealthCheck], service_id: str) -> tuple[Maintenance, ...]:
    """What holds a service out of service, that of its node last."""
    causes = {maintenance_check(service_id): False, NODE_MAINTENANCE: True}
    found = [Maintenance(causes[check.id], check.notes) for check in checks if check.id in causes]
    return tuple(sorted(found, key=lambda each: each.node))


def left_over(checks: Iterable[HealthCheck], service_id: str, sent: str) -> Iterator[str]:
    """The IDs of a service's checks that a registration with the check `sent` replaces: all but its maintenance."""
    for check in checks:
        if check.service_id == service_id and check.id not in (sent, maintenance_check(service_id)):
            yield check.id
