"""The faults, one function each. Each says beforehand what it may break, and leaves things as they were.

`FAULTS` names them, with what each needs for itself meanwhile: two that need the same thing do not overlap. A gateway
of each datacenter and two instances of each service are always left whole, so every refusal has to be explained.
"""

import resource
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

import httpx
import trio

from meshgate.adapters.consul.policy import acl_policy
from meshgate.app.demo.agent import AgentStoppedError, Consul, ConsulError
from meshgate.app.demo.cluster import Federation
from meshgate.app.demo.waiting import LateError, until

from . import hostile, kernel
from .fleet import DRAIN_SECONDS, Fleet, Gateway
from .ledger import Disturbance, Ledger
from .services import SoakInstance

# A worker that is silent for five seconds is replaced; one that is heard again before that is not.
_HANG_SECONDS: Final = 5.0
_SPARE_DESCRIPTORS: Final = 3


@dataclass
class Stage:
    """All that a fault may reach for. `busy` are the gateways and instances that one is at work on."""

    federation: Federation
    fleet: Fleet
    instances: list[SoakInstance]
    token_file: Path
    ledger: Ledger
    rng: Random
    tokens: int = 0
    busy: set[str] = field(default_factory=set)

    def gateway(self, datacenter: str) -> Gateway:
        """One that takes streams."""
        return self.rng.choice(self.fleet.taking(datacenter))

    def instance(self, datacenter: str) -> SoakInstance:
        """One of a service of a datacenter."""
        return self.rng.choice([one for one in self.instances if one.consul.datacenter == datacenter])

    def consul(self, datacenter: str) -> Consul:
        """The server of a datacenter."""
        return next(one for one in self.federation.datacenters if one.datacenter == datacenter)


# --- workers -----------------------------------------------------------------------------------------------------


async def worker_killed(stage: Stage, datacenter: str) -> None:
    """SIGKILL for one worker; its streams end, another takes its place within a second or two."""
    gateway = stage.gateway(datacenter)
    pid = stage.rng.choice(gateway.workers)
    if not await kernel.stop(pid):
        return
    stage.ledger.death("worker killed", kernel.legs_of([pid], gateway.port))
    stage.ledger.disturb("worker killed", f"behind {datacenter}", seconds=1)
    stage.ledger.note(f"worker {pid} of {gateway.instance} killed")
    kernel.send(pid, signal.SIGKILL)
    await _until_workers(stage, gateway, pid)


async def worker_stopped(stage: Stage, datacenter: str) -> None:
    """SIGSTOP for 1 to 8 s; it is replaced when that is too long, and then its streams end."""
    gateway = stage.gateway(datacenter)
    pid = stage.rng.choice(gateway.workers)
    seconds = stage.rng.uniform(1, 8)
    disturbance = stage.ledger.disturb("worker stopped", gateway.instance, f"behind {datacenter}")
    if await kernel.stop(pid):
        stage.ledger.note(f"worker {pid} of {gateway.instance} stopped for {seconds:.1f} s")
        death = None
        if seconds > _HANG_SECONDS - 0.7:
            legs = kernel.legs_of([pid], gateway.port)
            death = stage.ledger.death("hung worker replaced", legs, after=_HANG_SECONDS - 0.7)
        await trio.sleep(seconds)
        kernel.send(pid, signal.SIGCONT)
        await trio.sleep(0.5)
        if death is not None and kernel.alive(pid):
            death.legs = ()
        if seconds > _HANG_SECONDS + 2 and kernel.alive(pid):
            stage.ledger.violation(f"worker {pid} of {gateway.instance} hung for {seconds:.1f} s and was not replaced")
        await _until_workers(stage, gateway)
    disturbance.close()


async def _until_workers(stage: Stage, gateway: Gateway, without: int = 0) -> None:
    with trio.move_on_after(8) as scope:
        while len([pid for pid in gateway.workers if pid != without]) < 2:  # noqa: ASYNC110
            await trio.sleep(0.05)
    if scope.cancelled_caught:
        stage.ledger.violation(f"{gateway.instance} did not replace its worker")


# --- gateways ----------------------------------------------------------------------------------------------------


async def gateway_replaced(stage: Stage, datacenter: str) -> None:
    """A new gateway, then SIGTERM for an old one: a rolling update."""
    old = stage.gateway(datacenter)
    await stage.fleet.add(datacenter)
    await _until_all_known(stage, datacenter)
    stage.ledger.note(f"{old.instance} drains")
    await stage.fleet.drain(old)
    await _until_all_known(stage, datacenter, without=old.port)


async def gateway_killed(stage: Stage, datacenter: str) -> None:
    """SIGKILL for a gateway and its workers, then it is started again with the same address."""
    gateway = stage.gateway(datacenter)
    gateway.takes = False
    disturbance = await _kill_all_of(stage, gateway, "gateway killed")
    await trio.sleep(stage.rng.uniform(0, 2))
    disturbance.close()
    await stage.fleet.bring_up(gateway)
    await _until_all_known(stage, datacenter)


async def gateway_parent_killed(stage: Stage, datacenter: str) -> None:
    """SIGKILL for the parent alone: the workers let their streams run out for the drain time."""
    gateway = stage.gateway(datacenter)
    workers = gateway.workers
    gateway.takes = False
    death = stage.ledger.death("orphaned worker's drain timeout", after=DRAIN_SECONDS - 0.3)
    disturbance = stage.ledger.disturb("gateway parent killed", gateway.instance, f"behind {datacenter}")
    stage.ledger.note(f"parent of {gateway.instance} killed")
    kernel.send(gateway.child.pid, signal.SIGKILL)
    with trio.move_on_after(DRAIN_SECONDS + 10) as scope:
        await stage.fleet.see_off(death, workers, gateway.port)
    if scope.cancelled_caught:
        stage.ledger.violation(f"orphaned workers of {gateway.instance} did not end")
        for pid in workers:
            kernel.send(pid, signal.SIGKILL)
    await gateway.child.wait()
    disturbance.close()
    await stage.fleet.bring_up(gateway)
    await _until_all_known(stage, datacenter)


async def gateway_parent_stopped(stage: Stage, datacenter: str) -> None:
    """SIGSTOP for the parent alone for 1 to 8 s: its workers go on as if nothing were."""
    gateway = stage.gateway(datacenter)
    workers = gateway.workers
    if await kernel.stop(gateway.child.pid):
        await trio.sleep(stage.rng.uniform(1, 8))
        gateway.child.resume()
        await trio.sleep(1)
        if gateway.workers != workers:
            stage.ledger.violation(f"{gateway.instance} lost workers to a pause of its parent")


async def state_corrupted(stage: Stage, datacenter: str) -> None:
    """A gateway is killed, its kept catalog damaged, and it starts again: it says so and learns anew."""
    gateway = stage.gateway(datacenter)
    gateway.takes = False
    disturbance = await _kill_all_of(stage, gateway, "gateway killed")
    for file in gateway.state.iterdir():
        content = bytearray(file.read_bytes() or b"\0")
        match stage.rng.choice(("flip", "cut", "noise", "empty")):
            case "flip":
                content[stage.rng.randrange(len(content))] ^= 1 << stage.rng.randrange(8)
            case "cut":
                del content[stage.rng.randrange(len(content)) :]
            case "noise":
                content[:] = stage.rng.randbytes(3000)
            case _:
                content.clear()
        file.write_bytes(content)
    stage.ledger.note(f"the state of {gateway.instance} is damaged")
    disturbance.close()
    await stage.fleet.bring_up(gateway)
    await _until_all_known(stage, datacenter)


async def started_without_consul(stage: Stage, datacenter: str) -> None:
    """Consul and a gateway are killed; the gateway comes back first and serves from its kept catalog."""
    gateway, consul = stage.gateway(datacenter), stage.consul(datacenter)
    gateway.takes = False
    disturbance = await _kill_all_of(stage, gateway, "gateway killed")
    await consul.kill()
    gateway.spawn()

    async def missing() -> str | None:
        with suppress(httpx.HTTPError):
            return None if (await gateway.ask("/readyz"))["ready"] else "not ready"
        return "no answer"

    try:
        await until("a gateway without Consul", missing, seconds=30)
        gateway.takes = True
        disturbance.close()
        await trio.sleep(4)
    except LateError as error:
        stage.ledger.violation(f"{gateway.instance} does not serve from its kept catalog: {error}")
        disturbance.close()
    await _restart(stage, consul)
    await gateway.until_ready(30)
    gateway.takes = True
    await _until_all_known(stage, datacenter)


async def descriptors_used_up(stage: Stage, datacenter: str) -> None:
    """The limit of open files of a gateway's processes falls to what they have, and a little."""
    gateway = stage.gateway(datacenter)
    pids = gateway.workers
    if stage.rng.random() < 0.3:
        pids.append(gateway.child.pid)
    disturbance = stage.ledger.disturb("descriptors used up", gateway.instance, f"behind {datacenter}")
    before = {}
    for pid in pids:
        before[pid] = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        least = kernel.descriptors(pid) + stage.rng.randint(0, _SPARE_DESCRIPTORS)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (least, before[pid][1]))
    stage.ledger.note(f"descriptors of {gateway.instance} are short")
    await trio.sleep(stage.rng.uniform(1, 5))
    for pid, limit in before.items():
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
    disturbance.close(2)
    if not set(pids) <= {*gateway.workers, gateway.child.pid}:
        stage.ledger.violation(f"{gateway.instance} lost a process for want of descriptors")


async def _kill_all_of(stage: Stage, gateway: Gateway, cause: str) -> Disturbance:
    """Stops all its processes, reads what they carry, kills them."""
    pids = [*gateway.workers, gateway.child.pid]
    disturbance = stage.ledger.disturb(cause, gateway.instance, f"behind {gateway.consul.datacenter}")
    for pid in pids:
        await kernel.stop(pid)
    stage.ledger.death(cause, kernel.legs_of(pids, gateway.port))
    stage.ledger.note(f"{gateway.instance} killed")
    await gateway.child.kill()
    return disturbance


async def _until_all_known(stage: Stage, datacenter: str, without: int = 0) -> None:
    """Waits until the other datacenter's gateways know all gateways of this one, and not the one `without`."""
    ports = {gateway.port for gateway in stage.fleet.by_datacenter[datacenter]}
    name = f"*.{datacenter}.internal.{stage.federation.trust_domain}"
    others = [gateway for gateway in stage.fleet.all if gateway.consul.datacenter != datacenter and gateway.takes]

    async def missing() -> str | None:
        for gateway in others:
            # A gateway of which another fault has stopped the parent answers late.
            with suppress(httpx.HTTPError):
                found = await gateway.endpoints(name)
                healthy = {port for port, well in found.items() if well}
                healthy -= await federated_ports(gateway.consul, datacenter) - ports
                if not ports <= healthy or without in healthy:
                    return f"{gateway.instance} knows {found}, not {ports}"
        return None

    try:
        await until("gateways to know each other", missing, seconds=40, interval=0.2)
    except LateError as error:
        stage.ledger.violation(f"a table did not follow Consul: {error}")


async def federated_ports(consul: Consul, datacenter: str) -> set[int]:
    """The ports of a datacenter's gateways by the federation states that an agent holds.

    They outlive a gateway for as long as Consul takes to replicate them, and until then it may be tried still.
    """
    states = await consul.ask("/v1/internal/federation-states/mesh-gateways") or {}
    return {row["Service"]["Port"] for row in states.get(datacenter) or ()}


# --- Consul ------------------------------------------------------------------------------------------------------


async def consul_killed(stage: Stage, datacenter: str) -> None:
    """SIGKILL for a datacenter's only server, which comes back some seconds later."""
    consul = stage.consul(datacenter)
    stage.ledger.note(f"Consul of {datacenter} killed")
    await consul.kill()
    await trio.sleep(stage.rng.uniform(0.5, 6))
    await _restart(stage, consul)


async def consul_stopped(stage: Stage, datacenter: str) -> None:
    """SIGSTOP for 1 to 8 s: it accepts, and answers nothing."""
    consul = stage.consul(datacenter)
    stage.ledger.note(f"Consul of {datacenter} stopped")
    consul.child.pause()
    try:
        await trio.sleep(stage.rng.uniform(1, 8))
    finally:
        consul.child.resume()
    await stage.federation.until_ready(seconds=60)


async def _restart(stage: Stage, consul: Consul) -> None:
    """Back, with the checks of its gateways run: an agent takes all checks for critical until it has run them."""
    disturbance = stage.ledger.disturb("gateways critical after a restart of Consul", f"behind {consul.datacenter}")
    await consul.restart(seconds=60)
    await stage.federation.until_ready(seconds=90)
    stage.ledger.note(f"Consul of {consul.datacenter} is back")
    taking = {gateway.instance for gateway in stage.fleet.taking(consul.datacenter)}

    async def missing() -> str | None:
        rows = await consul.ask("/v1/health/service/mesh-gateway", passing="1") or ()
        return None if taking <= {row["Service"]["ID"] for row in rows} else "some are critical"

    await until("the gateways' checks", missing, seconds=40)
    disturbance.close(2)


async def token_rotated(stage: Stage, _datacenter: str) -> None:
    """A new token in the token file; the old one is deleted a little later."""
    federation = stage.federation
    old = stage.token_file.read_text()
    stage.tokens += 1
    new = await federation.create_policy_token(acl_policy(), f"mesh-gateway-{stage.tokens}")
    replace(stage.token_file, new)
    await trio.sleep(stage.rng.uniform(1, 3))
    accessor = (await federation.dc1.get("/v1/acl/token/self", token=old))["AccessorID"]
    await federation.dc1.delete(f"/v1/acl/token/{accessor}")
    stage.ledger.note("the token was rotated")
    await trio.sleep(2)


def replace(file: Path, text: str) -> None:
    """Writes a file at once, as an agent of a secret store does."""
    fresh = file.with_suffix(".new")
    fresh.write_text(text)
    fresh.chmod(0o600)
    fresh.replace(file)


# --- services ----------------------------------------------------------------------------------------------------


async def instance_critical(stage: Stage, datacenter: str) -> None:
    """An instance is critical for a while and goes on working: its streams stay."""
    instance = stage.instance(datacenter)
    await instance.set_health("critical")
    await trio.sleep(stage.rng.uniform(0.5, 4))
    await instance.set_health("passing")


async def instance_deregistered(stage: Stage, datacenter: str) -> None:
    """An instance leaves the catalog for a while and goes on working: its streams stay."""
    instance = stage.instance(datacenter)
    await instance.deregister()
    await trio.sleep(stage.rng.uniform(0.5, 4))
    await instance.register()


async def instance_moved(stage: Stage, datacenter: str) -> None:
    """An instance takes connections on another port from now on; those that it has stay."""
    instance = stage.instance(datacenter)
    # Who was let in by the kernel and not yet by the service is reset.
    stage.ledger.disturb("endpoint moved", instance.service, seconds=0.5)
    instance.stop_listening()
    await instance.listen()
    await instance.register()


async def instance_killed(stage: Stage, datacenter: str) -> None:
    """An instance dies with its streams and comes back at the same address."""
    instance = stage.instance(datacenter)
    stage.ledger.disturb("endpoint killed", instance.service, seconds=1)
    instance.die()
    await trio.sleep(stage.rng.uniform(0.2, 4))
    await instance.listen(instance.port)
    await instance.set_health("passing")


# --- strangers ---------------------------------------------------------------------------------------------------


async def hostile_clients(stage: Stage, datacenter: str) -> None:
    """Clients that send garbage, half hellos, dripping hellos and names of nobody."""
    await hostile.attack(stage.gateway(datacenter).port, stage.rng, stage.ledger)


Fault = Callable[[Stage, str], Awaitable[None]]
_BOTH: Final = ("consul dc1", "consul dc2")

# What each needs for itself; "*" stands for its datacenter.
FAULTS: Final[dict[str, tuple[Fault, tuple[str, ...]]]] = {
    "worker SIGKILL": (worker_killed, ("gateways *",)),
    "worker SIGSTOP": (worker_stopped, ("gateways *",)),
    "gateway drained and replaced": (gateway_replaced, ("gateways *", *_BOTH)),
    "gateway SIGKILL": (gateway_killed, ("gateways *", *_BOTH)),
    "gateway parent SIGKILL": (gateway_parent_killed, ("gateways *", *_BOTH)),
    "gateway parent SIGSTOP": (gateway_parent_stopped, ("gateways *",)),
    "state file damaged": (state_corrupted, ("gateways *", *_BOTH)),
    "gateway started without Consul": (started_without_consul, ("gateways *", *_BOTH)),
    "descriptors used up": (descriptors_used_up, ("gateways *",)),
    "Consul SIGKILL": (consul_killed, _BOTH),
    "Consul SIGSTOP": (consul_stopped, _BOTH),
    "token rotated": (token_rotated, _BOTH),
    "instance critical": (instance_critical, ("consul *",)),
    "instance deregistered": (instance_deregistered, ("consul *",)),
    "instance moved": (instance_moved, ("consul *",)),
    "instance killed": (instance_killed, ("consul *",)),
    "hostile clients": (hostile_clients, ()),
}


async def inject(stage: Stage, name: str, datacenter: str) -> None:
    """One fault. What it cannot do in time is a violation: everything must recover."""
    fault, _ = FAULTS[name]
    stage.ledger.faults[name] += 1
    stage.ledger.note(f"fault: {name} in {datacenter}")
    try:
        await fault(stage, datacenter)
    except (ConsulError, LateError, AgentStoppedError, OSError) as error:
        stage.ledger.violation(f"after {name} in {datacenter}: {error!r}")
