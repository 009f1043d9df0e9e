"""A run from beginning to end: two datacenters, gateways, services, callers, faults, and the accounts at the end."""

import os
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Final

import trio
from tests.harness.agent import Consul
from tests.harness.tls import mesh_context

from meshgate.adapters.consul.policy import acl_policy

from .accounts import settle, until_complete, usage
from .datacenters import PlacedFederation, two_placed_datacenters
from .faults import FAULTS, inject
from .fleet import Fleet
from .ledger import Ledger
from .network import Network
from .report import as_data
from .services import SoakInstance, write_leaf
from .stage import Stage, replace
from .traffic import Traffic, until_idle

# The first two are those of a small run.
SERVICES: Final = {"web": "dc2", "stock": "dc1", "api": "dc2", "vault": "dc2", "mail": "dc1"}
_INSTANCES: Final = 3
_GATEWAYS: Final = 2
_PROGRESS_SECONDS: Final = 10.0
# What explains a refusal is known by then: a restarted Consul has been asked.
_JUDGEMENT_SECONDS: Final = 300.0
_MOST_AT_ONCE: Final = 4
# What the pauses in streams of a small run are multiplied by, so that it ends soon.
_SMALL_PACE: Final = 0.3


@dataclass(frozen=True)
class Options:
    """What the user asked for.

    `gap` is the mean of seconds between the beginnings of two faults, `quick` how many quick streams begin in a second.

    `uncut` says why the network cannot be cut, empty where it can.
    """

    seconds: float
    seed: int
    binary: str
    callers: int = 24
    gap: float = 3.0
    only: tuple[str, ...] = ()
    logs: Path | None = None
    uncut: str = ""
    small: bool = False
    quick: float = 0.0

    @property
    def services(self) -> dict[str, str]:
        """The services and where they are."""
        return dict(list(SERVICES.items())[: 2 if self.small else None])

    @property
    def faults(self) -> list[str]:
        """The names of those to inject."""
        wanted = [name for name in FAULTS if not self.only or name in self.only]
        return [name for name in wanted if not (FAULTS[name].cuts and self.uncut)]


async def soak(options: Options, ledger: Ledger, say: Callable[[str], None]) -> dict[str, Any]:
    """Keeps the accounts in `ledger` and gives the report."""
    if options.uncut:
        say(f"no partitions: {options.uncut}")
    async with _stage(options, ledger, say) as stage:
        federation = stage.federation
        contexts = {consul.datacenter: await _caller_context(stage, consul) for consul in federation.datacenters}
        pace = _SMALL_PACE if options.small else 1.0
        services, domain = options.services, federation.trust_domain
        traffic = stage.traffic = Traffic(stage.fleet, ledger, contexts, services, domain, options.seed, pace)
        before = usage(stage.fleet)
        ledger.started = time.monotonic()
        say(f"under load for {options.seconds:g} s, seed {options.seed}")
        async with trio.open_nursery() as watching:
            watching.start_soon(_watch, stage, traffic, say)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(traffic.run, options.callers, options.quick)
                await _inject_all(stage, options)
                await trio.sleep(1)
                traffic.stopping = True
            watching.cancel_scope.cancel()
        say("the load is over, what is held is looked at")
        await until_idle(traffic, 5)
        await settle(stage, before)
        after = usage(stage.fleet)
        _look_after(stage)
        ledger.settle()
        return as_data(ledger, options.seed, options.uncut, before, after)


@asynccontextmanager
async def _stage(options: Options, ledger: Ledger, say: Callable[[str], None]) -> AsyncIterator[Stage]:
    with TemporaryDirectory(prefix="meshgate-soak-") as folder:
        network = Network(options.uncut, Path(folder))
        try:
            async with two_placed_datacenters(options.binary, network, say) as federation:
                stage = await _prepared(federation, network, options, ledger)
                try:
                    await _populate(stage, options.services)
                    yield stage
                finally:
                    with trio.CancelScope(shield=True):
                        await stage.fleet.stop_all()
                        for instance in stage.instances:
                            await instance.stop()
                        if options.logs is not None:
                            _keep_logs(federation, options.logs)
        finally:
            with trio.CancelScope(shield=True):
                await network.close()


async def _prepared(federation: PlacedFederation, network: Network, options: Options, ledger: Ledger) -> Stage:
    token_file = federation.folder / "token"
    replace(token_file, await federation.create_policy_token(acl_policy(), "mesh-gateway-0"))
    fleet = Fleet(federation.datacenters, token_file, ledger, network)
    rng = Random(f"{options.seed} faults")
    return Stage(federation, fleet, [], token_file, ledger, rng, network)


async def _populate(stage: Stage, services: Mapping[str, str]) -> None:
    """Instances and gateways, all known to each other."""
    for service, datacenter in services.items():
        at = stage.consul(datacenter)
        leaf = await write_leaf(at, service, stage.federation.folder)
        for number in range(_INSTANCES):
            place = await stage.network.place()
            stage.instances.append(SoakInstance(at, service, number, place, leaf, stage.ledger))
    async with trio.open_nursery() as nursery:
        for consul in stage.federation.datacenters:
            for _ in range(_GATEWAYS):
                nursery.start_soon(stage.fleet.add, consul.datacenter)
        for instance in stage.instances:
            nursery.start_soon(_bring_up, instance)
    await until_complete(stage)


async def _bring_up(instance: SoakInstance) -> None:
    await instance.start()
    await instance.register()


def _keep_logs(federation: PlacedFederation, folder: Path) -> None:
    """The logs of Consul and of all gateways that there were."""
    folder.mkdir(parents=True, exist_ok=True)
    for consul in federation.datacenters:
        for log in (consul.folder / "log", *consul.folder.glob("*.log")):
            (folder / f"{consul.datacenter}-{log.stem}.log").write_bytes(log.read_bytes())


async def _caller_context(stage: Stage, consul: Consul) -> ssl.SSLContext:
    leaf = await consul.get("/v1/agent/connect/ca/leaf/shop")
    roots = await consul.get("/v1/agent/connect/ca/roots")
    return mesh_context(leaf, roots, stage.federation.folder)


async def _inject_all(stage: Stage, options: Options) -> None:
    """Faults until the time is over: each kind once before any comes again, a few at once.

    One that needs what another one has lets those behind it go first.
    """
    rng, held, deck = stage.rng, set[str](), list[tuple[str, str, set[str]]]()
    names = options.faults
    running = 0

    async def one(name: str, datacenter: str, needs: set[str]) -> None:
        nonlocal running
        await inject(stage, name, datacenter)
        held.difference_update(needs)
        running -= 1

    async with trio.open_nursery() as nursery:
        end = stage.ledger.started + options.seconds
        await trio.sleep(min(3.0, options.seconds / 10))
        while time.monotonic() < end:
            if not deck:
                for name in rng.sample(names, len(names)):
                    datacenter = rng.choice(("dc1", "dc2"))
                    deck.append((name, datacenter, {need.replace("*", datacenter) for need in FAULTS[name].needs}))
            free = (each for each in deck if running < _MOST_AT_ONCE and not held & each[2])
            if (drawn := next(free, None)) is None:
                await trio.sleep(0.05)
                continue
            deck.remove(drawn)
            held |= drawn[2]
            running += 1
            nursery.start_soon(one, *drawn)
            await trio.sleep(min(rng.expovariate(1 / options.gap), 4 * options.gap))


async def _watch(stage: Stage, traffic: Traffic, say: Callable[[str], None]) -> None:
    """Judges and tells, every few seconds."""
    ledger = stage.ledger
    while True:
        await trio.sleep(_PROGRESS_SECONDS)
        _look_after(stage)
        ledger.settle(_JUDGEMENT_SECONDS)
        say(
            f"{ledger.age:5.0f} s: {ledger.opened} streams ({traffic.active.total()} open), "
            f"{(ledger.bytes_up + ledger.bytes_down) / 1e6:.0f} MB, {ledger.faults.total()} faults, "
            f"{ledger.breaks.total()} broke, {ledger.refusals.total()} refused, {len(ledger.pending)} to be explained, "
            f"{len(ledger.violations)} violations"
        )


def _look_after(stage: Stage) -> None:
    """What the services have to say."""
    for instance in stage.instances:
        for text in instance.damage():
            stage.ledger.violation(text)


def default_seed() -> int:
    """One that nobody has seen."""
    return int.from_bytes(os.urandom(4))
