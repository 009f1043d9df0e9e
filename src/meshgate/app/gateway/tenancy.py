"""Where the gateway is in Consul Enterprise, and what the operator wants of exported services."""

from meshgate.adapters.consul import AgentFacts
from meshgate.app.settings.settings import Settings
from meshgate.core.export_routes import ExportRules
from meshgate.core.routes import RouteTable
from meshgate.core.sni import DEFAULT, PeeredServiceSni, parse

_MOST_PROBLEMS = 10


def partition_of(settings: Settings, facts: AgentFacts) -> str:
    """The gateway's partition: as set, else the agent's."""
    return settings.consul.get("CONSUL_PARTITION", "") or facts.partition or DEFAULT


def is_enterprise(settings: Settings, facts: AgentFacts) -> bool:
    """Whether Consul has namespaces and partitions.

    Its version says so. Where the token may not read that, the operator's naming one of them does.
    """
    if facts.version:
        return facts.enterprise
    return bool(settings.consul.get("CONSUL_PARTITION", "") or settings.consul.get("CONSUL_NAMESPACE", ""))


def export_rules(settings: Settings) -> ExportRules:
    return ExportRules(enforce=settings.enforce_exports, pass_http=settings.pass_http_exports)


def export_problems(table: RouteTable) -> list[str]:
    """Why services that are exported to peers have no route, a line each, without repetition."""
    lines = {
        reason: None
        for name, reason in sorted(table.unroutable.items())
        if isinstance(parse(name, trust_domain=table.trust_domain.lower()), PeeredServiceSni)
    }
    found = list(lines)
    more = len(found) - _MOST_PROBLEMS
    return found[:_MOST_PROBLEMS] + ([f"{more} more exported services have no route"] if more > 0 else [])
