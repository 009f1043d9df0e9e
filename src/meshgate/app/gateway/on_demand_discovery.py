"""What streams want of the catalog: names that the table may not have yet, and that their services are followed.

A service in use is followed more closely than others (`adapters.consul.watch_scheduler`).
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final

import trio

from meshgate.adapters.consul import CatalogWatcher
from meshgate.adapters.relay.counters import Counters
from meshgate.core.routes import RouteKind, RouteTable
from meshgate.core.sni import PeeredServiceSni
from meshgate.core.token_bucket import ClientBuckets, TokenBucket

if TYPE_CHECKING:
    from meshgate.core.reasons import Reason

# Requests to Consul for names without a route, a second and at once. Whoever reaches the gateway can make them up.
# Less than a worker lets pass (`adapters.relay.on_demand`), so that it is known here when somebody wants more.
OF_A_CLIENT: Final = (4.0, 16)
OF_ALL_CLIENTS: Final = (40.0, 90)
OF_PEOPLE: Final = (5.0, 20)
# Seconds between two for one name, whoever asks.
PACE: Final = 0.25
_REMEMBERED: Final = 4096
# Seconds between looks at what the workers told, which they do that often too.
LOOK: Final = 0.5


class OnDemandDiscovery:
    """Asks the catalog's watcher for what streams need. There is none as long as nobody follows the catalog.

    A client may ask for a few names without a route, and all of them together for not many. What people ask for
    (`meshgate explain`) has an allowance of its own, so that a page that is loaded again and again costs no stream.

    `answered` returns once Consul has answered this process, or is known not to: a version that has just taken over has
    streams that wait for their names before it has anybody to ask.
    """

    def __init__(
        self,
        table: Callable[[], RouteTable],
        watcher: Callable[[], CatalogWatcher | None],
        answered: Callable[[], Awaitable[None]],
    ) -> None:
        self._table = table
        self._watcher = watcher
        self._answered = answered
        self._of_clients = ClientBuckets(OF_A_CLIENT, OF_ALL_CLIENTS)
        self._of_people = TokenBucket(*OF_PEOPLE)
        self._asked: dict[str, float] = {}
        self._named: tuple[RouteTable, Mapping[tuple[RouteKind, str], str]] | None = None

    def may_ask(self, name: str, client: str) -> bool:
        """Whether Consul may be asked for a name on behalf of a client (`sockets.client_key`): it may be made up."""
        if self._table().find(name) is not None or self._of_clients.take(client, trio.current_time()):
            return True
        if (watcher := self._watcher()) is not None:
            watcher.hurry_names()
        return False

    async def look_up(self, name: str) -> None:
        """As `lookup`, on behalf of a person; at once where people have asked for too many names that nobody has."""
        if self._table().find(name) is not None or self._of_people.take(trio.current_time()):
            await self.lookup(name)

    async def lookup(self, name: str) -> None:
        """Return when the table in force has what Consul has of a name, or when that cannot be had.

        Takes as long as Consul does; to be cancelled by who has less time.
        """
        table = self._table()
        if table.find(name) is None and table.on_demand(name) is not None:
            await self._answered()
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
        if said is None:
            return
        # The list may have the name before a slow answer has it.
        watcher.hurry_names()
        await self._take_turn(name)
        if self._table().find(name) is not None:
            return
        if isinstance(said, PeeredServiceSni):
            await watcher.lookup_peered(said)
        else:
            await watcher.lookup([said.service], said.namespace)

    async def _take_turn(self, name: str) -> None:
        """Wait until a name may be asked for again."""
        now = trio.current_time()
        turn = max(now, self._asked.pop(name, float("-inf")) + PACE)
        self._asked[name] = turn
        if len(self._asked) > _REMEMBERED:
            del self._asked[next(iter(self._asked))]
        await trio.sleep(turn - now)

    async def tell_use(self, totals: Callable[[], Counters]) -> None:
        """Until cancelled, name the services to which streams were sent since the last time, or could not be sent."""
        sent: dict[tuple[RouteKind, str], int] = {}
        lost: dict[tuple[RouteKind, str, Reason], int] = {}
        while True:
            await trio.sleep(LOOK)
            counted = totals()
            used = {key for key, count in counted.connections.items() if sent.get(key) != count}
            used |= {key[:2] for key, count in counted.failed.items() if lost.get(key) != count}
            sent, lost = dict(counted.connections), dict(counted.failed)
            if used and (watcher := self._watcher()) is not None:
                services = self._services()
                watcher.used({services[key] for key in used if key in services})

    def _services(self) -> Mapping[tuple[RouteKind, str], str]:
        """The services of the table's routes, in lower case, by what their streams are counted under."""
        table = self._table()
        if self._named is None or self._named[0] is not table:
            routes = table.exact.values()
            self._named = table, {(it.kind, it.destination): it.service.lower() for it in routes if it.service}
        return self._named[1]
