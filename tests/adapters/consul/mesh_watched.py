"""A catalog watcher that follows the double of Enterprise and peering over real sockets."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

import trio

from meshgate.adapters.consul import CatalogWatcher, Home, WatchRegistry, peerings
from meshgate.adapters.consul.api import ConsulAddress, ConsulClient
from meshgate.core.catalog import Snapshot
from meshgate.core.export_routes import AS_CONSUL, ExportRules
from meshgate.core.routes import RouteTable
from tests.core.samples import plan

from .mesh_double import MeshDouble

# The list of peerings is looked at again after twenty times what it took, which is long on a busy machine.
PATIENCE = 60
# Seconds between two requests for the list of peerings: more often than one should, and hardly ever.
OFTEN = {"POLL": 0.2, "DENIED_POLL": 0.2}
SELDOM = {"POLL": 1000.0}


@dataclass
class Following:
    """A watcher that runs, and what it published."""

    double: MeshDouble
    watcher: CatalogWatcher
    client: ConsulClient
    registry: WatchRegistry
    published: list[Snapshot] = field(default_factory=list)

    @property
    def last(self) -> Snapshot:
        return self.published[-1]

    def table(self, rules: ExportRules = AS_CONSUL) -> RouteTable:
        return plan(self.last, rules=rules)

    def routes(self, rules: ExportRules = AS_CONSUL) -> dict[str, list[str]]:
        """Each name with the addresses of its healthy endpoints."""
        return {route.sni: [f"{one.address}:{one.port}" for one in route.candidates] for route in self.table(rules)}

    async def until(self, condition: Callable[[Snapshot], object]) -> Snapshot:
        """Wait until the last snapshot satisfies a condition."""
        with trio.move_on_after(PATIENCE):
            while not (self.published and condition(self.last)):
                await trio.sleep(0.01)
        assert self.published, "nothing was published"
        assert condition(self.last), self.last
        return self.last

    async def until_told(self, part: str) -> None:
        """Wait until a problem has `part` in it."""

        def told() -> bool:
            return any(part in problem for problem in self.watcher.problems())

        with trio.move_on_after(PATIENCE):
            while not told():
                await trio.sleep(0.01)
        assert told(), self.watcher.problems()


@asynccontextmanager
async def following(
    double: MeshDouble,
    *,
    partition: str = "",
    namespace: str = "",
    expose: bool = False,
    intervals: Mapping[str, float] = OFTEN,
    **options: bool,
) -> AsyncIterator[Following]:
    """Follow the double; `options` are the watcher's."""
    settings = {
        "CONSUL_HTTP_ADDR": f"127.0.0.1:{double.port}",
        "CONSUL_PARTITION": partition,
        "CONSUL_NAMESPACE": namespace,
    }
    with patch.dict(vars(peerings), intervals):
        async with ConsulClient(ConsulAddress.from_settings(settings)) as client, trio.open_nursery() as nursery:
            registry = WatchRegistry()
            published: list[Snapshot] = []
            watcher = CatalogWatcher(
                client,
                registry,
                published.append,
                Home("dc1", partition or "default", enterprise=double.enterprise, expose_servers=expose),
                **options,
            )
            nursery.start_soon(watcher.run)
            followed = Following(double, watcher, client, registry, published)
            await followed.until(lambda _: True)
            yield followed
            nursery.cancel_scope.cancel()
