"""What the agent says of itself, and how it becomes a record. The rules are those of `wire`."""

import msgspec

from meshgate.core.sni import DEFAULT

from .records import AgentFacts
from .wire import converted


class _AgentConfig(msgspec.Struct, rename="pascal"):
    datacenter: str
    node_name: str | None = ""
    version: str | None = ""
    server: bool | None = False
    primary_datacenter: str | None = ""
    partition: str | None = ""


class _DebugConfig(msgspec.Struct, rename="pascal"):
    dns_domain: str | None = msgspec.field(name="DNSDomain", default="")
    primary_datacenter: str | None = ""


class _AgentSelf(msgspec.Struct, rename="pascal"):
    """`/v1/agent/self`."""

    config: _AgentConfig
    debug_config: _DebugConfig | None = None


def agent_facts(value: object) -> AgentFacts:
    """`/v1/agent/self`, with Consul's defaults for what it does not say."""
    answer = converted(value, _AgentSelf)
    config, debug = answer.config, answer.debug_config or _DebugConfig()
    return AgentFacts(
        datacenter=config.datacenter,
        node=config.node_name or "",
        version=config.version or "",
        dns_domain=(debug.dns_domain or "consul").rstrip("."),
        primary_datacenter=config.primary_datacenter or debug.primary_datacenter or "",
        partition=config.partition or DEFAULT,
        server=bool(config.server),
    )
