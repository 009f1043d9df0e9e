"""What may happen to gateways and their workers. Each fault says beforehand what it may break."""

import os
import resource
import signal
from collections.abc import Collection
from contextlib import suppress
from typing import Final

import httpx
import trio
from tests.harness.waiting import LateError, until

from . import kernel
from .consul_faults import restart
from .fleet import DRAIN_SECONDS, Gateway
from .ledger import Disturbance
from .stage import Stage, checks_of, until_all_known

# A worker that is silent for five seconds is replaced, and it speaks twice a second; one that is heard again before
# that is not. In between both are right: it may be killed just as it goes on and has taken new streams.
_HANG_SECONDS: Final = 5.0
_SURELY_HEARD_SECONDS: Final = 4.0
_SPARE_DESCRIPTORS: Final = 3
_REPLACED_SECONDS: Final = 60.0


async def worker_killed(stage: Stage, datacenter: str) -> None:
    """SIGKILL for one worker; its streams end, another takes its place within a second or two."""
    gateway = stage.gateway(datacenter)
    pid = stage.rng.choice(gateway.workers)
    if not await kernel.stop(pid):
        return
    stage.ledger.death("worker killed", kernel.legs_of_stopped([pid]))
    stage.ledger.note(f"worker {pid} of {gateway.instance} killed")
    kernel.send(pid, signal.SIGKILL)
    # What it carried for another gateway is known to nobody before the greeting.
    stage.ledger.shock("worker killed", f"behind {datacenter}")
    await gateway.until_workers(_REPLACED_SECONDS, without=pid)


async def worker_stopped(stage: Stage, datacenter: str) -> None:
    """SIGSTOP for 1 to 4 s, or until it is replaced for being silent for longer, and then its streams end."""
    gateway = stage.gateway(datacenter)
    pid = stage.rng.choice(gateway.workers)
    seconds = stage.rng.uniform(1, 7)
    hangs = seconds > _SURELY_HEARD_SECONDS
    if not await kernel.stop(pid):
        return
    stage.ledger.note(f"worker {pid} of {gateway.instance} stopped for {'good' if hangs else f'{seconds:.1f} s'}")
    if hangs:
        legs = kernel.legs_of_stopped([pid])
        stage.ledger.death("hung worker replaced", legs, after=_HANG_SECONDS - 0.7)
        stage.ledger.shock("hung worker replaced", f"behind {datacenter}")
    with trio.move_on_after(_REPLACED_SECONDS if hangs else seconds):
        while kernel.alive(pid):  # noqa: ASYNC110
            await trio.sleep(0.05)
    went_on = kernel.alive(pid)
    kernel.send(pid, signal.SIGCONT)
    if went_on == hangs:
        told = "hung and was not replaced" if hangs else f"was replaced for a pause of {seconds:.1f} s"
        stage.ledger.violation(f"worker {pid} of {gateway.instance} {told}")
    await gateway.until_workers(_REPLACED_SECONDS)


async def gateway_replaced(stage: Stage, datacenter: str) -> None:
    """A new gateway, then SIGTERM for an old one: a rolling update."""
    old = stage.gateway(datacenter)
    await stage.fleet.add(datacenter)
    await until_all_known(stage, datacenter)
    stage.ledger.note(f"{old.instance} drains")
    await stage.fleet.drain(old)
    await until_all_known(stage, datacenter)


async def gateway_upgraded(stage: Stage, datacenter: str) -> None:
    """The same version goes on as the next one: in the same process, with other workers. No stream may end."""
    gateway = stage.gateway(datacenter)
    pid, workers = gateway.child.pid, gateway.workers
    stage.ledger.note(f"{gateway.instance} is upgraded")
    done = await gateway.upgrade()
    if done.returncode:
        stage.ledger.violation(f"{gateway.instance} was not upgraded: {done.stderr}")
    await _until_gone(stage, gateway, workers)
    await gateway.until_workers(_REPLACED_SECONDS)
    if gateway.child.pid != pid or not gateway.child.running:
        stage.ledger.violation(f"{gateway.instance} ended at an upgrade")


async def worker_killed_in_upgrade(stage: Stage, datacenter: str) -> None:
    """SIGKILL for a worker, an old or a new one, at any moment of an upgrade; its streams end and no others."""
    gateway = stage.gateway(datacenter)
    workers = gateway.workers
    stage.ledger.note(f"{gateway.instance} is upgraded, and a worker killed")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateway.upgrade)
        await trio.sleep(stage.rng.uniform(0, 4))
        pid = stage.rng.choice(gateway.workers or workers)
        if await kernel.stop(pid):
            # What is on its way from one to the other is held by both.
            stage.ledger.death("worker killed in an upgrade", kernel.legs_of_stopped([pid]))
            stage.ledger.note(f"worker {pid} of {gateway.instance} killed")
            kernel.send(pid, signal.SIGKILL)
            stage.ledger.shock("worker killed in an upgrade", f"behind {datacenter}")
    await _until_gone(stage, gateway, workers)
    await gateway.until_workers(_REPLACED_SECONDS)


async def _until_gone(stage: Stage, gateway: Gateway, workers: Collection[int]) -> None:
    """Waits until the workers of before have handed over all that they had, and ended."""
    with trio.move_on_after(_REPLACED_SECONDS) as scope:
        while any(map(kernel.alive, workers)):  # noqa: ASYNC110
            await trio.sleep(0.05)
    if scope.cancelled_caught:
        stage.ledger.violation(f"{gateway.instance} was upgraded and has workers of before")


async def gateway_killed(stage: Stage, datacenter: str) -> None:
    """SIGKILL for a gateway and its workers, then it is started again with the same address."""
    gateway = stage.gateway(datacenter)
    await _kill_all_of(stage, gateway, "gateway killed")
    await trio.sleep(stage.rng.uniform(0, 2))
    await stage.fleet.bring_up(gateway)
    await until_all_known(stage, datacenter)


async def gateway_stopped(stage: Stage, datacenter: str) -> None:
    """SIGSTOP for all processes of a gateway for 1 to 10 s, as of a machine that is moved: no stream may end."""
    gateway = stage.gateway(datacenter)
    pids, seconds = gateway.processes, stage.rng.uniform(1, 10)
    for pid in reversed(pids):
        await kernel.stop(pid)
    stage.ledger.note(f"{gateway.instance} stopped for {seconds:.1f} s")
    await trio.sleep(seconds)
    for pid in stage.rng.sample(pids, len(pids)):
        kernel.send(pid, signal.SIGCONT)
    await trio.sleep(2)
    if set(gateway.processes) != set(pids):
        stage.ledger.violation(f"{gateway.instance} lost a process to a pause of all")


async def parent_killed(stage: Stage, datacenter: str) -> None:
    """SIGKILL for the parent alone: the workers let their streams run out, later end them at quiet moments."""
    gateway = stage.gateway(datacenter)
    workers = gateway.workers
    gateway.takes = False
    death = stage.ledger.death("orphaned worker's drain", after=DRAIN_SECONDS / 2 - 0.3)
    disturbance = stage.ledger.disturb("gateway parent killed", gateway.instance, f"behind {datacenter}")
    stage.ledger.note(f"parent of {gateway.instance} killed")
    kernel.send(gateway.child.pid, signal.SIGKILL)
    with trio.move_on_after(DRAIN_SECONDS + _REPLACED_SECONDS) as scope:
        await stage.fleet.see_off(death, workers)
    if scope.cancelled_caught:
        stage.ledger.violation(f"orphaned workers of {gateway.instance} did not end")
        for pid in workers:
            kernel.send(pid, signal.SIGKILL)
    await gateway.child.wait()
    disturbance.close()
    await stage.fleet.bring_up(gateway)
    await until_all_known(stage, datacenter)


async def parent_stopped(stage: Stage, datacenter: str) -> None:
    """SIGSTOP for the parent alone for 1 to 8 s: its workers go on as if nothing were."""
    gateway = stage.gateway(datacenter)
    workers = gateway.workers
    if await kernel.stop(gateway.child.pid):
        await trio.sleep(stage.rng.uniform(1, 8))
        gateway.child.resume()
        await trio.sleep(1)
        if gateway.workers != workers:
            stage.ledger.violation(f"{gateway.instance} lost workers to a pause of its parent")


async def state_damaged(stage: Stage, datacenter: str) -> None:
    """A gateway is killed, its kept catalog damaged, and it starts again: it says so and learns anew."""
    gateway = stage.gateway(datacenter)
    await _kill_all_of(stage, gateway, "gateway killed")
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
    await stage.fleet.bring_up(gateway)
    await until_all_known(stage, datacenter)


async def started_without_consul(stage: Stage, datacenter: str) -> None:
    """Consul and a gateway are killed; the gateway comes back first and serves from its kept catalog."""
    gateway, consul = stage.gateway(datacenter), stage.consul(datacenter)
    await _kill_all_of(stage, gateway, "gateway killed")
    before = await checks_of(consul)
    await consul.kill()
    gateway.spawn()

    async def missing() -> str | None:
        with suppress(httpx.HTTPError):
            return None if (await gateway.ask("/readyz"))["ready"] else "not ready"
        return "no answer"

    try:
        await until("a gateway without Consul", missing, seconds=60)
        gateway.takes = True
        await trio.sleep(4)
    except LateError as error:
        stage.ledger.violation(f"{gateway.instance} does not serve from its kept catalog: {error}")
    await restart(stage, consul, before)
    await gateway.until_ready(60)
    gateway.takes = True
    await until_all_known(stage, datacenter)


async def descriptors_used_up(stage: Stage, datacenter: str) -> None:
    """The limit of open files of a gateway's processes falls to what they have, and a little."""
    gateway = stage.gateway(datacenter)
    await gateway.until_workers(_REPLACED_SECONDS)
    pids = gateway.workers
    if stage.rng.random() < 0.3:
        pids.append(gateway.child.pid)
    disturbance = stage.ledger.disturb("descriptors used up", gateway.instance, f"behind {datacenter}")
    before = {}
    for pid in pids:
        with suppress(ProcessLookupError):
            before[pid] = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            least = kernel.descriptors(pid) + stage.rng.randint(0, _SPARE_DESCRIPTORS)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (least, before[pid][1]))
    stage.ledger.note(f"descriptors of {gateway.instance} are short")
    await trio.sleep(stage.rng.uniform(1, 5))
    for pid, limit in before.items():
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
    disturbance.close()
    if not set(pids) <= set(gateway.processes):
        stage.ledger.violation(f"{gateway.instance} lost a process for want of descriptors")


async def _kill_all_of(stage: Stage, gateway: Gateway, cause: str) -> Disturbance:
    """Stops all its processes, reads what they carry, kills them."""
    gateway.takes = False
    pids = gateway.processes
    disturbance = stage.ledger.disturb(cause, gateway.instance, f"behind {gateway.consul.datacenter}")
    for pid in pids:
        await kernel.stop(pid)
    stage.ledger.death(cause, kernel.legs_of_stopped(pids))
    stage.ledger.note(f"{gateway.instance} killed")
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    await gateway.child.kill()
    await gateway.child.wait()
    # Also those that had only reached the kernel are gone now.
    with trio.move_on_after(_REPLACED_SECONDS):
        while any(map(kernel.alive, pids)):  # noqa: ASYNC110
            await trio.sleep(0.01)
    disturbance.close()
    return disturbance
