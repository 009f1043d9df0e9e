"""A catalog watcher that runs against a model of Consul, and what it publishes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from meshgate.adapters.consul import (
    CatalogWatcher,
    Home,
    WatchRegistry,
)
from meshgate.adapters.consul.api import LONGEST_WAIT
from meshgate.core.catalog import Instance, Snapshot

from .model import OWN, Model, gateway, sidecar

WEB = sidecar("web")
API = sidecar("api", 2)


@dataclass
class Watched:
    """A watcher that runs, what it published, and when."""

    model: Model
    watcher: CatalogWatcher
    registry: WatchRegistry
    published: list[tuple[float, Snapshot]] = field(default_factory=list)

    @property
    def last(self) -> Snapshot:
        assert self.watcher.snapshot is self.published[-1][1]
        return self.published[-1][1]

    @property
    def services(self) -> dict[str, tuple[Instance, ...]]:
        return {service.name: service.instances for service in self.last.services}

    @property
    def remotes(self) -> dict[str, tuple[Instance, ...]]:
        return {remote.name: remote.gateways for remote in self.last.remotes}

    def stale(self) -> bool:
        return self.watcher.stale

    async def first(self, seconds: float = 10) -> float:
        """Wait for the first snapshot; how long it took."""
        start = trio.current_time()
        with trio.fail_after(seconds):
            while not self.published:
                await trio.sleep(0.01)
        return trio.current_time() - start

    async def change(self, seconds: float = 1.0) -> None:
        """Wake Consul's queries, and wait longer than a change may take."""
        self.model.change()
        await trio.sleep(seconds)


@asynccontextmanager
async def watching(model: Model, *, wait: bool = True, **options: float) -> AsyncIterator[Watched]:
    model.plain.setdefault("mesh-gateway", (gateway(OWN),))
    registry = WatchRegistry(first_wait=LONGEST_WAIT)
    published: list[tuple[float, Snapshot]] = []
    watcher = CatalogWatcher(
        model,
        registry,
        lambda snapshot: published.append((trio.current_time(), snapshot)),
        Home(OWN),
        **options,  # type: ignore[arg-type]
    )
    watched = Watched(model, watcher, registry, published)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        if wait:
            await watched.first()
        yield watched
        nursery.cancel_scope.cancel()
