"""The other datacenters: one mesh with this one, and their gateways within reach."""

from collections.abc import Collection

import trio

from meshgate.adapters.consul import ConsulClient, ConsulError
from meshgate.adapters.mesh_tls import RefusedError, connect
from meshgate.app.diagnostics.inspection import gateways_in, healthy
from meshgate.app.settings.settings import Settings
from meshgate.core.catalog import Instance
from meshgate.core.health import best_address
from meshgate.core.host_port import HostPort
from meshgate.core.prerequisites import Finding, Status, one_primary


async def other_datacenters(client: ConsulClient, own: str, findings: list[Finding]) -> tuple[str, ...]:
    """The names of the others; a finding is added about how many there are. None are known if `own` is not ("")."""
    if not own:
        advice = "give the token the rights above"
        findings.append(Finding("datacenters", Status.FAILED, "the token may not see which one this is", advice))
        return ()
    try:
        others = tuple(name for name in (await client.datacenters()).value if name != own)
    except ConsulError as error:
        findings.append(Finding("datacenters", Status.FAILED, str(error)))
        return ()
    shown = f"{own}, and {', '.join(others)}" if others else f"{own} alone: nothing to route to elsewhere"
    findings.append(Finding("datacenters", Status.OK, shown))
    return others


async def federation(client: ConsulClient, own: tuple[str, str], others: Collection[str]) -> list[Finding]:
    """Whether they all have one primary; `own` is this one's trust domain and primary datacenter."""
    told: dict[str, tuple[str, str]] = {}
    found = []
    for name in others:
        try:
            trust_domain = (await client.ca_roots(datacenter=name)).value.trust_domain
            # A primary replicates from nobody and says so with an empty name.
            told[name] = trust_domain, (await client.acl_replication(name)).source
        except ConsulError as error:
            advice = f"join {name}'s servers over the WAN, or let it federate through gateways"
            found.append(Finding(f"primary of {name}", Status.FAILED, str(error), advice))
    return [*one_primary(own, told), *found]


async def gateways(client: ConsulClient, settings: Settings, others: Collection[str]) -> list[Finding]:
    """A finding for each gateway of the others, or that there is none."""
    found = []
    for datacenter in sorted(others):
        check = f"gateways of {datacenter}"
        try:
            instances = await gateways_in(client, datacenter, guess=settings.service)
        except ConsulError as error:
            found.append(Finding(check, Status.FAILED, str(error)))
            continue
        if not instances:
            advice = f"start one in {datacenter}: until then nothing there can be reached through gateways"
            found.append(Finding(check, Status.WARNING, "none that the token can see", advice))
        found += await _dial_all(check, instances, settings.connect_timeout)
    return found


async def _dial_all(check: str, instances: Collection[Instance], seconds: float) -> list[Finding]:
    results: dict[int, Finding] = {}

    async def dial(number: int, instance: Instance) -> None:
        results[number] = await _dial(check, instance, seconds)

    async with trio.open_nursery() as nursery:
        for number, instance in enumerate(instances):
            nursery.start_soon(dial, number, instance)
    return [finding for _, finding in sorted(results.items())]


async def _dial(check: str, instance: Instance, seconds: float) -> Finding:
    address = HostPort(*best_address(instance, wan=True))
    shown = f"{instance.id} at {address}"
    try:
        await (await connect(address.host, address.port, seconds=seconds)).aclose()
    except RefusedError as error:
        reason = str(error).removeprefix("connect: ")
        advice = "is it running, is that its right WAN address, and does a firewall let this machine through?"
        return Finding(check, Status.FAILED, f"{shown}: {reason}", advice)
    if not healthy(instance):
        return Finding(check, Status.WARNING, f"{shown} answers, but is unhealthy for Consul", "look at its checks")
    return Finding(check, Status.OK, f"{shown} answers")
