"""What may happen to the instances of services."""

import signal

import trio

from . import kernel
from .stage import Stage


async def critical(stage: Stage, datacenter: str) -> None:
    """An instance is critical for a while and goes on working: its streams stay."""
    instance = stage.instance(datacenter)
    await instance.set_health("critical")
    await trio.sleep(stage.rng.uniform(0.5, 4))
    await instance.set_health("passing")


async def deregistered(stage: Stage, datacenter: str) -> None:
    """An instance leaves the catalog for a while and goes on working: its streams stay."""
    instance = stage.instance(datacenter)
    await instance.deregister()
    await trio.sleep(stage.rng.uniform(0.5, 4))
    await instance.register()


async def moved(stage: Stage, datacenter: str) -> None:
    """An instance takes connections on another port from now on; those that it has stay."""
    instance = stage.instance(datacenter)
    old = instance.child
    await instance.start()
    await instance.register()
    # Who was let in by the kernel and not yet by the service is reset.
    disturbance = stage.ledger.disturb("endpoint moved", instance.service)
    await instance.go_deaf(old)
    disturbance.close()


async def killed(stage: Stage, datacenter: str) -> None:
    """SIGKILL for an instance with its streams; it comes back at the same address."""
    instance = stage.instance(datacenter)
    stage.ledger.note(f"{instance.incarnation} killed")
    disturbance = stage.ledger.disturb("endpoint killed", instance.service)
    await instance.die()
    disturbance.close()
    await trio.sleep(stage.rng.uniform(0.2, 4))
    await instance.start(instance.port)
    await instance.set_health("passing")


async def stopped(stage: Stage, datacenter: str) -> None:
    """SIGSTOP for an instance for 1 to 8 s: whoever is with it waits, and no stream ends."""
    instance = stage.instance(datacenter)
    seconds = stage.rng.uniform(1, 8)
    stage.ledger.note(f"{instance.incarnation} stopped for {seconds:.1f} s")
    if await kernel.stop(instance.child.pid):
        await trio.sleep(seconds)
        instance.child.signal(signal.SIGCONT)
