"""The relay's timeouts and bounds, as the operator set them."""

from dataclasses import dataclass

from meshgate.core.proxy_config import KEEPALIVE_UNSET, Keepalive


@dataclass(frozen=True, slots=True)
class Limits:
    """Times are in seconds; 0 switches a timeout, a keepalive or a limit per client off.

    `handshake_timeout` is for the client's first byte behind its hello, from the endpoint's answer on.
    `half_close_timeout` takes the place of `idle_timeout` once one side has ended. `user_timeout` is TCP's own (RFC
    5482), for a peer that takes or acknowledges nothing.
    `connect_timeout` is for all attempts of a stream together, `per_try_timeout` for one while others are left.
    `remote_keepalive` takes the place of `keepalive` towards gateways elsewhere, as far as it says anything.
    `max_connections_per_client` counts an IPv4 address, or an IPv6 /64, as one client; it holds while `crowded_from`
    streams or more are open. `max_connection_rate_per_client` counts those that come within a second. Neither holds for
    `exempt_clients`, which are networks (CIDR). `max_hello_bytes` counts wire bytes up to the end of the ClientHello.
    `max_connections_per_destination` counts the streams of a service, a subset or a remote datacenter, from the moment
    that one is to be dialed; 0: no limit. `max_pending_per_destination` counts those of them whose connection is
    dialed and does not stand yet; 0: no limit. `max_pending_per_endpoint` counts, for each worker, the connections to
    one address and port that are dialed and do not stand yet; 0: no limit.
    """

    hello_timeout: float = 15.0
    connect_timeout: float = 5.0
    per_try_timeout: float = 1.0
    handshake_timeout: float = 15.0
    idle_timeout: float = 3600.0
    half_close_timeout: float = 0.0
    keepalive: float = 60.0
    user_timeout: float = 0.0
    max_connections: int = 9000
    max_connections_per_client: int = 0
    crowded_from: int = 0
    max_connection_rate_per_client: int = 0
    exempt_clients: tuple[str, ...] = ()
    max_hello_bytes: int = 16384
    remote_keepalive: Keepalive = KEEPALIVE_UNSET
    max_connections_per_destination: int = 0
    max_pending_per_destination: int = 0
    max_pending_per_endpoint: int = 1024

    @property
    def overload_from(self) -> int:
        """The number of streams from which on clients that say nothing have to go."""
        return self.max_connections - self.max_connections // 16

    def first_look(self, seconds: float) -> float:
        """When to look at a new stream first: in so many seconds, or earlier where a timeout is shorter."""
        idle, handshake = self.idle_timeout, self.handshake_timeout
        if 0 < idle < seconds:
            seconds = idle
        return handshake if 0 < handshake < seconds else seconds
