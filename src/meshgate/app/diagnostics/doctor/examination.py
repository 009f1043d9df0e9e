"""The examination: all checks in the order in which a person would put a broken setup right.

A check that cannot be made says why, as a finding; it never ends the others. Nothing is changed anywhere.
"""

import time
from collections.abc import Iterator

from meshgate.adapters.consul import AgentFacts, ConsulClient, ConsulError, PermissionDeniedError
from meshgate.adapters.machine import RESERVED, reachable_descriptors
from meshgate.app.diagnostics.doctor import host, network, own_registration, peering, permissions
from meshgate.app.settings.settings import Settings
from meshgate.core import prerequisites
from meshgate.core.prerequisites import Finding, Status


async def examine(client: ConsulClient, settings: Settings) -> list[Finding]:
    """All findings, in order.

    Raises:
        ConsulError: the agent does not answer at all, so there is nothing to examine.
    """
    before = time.time()
    clock = await client.agent_clock()
    skew = None if clock is None else _skew(before, time.time(), clock)
    report, findings = await _report(client)
    own = report.datacenter if report else await _datacenter(client)
    trust_domain = ""
    try:
        certificates = (await client.ca_roots()).value
        trust_domain = certificates.trust_domain
        roots = prerequisites.ca_roots(len(certificates.roots), certificates.expires, time.time())
    except ConsulError as error:
        roots = Finding("CA roots", Status.FAILED, str(error), "set connect { enabled = true } on the servers")
    findings.append(prerequisites.connect_enabled(report.connect if report else None, trust_domain))
    findings.append(roots)
    findings += _agent_settings(report)
    rights = await permissions.rights(client, settings, report)
    findings = [*permissions.without_token(client, rights), *findings, *rights]
    others = await network.other_datacenters(client, own, findings)
    primary = report.primary_datacenter if report else ""
    findings += await network.federation(client, (trust_domain, primary or own), others)
    findings += await permissions.elsewhere(client, others, report)
    findings += await network.gateways(client, settings, others)
    findings += await peering.partitions(client, settings, report)
    findings += await peering.peerings(client, settings, report)
    findings += host.addresses(settings, federated=bool(others) or not own)
    findings += await own_registration.registration(client, settings)
    findings += await host.ports(settings)
    findings.append(prerequisites.clock(skew))
    findings.append(prerequisites.descriptors(reachable_descriptors(), settings.max_connections, RESERVED))
    limit = report.max_connections if report else None
    findings.append(prerequisites.agent_connections(limit, settings.catalog_watches))
    return findings


async def _report(client: ConsulClient) -> tuple[AgentFacts | None, list[Finding]]:
    try:
        report = await client.agent_self()
    except PermissionDeniedError as error:
        rule = error.missing_rule
        advice = f"add {rule} to its policy" if rule else "give it another token"
        return None, [Finding("agent", Status.WARNING, "the token may not ask it what it is", advice)]
    where = f"{report.node} of {report.datacenter}"
    return report, [Finding("agent", Status.OK, where), prerequisites.consul_version(report.version)]


async def _datacenter(client: ConsulClient) -> str:
    """The agent's datacenter as the catalog tells it; "" where the token may not see that either."""
    try:
        return (await client.agent_facts()).datacenter
    except PermissionDeniedError:
        return ""


def _agent_settings(report: AgentFacts | None) -> Iterator[Finding]:
    yield prerequisites.central_config(report.central_config if report else None, report.version if report else "")
    yield prerequisites.grpc_port(report.grpc_ports if report else None)


def _skew(before: float, after: float, agent: float) -> float:
    """How far this clock is ahead of the agent's, which tells whole seconds: the least that explains the answer."""
    if agent > after:
        return after - agent
    return max(0.0, before - (agent + 1))
