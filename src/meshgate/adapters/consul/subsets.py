"""Service-resolvers, and the instances of each subset that they define.

A subset's filter is evaluated by Consul itself, with a query of its own for each subset that has a filter; a subset
without one is all of the service. A filter that does not compile takes its own subset out and nothing else. Subsets of
services without instances are not followed: Consul's gateway ignores them too. How a subset is followed is decided in
`watch_scheduler`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import trio

from meshgate.core.catalog import Service, Subset
from meshgate.core.sni import DEFAULT

from .acl_visibility import AclVisibility, VerifiedInstances
from .api import (
    BadRequestError,
    ConsulClient,
    ConsulError,
    Cursor,
    Instances,
    Page,
    PermissionDeniedError,
    Resolver,
    SubsetRule,
)
from .blocking_query_pool import BlockingQueryPool
from .health_query import HealthQuery
from .initial_sync import InitialSync
from .watch import Watch
from .watch_registry import WatchRegistry
from .watch_scheduler import WatchScheduler

RESOLVERS = "service-resolvers"


@dataclass(frozen=True, slots=True)
class _Key:
    """Which query: another filter is another one. `service` is the lower-case name."""

    service: str
    spelling: str
    subset: str
    filter: str

    def __str__(self) -> str:
        return f"{self.subset}.{self.service}"


class _Filtered(HealthQuery):
    __slots__ = ("_key", "_subsets", "refused")

    def __init__(self, subsets: "Subsets", key: _Key, held: VerifiedInstances) -> None:
        super().__init__("subset", str(key), key.service, held)
        self.refused = False
        self._key = key
        self._subsets = subsets

    async def ask(self, reader: ConsulClient, cursor: Cursor) -> Page[Instances]:
        page = await reader.connect_instances(self._key.spelling, cursor, subset_filter=self._key.filter)
        if self.refused:
            self.refused = False
            self.answered()
        return page

    def answered(self) -> None:
        self._subsets.tried(self._key)

    def failed(self, error: ConsulError) -> None:
        if isinstance(error, BadRequestError):
            self.refused = True
        self._subsets.tried(self._key)

    def on_staleness_changed(self) -> None:
        self._subsets.turned(self._key.service)


class Subsets:
    """Follows resolvers and subsets. `watch_scheduler` follows the subsets, and the services too.

    Args:
        client: for short requests, and for the list's own connection.
        registry: shared by all watches.
        pool: connections for the watches of single subsets.
        visibility: decides whether a shorter answer is believed.
        sync: told of each source that is to be waited for at the start.
        changed: called whenever `apply` may come to another result.
    """

    def __init__(
        self,
        client: ConsulClient,
        registry: WatchRegistry,
        pool: BlockingQueryPool,
        visibility: AclVisibility,
        *,
        sync: InitialSync,
        changed: Callable[[], None],
    ) -> None:
        self._client = client
        self._registry = registry
        self.scheduler = WatchScheduler(client, registry, pool)
        self._visibility = visibility
        self._sync = sync
        self._changed = changed
        self._served: dict[str, str] = {}
        self._resolvers: Mapping[str, Resolver] = {}
        self._hidden: dict[str, str] = {}
        self._filtered: dict[str, dict[_Key, _Filtered]] = {}
        self._touched: set[str] = set()
        self._turned: set[str] = set()

    async def run(self) -> None:
        """Follow until cancelled."""
        async with self._client.dedicated() as reader, trio.open_nursery() as nursery:
            nursery.start_soon(self.scheduler.run)
            ask = partial(self._ask, reader)
            await Watch(self._registry, "resolvers", RESOLVERS, ask, self._resolved, minds_token=True).run()

    def serve(self, name: str, spelling: str) -> None:
        """Follow the subsets of a service that has instances: its lower-case name, and how it is spelled."""
        if self._served.get(name) != spelling:
            self._served[name] = spelling
            self._reconcile((name,))

    def leave(self, name: str) -> None:
        """The service has no instances any more."""
        if self._served.pop(name, None) is not None:
            self._reconcile((name,))

    def apply(self, name: str, instances: Instances, namespace: str = DEFAULT, *, cold: bool = False) -> Service:
        """A service with its instances, its subsets and its resolver's settings."""
        resolver = self._resolvers.get(name) or Resolver(name)
        return Service(
            name,
            instances,
            namespace,
            subsets=tuple(
                Subset(rule.name, rule.only_passing, instances if not rule.filter else self._of(name, rule))
                for rule in resolver.subsets
            ),
            default_subset=resolver.default_subset,
            connect_timeout=resolver.connect_timeout,
            policy=resolver.policy,
            choices=resolver.choices,
            cold=cold or any(query.cold for query in self._filtered.get(name, {}).values()),
        )

    def touched(self) -> set[str]:
        """The services that `apply` may make something else of than when this was asked last."""
        touched = self._touched | self._turned
        self._touched, self._turned = set(), set()
        return touched

    def has_news(self, service: str) -> bool:
        """Whether `touched` will name a service for more than how closely it is followed."""
        return service in self._touched

    def turned(self, service: str) -> None:
        """How closely a subset of a service is followed has changed."""
        self._turned.add(service)
        self._changed()

    def problems(self) -> list[str]:
        """Resolvers that the token can no longer read, and policies that a gateway cannot follow."""
        ignored = [
            f"service {name}: load balancing policy {resolver.ignored_policy} is for sidecars, round_robin is used"
            for name, resolver in self._resolvers.items()
            if resolver.ignored_policy
        ]
        return [*self._hidden.values(), *ignored]

    async def _ask(self, reader: ConsulClient, cursor: Cursor) -> Page[Mapping[str, Resolver]]:
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
        before, self._resolvers = self._resolvers, resolvers
        self._touched.update(
            name for name in before.keys() | resolvers.keys() if before.get(name) != resolvers.get(name)
        )
        self._reconcile(self._served.keys() & (resolvers.keys() | self._filtered.keys()))
        self._sync.mark(RESOLVERS)
        self._changed()

    def _reconcile(self, services: Iterable[str]) -> None:
        for service in services:
            before = self._filtered.get(service, {})
            wanted = self._wanted(service)
            if not before and not wanted:
                continue
            # With a new filter, what the old one left stays in use until Consul has answered.
            last = {str(key): it.held for key, it in before.items() if it.held.known and not it.refused}
            self._filtered[service] = {key: before.get(key) or self._new(key, last.get(str(key))) for key in wanted}
            for key in before.keys() - wanted:
                self.scheduler.leave(before[key])
                self._sync.mark(_source(key))
            if not wanted:
                del self._filtered[service]

    def _wanted(self, service: str) -> list[_Key]:
        if service not in self._served or service not in self._resolvers:
            return []
        rules = self._resolvers[service].subsets
        return [_Key(service, self._served[service], rule.name, rule.filter) for rule in rules if rule.filter]

    def _new(self, key: _Key, last: VerifiedInstances | None) -> _Filtered:
        self._sync.add(_source(key))
        held = VerifiedInstances(self._visibility, key.spelling, start=() if last is None else last.value)
        held.known = last is not None
        query = _Filtered(self, key, held)
        self.scheduler.follow(query)
        return query

    def _of(self, service: str, rule: SubsetRule) -> Instances | None:
        key = _Key(service, self._served.get(service, ""), rule.name, rule.filter)
        it = self._filtered.get(service, {}).get(key)
        return it.held.value if it is not None and it.held.known and not it.refused else None

    def tried(self, key: _Key) -> None:
        """Consul was asked for a subset."""
        self._touched.add(key.service)
        self._sync.mark(_source(key))
        self._changed()


def _source(key: _Key) -> str:
    return f"subset {key}"
