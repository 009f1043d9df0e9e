"""What all that follows a part of the catalog shares: where it asks, how it asks, and what a start waits for.

A follower gets a `Scope` and nothing else of the kind. It asks in one namespace, partition or peer; `Scope.at` is the
same for another one.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import trio

from meshgate.core.sni import DEFAULT

from .acl_visibility import AclVisibility
from .api import GATEWAY_KIND, ConsulClient, ConsulError, Cursor, Page, Tenant
from .blocking_query_pool import BlockingQueryPool
from .watch import PACE, Watch, WatchKey, WatchRegistry, always, ignore

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
T = TypeVar("T")


class InitialSync:
    """What a start still waits for: each source until it has answered or failed once, or is no longer wanted."""

    def __init__(self) -> None:
        self._expected: set[WatchKey] = set()
        self._open = True
        self._step = trio.Event()

    @property
    def missing(self) -> list[str]:
        return sorted(map(str, self._expected))

    def add(self, source: WatchKey) -> None:
        """Wait for this source too. Has no effect after `close`."""
        if self._open:
            self._expected.add(source)

    def mark(self, source: WatchKey) -> None:
        if source in self._expected:
            self._expected.remove(source)
            self._step.set()

    async def wait(self, patience: float = float("inf")) -> None:
        """Wait until nothing is expected, or until so many seconds have passed since a source was marked."""
        while self._expected:
            self._step = trio.Event()
            with trio.move_on_after(patience):
                await self._step.wait()
                continue
            return

    def close(self) -> None:
        self._open = False
        self._expected.clear()


@dataclass(frozen=True, slots=True)
class Home:
    """Where the gateway is, and what it is there; `node` is "" where it is not known.

    `enterprise`: Consul has namespaces and partitions; the community edition refuses to be asked for them. `domain` is
    the agents' DNS domain, and `expose_servers` whether the gateway is registered for servers (WAN federation).
    """

    datacenter: str
    partition: str = DEFAULT
    node: str = ""
    enterprise: bool = False
    gateway_service: str = GATEWAY_KIND
    domain: str = "consul"
    expose_servers: bool = False

    @property
    def central(self) -> bool:
        """Whether it is in the default partition: only there are servers, and ways into other datacenters."""
        return self.partition == DEFAULT


@dataclass(frozen=True, slots=True)
class Scope:
    """What a follower works with, besides `home`.

    `client` answers short requests, `pool` gives connections to queries that are held; both ask where `tenant` says.
    `visibility` decides whether a shorter answer is believed, `sync` is told of each source that the start is to wait
    for, and `changed` is called whenever a snapshot may have become another one.
    """

    client: ConsulClient
    registry: WatchRegistry
    pool: BlockingQueryPool
    visibility: AclVisibility
    sync: InitialSync
    changed: Callable[[], None]
    home: Home
    tenant: Tenant = field(default_factory=Tenant)

    def at(self, tenant: Tenant) -> "Scope":
        client = self.client.at(tenant)
        return replace(self, client=client, visibility=self.visibility.at(client), tenant=tenant)

    def key(self, kind: str, name: str = "", *, datacenter: str = "") -> WatchKey:
        here = self.tenant
        place = f"peer {here.peer}" if here.peer else f"partition {here.partition}" if here.partition else datacenter
        return WatchKey(kind, name, place, "" if here.namespace == DEFAULT else here.namespace)

    async def watch(  # noqa: PLR0913 - most by keyword
        self,
        key: WatchKey,
        ask: Callable[[ConsulClient, Cursor], Awaitable[Page[T]]],
        on_value: Callable[[T], None],
        *,
        on_error: Callable[[ConsulError], None] = ignore,
        minds_token: bool = False,
        dedicated: bool = False,
        wanted: Callable[[], bool] = always,
        pace: Callable[[], float] = lambda: PACE,
        interval: Callable[[], float] | None = None,
    ) -> None:
        """Follow something that Consul can hold a query for, until cancelled; arguments are those of `Watch`.

        The start waits for it. With `dedicated` the query has a connection of its own, else it takes turns with others.
        """

        async def in_turn(cursor: Cursor) -> Page[T]:
            async with self.pool.slot(cursor) as reader:
                return await ask(self.reader(reader), cursor)

        async def alone(cursor: Cursor) -> Page[T]:
            return await ask(self.reader(own), cursor)

        self.sync.add(key)
        watch = Watch(
            self.registry,
            key,
            alone if dedicated else in_turn,
            self._marking(key, on_value),
            on_error=self._marking(key, on_error, changed=False),
            minds_token=minds_token,
            wanted=wanted,
            pace=pace,
            interval=interval,
        )
        if dedicated:
            async with self.pool.dedicated() as own:
                await watch.run()
        else:
            watch.wait = self.pool.wait
            with self.pool.registered():
                await watch.run()

    async def poll(
        self,
        key: WatchKey,
        ask: Callable[[], Awaitable[Page[T]]],
        on_value: Callable[[T], None],
        *,
        interval: float | Callable[[], float],
        on_error: Callable[[ConsulError], None] = ignore,
    ) -> None:
        """Follow something that Consul cannot hold a query for, until cancelled; arguments are those of `Watch`."""
        self.sync.add(key)
        await Watch(
            self.registry,
            key,
            lambda _: ask(),
            self._marking(key, on_value),
            on_error=self._marking(key, on_error, changed=False),
            interval=interval,
        ).run()

    def reader(self, reader: ConsulClient) -> ConsulClient:
        return reader if self.tenant == Tenant() else reader.at(self.tenant)

    def _marking(self, key: WatchKey, then: Callable[[T], None], *, changed: bool = True) -> Callable[[T], None]:
        def marking(value: T) -> None:
            then(value)
            # Before the mark: what others come to expect by this change belongs to the start as well.
            if changed:
                self.changed()
            self.sync.mark(key)

        return marking


@dataclass(slots=True, eq=False)
class Latest(Generic[T]):
    """What a watch has said last; None before it did."""

    value: T | None = None

    def set(self, value: T) -> None:
        self.value = value


class KeyedWatches(Mapping[K, V]):
    """One thing that is made and followed for each key that is wanted; the start waits for each `source`.

    A task that ends by itself counts as running.
    """

    def __init__(
        self,
        sync: InitialSync,
        source: Callable[[K], WatchKey],
        make: Callable[[K], V],
        follow: Callable[[K, V], Awaitable[object]],
    ) -> None:
        self._sync = sync
        self._source = source
        self._make = make
        self._follow = follow
        self._things: dict[K, V] = {}
        self._scopes: dict[K, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None

    def __getitem__(self, key: K) -> V:
        return self._things[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._things)

    def __len__(self) -> int:
        return len(self._things)

    def keep(self, wanted: Iterable[K]) -> None:
        """Forget what is not wanted, and follow what is, within `followed`."""
        keys = dict.fromkeys(wanted)
        for key in [key for key in self._things if key not in keys]:
            del self._things[key]
            if scope := self._scopes.pop(key, None):
                scope.cancel()
            self._sync.mark(self._source(key))
        for key in keys:
            if key not in self._things:
                self._sync.add(self._source(key))
                self._things[key] = self._make(key)
                self._start(key)

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Follow what is wanted for the time of the block."""
        try:
            async with trio.open_nursery() as self._nursery:
                for key in self._things:
                    self._start(key)
                yield
                self._nursery.cancel_scope.cancel()
        finally:
            self._nursery = None
            self._scopes.clear()

    def _start(self, key: K) -> None:
        if self._nursery is not None:
            scope = self._scopes[key] = trio.CancelScope()
            self._nursery.start_soon(self._within, scope, key, self._things[key])

    async def _within(self, scope: trio.CancelScope, key: K, thing: V) -> None:
        # A task that is no longer wanted when its turn comes must not begin: what it is for may be gone.
        with scope:
            if not scope.cancel_called:
                await self._follow(key, thing)
