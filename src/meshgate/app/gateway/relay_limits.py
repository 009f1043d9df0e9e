"""The relay's limits: what was set for this gateway, else what Consul says of it, else the defaults."""

from meshgate.adapters.relay import Limits
from meshgate.app.settings.settings import Origin, Settings
from meshgate.core.proxy_config import KEEPALIVE_UNSET, NO_LIMITS, NO_OPTIONS, DestinationLimits, GatewayOptions


def limits_of(
    settings: Settings, options: GatewayOptions = NO_OPTIONS, of_each: DestinationLimits = NO_LIMITS
) -> Limits:
    """Combine them.

    Args:
        settings: of this process; a connect timeout or keepalive that was set here counts before Consul's.
        options: what the registration holds, central configuration merged.
        of_each: what each destination may have by the gateway's service-defaults.
    """
    timeout = options.connect_timeout if _is_default(settings, "MESHGATE_CONNECT_TIMEOUT") else None
    keepalive = options.remote_keepalive if _is_default(settings, "MESHGATE_KEEPALIVE") else None
    return Limits(
        hello_timeout=settings.hello_timeout,
        connect_timeout=timeout or settings.connect_timeout,
        per_try_timeout=settings.per_try_timeout,
        idle_timeout=settings.idle_timeout,
        keepalive=settings.keepalive,
        max_connections=settings.max_connections,
        max_connections_per_client=settings.max_connections_per_client,
        max_pending_per_endpoint=settings.max_pending_per_endpoint,
        max_hello_bytes=settings.max_hello_bytes,
        remote_keepalive=keepalive or KEEPALIVE_UNSET,
        max_connections_per_destination=of_each.connections,
        max_pending_per_destination=of_each.pending,
    )


def _is_default(settings: Settings, name: str) -> bool:
    return settings.origin(name) is Origin.DEFAULT
