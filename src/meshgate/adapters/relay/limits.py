"""The relay's timeouts and bounds, as the operator set them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Times are in seconds; 0 switches `idle_timeout`, `keepalive` and `max_connections_per_client` off.

    `max_connections_per_client` counts an IPv4 address, or an IPv6 /64, as one client. `max_hello_bytes` counts wire
    bytes up to the end of the ClientHello.
    """

    hello_timeout: float = 15.0
    connect_timeout: float = 5.0
    idle_timeout: float = 3600.0
    keepalive: float = 60.0
    max_connections: int = 9000
    max_connections_per_client: int = 0
    max_hello_bytes: int = 16384
