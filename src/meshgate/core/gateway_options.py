"""What an operator may set for a gateway in Consul: the opaque keys of its registration's `Proxy.Config`.

The agent merges `proxy-defaults` into the registration, so these can be set centrally and change while the gateway
runs. Keys keep Consul's names (`agent/xds/config`); unknown keys and unusable values are as if they were not there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_LONGEST_KEEPALIVE: Final = 32767  # Seconds; what Linux takes for TCP_KEEPIDLE.


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """`connect_timeout` and `keepalive` are in seconds; None where nothing is set."""

    connect_timeout: float | None = None
    keepalive: float | None = None


NO_OPTIONS = GatewayOptions()


def gateway_options(config: Mapping[str, object]) -> GatewayOptions:
    """Read the keys that concern a relay.

    `connect_timeout_ms` below 1 means Consul's default, 5000. `envoy_gateway_remote_tcp_enable_keepalive` with
    `envoy_gateway_remote_tcp_keepalive_time` in seconds sets the idle time before the first probe; 0 leaves it alone.
    """
    milliseconds = _number(config.get("connect_timeout_ms"))
    timeout = None if milliseconds is None else (milliseconds if milliseconds >= 1 else 5000) / 1000
    idle = _number(config.get("envoy_gateway_remote_tcp_keepalive_time"))
    enabled = config.get("envoy_gateway_remote_tcp_enable_keepalive") is True
    return GatewayOptions(timeout, min(idle, _LONGEST_KEEPALIVE) if enabled and idle and idle > 0 else None)


def _number(value: object) -> float | None:
    """A number as JSON or HCL brings it: an integer, a float, or its text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None
