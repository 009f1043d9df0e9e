"""What a gateway's registration says of it: where it listens, its options, the limits of its destinations.

The rules are those of Consul's gateway (`agent/xds` makeGatewayListeners, `agent/xds/config` ParseGatewayConfig). The
agent merges `proxy-defaults` into the registration, so the opaque keys of `Proxy.Config` can be set centrally and
change while the gateway runs. They come from JSON, HCL or YAML that people wrote, and Consul decodes them with weak
typing (mapstructure's `WeaklyTypedInput`): "true" is true, "8443" a port, keys have any case, and a list of one map is
that map. Unknown keys and unusable values are as if they were not there. Both spellings count: the keys of Consul 1.6
began with `envoy_mesh_gateway_`.

Limits of destinations are set elsewhere: in the `service-defaults` of the gateway's own name.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from .addresses import PORTS, host_port, is_numeric
from .weak_decode import boolean, mapping, number

DEFAULT_LISTENER: Final = "default"
_PREFIXES: Final = ("envoy_gateway_", "envoy_mesh_gateway_")
_LONGEST_KEEPALIVE: Final = 32767  # Seconds; what Linux takes for TCP_KEEPIDLE and TCP_KEEPINTVL.
_MOST_PROBES: Final = 127
_LOGICAL_DNS: Final = "LOGICAL_DNS"


@dataclass(frozen=True, slots=True)
class BindAddress:
    """A named address: a listener of the gateway, or one of its tagged addresses."""

    name: str
    address: str
    port: int

    def __str__(self) -> str:
        return f"{self.name}={host_port(self.address or '*', self.port)}"


@dataclass(frozen=True, slots=True)
class ListenPlan:
    """Where to listen: numeric `addresses`, each one once, by name; an empty one is every IPv4 address.

    `problems` are addresses that the registration asks for and that nothing can listen on, a line each.
    """

    addresses: tuple[BindAddress, ...]
    problems: tuple[str, ...] = ()


def listen_plan(address: str, port: int, tagged: Iterable[BindAddress], config: Mapping[str, object]) -> ListenPlan:
    """Where to listen, by what the service is registered with and its `Proxy.Config`; no address means the node's."""
    wanted = sorted(_wanted(address, port, tagged, config), key=lambda each: each.name)
    problems = [f"listener {each}: {why}" for each in wanted if (why := _unusable(each))]
    # No address means every IPv4 address.
    usable = [(each, ip_address(each.address or "0.0.0.0")) for each in wanted if not _unusable(each)]  # noqa: S104
    everywhere = {(ip.version, each.port) for each, ip in usable if ip.is_unspecified}
    found: dict[tuple[str, int], BindAddress] = {}
    for each, ip in usable:
        # An address beside the one that stands for all of its family could not be bound, and is served anyway.
        if ip.is_unspecified or (ip.version, each.port) not in everywhere:
            found.setdefault((str(ip), each.port), each)
    return ListenPlan(tuple(found.values()), tuple(problems))


def _wanted(
    address: str, port: int, tagged: Iterable[BindAddress], config: Mapping[str, object]
) -> Iterator[BindAddress]:
    if not boolean(_value(config, "no_default_bind")):
        yield BindAddress(DEFAULT_LISTENER, address, port)
    if boolean(_value(config, "bind_tagged_addresses")):
        yield from tagged
    for name, value in mapping(_value(config, "bind_addresses")).items():
        fields = {key.lower(): each for key, each in mapping(value).items()}
        yield BindAddress(name, str(fields.get("address") or ""), int(number(fields.get("port")) or 0))


def _value(config: Mapping[str, object], key: str) -> object:
    """The value under the present spelling, else under that of Consul 1.6."""
    return next((config[prefix + key] for prefix in _PREFIXES if prefix + key in config), None)


def _unusable(bind: BindAddress) -> str:
    if not 0 < bind.port < PORTS:
        return f"{bind.port} is no port"
    if bind.address and not is_numeric(bind.address):
        return f"{bind.address!r} is no IP address"
    return ""


@dataclass(frozen=True, slots=True)
class Keepalive:
    """TCP keepalive: seconds until the first probe and between probes, and how many go unanswered; 0: the system's."""

    time: int = 0
    interval: int = 0
    probes: int = 0


KEEPALIVE_UNSET: Final = Keepalive()


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """`connect_timeout` is in seconds. None where nothing is set.

    `remote_keepalive` is for connections to gateways elsewhere. `one_host_name`: of several host names that a
    destination's gateways have, only one is to be used (Envoy's LOGICAL_DNS).
    """

    connect_timeout: float | None = None
    remote_keepalive: Keepalive | None = None
    one_host_name: bool = False


NO_OPTIONS = GatewayOptions()


@dataclass(frozen=True, slots=True)
class DestinationLimits:
    """What each destination may have at once (Consul's `MaxConnections` and `MaxPendingRequests`); 0: no limit.

    `connections` counts its streams, `pending` those of them that wait for a connection.
    """

    connections: int = 0
    pending: int = 0


NO_LIMITS = DestinationLimits()


def gateway_options(config: Mapping[str, object]) -> GatewayOptions:
    """Read the keys that concern a relay.

    `connect_timeout_ms` below 1 means Consul's default, 5000. `envoy_gateway_remote_tcp_enable_keepalive` switches
    keepalive on for connections to remote gateways, with `..._keepalive_time`, `_interval` (seconds) and `_probes`;
    Consul's own gateway has none there without it, this one has its own. `envoy_dns_discovery_type` is followed where
    it is set: without it all host names are used, where Consul's own gateway uses one.
    """
    milliseconds = number(config.get("connect_timeout_ms"))
    timeout = None if milliseconds is None else (milliseconds if milliseconds >= 1 else 5000) / 1000
    discovery = config.get("envoy_dns_discovery_type")
    return GatewayOptions(timeout, _keepalive(config), isinstance(discovery, str) and discovery.upper() == _LOGICAL_DNS)


def _keepalive(config: Mapping[str, object]) -> Keepalive | None:
    if not boolean(config.get("envoy_gateway_remote_tcp_enable_keepalive")):
        return None
    time, interval, probes = (
        max(0, int(number(config.get(f"envoy_gateway_remote_tcp_keepalive_{key}")) or 0))
        for key in ("time", "interval", "probes")
    )
    return Keepalive(min(time, _LONGEST_KEEPALIVE), min(interval, _LONGEST_KEEPALIVE), min(probes, _MOST_PROBES))
