"""The services of the gateway's partition, of all its namespaces.

The community edition has one namespace and is asked without naming it. In Enterprise one gateway, in the namespace
`default`, serves all namespaces of its partition; HTTP has no wildcard for services, so each namespace has its own
list, asked for in turns of the pool. A namespace that is no longer listed is given up when it holds no instance any
more: the list leaves out silently what a token has no right in.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final

import trio

from meshgate.core.catalog import Service, Snapshot
from meshgate.core.sni import DEFAULT

from .api import Tenant
from .local_services import NAMES, LocalServices
from .scope import KeyedWatches, Scope
from .watch_registry import WatchKey
from .watch_scheduler import WatchScheduler

NAMESPACES: Final = WatchKey("namespaces", "namespaces")


@dataclass(frozen=True, slots=True)
class _Namespace:
    services: LocalServices
    scheduler: WatchScheduler

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.scheduler.run)
            await self.services.run()


class LocalCatalog:
    """Follows the services.

    Args:
        scope: where Consul is asked: in the default namespace.
        enterprise: whether there may be other namespaces.
    """

    def __init__(self, scope: Scope, *, enterprise: bool) -> None:
        self._scope = scope
        self._enterprise = enterprise
        self._listed: frozenset[str] = frozenset()
        self._namespaces: KeyedWatches[str, _Namespace] = KeyedWatches(
            scope.sync,
            lambda name: replace(NAMES, namespace="" if name == DEFAULT else name),
            self._make,
            lambda _, namespace: namespace.run(),
        )
        self._namespaces.keep((DEFAULT,))

    @property
    def known(self) -> bool:
        """Whether the services of the default namespace are known."""
        return self._namespaces[DEFAULT].services.known

    async def run(self) -> None:
        """Follow until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._namespaces.run)
            if self._enterprise:
                await self._scope.watch(
                    NAMESPACES, lambda reader, cursor: reader.namespaces(cursor), self._named, minds_token=True
                )

    def services(self) -> tuple[Service, ...]:
        """Those that have instances in the mesh, by namespace and name."""
        of_each = [self._namespaces[name].services.services() for name in sorted(self._namespaces)]
        return tuple(chain.from_iterable(of_each)) if len(of_each) > 1 else of_each[0]

    def used(self, services: Iterable[str]) -> None:
        """These names have streams, in whatever namespace."""
        names = tuple(services)
        for namespace in self._namespaces.values():
            namespace.scheduler.used(names)

    async def lookup(self, services: Collection[str], namespace: str = "") -> bool:
        """Return when these are known as Consul has them now, or when that cannot be had; lower-case names.

        Without a namespace they are those of all namespaces that are known; with one, unknown names are looked for.

        Returns:
            Whether `services` has something else to say of them than when that was asked last.
        """
        news: list[bool] = []

        async def lookup(where: LocalServices, name: str) -> None:
            news.append(await where.lookup(name, unknown=bool(namespace)))

        async with trio.open_nursery() as nursery:
            for where, it in self._namespaces.items():
                if namespace in ("", where):
                    for name in services:
                        nursery.start_soon(lookup, it.services, name)
        return any(news)

    def problems(self) -> list[str]:
        """What the token is known not to see, and what cannot be followed."""
        return [line for namespace in self._namespaces.values() for line in namespace.services.problems()]

    def pending(self) -> tuple[frozenset[str], frozenset[str]]:
        """The services and the subsets that Consul has not answered for yet; see `PendingSources`."""
        each = [namespace.services for namespace in self._namespaces.values()]
        return (
            frozenset(chain.from_iterable(it.pending() for it in each)),
            frozenset(chain.from_iterable(it.pending_subsets() for it in each)),
        )

    @property
    def pending_resolvers(self) -> bool:
        """Whether Consul has not told the service-resolvers of some namespace."""
        return not all(self._scope.registry.answered(it.services.resolvers) for it in self._namespaces.values())

    def pending_namespaces(self, last: Snapshot) -> frozenset[str]:
        """The namespaces whose services Consul has not listed yet; see `PendingSources`."""
        elsewhere = {service.namespace for service in last.services} - {DEFAULT}
        if not self._scope.registry.answered(NAMESPACES):
            return frozenset(elsewhere)
        silent = {name for name, it in self._namespaces.items() if not self._scope.registry.answered(it.services.names)}
        return frozenset(elsewhere & silent)

    def _named(self, names: tuple[str, ...]) -> None:
        self._listed = frozenset(names)
        self._reconcile()

    def _reconcile(self) -> None:
        occupied = {name for name, it in self._namespaces.items() if it.services.instances()}
        self._namespaces.keep(sorted({DEFAULT, *self._listed, *occupied}))

    def _make(self, name: str) -> _Namespace:
        home = name == DEFAULT
        scope = self._scope if home else self._scope.at(Tenant(namespace=name))
        scope = replace(scope, changed=self._scope.changed if home else lambda: self._changed_in(name))
        scheduler = WatchScheduler(scope)
        services = LocalServices(scope, scheduler, dedicated=home)
        return _Namespace(services, scheduler)

    def _changed_in(self, name: str) -> None:
        it = self._namespaces.get(name)
        if it is not None and it.services.known and name not in self._listed and not it.services.instances():
            self._reconcile()
        self._scope.changed()
