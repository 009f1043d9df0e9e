"""What the settings make of each part: the client, the registration, the listeners, the relay's limits, the place.

Where Consul has a word in it too, what was set for this gateway counts first, then what Consul says, then the default.
"""

from meshgate.adapters.consul import GatewayDefinition, RegistrationError
from meshgate.adapters.consul.api import AgentFacts, ConsulAddress, ConsulClient, ConsulConfigError, Login
from meshgate.adapters.relay import Limits
from meshgate.app.errors import ConfigError
from meshgate.app.settings.settings import Origin, Settings
from meshgate.core.export_routes import ExportRules
from meshgate.core.proxy_config import (
    KEEPALIVE_UNSET,
    NO_LIMITS,
    NO_OPTIONS,
    BindAddress,
    DestinationLimits,
    GatewayOptions,
)
from meshgate.core.sni import DEFAULT


def client_of(settings: Settings) -> ConsulClient:
    """A client to the local agent; ConfigError where its address or one of the files is wrong."""
    file = settings.login_bearer_token_file
    login = Login(settings.login_auth_method, str(file)) if file else None
    try:
        return ConsulClient(ConsulAddress.from_settings(settings.consul), login=login)
    except (ConsulConfigError, ValueError) as error:
        raise ConfigError(str(error)) from None


def checked_client(settings: Settings) -> ConsulClient:
    """As `client_of`; ConfigError too where this machine cannot have the addresses that are to be registered."""
    client = client_of(settings)
    try:
        if settings.register:
            definition_of(settings).payload()
    except RegistrationError as error:
        raise ConfigError(str(error)) from None
    return client


def definition_of(settings: Settings) -> GatewayDefinition:
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
        namespace=settings.namespace,
        partition=settings.partition,
    )


def listen_addresses(settings: Settings) -> tuple[BindAddress, ...]:
    """Where the relay listens by the settings alone: what the agent will say of the definition, but for central keys.

    The bind addresses and nothing else where there are some; else the LAN address, and the WAN address too where this
    machine has it.
    """
    return definition_of(settings).listen_plan().addresses


def limits_of(
    settings: Settings, options: GatewayOptions = NO_OPTIONS, of_each: DestinationLimits = NO_LIMITS
) -> Limits:
    """The relay's limits. A connect timeout or keepalive that was set for this process counts before Consul's.

    `options` are what the registration holds, central configuration merged, and `of_each` what each destination may
    have by the gateway's service-defaults.
    """
    timeout = options.connect_timeout if settings.origin("MESHGATE_CONNECT_TIMEOUT") is Origin.DEFAULT else None
    keepalive = options.remote_keepalive if settings.origin("MESHGATE_KEEPALIVE") is Origin.DEFAULT else None
    per_client, crowded_from = settings.max_connections_per_client, 0
    if per_client is None:
        # So that a load balancer that nobody has named gets half of what there is, and no client all of it.
        per_client, crowded_from = max(1, settings.max_connections // 4), settings.max_connections // 2
    return Limits(
        hello_timeout=settings.hello_timeout,
        handshake_timeout=settings.handshake_timeout,
        connect_timeout=timeout or settings.connect_timeout,
        per_try_timeout=settings.per_try_timeout,
        idle_timeout=settings.idle_timeout,
        half_close_timeout=settings.half_close_timeout,
        keepalive=settings.keepalive,
        user_timeout=settings.tcp_user_timeout,
        max_connections=settings.max_connections,
        max_connections_per_client=per_client,
        crowded_from=crowded_from,
        max_connection_rate_per_client=settings.max_connection_rate_per_client,
        exempt_clients=settings.exempt_clients,
        max_pending_per_endpoint=settings.max_pending_per_endpoint,
        max_hello_bytes=settings.max_hello_bytes,
        remote_keepalive=keepalive or KEEPALIVE_UNSET,
        max_connections_per_destination=of_each.connections,
        max_pending_per_destination=of_each.pending,
    )


def partition_of(settings: Settings, facts: AgentFacts) -> str:
    return settings.partition or facts.partition or DEFAULT


def is_enterprise(settings: Settings, facts: AgentFacts) -> bool:
    """Whether Consul has namespaces and partitions.

    Its version says so. Where the token may not read that, the operator's naming one of them does.
    """
    return facts.enterprise if facts.version else bool(settings.partition or settings.namespace)


def export_rules(settings: Settings) -> ExportRules:
    return ExportRules(enforce=settings.enforce_exports, pass_http=settings.pass_http_exports)
