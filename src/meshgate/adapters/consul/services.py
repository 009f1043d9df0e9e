"""The mesh services of the gateway's own datacenter: their names, and the instances behind each.

Like Consul's own gateway, every name of the catalog is asked for in the mesh, the names of sidecars too; most of those
have no mesh instances. Names that differ only by case are one service in Consul's index and in an SNI, so only one of
them is watched, under the lower-case name.

A name that vanished from the list is dropped when the token is known to see (see `sight`) and no instance is left; a
name without instances is dropped at once, since nothing is lost with it.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import trio

from .errors import ConsulError, PermissionDeniedError
from .hub import WatchHub
from .pool import ReaderPool
from .records import Client, Cursor, Instances, Page, Reader
from .sight import HeldInstances, Sight
from .subsets import Subsets
from .tasks import KeyedTasks, Progress
from .watch import Watch

NAMES = "service names"


class LocalServices:
    """Follows the services. `known` says whether the list was received yet.

    Args:
        client: for short requests, and for the list's own connection.
        hub: shared by all watches.
        pool: connections for the watches of single services.
        sight: decides whether a shorter answer is believed.
        subsets: is told which services have instances.
        progress: told of each source that is to be waited for at the start.
        changed: called whenever `instances()` may have changed.
    """

    def __init__(
        self,
        client: Client,
        hub: WatchHub,
        pool: ReaderPool,
        sight: Sight,
        subsets: Subsets,
        *,
        progress: Progress,
        changed: Callable[[], None],
    ) -> None:
        self._client = client
        self._hub = hub
        self._pool = pool
        self._sight = sight
        self._subsets = subsets
        self._progress = progress
        self._changed = changed
        self.known = False
        self._held: dict[str, HeldInstances] = {}
        self._hidden: dict[str, str] = {}
        self._list_filtered = False
        self._tasks: KeyedTasks[str]

    async def run(self) -> None:
        """Follow until cancelled."""
        async with self._client.dedicated() as reader, trio.open_nursery() as nursery:
            self._tasks = KeyedTasks(nursery)
            ask = partial(self._ask_names, reader)
            await Watch(self._hub, "services", NAMES, ask, self._named, minds_token=True).run()

    def instances(self) -> dict[str, Instances]:
        """The services that have instances in the mesh, by lower-case name."""
        return {name: held.value for name, held in self._held.items() if held.value}

    def problems(self) -> list[str]:
        """What the token is known not to see."""
        found = list(self._hidden.values())
        if self._list_filtered:
            found.append('Consul hides some services from the token: service_prefix "" { policy = "read" } shows all')
        return found

    async def _ask_names(self, reader: Reader, cursor: Cursor) -> Page[Mapping[str, str]]:
        page = await reader.service_names(cursor)
        since = trio.current_time()
        spelled = one_spelling(page.value)
        if not spelled:
            await self._sight.confirm_nodes(since=since)
        hidden: dict[str, str] = {}
        async with trio.open_nursery() as nursery:
            for name in self._held.keys() - spelled.keys():
                if self._held[name].value:
                    nursery.start_soon(self._look_for, name, since, spelled, hidden)
        self._hidden, self._list_filtered = hidden, page.filtered
        return Page(spelled, index=page.index)

    async def _look_for(self, name: str, since: float, spelled: dict[str, str], hidden: dict[str, str]) -> None:
        """Put a name that vanished back into `spelled` unless it is gone for certain."""
        service = self._held[name].service
        try:
            await self._sight.confirm(service, since=since)
            page = await self._client.connect_instances(service, Cursor())
            if not page.value and not page.filtered:
                return
        except PermissionDeniedError as error:
            hidden[name] = str(error)
        except ConsulError:
            pass  # no telling: the next answer of the list brings it up again
        spelled[name] = service

    def _named(self, spelled: Mapping[str, str]) -> None:
        for name in self._held.keys() - spelled.keys():
            del self._held[name]
            self._progress.done(_source(name))
        for name in spelled.keys() - self._held.keys():
            self._held[name] = HeldInstances(self._sight, spelled[name])
            self._progress.expect(_source(name))
        for name, service in spelled.items():
            self._held[name].service = service
        self._tasks.keep(spelled, self._follow)
        self.known = True
        self._updated()

    async def _follow(self, name: str) -> None:
        held = self._held[name]

        async def ask(cursor: Cursor) -> Page[Instances]:
            async with self._pool.turn(cursor) as (reader, turn):
                page = await reader.connect_instances(held.service, turn)
            await held.accept(page)
            return page

        def answered(_: object) -> None:
            self._updated()
            self._progress.done(_source(name))

        def failed(_: ConsulError) -> None:
            self._progress.done(_source(name))

        with self._pool.watching():
            await Watch(self._hub, "health", name, ask, answered, on_error=failed).run()

    def _updated(self) -> None:
        self._subsets.serve({name: self._held[name].service for name in self.instances()})
        self._changed()


def one_spelling(names: Iterable[str]) -> dict[str, str]:
    """Names by their lower-case form; of several spellings the lower-case one, else the first in order.

    A name of dots alone is no path segment that could be asked for, and no SNI could hold it.
    """
    spelled: dict[str, str] = {}
    for name in sorted(names):
        if name.strip(".") and (name == name.lower() or name.lower() not in spelled):
            spelled[name.lower()] = name
    return spelled


def _source(name: str) -> str:
    return f"health of {name}"
