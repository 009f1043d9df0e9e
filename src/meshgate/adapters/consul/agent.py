"""The first thing a gateway needs: an agent that answers, and says in which datacenter it is."""

import structlog

from .records import AgentFacts, Reader
from .watch import ignore
from .watch_registry import WatchRegistry

log = structlog.get_logger(module="meshgate.consul")


async def wait_for_agent(client: Reader, registry: WatchRegistry) -> AgentFacts:
    """Ask until the agent says what it is.

    Failures are logged and repeated as those of a watch are: an agent may start after the gateway, and a token may
    reach a secondary datacenter late. May be cancelled at any time.
    """
    with registry.watching("agent", "agent") as state:
        facts = await registry.retry(state, client.agent_facts, ignore)
    if facts.limited:
        log.warning("the agent's own facts are hidden, Consul's defaults are assumed", problem=facts.limited)
    return facts
