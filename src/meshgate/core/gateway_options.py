"""What an operator may set for a gateway in Consul: the opaque keys of its registration's `Proxy.Config`.

The agent merges `proxy-defaults` into the registration, so these can be set centrally and change while the gateway
runs. Keys keep Consul's names (`agent/xds/config`); unknown keys and unusable values are as if they were not there.
Where the gateway listens is read in `listeners`. Limits of destinations are set elsewhere: in the `service-defaults` of
the gateway's own name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .weak_decode import boolean, number

_LONGEST_KEEPALIVE: Final = 32767  # Seconds; what Linux takes for TCP_KEEPIDLE and TCP_KEEPINTVL.
_MOST_PROBES: Final = 127
_LOGICAL_DNS: Final = "LOGICAL_DNS"


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
    """What each destination may have at once; 0: no limit.

    `connections` counts its streams, `pending` those of them that wait for a connection (Consul's `MaxConnections` and
    `MaxPendingRequests`).
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
