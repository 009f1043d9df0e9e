"""The accounts at the end of a run: nothing may be left of what was, and all must know what there is."""

from collections.abc import Mapping
from typing import Final

import trio

from .fleet import WORKERS, Fleet, Gateway
from .kernel import Usage
from .stage import Stage, difference, passing

_SETTLE_SECONDS: Final = 90.0
# A worker keeps up to 32 empty pipes of two descriptors each.
_KEPT_PIPES: Final = 64
# A worker that takes another one's place brings a row of counts along, which all keep for the next one that does.
_ROWS: Final = WORKERS


def usage(fleet: Fleet) -> dict[str, Usage]:
    """What each gateway holds now."""
    return {f"{gateway.consul.datacenter} {gateway.instance}": Usage.of(gateway.child.pid) for gateway in fleet.all}


async def settle(stage: Stage, before: Mapping[str, Usage]) -> None:
    """All must come to rest: no stream, the whole catalog, as many descriptors as at the start, bounded memory."""
    await until_complete(stage)
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
    slacks = {"parent_descriptors": 6 + _ROWS, "worker_descriptors": 1 + _ROWS, "worker_pipes": _KEPT_PIPES}
    for what, slack in slacks.items():
        now, normal = getattr(usage, what), max(getattr(each, what) for each in most)
        if now > normal + slack:
            texts.append(f"{gateway.instance} holds {now} {what.replace('_', ' ')}, {normal} at the start")
    for what in ("parent_bytes", "worker_bytes"):
        now, normal = getattr(usage, what), max(getattr(each, what) for each in most)
        if now > 1.5 * normal + (16 << 20):
            texts.append(f"{gateway.instance} holds {now >> 20} MiB ({what}), {normal >> 20} at the start")
    return texts


async def until_complete(stage: Stage) -> None:
    """Every gateway knows every instance of its datacenter as healthy, and all gateways of the other one."""
    wanted: dict[str, dict[str, set[int]]] = {"dc1": {}, "dc2": {}}
    for instance in stage.instances:
        datacenter = instance.consul.datacenter
        name = f"{instance.service}.default.{datacenter}.internal.{stage.federation.trust_domain}"
        wanted[datacenter].setdefault(name, set()).add(instance.port)
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
            if found != ports:
                return f"{gateway.instance}: {name} goes to {sorted(found)}, not {sorted(ports)}"
        other = stage.other(gateway.consul.datacenter)
        if await passing(gateway.consul, other) != {each.port for each in stage.fleet.by_datacenter[other]}:
            return f"the agent of {gateway.instance} does not list the gateways of {other}"
        if lacking := await difference(stage, gateway, other):
            return lacking
    return ""
