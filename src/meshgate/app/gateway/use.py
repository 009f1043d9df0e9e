"""Tells the catalog which services have streams: those are followed more closely (`consul.watch_scheduler`)."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, Protocol

import trio

from meshgate.adapters.relay.counters import Counters
from meshgate.core.routes import RouteKind

if TYPE_CHECKING:
    from meshgate.core.reasons import Reason

# Seconds between looks at what the workers told, which they do that often too.
LOOK: Final = 0.5


class Relay(Protocol):
    """Whoever counts the streams."""

    @property
    def totals(self) -> Counters:
        """The totals so far, as last heard."""
        ...


async def tell_use(relay: Relay, used: Callable[[Iterable[str]], None]) -> None:
    """Until cancelled, name the services to which streams were sent since the last time, or could not be sent."""
    sent: dict[tuple[RouteKind, str], int] = {}
    lost: dict[tuple[RouteKind, str, Reason], int] = {}
    while True:
        await trio.sleep(LOOK)
        totals = relay.totals
        services = {service_of(*key) for key, count in totals.connections.items() if sent.get(key) != count}
        services |= {service_of(*key[:2]) for key, count in totals.failed.items() if lost.get(key) != count}
        sent, lost = dict(totals.connections), dict(totals.failed)
        if services:
            used(services)


def service_of(kind: RouteKind, destination: str) -> str:
    """The service of a route, by the name under which its streams are counted (`Route.destination`)."""
    if kind is RouteKind.PEER_EXPORT:
        destination = destination.partition(" to peer ")[0]
    name = destination.rpartition("/")[2]
    return name.partition(".")[2] if kind is RouteKind.SUBSET else name
