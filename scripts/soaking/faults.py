"""The faults by name, with what each needs for itself meanwhile: two that need the same thing do not overlap.

A gateway of each datacenter and two instances of each service are always left whole, so every refusal has to be
explained.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from tests.harness.agent import AgentStoppedError, ConsulError
from tests.harness.waiting import LateError

from . import consul_faults, gateway_faults, hostile, partitions, service_faults
from .stage import Stage

_BOTH: Final = ("consul dc1", "consul dc2")
_ALL_GATEWAYS: Final = ("gateways dc1", "gateways dc2")


@dataclass(frozen=True)
class Fault:
    """One kind of fault. In `needs` "*" stands for its datacenter; `cuts` says that it needs a network to cut."""

    inject: Callable[[Stage, str], Awaitable[None]]
    needs: tuple[str, ...]
    cuts: bool = False


FAULTS: Final[dict[str, Fault]] = {
    "worker SIGKILL": Fault(gateway_faults.worker_killed, ("gateways *",)),
    "worker SIGSTOP": Fault(gateway_faults.worker_stopped, ("gateways *",)),
    "gateway drained and replaced": Fault(gateway_faults.gateway_replaced, ("gateways *", *_BOTH)),
    "gateway upgraded": Fault(gateway_faults.gateway_upgraded, ("gateways *",)),
    "worker SIGKILL in an upgrade": Fault(gateway_faults.worker_killed_in_upgrade, ("gateways *",)),
    "gateway SIGKILL": Fault(gateway_faults.gateway_killed, ("gateways *", *_BOTH)),
    "gateway SIGSTOP": Fault(gateway_faults.gateway_stopped, ("gateways *",)),
    "gateway parent SIGKILL": Fault(gateway_faults.parent_killed, ("gateways *", *_BOTH)),
    "gateway parent SIGSTOP": Fault(gateway_faults.parent_stopped, ("gateways *",)),
    "state file damaged": Fault(gateway_faults.state_damaged, ("gateways *", *_BOTH)),
    "gateway started without Consul": Fault(gateway_faults.started_without_consul, ("gateways *", *_BOTH)),
    "descriptors used up": Fault(gateway_faults.descriptors_used_up, ("gateways *",)),
    "Consul SIGKILL": Fault(consul_faults.killed, _BOTH),
    "Consul SIGSTOP": Fault(consul_faults.stopped, _BOTH),
    "Consul restarted": Fault(consul_faults.restarted, _BOTH),
    "token rotated": Fault(consul_faults.token_rotated, _BOTH),
    "instance critical": Fault(service_faults.critical, ("consul *", "instances *")),
    "instance deregistered": Fault(service_faults.deregistered, ("consul *", "instances *")),
    "instance moved": Fault(service_faults.moved, ("consul *", "instances *")),
    "instance SIGKILL": Fault(service_faults.killed, ("consul *", "instances *")),
    "instance SIGSTOP": Fault(service_faults.stopped, ("instances *",)),
    "gateway cut off from its agent": Fault(partitions.gateway_from_agent, ("gateways *", *_BOTH), cuts=True),
    "gateways cut off from each other": Fault(partitions.gateway_from_gateway, _ALL_GATEWAYS, cuts=True),
    "datacenters cut off from each other": Fault(partitions.datacenters, (*_ALL_GATEWAYS, *_BOTH), cuts=True),
    "instance cut off from gateways": Fault(
        partitions.instance_from_gateways, ("gateways *", "instances *"), cuts=True
    ),
    "hostile clients": Fault(hostile.strangers, ()),
    "worker taken over": Fault(hostile.worker_taken_over, ("gateways *",)),
    "urgent data": Fault(hostile.urgent_data, ("urgent data",)),
    "flood of hellos": Fault(hostile.hello_flood, ("flood",)),
    "flood of unknown names": Fault(hostile.unknown_names, ("flood",)),
    "flood of resets": Fault(hostile.resets, ("flood",)),
    "first flights held": Fault(hostile.first_flights_held, ("held",)),
    "half-closed clients": Fault(hostile.half_closed, ("held",)),
    "stalled readers": Fault(hostile.stalled_readers, ("held",)),
    "dear pages": Fault(hostile.dear_pages, ("gateways *",)),
    "SIGHUP again and again": Fault(hostile.hangups, ("gateways *",)),
    "resolvers written": Fault(hostile.resolvers_written, _BOTH),
}


async def inject(stage: Stage, name: str, datacenter: str) -> None:
    """One fault. What it cannot do in time is a violation: everything must recover."""
    stage.ledger.faults[name] += 1
    stage.ledger.note(f"fault: {name} in {datacenter}")
    try:
        await FAULTS[name].inject(stage, datacenter)
    except (ConsulError, LateError, AgentStoppedError, OSError) as error:
        stage.ledger.violation(f"after {name} in {datacenter}: {error!r}")
    stage.ledger.note(f"over: {name} in {datacenter}")
