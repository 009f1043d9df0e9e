"""What the token may do, right by right, here and in the other datacenters."""

from collections.abc import Collection
from typing import Final

from meshgate.adapters.consul import (
    SEE_AGENT,
    SEE_SERVICES,
    AgentFacts,
    ConsulClient,
    ConsulError,
    PermissionDeniedError,
    Rule,
)
from meshgate.app.diagnostics.inspection import HOW_TO_GIVE_ONE, NONE_GIVEN
from meshgate.app.settings.settings import Settings
from meshgate.core.prerequisites import Finding, Status

SEE_NODES: Final = Rule("node", prefix=True)
_PURPOSE: Final = {
    SEE_SERVICES: "see the services",
    SEE_NODES: "see the nodes with their addresses and health",
    SEE_AGENT: "ask the agent what it is",
}


async def rights(client: ConsulClient, settings: Settings, report: AgentFacts | None) -> list[Finding]:
    """A finding for each right that the gateway needs in its own datacenter."""
    if report is not None and report.acls is False:
        return [Finding("ACLs", Status.OK, "off in this agent: no token is needed")]
    needed = [SEE_SERVICES, SEE_NODES, SEE_AGENT]
    if settings.register:
        needed.insert(0, Rule("service", settings.service, "write"))
    try:
        asked = [Rule("agent", report.node) if report and rule == SEE_AGENT else rule for rule in needed]
        granted = await client.allowed(asked)
        return [
            await _right(client, rule, report, allowed=allowed) for rule, allowed in zip(needed, granted, strict=True)
        ]
    except ConsulError as error:
        advice = "compare its policy with the one that `meshgate policy` prints"
        if _unknown(error):
            return [Finding("token", Status.FAILED, str(error), "give it one that this datacenter knows")]
        return [Finding("token", Status.WARNING, str(error), advice)]


def without_token(client: ConsulClient, found: Collection[Finding]) -> list[Finding]:
    """That there is no token, where the rights that were found are not enough: to be said before all else."""
    if client.token.given or all(finding.status is Status.OK for finding in found):
        return []
    worst = Status.FAILED if any(finding.status is Status.FAILED for finding in found) else Status.WARNING
    return [Finding("token", worst, f"{NONE_GIVEN}, so what follows is what anybody may do", HOW_TO_GIVE_ONE)]


async def _right(client: ConsulClient, rule: Rule, report: AgentFacts | None, *, allowed: bool) -> Finding:
    check, purpose = f"token: {rule.resource}:{rule.access}", _PURPOSE.get(rule, f"register {rule.name}")
    if allowed:
        return Finding(check, Status.OK, purpose)
    advice = f"add {rule} to its policy"
    if rule == SEE_AGENT:
        return Finding(check, Status.WARNING, f"may not {purpose}", advice)
    # A narrower rule works as well, and what it leaves out has no route.
    if rule == SEE_SERVICES or (rule == SEE_NODES and report and await _sees(client, report.node)):
        return Finding(check, Status.WARNING, f"may not {purpose}, or not all of them", advice)
    return Finding(check, Status.FAILED, f"may not {purpose}", advice)


async def _sees(client: ConsulClient, node: str) -> bool:
    return all(await client.allowed([Rule("node", node)]))


async def elsewhere(client: ConsulClient, others: Collection[str], report: AgentFacts | None) -> list[Finding]:
    """Whether each other datacenter knows the token, lets it see gateways, and replicates tokens."""
    if report is not None and report.acls is False:
        return []
    found = []
    for datacenter in sorted(others):
        found += [await _known(client, datacenter), await _replicates(client, datacenter, report)]
    return found


async def _known(client: ConsulClient, datacenter: str) -> Finding:
    check = f"token in {datacenter}"
    advice = "make a global token (not -local) in the primary datacenter, and let it replicate"
    try:
        await client.token_self(datacenter)
        granted = await client.allowed([SEE_SERVICES, SEE_NODES], datacenter)
    except ConsulError as error:
        return Finding(
            check, Status.FAILED, str(error), advice if _unknown(error) else f"look at {datacenter}'s servers"
        )
    lacking = [str(rule) for rule, allowed in zip((SEE_SERVICES, SEE_NODES), granted, strict=True) if not allowed]
    if lacking:
        detail = "known, but it may not see all services and nodes: gateways among them stay hidden"
        return Finding(check, Status.WARNING, detail, f"add {' and '.join(lacking)} to its policy")
    return Finding(check, Status.OK, "known, and it may see the gateways")


async def _replicates(client: ConsulClient, datacenter: str, report: AgentFacts | None) -> Finding:
    check = f"ACL replication to {datacenter}"
    if report is not None and report.primary_datacenter == datacenter:
        return Finding(check, Status.OK, "it is the primary")
    try:
        answer = await client.acl_replication(datacenter)
    except ConsulError as error:
        return Finding(check, Status.WARNING, str(error), _look_at(datacenter))
    if not answer.enabled:
        return Finding(check, Status.WARNING, "off", f"set acl {{ enable_token_replication = true }} in {datacenter}")
    if not answer.running:
        return Finding(
            check, Status.FAILED, "on, but not running", f"set the replication token of {datacenter}'s servers"
        )
    if answer.kind != "tokens":
        advice = (
            f"set acl {{ enable_token_replication = true }} in {datacenter}, or each request is a trip to the primary"
        )
        return Finding(check, Status.WARNING, f"{answer.kind} only", advice)
    return Finding(check, Status.OK, f"tokens from {answer.source}")


def _look_at(datacenter: str) -> str:
    return f"look at the servers of {datacenter}"


def _unknown(error: ConsulError) -> bool:
    return isinstance(error, PermissionDeniedError) and error.missing_rule is None
