"""The mesh services of the gateway's own datacenter: their names, and the instances behind each.

Like Consul's own gateway, every name of the catalog is asked for in the mesh, the names of sidecars too; most of those
have no mesh instances. Names that differ only by case are one service in Consul's index and in an SNI, so only one of
them is followed, under the lower-case name. How a service is followed is decided in `watch_scheduler`.

A name that vanished from the list is dropped when the token is known to see (see `acl_visibility`) and no instance is
left; a
name without instances is dropped at once, since nothing is lost with it.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial

import trio

from meshgate.core.catalog import Service

from .acl_visibility import AclVisibility, VerifiedInstances
from .api import ConsulClient, ConsulError, Cursor, Instances, Page, PermissionDeniedError
from .health_query import SIDECAR, HealthQuery
from .initial_sync import InitialSync
from .subsets import Subsets
from .watch import PACE, Watch
from .watch_registry import WatchRegistry

NAMES = "service names"
# Seconds between two answers of a list that is long. A stream of a name that it does not have yet finds it by itself.
_MANY_PACE = 5.0


class _Service(HealthQuery):
    __slots__ = ("_services",)

    def __init__(self, services: "LocalServices", name: str, held: VerifiedInstances) -> None:
        super().__init__("health", name, name, held)
        self._services = services

    async def ask(self, reader: ConsulClient, cursor: Cursor) -> Page[Instances]:
        return await reader.connect_instances(self.held.service, cursor)

    def answered(self) -> None:
        self._services.answered(self)

    def failed(self, _: ConsulError) -> None:
        self._services.tried(self)

    def on_staleness_changed(self) -> None:
        self._services.turned(self.name)


class LocalServices:
    """Follows the services. `known` says whether the list was received yet.

    Args:
        client: for short requests, and for the list's own connection.
        registry: shared by all watches.
        visibility: decides whether a shorter answer is believed.
        subsets: is told which services have instances; its `watch_scheduler` follows them.
        sync: told of each source that is to be waited for at the start.
        changed: called whenever `instances()` may have changed.
    """

    def __init__(
        self,
        client: ConsulClient,
        registry: WatchRegistry,
        visibility: AclVisibility,
        subsets: Subsets,
        *,
        sync: InitialSync,
        changed: Callable[[], None],
    ) -> None:
        self._client = client
        self._registry = registry
        self._visibility = visibility
        self._scheduler = subsets.scheduler
        self._subsets = subsets
        self._sync = sync
        self._changed = changed
        self.known = False
        self._services: dict[str, _Service] = {}
        self._served: dict[str, Instances] = {}
        self._made: dict[str, Service] = {}
        self._touched: set[str] = set()
        self._turned: set[str] = set()
        self._sorted = True
        self._hidden: dict[str, str] = {}
        self._list_filtered = False
        # When names were found that no list had yet.
        self._discovered: dict[str, float] = {}
        self._listed: tuple[tuple[str, ...], Mapping[str, str]] = (), {}
        self._followed: Mapping[str, str] = {}
        self._unaskable: tuple[str, ...] = ()

    async def run(self) -> None:
        """Follow until cancelled."""
        async with self._client.dedicated() as reader:
            ask = partial(self._ask_names, reader)
            watch = Watch(self._registry, "services", NAMES, ask, self._named, minds_token=True)
            await watch.only_while(lambda: True, pace=lambda: PACE if self._scheduler.fits else _MANY_PACE).run()

    def instances(self) -> dict[str, Instances]:
        """The services that have instances in the mesh, by lower-case name. Not to be changed."""
        return self._served

    def services(self, namespace: str) -> tuple[Service, ...]:
        """The same with their subsets and resolvers, as services of a namespace; each the same object until it changes.

        Only what changed is made again: at 5,000 services all of them would take 20 ms for each change of one.
        """
        for name in self._touched | self._turned | self._subsets.touched():
            if name in self._served:
                cold = self._services[name].cold
                self._made[name] = self._subsets.apply(name, self._served[name], namespace, cold=cold)
            else:
                self._made.pop(name, None)
        if not self._sorted:
            self._made, self._sorted = dict(sorted(self._made.items())), True
        self._touched.clear()
        self._turned.clear()
        return tuple(self._made.values())

    def problems(self) -> list[str]:
        """What the token is known not to see."""
        found = list(self._hidden.values())
        if self._list_filtered:
            found.append('Consul hides some services from the token: service_prefix "" { policy = "read" } shows all')
        if self._unaskable:
            names = ", ".join(map(repr, self._unaskable[:3]))
            found.append(f"{len(self._unaskable)} services have names that cannot be asked for in a path: {names}")
        return found

    def answered(self, service: _Service) -> None:
        """The instances of a service are known, or are others than before."""
        if service.held.value:
            self._sorted = self._sorted and service.name in self._served
            self._served[service.name] = service.held.value
            self._subsets.serve(service.name, service.held.service)
            self._touched.add(service.name)
            self._changed()
        else:
            self._serve_no_longer(service.name)
        self.tried(service)

    def tried(self, service: _Service) -> None:
        """Consul was asked for a service."""
        self._sync.mark(_source(service.name))

    def turned(self, name: str) -> None:
        """How closely a service is followed has changed."""
        if name in self._served:
            self._turned.add(name)
            self._changed()

    async def learn(self, name: str, *, look: bool) -> bool:
        """Return when a service is known as Consul has it now, or when that cannot be had; a lower-case name.

        Args:
            name: the service.
            look: whether one that is not listed yet is asked for, too, and followed if there is anything behind it.

        Returns:
            Whether `services` has something else to say of it than when that was asked last.
        """
        if name in self._services:
            await self._scheduler.learn(name)
        elif look and self.known and _askable(name):
            with suppress(ConsulError):
                await self._discover(name)
        return name in self._touched or self._subsets.has_news(name)

    async def _discover(self, name: str) -> None:
        page = await self._client.connect_instances(name, Cursor())
        if not page.value or name in self._services:
            return
        held = VerifiedInstances(self._visibility, name)
        await held.accept(page)
        service = self._services[name] = _Service(self, name, held)
        self._discovered[name] = trio.current_time()
        self._scheduler.follow(service)
        self._scheduler.used((name,))
        self.answered(service)

    async def _ask_names(self, reader: ConsulClient, cursor: Cursor) -> Page[Mapping[str, str]]:
        page = await reader.service_names(cursor)
        since = trio.current_time()
        if page.value is not self._listed[0]:
            spelled = one_spelling(page.value)
            self._listed = page.value, self._followed if spelled == self._followed else spelled
            self._unaskable = tuple(name for name in page.value if not _askable(name))
        self._list_filtered = page.filtered
        if self._listed[1] is self._followed and not self._discovered:
            # The index moves with every registration, the names hardly ever; of 10,000 looking takes milliseconds.
            return Page(self._followed, index=page.index)
        spelled = dict(self._listed[1])
        if not spelled:
            await self._visibility.confirm_nodes(since=since)
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
            await self._visibility.confirm(service, since=since)
            page = await self._client.connect_instances(service, Cursor())
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
        # Sidecars' names come last: hardly anything has a sidecar of its own, and the start does not wait for them.
        fresh = sorted(spelled.keys() - self._services.keys(), key=lambda name: (_is_sidecar(name, spelled), name))
        for name in fresh:
            service = self._services[name] = _Service(self, name, VerifiedInstances(self._visibility, spelled[name]))
            if not _is_sidecar(name, spelled):
                self._sync.add(_source(name))
            self._scheduler.follow(service, later=_is_sidecar(name, spelled))
        for name, spelling in spelled.items():
            if self._services[name].held.service != spelling:
                self._services[name].held.service = spelling
                self.answered(self._services[name])
        if self.known:
            # As if they were in use: what is new is about to change, and to be used.
            self._scheduler.used(name.removesuffix(SIDECAR) for name in fresh)
        self.known = True
        self._followed = spelled
        self._changed()

    def _leave(self, service: _Service) -> None:
        self._scheduler.leave(service)
        self.tried(service)
        self._serve_no_longer(service.name)

    def _serve_no_longer(self, name: str) -> None:
        if self._served.pop(name, None) is not None:
            self._subsets.leave(name)
            self._touched.add(name)
            self._changed()


def one_spelling(names: Iterable[str]) -> dict[str, str]:
    """Names by their lower-case form; of several spellings the lower-case one, else the first in order.

    Names that could not be asked for are left out; no SNI could hold one.
    """
    spelled: dict[str, str] = {}
    for name in sorted(names):
        if _askable(name) and (name == name.lower() or name.lower() not in spelled):
            spelled[name.lower()] = name
    return spelled


def _askable(name: str) -> bool:
    """Whether a name can be a part of a path (see `HttpClient.uri`)."""
    return not {"", ".", ".."}.intersection(name.split("/"))


def _is_sidecar(name: str, names: Mapping[str, str]) -> bool:
    return name.endswith(SIDECAR) and name.removesuffix(SIDECAR) in names


def _source(name: str) -> str:
    return f"health of {name}"
