"""Cluster peering and, in Enterprise, admin partitions: what the token may not see, and what cannot be routed.

Where Consul knows neither there is nothing to say.
"""

from contextlib import suppress
from typing import Final

from meshgate.adapters.consul import (
    GATEWAY_KIND,
    AgentFacts,
    ConsulClient,
    ConsulError,
    Exported,
    Instances,
    NotFoundError,
    Peering,
    PermissionDeniedError,
    Tenant,
)
from meshgate.app.settings.settings import Settings
from meshgate.core.catalog import Instance, in_namespace
from meshgate.core.prerequisites import Finding, Status
from meshgate.core.sni import DEFAULT

_MOST_EXPORTS: Final = 50


async def peerings(client: ConsulClient, settings: Settings, report: AgentFacts | None) -> list[Finding]:
    """A finding about the peerings, and one for each exported service that is no matter for a gateway like this."""
    enterprise = report is not None and "+ent" in report.version
    try:
        found = (await client.peerings()).value
    except ConsulError as error:
        return [_hidden("cluster peering", error)]
    if found is None:
        return []
    shown = ", ".join(f"{it.name} ({it.state.lower()})" for it in found) or "no peerings"
    findings = [Finding("cluster peering", Status.OK, shown)]
    if any(it.active for it in found):
        findings += await _exports(client, settings, found, enterprise=enterprise)
    return findings


async def _exports(
    client: ConsulClient, settings: Settings, found: tuple[Peering, ...], *, enterprise: bool
) -> list[Finding]:
    try:
        exported = (await client.exported_services()).value
    except NotFoundError:
        return []
    except ConsulError as error:
        return [_hidden("exported services", error)]
    known = {peering.name for peering in found}
    ours = [export for export in exported if known.intersection(export.peers)]
    findings = [Finding("exported services", Status.OK, f"{len(ours)} to peers")]
    for export in ours[:_MOST_EXPORTS]:
        findings += await _protocol(client, settings, export, enterprise=enterprise)
    return findings


async def _protocol(client: ConsulClient, settings: Settings, export: Exported, *, enterprise: bool) -> list[Finding]:
    name = in_namespace(export.namespace, export.service)
    check = f"export of {name}"
    place = client.at(Tenant(namespace=export.namespace if enterprise else ""))
    try:
        chain = (await place.discovery_chain(export.service)).value
    except ConsulError as error:
        return [_hidden(check, error)]
    if chain.protocol != "tcp":
        if settings.pass_http_exports:
            detail = f"protocol {chain.protocol}, passed on unterminated: its routers and L7 intentions do not apply"
            return [Finding(check, Status.WARNING, detail)]
        detail = f"protocol {chain.protocol}: a gateway has to end TLS for it, and this one never does"
        advice = "set its protocol to tcp, keep an Envoy gateway for it, or set MESHGATE_PASS_HTTP_EXPORTS=true"
        return [Finding(check, Status.FAILED, detail, advice)]
    if chain.target is None:
        detail = "its resolver leads out of this datacenter or partition"
        return [Finding(check, Status.FAILED, detail, "export the service where it is")]
    return []


async def partitions(client: ConsulClient, settings: Settings, report: AgentFacts | None) -> list[Finding]:
    """Findings about the other partitions of the datacenter, where there are any."""
    own = settings.consul.get("CONSUL_PARTITION", "") or (report.partition if report else "") or DEFAULT
    findings = []
    namespace = settings.consul.get("CONSUL_NAMESPACE", "")
    if namespace not in ("", DEFAULT):
        detail = f"the gateway is registered in {namespace}; Consul wants mesh gateways in {DEFAULT}"
        findings.append(Finding("namespace", Status.WARNING, detail, "leave CONSUL_NAMESPACE out"))
    try:
        others = [name for name in (await client.partitions()).value if name != own]
    except NotFoundError:
        return findings
    except ConsulError as error:
        return [*findings, _hidden("partitions", error)]
    shown = f"{own}, and {', '.join(others)}" if others else f"{own} alone"
    findings.append(Finding("partitions", Status.OK, shown))
    for name in others:
        try:
            found = await _gateways(client, name, settings.service)
        except ConsulError as error:
            findings.append(_hidden(f"gateways of partition {name}", error))
            continue
        if not found:
            advice = f"start one in {name}: until then nothing there can be reached through gateways"
            findings.append(Finding(f"gateways of partition {name}", Status.WARNING, "none to be seen", advice))
    return findings


async def _gateways(client: ConsulClient, partition: str, guess: str) -> Instances:
    place = client.at(Tenant(namespace=DEFAULT, partition=partition))
    names = {guess}
    with suppress(ConsulError):
        names |= set((await place.gateway_names("")).value)
    found: list[Instance] = []
    for name in sorted(names):
        found += (await place.instances(name, kind=GATEWAY_KIND)).value
    return tuple(found)


def _hidden(check: str, error: ConsulError) -> Finding:
    rule = error.missing_rule if isinstance(error, PermissionDeniedError) else None
    return Finding(check, Status.WARNING, str(error), f"add {rule} to the token's policy" if rule else "")
