"""The mesh services of the gateway's partition: names, the instances behind each, service-resolvers and their subsets.

The community edition has one namespace and is asked without naming it. In Enterprise one gateway, in the namespace
`default`, serves all namespaces of its partition; HTTP has no wildcard for services, so each namespace has its own
lists, asked for in turns of the pool. A namespace that is no longer listed is given up when it holds no instance any
more: the list leaves out silently what a token has no right in.

Like Consul's own gateway, every name of the catalog is asked for in the mesh, the names of sidecars too; most of those
have no mesh instances. Names that differ only by case are one service in Consul's index and in an SNI, so only one of
them is followed, under the lower-case name. How closely is decided in `watch_scheduler`.

A name that vanished from the list is dropped when the token is known to see (see `acl_visibility`) and no instance is
left; a name without instances is dropped at once, since nothing is lost with it.

A subset's filter is evaluated by Consul itself, with a query of its own for each subset that has a filter; a subset
without one is all of the service. A filter that does not compile takes its own subset out and nothing else. Subsets of
services without instances are not followed: Consul's gateway ignores them too.
"""

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Final, NamedTuple

import trio

from meshgate.core.catalog import Service, Snapshot, Subset, in_namespace
from meshgate.core.sni import DEFAULT

from .acl_visibility import VerifiedInstances
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
    Tenant,
    askable,
)
from .retry import LOOKUPS
from .scope import KeyedWatches, Scope
from .watch import PACE, WatchKey
from .watch_scheduler import SIDECAR, HealthQuery, WatchScheduler

NAMESPACES: Final = WatchKey("namespaces", "namespaces")
NAMES: Final = WatchKey("services", "service names")
RESOLVERS: Final = WatchKey("resolvers", "service-resolvers")
# Seconds between two answers of a list that is long. A stream of a name that it does not have yet finds it by itself.
_MANY_PACE: Final = 5.0


class _Filter(NamedTuple):
    """Which query of a subset: another filter, or another spelling of the service, is another one."""

    spelling: str
    subset: str
    filter: str


class _NamespaceServices:
    """Follows the services of one namespace. `known` says whether the list was received yet.

    With `dedicated` the two lists have connections of their own: there may be more namespaces than connections.
    """

    def __init__(self, scope: Scope, *, dedicated: bool) -> None:
        self.known = False
        self._scope = scope
        self._scheduler = WatchScheduler(
            scope, answered=self._answered, failed=self._failed, staleness_changed=self._staleness_changed
        )
        self._dedicated = dedicated
        self._services: dict[str, HealthQuery] = {}
        # The services that have instances, by lower-case name, and what was made of each.
        self.served: dict[str, Instances] = {}
        self._made: dict[str, Service] = {}
        # The names of which `_made` is old, and whether more than how closely they are followed has changed.
        self._dirty: dict[str, bool] = {}
        self._sorted = True
        self._hidden: dict[str, str] = {}
        self._list_filtered = False
        # When names were found that no list had yet.
        self._discovered: dict[str, float] = {}
        self._listed: tuple[tuple[str, ...], Mapping[str, str]] = (), {}
        self._hurried_until = float("-inf")
        self._followed: Mapping[str, str] = {}
        self._unaskable: tuple[str, ...] = ()
        self._resolvers: Mapping[str, Resolver] = {}
        self._hidden_resolvers: dict[str, str] = {}
        self._filtered: dict[str, dict[_Filter, HealthQuery]] = {}
        self.names = replace(NAMES, namespace=scope.key("").namespace)
        self.resolvers = replace(RESOLVERS, namespace=self.names.namespace)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._scheduler.run)
            lists = partial(self._scope.watch, minds_token=True, dedicated=self._dedicated)
            nursery.start_soon(lists, self.resolvers, self._ask_resolvers, self._resolved)
            await lists(
                self.names,
                self._ask_names,
                self._named,
                pace=lambda: PACE if self._scheduler.fits or trio.current_time() < self._hurried_until else _MANY_PACE,
            )

    def services(self) -> tuple[Service, ...]:
        """Those that have instances in the mesh, by name; each the same object until it changes.

        Only what changed is made again: at 5,000 services all of them would take 20 ms for each change of one.
        """
        for name in self._dirty:
            if name in self.served:
                self._made[name] = self._make(name)
            else:
                self._made.pop(name, None)
        self._dirty.clear()
        if not self._sorted:
            self._made, self._sorted = dict(sorted(self._made.items())), True
        return tuple(self._made.values())

    def problems(self) -> list[str]:
        """What the token is known not to see, and policies that a gateway cannot follow."""
        found = list(self._hidden.values())
        if self._list_filtered:
            found.append('Consul hides some services from the token: service_prefix "" { policy = "read" } shows all')
        elif self.known and not self._followed and not self.names.namespace:
            found.append('the token sees no service here: service_prefix "" { policy = "read" } shows all')
        if self._unaskable:
            names = ", ".join(map(repr, self._unaskable[:3]))
            found.append(f"{len(self._unaskable)} services have names that cannot be asked for in a path: {names}")
        found += self._hidden_resolvers.values()
        found += [
            f"service {name}: load balancing policy {resolver.ignored_policy} is for sidecars, round_robin is used"
            for name, resolver in self._resolvers.items()
            if resolver.ignored_policy
        ]
        return found

    def pending(self) -> Iterable[str]:
        """The keys (`Service.key`) of services that are listed and whose instances Consul has not told yet."""
        names = (name for name, query in self._services.items() if not query.state.answered)
        return (in_namespace(self.names.namespace, name) for name in names)

    def pending_subsets(self) -> Iterable[str]:
        """The same for subsets, as `subset.service`."""
        return (
            str(query.state.key)
            for each in self._filtered.values()
            for query in each.values()
            if not query.state.answered
        )

    def used(self, services: Iterable[str]) -> None:
        self._scheduler.used(services)

    def hurry_names(self) -> None:
        """Take the list's answers for a while as they come: a stream waits for a name and may not ask for it."""
        self._hurried_until = trio.current_time() + _MANY_PACE

    async def lookup(self, name: str, *, unknown: bool) -> bool:
        """Return when a service is known as Consul has it now, or when that may not be seen; a lower-case name.

        Takes as long as Consul does not answer. One that is `unknown`, not listed yet, is asked for, too, and followed
        if there is anything behind it. Tells whether `services` has something else to say of it than when that was
        asked last.
        """
        if name in self._services:
            await self._scheduler.lookup(name)
        elif unknown and self.known and askable(name):
            with suppress(PermissionDeniedError):
                await LOOKUPS.retrying()(self._discover, name)
        return self._dirty.get(name, False)

    # --- what the scheduler tells ------------------------------------------------------------------------------------

    def _answered(self, query: HealthQuery) -> None:
        name = query.service
        if query.filter:
            self._touch(name)
        elif query.held.value:
            self._sorted = self._sorted and name in self.served
            self.served[name] = query.held.value
            self._follow_subsets((name,))
            self._touch(name)
        else:
            self._serve_no_longer(name)
        self._scope.sync.mark(query.state.key)

    def _failed(self, query: HealthQuery, error: ConsulError) -> None:
        if query.filter:
            query.refused = query.refused or isinstance(error, BadRequestError)
            self._touch(query.service)
        self._scope.sync.mark(query.state.key)

    def _staleness_changed(self, query: HealthQuery) -> None:
        if query.service in self.served:
            self._dirty.setdefault(query.service, False)
            self._scope.changed()

    def _touch(self, name: str) -> None:
        self._dirty[name] = True
        self._scope.changed()

    # --- names -------------------------------------------------------------------------------------------------------

    async def _discover(self, name: str) -> None:
        page = await self._scope.client.connect_instances(name, Cursor())
        if name in self._services:  # The list has it meanwhile, but there may be no answer to its own query yet.
            await self._scheduler.lookup(name)
            return
        if not page.value:
            return
        held = VerifiedInstances(self._scope.visibility, name)
        await held.accept(page)
        query = self._services[name] = self._scheduler.follow(self._scope.key("health", name), name, held)
        self._discovered[name] = trio.current_time()
        self._scheduler.used((name,))
        self._answered(query)

    async def _ask_names(self, reader: ConsulClient, cursor: Cursor) -> Page[Mapping[str, str]]:
        page = await reader.service_names(cursor)
        since = trio.current_time()
        if page.value is not self._listed[0]:
            spelled = one_spelling(page.value)
            self._listed = page.value, self._followed if spelled == self._followed else spelled
            self._unaskable = tuple(name for name in page.value if not askable(name))
        self._list_filtered = page.filtered
        if self._listed[1] is self._followed and not self._discovered:
            # The index moves with every registration, the names hardly ever; of 10,000 looking takes milliseconds.
            return Page(self._followed, index=page.index)
        spelled = dict(self._listed[1])
        if not spelled:
            await self._scope.visibility.confirm_nodes(since=since)
        hidden: dict[str, str] = {}
        async with trio.open_nursery() as nursery:
            for name in self._services.keys() - spelled.keys():
                if self._services[name].held.value:
                    nursery.start_soon(self._look_for, name, since, spelled, hidden)
        # An answer does not have what was found after it came.
        spelled = {name: name for name, found in self._discovered.items() if found >= since} | spelled
        self._discovered.clear()
        self._hidden = hidden
        return Page(self._listed[1] if spelled == self._listed[1] else spelled, index=page.index)

    async def _look_for(self, name: str, since: float, spelled: dict[str, str], hidden: dict[str, str]) -> None:
        """Put a name that vanished back into `spelled` unless it is gone for certain."""
        service = self._services[name].held.service
        try:
            await self._scope.visibility.confirm(service, since=since)
            page = await self._scope.client.connect_instances(service, Cursor())
            if not page.value and not page.filtered:
                return
        except PermissionDeniedError as error:
            hidden[name] = str(error)
        except ConsulError:
            pass  # no telling: the next answer of the list brings it up again
        spelled[name] = service

    def _named(self, spelled: Mapping[str, str]) -> None:
        for name in self._services.keys() - spelled.keys():
            self._leave(self._services.pop(name))
            self._serve_no_longer(name)
        # Sidecars' names come last: hardly anything has a sidecar of its own, and the start does not wait for them.
        fresh = sorted(spelled.keys() - self._services.keys(), key=lambda name: (_is_sidecar(name, spelled), name))
        for name in fresh:
            key, held = self._scope.key("health", name), VerifiedInstances(self._scope.visibility, spelled[name])
            self._services[name] = self._scheduler.follow(key, name, held, later=_is_sidecar(name, spelled))
            if not _is_sidecar(name, spelled):
                self._scope.sync.add(key)
        for name, spelling in spelled.items():
            if self._services[name].held.service != spelling:
                self._services[name].held.service = spelling
                self._answered(self._services[name])
        if self.known:
            # As if they were in use: what is new is about to change, and to be used.
            self._scheduler.used(name.removesuffix(SIDECAR) for name in fresh)
        self.known = True
        self._followed = spelled

    def _leave(self, query: HealthQuery) -> None:
        self._scheduler.leave(query)
        self._scope.sync.mark(query.state.key)

    def _serve_no_longer(self, name: str) -> None:
        if self.served.pop(name, None) is not None:
            self._follow_subsets((name,))
            self._touch(name)

    # --- resolvers and subsets -----------------------------------------------------------------------------------

    def _make(self, name: str) -> Service:
        resolver = self._resolvers.get(name) or Resolver(name)
        instances = self.served[name]
        filtered = self._filtered.get(name, {}).values()
        return Service(
            name,
            instances,
            self.names.namespace or DEFAULT,
            subsets=tuple(
                Subset(rule.name, rule.only_passing, instances if not rule.filter else self._of(name, rule))
                for rule in resolver.subsets
            ),
            default_subset=resolver.default_subset,
            connect_timeout=resolver.connect_timeout,
            policy=resolver.policy,
            choices=resolver.choices,
            cold=self._services[name].cold or any(query.cold for query in filtered),
        )

    async def _ask_resolvers(self, reader: ConsulClient, cursor: Cursor) -> Page[Mapping[str, Resolver]]:
        page = await reader.resolvers(cursor)
        resolvers = {resolver.name.lower(): resolver for resolver in page.value}
        vanished = self._resolvers.keys() - resolvers.keys()
        hidden: dict[str, str] = {}
        for name in vanished:
            # The list leaves out silently what the token may not read.
            try:
                await self._scope.client.confirm_readable(self._resolvers[name].name)
            except PermissionDeniedError as error:
                hidden[name] = str(error)
                resolvers[name] = self._resolvers[name]
        if vanished - hidden.keys():
            # Nor may it have been forbidden for a moment: what is gone is missing again, now that it may be read.
            again = {resolver.name.lower(): resolver for resolver in (await self._scope.client.resolvers()).value}
            resolvers |= {name: again[name] for name in vanished & again.keys()}
        self._hidden_resolvers = hidden
        return Page(resolvers, index=page.index)

    def _resolved(self, resolvers: Mapping[str, Resolver]) -> None:
        before, self._resolvers = self._resolvers, resolvers
        for name in before.keys() | resolvers.keys():
            if before.get(name) != resolvers.get(name):
                self._touch(name)
        self._follow_subsets(self.served.keys() & (resolvers.keys() | self._filtered.keys()))

    def _follow_subsets(self, services: Iterable[str]) -> None:
        for service in services:
            before = self._filtered.get(service, {})
            wanted = self._filters(service)
            if not before and not wanted:
                continue
            # With a new filter, what the old one left stays in use until Consul has answered.
            last = {which.subset: it.held for which, it in before.items() if it.held.known and not it.refused}
            self._filtered[service] = {
                which: before.get(which) or self._new_subset(service, which, last.get(which.subset)) for which in wanted
            }
            for which in before.keys() - wanted:
                self._leave(before[which])
            if not wanted:
                del self._filtered[service]

    def _filters(self, service: str) -> dict[_Filter, None]:
        if service not in self.served or service not in self._resolvers:
            return {}
        rules = self._resolvers[service].subsets
        return dict.fromkeys(self._filter(service, rule) for rule in rules if rule.filter)

    def _filter(self, service: str, rule: SubsetRule) -> _Filter:
        return _Filter(self._services[service].held.service, rule.name, rule.filter)

    def _new_subset(self, service: str, which: _Filter, last: VerifiedInstances | None) -> HealthQuery:
        held = VerifiedInstances(self._scope.visibility, which.spelling, start=() if last is None else last.value)
        held.known = last is not None
        key = self._scope.key("subset", f"{which.subset}.{service}")
        self._scope.sync.add(key)
        return self._scheduler.follow(key, service, held, which.filter)

    def _of(self, service: str, rule: SubsetRule) -> Instances | None:
        it = self._filtered.get(service, {}).get(self._filter(service, rule))
        return it.held.value if it is not None and it.held.known and not it.refused else None


class LocalServices:
    """Follows the services of all namespaces; `scope` is the default one."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._listed: frozenset[str] = frozenset()
        self._namespaces: KeyedWatches[str, _NamespaceServices] = KeyedWatches(
            scope.sync,
            lambda name: replace(NAMES, namespace="" if name == DEFAULT else name),
            self._make,
            lambda _, services: services.run(),
        )
        self._namespaces.keep((DEFAULT,))

    @property
    def known(self) -> bool:
        return self._namespaces[DEFAULT].known

    async def run(self) -> None:
        async with self._namespaces.followed():
            if self._scope.home.enterprise:
                await self._scope.watch(
                    NAMESPACES, lambda reader, cursor: reader.namespaces(cursor), self._named, minds_token=True
                )
            await trio.sleep_forever()

    def services(self) -> tuple[Service, ...]:
        """Those that have instances in the mesh, by namespace and name."""
        of_each = [self._namespaces[name].services() for name in sorted(self._namespaces)]
        return tuple(chain.from_iterable(of_each)) if len(of_each) > 1 else of_each[0]

    def used(self, services: Iterable[str]) -> None:
        names = tuple(services)
        for namespace in self._namespaces.values():
            namespace.used(names)

    def hurry_names(self) -> None:
        for namespace in self._namespaces.values():
            namespace.hurry_names()

    async def lookup(self, services: Collection[str], namespace: str = "") -> bool:
        """Return when these are known as Consul has them now, or when that may not be seen; lower-case names.

        Without a namespace, known ones of all namespaces; with one, unknown ones are looked for, too. Tells whether
        `services` has something else to say of any than when that was asked last.
        """
        news: list[bool] = []

        async def lookup(where: _NamespaceServices, name: str) -> None:
            news.append(await where.lookup(name, unknown=bool(namespace)))

        async with trio.open_nursery() as nursery:
            for where, services_there in self._namespaces.items():
                if namespace in ("", where):
                    for name in services:
                        nursery.start_soon(lookup, services_there, name)
        return any(news)

    def problems(self) -> list[str]:
        return [line for namespace in self._namespaces.values() for line in namespace.problems()]

    def pending(self) -> tuple[frozenset[str], frozenset[str]]:
        return (
            frozenset(chain.from_iterable(it.pending() for it in self._namespaces.values())),
            frozenset(chain.from_iterable(it.pending_subsets() for it in self._namespaces.values())),
        )

    @property
    def pending_resolvers(self) -> bool:
        return not all(self._scope.registry.answered(it.resolvers) for it in self._namespaces.values())

    def pending_namespaces(self, last: Snapshot) -> frozenset[str]:
        elsewhere = {service.namespace for service in last.services} - {DEFAULT}
        if not self._scope.registry.answered(NAMESPACES):
            return frozenset(elsewhere)
        silent = {name for name, it in self._namespaces.items() if not self._scope.registry.answered(it.names)}
        return frozenset(elsewhere & silent)

    def _named(self, names: tuple[str, ...]) -> None:
        self._listed = frozenset(names)
        self._reconcile()

    def _reconcile(self) -> None:
        occupied = {name for name, it in self._namespaces.items() if it.served}
        self._namespaces.keep(sorted({DEFAULT, *self._listed, *occupied}))

    def _make(self, name: str) -> _NamespaceServices:
        home = name == DEFAULT
        scope = self._scope if home else self._scope.at(Tenant(namespace=name))
        scope = replace(scope, changed=self._scope.changed if home else lambda: self._changed_in(name))
        return _NamespaceServices(scope, dedicated=home)

    def _changed_in(self, name: str) -> None:
        it = self._namespaces.get(name)
        if it is not None and it.known and name not in self._listed and not it.served:
            self._reconcile()
        self._scope.changed()


def one_spelling(names: Iterable[str]) -> dict[str, str]:
    """Names by their lower-case form; of several spellings the lower-case one, else the first in order.

    Names that could not be asked for are left out; no SNI could hold one.
    """
    spelled: dict[str, str] = {}
    for name in sorted(names):
        if askable(name) and (name == name.lower() or name.lower() not in spelled):
            spelled[name.lower()] = name
    return spelled


def _is_sidecar(name: str, names: Mapping[str, str]) -> bool:
    return name.endswith(SIDECAR) and name.removesuffix(SIDECAR) in names
