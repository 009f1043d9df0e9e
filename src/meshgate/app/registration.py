"""The gateway's registration as the settings describe it."""

from meshgate.adapters.consul import BindAddress, GatewayDefinition
from meshgate.adapters.consul.registration import can_bind

from .settings import Settings


def listen_addresses(settings: Settings) -> list[BindAddress]:
    """Where the relay listens, as the registration says.

    The bind addresses and nothing else where there are some; else the LAN address, and the WAN address too where this
    machine has it.
    """
    if settings.bind_address:
        return [BindAddress(bind.name, bind.host, bind.port) for bind in settings.bind_address]
    lan, wan = settings.address, settings.wan_address
    addresses = [BindAddress("default", lan.host, lan.port)]
    if lan.host and wan is not None and wan != lan and can_bind(wan.host):
        addresses.append(BindAddress("wan", wan.host, wan.port))
    return addresses


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
        bind_addresses=tuple(BindAddress(bind.name, bind.host, bind.port) for bind in settings.bind_address),
        expose_servers=settings.expose_servers,
        deregister_after_critical=settings.deregister_after_critical,
        namespace=settings.consul.get("CONSUL_NAMESPACE", ""),
        partition=settings.consul.get("CONSUL_PARTITION", ""),
    )
