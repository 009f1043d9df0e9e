"""The relay's limits: what was set for this gateway, else what Consul says of it, else the defaults."""

from meshgate.adapters.relay import Limits
from meshgate.core.gateway_options import NO_OPTIONS, GatewayOptions

from .setting_sources import Origin
from .settings import Settings


def limits_of(settings: Settings, options: GatewayOptions = NO_OPTIONS) -> Limits:
    """Combine them. `options` is what the registration holds, central configuration merged."""
    central = {"MESHGATE_CONNECT_TIMEOUT": options.connect_timeout, "MESHGATE_KEEPALIVE": options.keepalive}
    used = {name: value for name, value in central.items() if value and settings.origin(name) is Origin.DEFAULT}
    return Limits(
        hello_timeout=settings.hello_timeout,
        connect_timeout=used.get("MESHGATE_CONNECT_TIMEOUT", settings.connect_timeout),
        idle_timeout=settings.idle_timeout,
        keepalive=used.get("MESHGATE_KEEPALIVE", settings.keepalive),
        max_connections=settings.max_connections,
        max_connections_per_client=settings.max_connections_per_client,
        max_hello_bytes=settings.max_hello_bytes,
    )
