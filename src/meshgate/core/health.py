"""Which instances may get traffic, how much of it, and at which address.

The rules are those of Consul's gateway (`agent/xds/endpoints.go` calculateEndpointHealthAndWeight and
`agent/structs` BestAddress): Consul's checks decide, nothing is probed here.
"""

from dataclasses import dataclass

from .catalog import Instance

MAX_WEIGHT = 128


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
