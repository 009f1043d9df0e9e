"""The mesh gateways of other datacenters of the federation, and of other admin partitions of this one (Enterprise).

There is no public query for "all mesh gateways of a datacenter", only for the instances of a service whose name is
known. The names are learned from Consul's list of services for its web pages, which is polled; while that gives none,
the likely names are watched, so that a first gateway is seen as soon as it registers. Names that the federation states
hold are watched too.

Of a datacenter there are two views, as in Consul's own gateway. Direct: the WAN's datacenters are polled, and the
gateways of each are watched in its own catalog (Consul forwards the query). Federation states: one watch in the local
datacenter for the gateways of all. As long as a datacenter answers for itself its answer counts: federation states may
hold a gateway for long after it has deregistered (seen with Consul 1.8). But a registration with a higher index than
that answer's is news, and federation states often have it first: the way to the other datacenter may lead through the
gateway that has moved. Where a datacenter does not answer, the view with the newest registration counts
(`newer_gateways`); and where it has not for `LOST_AFTER` seconds, what others heard since, since a datacenter that was
built anew begins with a low index. A datacenter of which federation states have news is asked again at once: it has
probably come back, and says sooner than they do that its gateways' checks pass again. The datacenters known are those
of both views.

A datacenter that cannot be reached, or refuses the token, keeps its last known gateways and disturbs no other. One
that left the WAN is given up by the direct view after `GONE_AFTER` seconds, since a restarted server lists fewer
datacenters until gossip has told it; the federation states go on counting as long as they name it.

The list of partitions cannot be held, so it is polled; it takes `operator:read`. Without that right the default
partition, which always exists, is followed all the same. A partition that is gone from the list is given up at once:
Consul refuses the list to a token without the right instead of shortening it.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from itertools import chain
from typing import Final

import trio

from meshgate.core.catalog import Remote, newer_gateways
from meshgate.core.sni import DEFAULT

from .acl_visibility import VerifiedInstances, vanished
from .api import (
    GATEWAY_KIND,
    ConsulClient,
    ConsulError,
    Cursor,
    EndpointBlockedError,
    Instances,
    NotFoundError,
    Page,
    PermissionDeniedError,
    Tenant,
)
from .scope import KeyedWatches, Scope
from .watch import WatchKey

DATACENTERS: Final = WatchKey("datacenters", "datacenters")
FEDERATION: Final = WatchKey("federation-states", "federation states")
PARTITIONS: Final = WatchKey("partitions", "partitions")
# Consul's own gateway polls the datacenters that often, in seconds.
POLL: Final = 30.0
# The same for names, while gateways are known: others of another name are in the federation states as a rule.
KNOWN_POLL: Final = 120.0
# Seconds without an answer after which a datacenter may have been built anew.
LOST_AFTER: Final = 20.0
# Seconds that a datacenter must be missing from the WAN: at least two polls.
GONE_AFTER: Final = 60.0


class Gateways:
    """Follows the gateways of a remote datacenter; "" is the own one, of which `scope` then sees another partition."""

    def __init__(self, scope: Scope, datacenter: str = "") -> None:
        self._scope = scope
        # Names to watch while none is known: others are probably called as this gateway is.
        self._guesses = frozenset((scope.home.gateway_service, GATEWAY_KIND))
        self._datacenter = datacenter
        self._names = scope.key("gateway-names", datacenter=datacenter)
        self._listed: frozenset[str] | None = None
        self._federated: frozenset[str] = frozenset()
        self._working: set[str] = set()
        # Of each name the index of the last answer, and when it came; and when an index went backwards.
        self._answers: dict[str, tuple[int, float]] = {}
        self._restarted = float("-inf")
        self._held = KeyedWatches(scope.sync, self._key, self._make, self._follow)

    async def run(self) -> None:
        async with self._held.followed():
            await self._scope.poll(
                self._names,
                self._ask_names,
                self._names_listed,
                on_error=lambda _: self._names_listed(self._listed or frozenset()),
                interval=lambda: KNOWN_POLL if self._working else POLL,
            )

    def instances(self) -> Instances:
        return tuple(instance for name in sorted(self._held) for instance in self._held[name].value)

    def beside(self, federated: Instances, heard: float) -> Instances:
        """The gateways that count beside what others say they are since some moment."""
        by_name = {name: tuple(one for one in federated if one.service == name) for name in self._held}
        others = tuple(one for one in federated if one.service not in by_name)
        chosen = (self._counts(name, rows, federated, heard) for name, rows in sorted(by_name.items()))
        return (*others, *chain.from_iterable(chosen))

    def _counts(self, name: str, rows: Instances, federated: Instances, heard: float) -> Instances:
        """Of the gateways of one name, what the datacenter itself said last, or else these rows."""
        own = self._held[name].value
        index, at = self._answers.get(name, (0, float("-inf")))
        if name in self._working:
            # What is left from before its index began anew is no news.
            news = heard >= self._restarted and any(row.modify_index > index for row in rows)
            return rows if news else own
        lost = bool(federated) and at < heard and at < trio.current_time() - LOST_AFTER
        return rows if lost or newer_gateways(own, federated) != own else own

    @property
    def pending(self) -> bool:
        """Whether that no gateway is known proves nothing yet."""
        return not all(map(self._scope.registry.answered, map(self._key, self._held) if self._held else (self._names,)))

    def federated(self, gateways: Instances) -> None:
        """Watch the names of these gateways too: the federation states have them for this datacenter."""
        self._federated = frozenset(gateway.service for gateway in gateways)
        self._reconcile()

    def _key(self, name: str) -> WatchKey:
        return self._scope.key("gateways", name, datacenter=self._datacenter)

    def _make(self, name: str) -> VerifiedInstances:
        return VerifiedInstances(self._scope.visibility, name, datacenter=self._datacenter)

    async def _ask_names(self) -> Page[frozenset[str]]:
        try:
            return Page(frozenset((await self._scope.client.gateway_names(self._datacenter)).value))
        except EndpointBlockedError:
            page = await self._scope.client.gateway_names_by_catalog(self._datacenter)
            if page is None:
                raise
            return Page(frozenset(page.value))

    def _names_listed(self, names: frozenset[str]) -> None:
        self._listed = names
        self._reconcile()

    def _reconcile(self) -> None:
        # Before the list was asked for once, the likely names would only be watched to be given up again.
        if self._listed is None:
            return
        # A name whose gateways are known stays until its own watch says that they are gone.
        occupied = {name for name, held in self._held.items() if held.value}
        wanted = (self._listed or self._guesses) | self._federated | occupied
        self._working &= wanted
        self._held.keep(wanted)

    async def _follow(self, name: str, held: VerifiedInstances) -> None:
        async def ask(reader: ConsulClient, cursor: Cursor) -> Page[Instances]:
            request = partial(self._scope.client.instances, name, datacenter=self._datacenter, kind=GATEWAY_KIND)
            page = await reader.instances(name, cursor, datacenter=self._datacenter, kind=GATEWAY_KIND)
            await held.accept(page, cursor, again=request)
            self._answered(name, page.index or 0)
            return page

        def answered(gateways: Instances) -> None:
            if not gateways:
                self._reconcile()

        def failed(_: ConsulError) -> None:
            self._working.discard(name)
            self._scope.changed()

        await self._scope.watch(self._key(name), ask, answered, on_error=failed)

    def _answered(self, name: str, index: int) -> None:
        if index < self._answers.get(name, (0, 0.0))[0]:
            self._restarted = trio.current_time()
        self._answers[name] = index, trio.current_time()
        if name not in self._working:
            self._working.add(name)
            self._scope.changed()


class RemoteGateways:
    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._absent: dict[str, float] = {}
        self._federated: Mapping[str, Instances] = {}
        # When the federation states began to say what they say of a datacenter.
        self._heard: dict[str, float] = {}
        self._hidden: dict[str, str] = {}
        self._direct: KeyedWatches[str, Gateways] = KeyedWatches(
            scope.sync,
            lambda name: scope.key("gateway-names", datacenter=name),
            self._make,
            lambda _, gateways: gateways.run(),
        )

    async def run(self) -> None:
        async with self._direct.followed(), trio.open_nursery() as nursery:
            watch = partial(self._scope.watch, minds_token=True, dedicated=True)
            nursery.start_soon(watch, FEDERATION, self._ask_federation, self._federation_changed)
            await self._scope.poll(DATACENTERS, self._ask_datacenters, self._direct.keep, interval=POLL)

    def remotes(self) -> tuple[Remote, ...]:
        return tuple(
            Remote(name, self._gateways(name)) for name in sorted(self._direct.keys() | self._federated.keys())
        )

    def problems(self) -> list[str]:
        return list(self._hidden.values())

    def pending(self, last: Iterable[Remote], *, early: bool) -> frozenset[str]:
        lists = early or not self._scope.registry.answered(DATACENTERS)
        return _pending(self._direct, last, lists=lists)

    def _make(self, name: str) -> Gateways:
        gateways = Gateways(self._scope, name)
        gateways.federated(self._federated.get(name, ()))
        return gateways

    def _gateways(self, name: str) -> Instances:
        federated, direct = self._federated.get(name, ()), self._direct.get(name)
        return federated if direct is None else direct.beside(federated, self._heard.get(name, float("-inf")))

    async def _ask_datacenters(self) -> Page[tuple[str, ...]]:
        listed = set((await self._scope.client.datacenters()).value) - {self._scope.home.datacenter}
        now = trio.current_time()
        missing = self._direct.keys() - listed
        self._absent = {name: self._absent.get(name, now) for name in missing}
        kept = {name for name in missing if now - self._absent[name] < GONE_AFTER}
        return Page(tuple(sorted(listed | kept)))

    async def _ask_federation(self, reader: ConsulClient, cursor: Cursor) -> Page[Mapping[str, Instances]]:
        page = await reader.federated_gateways(cursor)
        since = trio.current_time()
        federated = self._elsewhere(page)
        gone = {name: vanished(known, federated.get(name, ())) for name, known in self._federated.items()}
        hidden: dict[str, str] = {}
        for name, gateways in gone.items():
            try:
                for service in {gateway.service for gateway in gateways}:
                    await self._scope.visibility.confirm(service, since=since)
            except PermissionDeniedError as error:
                federated[name], hidden[name] = self._federated[name], str(error)
        if shown := {name for name, gateways in gone.items() if gateways} - hidden.keys():
            # The token may have been blind for a moment: what is gone is missing again, now that it sees.
            again = self._elsewhere(await self._scope.client.federated_gateways())
            federated |= {name: again[name] for name in shown & again.keys()}
        self._hidden = hidden
        return Page(federated, index=page.index)

    def _elsewhere(self, page: Page[Mapping[str, Instances]]) -> dict[str, Instances]:
        return {name: rows for name, rows in page.value.items() if rows and name != self._scope.home.datacenter}

    def _federation_changed(self, federated: Mapping[str, Instances]) -> None:
        for name, rows in federated.items():
            if rows != self._federated.get(name):
                self._heard[name] = trio.current_time()
                self._scope.registry.news_of(name)
        self._federated = federated
        for name, gateways in self._direct.items():
            gateways.federated(federated.get(name, ()))


class Partitions:
    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._gateways: KeyedWatches[str, Gateways] = KeyedWatches(
            scope.sync,
            lambda name: self._of(name).key("gateway-names"),
            lambda name: Gateways(self._of(name)),
            lambda _, gateways: gateways.run(),
        )

    async def run(self) -> None:
        async with self._gateways.followed():
            await self._scope.poll(PARTITIONS, self._ask, self._listed, on_error=self._failed, interval=POLL)

    def partitions(self) -> tuple[Remote, ...]:
        return tuple(Remote(name, self._gateways[name].instances()) for name in sorted(self._gateways))

    def pending(self, last: Iterable[Remote], *, early: bool) -> frozenset[str]:
        lists = early or not self._scope.registry.answered(PARTITIONS)
        return _pending(self._gateways, last, lists=lists)

    def _of(self, name: str) -> Scope:
        return self._scope.at(Tenant(namespace=DEFAULT, partition=name))

    async def _ask(self) -> Page[tuple[str, ...]]:
        try:
            return await self._scope.client.partitions()
        except NotFoundError:
            return Page(())  # Enterprise before 1.11 has no partitions, and no default one to go to

    def _failed(self, _: ConsulError) -> None:
        if not self._gateways:
            self._listed((DEFAULT,))
            self._scope.changed()

    def _listed(self, names: tuple[str, ...]) -> None:
        self._gateways.keep(set(names) - {self._scope.home.partition})


def _pending(places: Mapping[str, Gateways], last: Iterable[Remote], *, lists: bool) -> frozenset[str]:
    names = (it.name for it in last if it.gateways)
    return frozenset(name for name in names if (places[name].pending if name in places else lists))
