"""The gateway's registration: as the settings describe it, and what one that the agent holds means for this process."""

from meshgate.adapters.consul import BindAddress, GatewayDefinition, OwnRegistration
from meshgate.app.settings.settings import Settings
from meshgate.core.listeners import ListenPlan, listen_plan

WAN_FEDERATION = "consul-wan-federation"


def listen_addresses(settings: Settings) -> tuple[BindAddress, ...]:
    """Where the relay listens by the settings alone: what the agent will say of the definition, but for central keys.

    The bind addresses and nothing else where there are some; else the LAN address, and the WAN address too where this
    machine has it.
    """
    return definition_of(settings).listen_plan().addresses


def plan_of(registration: OwnRegistration) -> ListenPlan:
    """Where a registration that the agent holds wants the gateway to listen, central configuration merged."""
    return listen_plan(registration.address, registration.port, registration.tagged, registration.config)


def exposes_servers(registration: OwnRegistration) -> bool:
    """Whether a registration offers Consul's servers to other datacenters: that very text, as Consul has it."""
    return registration.meta.get(WAN_FEDERATION) == "1"


def definition_of(settings: Settings) -> GatewayDefinition:
    """What is registered with the agent."""
    wan = settings.wan_address
    return GatewayDefinition(
        service=settings.service,
        proxy_id=settings.proxy_id,
        address=settings.address.host,
        port=settings.address.port,
        wan_address=wan.host if wan else "",
        wan_port=wan.port if wan else 0,
        bind_addresses=settings.bind_address,
        expose_servers=settings.expose_servers,
        deregister_after_critical=settings.deregister_after_critical,
        namespace=settings.consul.get("CONSUL_NAMESPACE", ""),
        partition=settings.consul.get("CONSUL_PARTITION", ""),
    )
