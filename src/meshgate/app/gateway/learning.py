"""What is to be known of a name before its stream is placed: asked of Consul where the table may be behind it."""

from collections.abc import Callable
from typing import Final

import trio

from meshgate.adapters.consul import CatalogWatcher
from meshgate.core.routes import RouteTable
from meshgate.core.sni import PeeredServiceSni
from meshgate.core.token_bucket import TokenBucket

# Requests to Consul for names without a route. Whoever reaches the gateway can make them up.
UNKNOWN_PER_SECOND: Final = 20
UNKNOWN_AT_ONCE: Final = 100


class Learner:
    """Learns of names.

    Args:
        table: the one in force.
        watcher: follows the catalog; None as long as nobody does.
    """

    def __init__(self, table: Callable[[], RouteTable], watcher: Callable[[], CatalogWatcher | None]) -> None:
        self._table = table
        self._watcher = watcher
        self._unknown = TokenBucket(UNKNOWN_PER_SECOND, UNKNOWN_AT_ONCE)

    async def learn(self, name: str) -> None:
        """Return when the table in force has what Consul has of a name, or when that cannot be had.

        Takes as long as Consul does; to be cancelled by who has less time.
        """
        watcher = self._watcher()
        if watcher is None or watcher.stale:
            return
        table = self._table()
        route = table.find(name)
        if route is not None:
            if route.stale:
                await watcher.lookup([route.service.lower()])
            return
        said = table.on_demand(name)
        if said is None or not self._unknown.take(trio.current_time()):
            return
        if isinstance(said, PeeredServiceSni):
            await watcher.lookup_peered(said)
        else:
            await watcher.lookup([said.service], said.namespace)
