"""What a destination may have at once: streams, and among them streams that wait for a connection.

Both are what Consul sets for a gateway (`UpstreamConfig.Defaults.Limits` in the `service-defaults` of the gateway's own
name), where Envoy keeps them as circuit breakers of a cluster. They hold for all workers together. As in Consul's own
gateway, what peers export has none.
"""

from typing import TYPE_CHECKING, Final

from meshgate.core.reasons import Reason
from meshgate.core.routes import Route, RouteKind

from .shared import SharedCounts

if TYPE_CHECKING:
    from .connection import Connection

_NEVER_FULL: Final = (RouteKind.PEER_EXPORT, RouteKind.PEER_SERVER)


class Destinations:
    """The limits of destinations, as one worker sees them.

    Args:
        counts: of all workers. No client's key there looks like those here: it is an IPv4 address or hexadecimal.
    """

    def __init__(self, counts: SharedCounts) -> None:
        self._counts = counts

    def charge(self, connection: "Connection", route: Route) -> tuple[Reason, str] | None:
        """Count a stream to its destination, where these are limited, or give what to refuse it with."""
        limits = connection.engine.limits
        streams, pending = limits.max_connections_per_destination, limits.max_pending_per_destination
        if not (streams or pending) or route.kind in _NEVER_FULL:
            return None
        key = f"to {route.sni}"
        if streams and self._counts.client(key) >= streams:
            return Reason.MAX_CONNECTIONS, f"{route.destination} has its {streams} connections"
        if pending and self._counts.client(_waiting_for(route)) >= pending:
            return Reason.CONNECT_FAILED, f"{pending} streams wait for a connection to {route.destination} already"
        if streams:
            self._counts.add_client(key, 1)
            connection.charged = key
        return None

    def wait(self, connection: "Connection") -> str:
        """Count a stream that begins to wait for its connection; what to `release` afterwards, "" where nobody counts.

        A stream that is tried elsewhere waits anew, and is not held to the limit again.
        """
        route = connection.route
        if not connection.engine.limits.max_pending_per_destination or route is None or route.kind in _NEVER_FULL:
            return ""
        key = _waiting_for(route)
        self._counts.add_client(key, 1)
        return key

    def release(self, key: str) -> None:
        """Count out what was counted under that key."""
        self._counts.add_client(key, -1)


def _waiting_for(route: Route) -> str:
    return f"waiting for {route.sni}"
