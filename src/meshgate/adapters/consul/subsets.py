"""Service-resolvers, and the instances of each subset that they define.

A subset's filter is evaluated by Consul itself, with a watch of its own for each subset that has a filter; a subset
without one is all of the service. A filter that does not compile takes its own subset out and nothing else. Subsets of
services without instances are not watched: Consul's gateway ignores them too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import trio

from meshgate.core.catalog import Service, Subset

from .errors import BadRequestError, ConsulError, PermissionDeniedError
from .hub import WatchHub
from .pool import ReaderPool
from .records import Client, Cursor, Instances, Page, Reader, Resolver, SubsetRule
from .sight import HeldInstances, Sight
from .tasks import KeyedTasks, Progress
from .watch import Watch

RESOLVERS = "service-resolvers"


@dataclass(frozen=True, slots=True)
class _Key:
    """Which watch: another filter is another watch. `service` is the lower-case name."""

    service: str
    spelling: str
    subset: str
    filter: str

    def __str__(self) -> str:
        return f"{self.subset}.{self.service}"


@dataclass(slots=True)
class _Filtered:
    held: HeldInstances
    refused: bool = False


class Subsets:
    """Follows resolvers and subsets.

    Args:
        client: for short requests, and for the list's own connection.
        hub: shared by all watches.
        pool: connections for the watches of single subsets.
        sight: decides whether a shorter answer is believed.
        progress: told of each source that is to be waited for at the start.
        changed: called whenever `apply` may come to another result.
    """

    def __init__(
        self,
        client: Client,
        hub: WatchHub,
        pool: ReaderPool,
        sight: Sight,
        *,
        progress: Progress,
        changed: Callable[[], None],
    ) -> None:
        self._client = client
        self._hub = hub
        self._pool = pool
        self._sight = sight
        self._progress = progress
        self._changed = changed
        self._served: Mapping[str, str] = {}
        self._resolvers: Mapping[str, Resolver] = {}
        self._hidden: dict[str, str] = {}
        self._filtered: dict[_Key, _Filtered] = {}
        self._tasks: KeyedTasks[_Key] | None = None

    async def run(self) -> None:
        """Follow until cancelled."""
        async with self._client.dedicated() as reader, trio.open_nursery() as nursery:
            self._tasks = KeyedTasks(nursery)
            ask = partial(self._ask, reader)
            await Watch(self._hub, "resolvers", RESOLVERS, ask, self._resolved, minds_token=True).run()

    def serve(self, services: Mapping[str, str]) -> None:
        """Watch the subsets of these services: lower-case name and spelling of each that has instances."""
        if services != self._served:
            self._served = services
            self._reconcile()

    def apply(self, name: str, instances: Instances) -> Service:
        """A service with its instances, its subsets and its resolver's settings."""
        resolver = self._resolvers.get(name, Resolver(name))
        return Service(
            name,
            instances,
            subsets=tuple(
                Subset(rule.name, rule.only_passing, instances if not rule.filter else self._of(name, rule))
                for rule in resolver.subsets
            ),
            default_subset=resolver.default_subset,
            connect_timeout=resolver.connect_timeout,
            policy=resolver.policy,
            choices=resolver.choices,
        )

    def problems(self) -> list[str]:
        """Resolvers that the token can no longer read, and policies that a gateway cannot follow."""
        ignored = [
            f"service {name}: load balancing policy {resolver.ignored_policy} is for sidecars, round_robin is used"
            for name, resolver in self._resolvers.items()
            if resolver.ignored_policy
        ]
        return [*self._hidden.values(), *ignored]

    async def _ask(self, reader: Reader, cursor: Cursor) -> Page[Mapping[str, Resolver]]:
        page = await reader.resolvers(cursor)
        resolvers = {resolver.name.lower(): resolver for resolver in page.value}
        hidden: dict[str, str] = {}
        for name in self._resolvers.keys() - resolvers.keys():
            # The list leaves out silently what the token may not read; asked for by its name, the entry says so.
            try:
                gone = not await self._client.resolver_exists(self._resolvers[name].name)
            except PermissionDeniedError as error:
                gone, hidden[name] = False, str(error)
            if not gone:
                resolvers[name] = self._resolvers[name]
        self._hidden = hidden
        return Page(resolvers, index=page.index)

    def _resolved(self, resolvers: Mapping[str, Resolver]) -> None:
        self._resolvers = resolvers
        self._reconcile()
        self._progress.done(RESOLVERS)
        self._changed()

    def _reconcile(self) -> None:
        wanted = [
            _Key(service, spelling, rule.name, rule.filter)
            for service, spelling in self._served.items()
            for rule in (self._resolvers[service].subsets if service in self._resolvers else ())
            if rule.filter
        ]
        before = self._filtered
        # With a new filter, what the old one left stays in use until Consul has answered.
        last = {str(key): it.held for key, it in before.items() if it.held.known and not it.refused}
        self._filtered = {key: before.get(key) or self._new(key, last.get(str(key))) for key in wanted}
        for key in before.keys() - self._filtered.keys():
            self._progress.done(_source(key))
        if self._tasks is not None:
            self._tasks.keep(wanted, self._follow)

    def _new(self, key: _Key, last: HeldInstances | None) -> _Filtered:
        self._progress.expect(_source(key))
        held = HeldInstances(self._sight, key.spelling, start=() if last is None else last.value)
        held.known = last is not None
        return _Filtered(held)

    def _of(self, service: str, rule: SubsetRule) -> Instances | None:
        key = _Key(service, self._served.get(service, ""), rule.name, rule.filter)
        it = self._filtered.get(key)
        return it.held.value if it is not None and it.held.known and not it.refused else None

    async def _follow(self, key: _Key) -> None:
        it = self._filtered[key]

        async def ask(cursor: Cursor) -> Page[Instances]:
            async with self._pool.turn(cursor) as (reader, turn):
                page = await reader.connect_instances(key.spelling, turn, subset_filter=key.filter)
            await it.held.accept(page)
            it.refused = False
            return page

        def answered(_: object) -> None:
            self._tried(key)

        def failed(error: ConsulError) -> None:
            if isinstance(error, BadRequestError):
                it.refused = True
            self._tried(key)

        with self._pool.watching():
            await Watch(self._hub, "subset", str(key), ask, answered, on_error=failed).run()

    def _tried(self, key: _Key) -> None:
        self._progress.done(_source(key))
        self._changed()


def _source(key: _Key) -> str:
    return f"subset {key}"
