"""The mesh gateways of one other datacenter, in its own catalog, or of one other admin partition.

There is no public query for "all mesh gateways of a datacenter", only for the instances of a service whose name is
known. The names are learned from Consul's list of services for its web pages, which is polled with the datacenters;
while that gives none, the likely names are watched, so that a first gateway is seen as soon as it registers. Names
that the federation states hold are watched too.
"""

from collections.abc import Callable
from typing import Final

import trio

from .acl_visibility import AclVisibility, VerifiedInstances
from .api import GATEWAY_KIND, ConsulClient, ConsulError, Cursor, Instances, Page
from .blocking_query_pool import BlockingQueryPool
from .initial_sync import KeyedTasks
from .watch import Watch
from .watch_registry import WatchRegistry

# Consul's own gateway polls the datacenters that often, in seconds.
POLL: Final = 30.0
# The same for names, while gateways are known: others of another name are in the federation states as a rule.
KNOWN_POLL: Final = 120.0


class Gateways:
    """Follows the gateways of a datacenter or partition.

    Args:
        registry: shared by all watches.
        pool: connections for the watches of single names.
        visibility: decides whether a shorter answer is believed.
        client: for short requests.
        datacenter: the remote one; empty for the own one, of which all that is given then sees another partition.
        place: how the accounts of the watches name it.
        guesses: names to watch while none is known.
        tried: called whenever a name has been asked for, with or without success.
        changed: called whenever `instances()` may have changed.
    """

    def __init__(  # noqa: PLR0913 - most by keyword
        self,
        registry: WatchRegistry,
        pool: BlockingQueryPool,
        visibility: AclVisibility,
        client: ConsulClient,
        *,
        datacenter: str,
        place: str,
        guesses: frozenset[str],
        tried: Callable[[], None],
        changed: Callable[[], None],
    ) -> None:
        self._registry = registry
        self._pool = pool
        self._visibility = visibility
        self._client = client
        self._datacenter = datacenter
        self._place = place
        self._guesses = guesses
        self._tried = tried
        self._changed = changed
        self._listed: frozenset[str] | None = None
        self._federated: frozenset[str] = frozenset()
        self._held: dict[str, VerifiedInstances] = {}
        self._working: set[str] = set()
        self._tasks: KeyedTasks[str] | None = None

    async def run(self) -> None:
        """Follow until cancelled."""
        async with trio.open_nursery() as nursery:
            self._tasks = KeyedTasks(nursery)
            await Watch(
                self._registry,
                "gateway-names",
                self._place,
                self._ask_names,
                self._names_listed,
                on_error=lambda _: self._names_listed(self._listed or frozenset()),
                interval=lambda: KNOWN_POLL if self._working else POLL,
            ).run()

    def instances(self) -> Instances:
        """The gateways, of all names."""
        return tuple(instance for name in sorted(self._held) for instance in self._held[name].value)

    def speaks_for(self, service: str) -> bool:
        """Whether the datacenter itself says, now, which gateways of this name it has."""
        return service in self._working

    def federated(self, gateways: Instances) -> None:
        """Watch the names of these gateways too: the federation states have them for this datacenter."""
        self._federated = frozenset(gateway.service for gateway in gateways)
        self._reconcile()

    async def _ask_names(self, _: Cursor) -> Page[frozenset[str]]:
        return Page(frozenset((await self._client.gateway_names(self._datacenter)).value))

    def _names_listed(self, names: frozenset[str]) -> None:
        self._listed = names
        self._reconcile()

    def _reconcile(self) -> None:
        # Before the list was asked for once, the likely names would only be watched to be given up again.
        if self._tasks is None or self._listed is None:
            return
        # A name whose gateways are known stays until its own watch says that they are gone.
        occupied = {name for name, held in self._held.items() if held.value}
        wanted = (self._listed or self._guesses) | self._federated | occupied
        self._held = {
            name: self._held.get(name) or VerifiedInstances(self._visibility, name, datacenter=self._datacenter)
            for name in wanted
        }
        self._working &= wanted
        self._tasks.keep(wanted, self._follow)

    async def _follow(self, name: str) -> None:
        held = self._held[name]

        async def ask(cursor: Cursor) -> Page[Instances]:
            async with self._pool.slot(cursor) as (reader, turn):
                page = await reader.instances(name, turn, datacenter=self._datacenter, kind=GATEWAY_KIND)
            await held.accept(page)
            if name not in self._working:
                self._working.add(name)
                self._changed()
            return page

        def failed(_: ConsulError) -> None:
            self._working.discard(name)
            self._tried()
            self._changed()

        with self._pool.registered():
            watched = f"{name} in {self._place}"
            await Watch(self._registry, "gateways", watched, ask, self._answered, on_error=failed).run()

    def _answered(self, gateways: Instances) -> None:
        if not gateways:
            self._reconcile()
        self._tried()
        self._changed()
