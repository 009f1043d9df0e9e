"""A run from beginning to end: two datacenters, gateways, services, callers, faults, and the accounts at the end."""

import os
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import trio

from meshgate.adapters.consul.policy import acl_policy
from meshgate.app.demo.agent import Consul
from meshgate.app.demo.cluster import Federation, two_datacenters
from meshgate.app.demo.identity import mesh_context

from .faults import FAULTS, Stage, federated_ports, inject, replace
from .fleet import Fleet, Gateway
from .kernel import Usage
from .ledger import Ledger
from .report import as_data
from .services import SoakInstance, service_context
from .traffic import Traffic, until_idle

SERVICES: Final = {"web": "dc2", "api": "dc2", "vault": "dc2", "stock": "dc1", "mail": "dc1"}
_INSTANCES: Final = 3
_GATEWAYS: Final = 2
_PROGRESS_SECONDS: Final = 10.0
_SETTLE_SECONDS: Final = 30.0
_MOST_AT_ONCE: Final = 3
# A worker keeps up to 32 empty pipes of two descriptors each.
_KEPT_PIPES: Final = 64


@dataclass(frozen=True)
class Options:
    """What the user asked for. `gap` is the mean of seconds between the beginnings of two faults."""

    seconds: float
    seed: int
    binary: str
    callers: int = 24
    gap: float = 3.0
    only: tuple[str, ...] = ()
    logs: Path | None = None


async def soak(options: Options, ledger: Ledger, say: Callable[[str], None]) -> dict[str, Any]:
    """Keeps the accounts in `ledger` and gives the report."""
    async with two_datacenters(options.binary, say) as federation, _stage(federation, options, ledger) as stage:
        contexts = {consul.datacenter: await _caller_context(stage, consul) for consul in federation.datacenters}
        traffic = Traffic(stage.fleet, ledger, contexts, SERVICES, federation.trust_domain, options.seed)
        before = _usage(stage.fleet)
        ledger.started = time.monotonic()
        say(f"under load for {options.seconds:g} s, seed {options.seed}")
        async with trio.open_nursery() as watching:
            watching.start_soon(_tell, ledger, traffic, say)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(traffic.run, options.callers)
                await _inject_all(stage, options)
                await trio.sleep(1)
                traffic.stopping = True
            watching.cancel_scope.cancel()
        say("the load is over, what is held is looked at")
        await until_idle(traffic, 5)
        await _settle(stage, before)
        after = _usage(stage.fleet)
        return as_data(ledger, options.seed, before, after)


@asynccontextmanager
async def _stage(federation: Federation, options: Options, ledger: Ledger) -> AsyncIterator[Stage]:
    token_file = federation.folder / "token"
    replace(token_file, await federation.create_policy_token(acl_policy(), "mesh-gateway-0"))
    fleet = Fleet(federation.datacenters, token_file, ledger)
    async with trio.open_nursery() as nursery:
        instances = []
        for service, datacenter in SERVICES.items():
            consul = next(each for each in federation.datacenters if each.datacenter == datacenter)
            context = await service_context(consul, service, federation.folder)
            for number in range(_INSTANCES):
                instance = SoakInstance(consul, service, number, context, ledger, nursery)
                await instance.listen()
                await instance.register()
                instances.append(instance)
        try:
            for consul in federation.datacenters:
                for _ in range(_GATEWAYS):
                    await fleet.add(consul.datacenter)
            stage = Stage(federation, fleet, instances, token_file, ledger, Random(f"{options.seed} faults"))
            await _until_complete(stage)
            yield stage
        finally:
            with trio.CancelScope(shield=True):
                await fleet.stop_all()
                if options.logs is not None:
                    _keep_logs(federation, options.logs)
            nursery.cancel_scope.cancel()


def _keep_logs(federation: Federation, folder: Path) -> None:
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
    """Faults until the time is over: each kind once before any comes again, a few at once."""
    rng, held, deck = stage.rng, set[str](), list[str]()
    names = [name for name in FAULTS if not options.only or name in options.only]
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
                deck = rng.sample(names, len(names))
            name, datacenter = deck.pop(), rng.choice(("dc1", "dc2"))
            needs = {need.replace("*", datacenter) for need in FAULTS[name][1]}
            while (held & needs or running >= _MOST_AT_ONCE) and time.monotonic() < end:  # noqa: ASYNC110
                await trio.sleep(0.05)
            if time.monotonic() < end:
                held |= needs
                running += 1
                nursery.start_soon(one, name, datacenter, needs)
                await trio.sleep(min(rng.expovariate(1 / options.gap), 4 * options.gap))


async def _tell(ledger: Ledger, traffic: Traffic, say: Callable[[str], None]) -> None:
    while True:
        await trio.sleep(_PROGRESS_SECONDS)
        say(
            f"{ledger.age:5.0f} s: {ledger.opened} streams ({traffic.active.total()} open), "
            f"{(ledger.bytes_up + ledger.bytes_down) / 1e6:.0f} MB, {ledger.faults.total()} faults, "
            f"{ledger.breaks.total()} broke, {ledger.refusals.total()} refused, "
            f"{len(ledger.violations)} violations"
        )


# --- the accounts ------------------------------------------------------------------------------------------------


def _usage(fleet: Fleet) -> dict[str, Usage]:
    return {f"{gateway.consul.datacenter} {gateway.instance}": Usage.of(gateway.child.pid) for gateway in fleet.all}


async def _settle(stage: Stage, before: Mapping[str, Usage]) -> None:
    """All must come to rest: no stream, the whole catalog, as many descriptors as at the start, bounded memory."""
    await _until_complete(stage)
    lacking: list[str] = []
    with trio.move_on_after(_SETTLE_SECONDS):
        while lacking := [text for gateway in stage.fleet.all for text in await _held_by(gateway, before)]:  # noqa: ASYNC110
            await trio.sleep(0.5)
    for text in lacking:
        stage.ledger.violation(text)


async def _held_by(gateway: Gateway, before: Mapping[str, Usage]) -> list[str]:
    """What a gateway holds that an idle one does not. Those of the start say what is normal."""
    if not gateway.child.running:
        return [f"{gateway.instance} does not run"]
    usage, most = Usage.of(gateway.child.pid), list(before.values())
    active = await gateway.counter("meshgate_connections_active")
    texts = [f"{gateway.instance} counts {active:g} streams, there are none"] if active else []
    # The parent's connections to Consul come and go.
    for what, slack in (("parent_descriptors", 6), ("worker_descriptors", 1), ("worker_pipes", _KEPT_PIPES)):
        now, normal = getattr(usage, what), max(getattr(each, what) for each in most)
        if now > normal + slack:
            texts.append(f"{gateway.instance} holds {now} {what.replace('_', ' ')}, {normal} at the start")
    for what in ("parent_bytes", "worker_bytes"):
        now, normal = getattr(usage, what), max(getattr(each, what) for each in most)
        if now > 1.5 * normal + (16 << 20):
            texts.append(f"{gateway.instance} holds {now >> 20} MiB ({what}), {normal >> 20} at the start")
    return texts


async def _until_complete(stage: Stage) -> None:
    """Every gateway knows every instance of its datacenter as healthy, and all gateways of the other one."""
    domain = stage.federation.trust_domain
    wanted: dict[str, dict[str, set[int]]] = {"dc1": {}, "dc2": {}}
    for instance in stage.instances:
        datacenter = instance.consul.datacenter
        name = f"{instance.service}.default.{datacenter}.internal.{domain}"
        wanted[datacenter].setdefault(name, set()).add(instance.port)
    for here, there in (("dc1", "dc2"), ("dc2", "dc1")):
        wanted[here][f"*.{there}.internal.{domain}"] = {each.port for each in stage.fleet.by_datacenter[there]}
    wrong = ""
    with trio.move_on_after(_SETTLE_SECONDS):
        while wrong := await _difference(stage, wanted):  # noqa: ASYNC110
            await trio.sleep(0.3)
    if wrong:
        stage.ledger.violation(f"a table is not what it should be: {wrong}; Consul says {await _listed(stage)}")


async def _listed(stage: Stage) -> dict[str, list[str]]:
    """The gateways that each agent lists for each datacenter, for whoever looks into a violation."""
    listed = {}
    for consul in stage.federation.datacenters:
        for of in stage.federation.datacenters:
            rows = await consul.ask("/v1/health/service/mesh-gateway", dc=of.datacenter) or ()
            listed[f"{consul.datacenter} of {of.datacenter}"] = [
                f"{row['Service']['ID']}:{row['Service']['Port']} " + ",".join(c["Status"] for c in row["Checks"])
                for row in rows
            ]
        states = await consul.ask("/v1/internal/federation-states/mesh-gateways") or {}
        for of, rows in states.items():
            listed[f"{consul.datacenter} federated {of}"] = [f"{row['Service']['ID']}" for row in rows or ()]
    return listed


async def _difference(stage: Stage, wanted: Mapping[str, Mapping[str, set[int]]]) -> str:
    for gateway in stage.fleet.all:
        if not gateway.child.running:
            return f"{gateway.instance} does not run"
        for name, ports in wanted[gateway.consul.datacenter].items():
            found = {port for port, healthy in (await gateway.endpoints(name)).items() if healthy}
            if name.startswith("*."):
                found -= await federated_ports(gateway.consul, name.split(".")[1]) - ports
            if found != ports:
                return f"{gateway.instance}: {name} goes to {sorted(found)}, not {sorted(ports)}"
    return ""


def default_seed() -> int:
    """One that nobody has seen."""
    return int.from_bytes(os.urandom(4))
