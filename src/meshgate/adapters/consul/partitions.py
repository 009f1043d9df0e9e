"""The other admin partitions of the gateway's datacenter and their mesh gateways (Enterprise).

The list of partitions cannot be held, so it is polled; it takes `operator:read`. Without that right the default
partition, which always exists, is followed all the same. A partition that is gone from the list is given up at once:
Consul refuses the list to a token without the right instead of shortening it.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from meshgate.core.catalog import RemotePartition
from meshgate.core.sni import DEFAULT

from .acl_visibility import AclVisibility
from .api import GATEWAY_KIND, ConsulClient, Cursor, NotFoundError, Page, Tenant
from .blocking_query_pool import BlockingQueryPool
from .gateways import POLL, Gateways
from .initial_sync import InitialSync, KeyedTasks
from .tenancy import pool_at, visibility_at
from .watch import Watch
from .watch_registry import WatchRegistry

PARTITIONS: Final = "partitions"


class Partitions:
    """Follows the partitions.

    Args:
        client: for short requests.
        registry: shared by all watches.
        pool: connections for the watches of single gateway services.
        visibility: decides whether a shorter answer is believed.
        partition: the gateway's own, which is none of the others.
        gateway_service: the gateway's own name: others are probably called the same.
        sync: told of each source that is to be waited for at the start.
        changed: called whenever `partitions()` may have changed.
    """

    def __init__(
        self,
        client: ConsulClient,
        registry: WatchRegistry,
        pool: BlockingQueryPool,
        visibility: AclVisibility,
        *,
        partition: str,
        gateway_service: str,
        sync: InitialSync,
        changed: Callable[[], None],
    ) -> None:
        self._client = client
        self._registry = registry
        self._pool = pool
        self._visibility = visibility
        self._partition = partition
        self._guesses = frozenset((gateway_service, GATEWAY_KIND))
        self._sync = sync
        self._changed = changed
        self._gateways: dict[str, Gateways] = {}
        self._tasks: KeyedTasks[str]
        sync.add(PARTITIONS)

    async def run(self) -> None:
        """Follow until cancelled."""
        async with trio.open_nursery() as nursery:
            self._tasks = KeyedTasks(nursery)
            await Watch(
                self._registry, "partitions", PARTITIONS, self._ask, self._listed, on_error=self._failed, interval=POLL
            ).run()

    def partitions(self) -> tuple[RemotePartition, ...]:
        """Every other partition with its gateways."""
        return tuple(RemotePartition(name, self._gateways[name].instances()) for name in sorted(self._gateways))

    async def _ask(self, _: Cursor) -> Page[tuple[str, ...]]:
        try:
            return await self._client.partitions()
        except NotFoundError:
            return Page(())  # Enterprise before 1.11 has no partitions, and no default one to go to

    def _failed(self, _: object) -> None:
        if not self._gateways:
            self._listed((DEFAULT,))
        self._sync.mark(PARTITIONS)

    def _listed(self, names: tuple[str, ...]) -> None:
        wanted = set(names) - {self._partition}
        for name in self._gateways.keys() - wanted:
            del self._gateways[name]
            self._sync.mark(_source(name))
        for name in wanted - self._gateways.keys():
            self._sync.add(_source(name))
            self._gateways[name] = self._follower(name)
        self._tasks.keep(wanted, self._follow)
        self._sync.mark(PARTITIONS)
        self._changed()

    def _follower(self, name: str) -> Gateways:
        tenant = Tenant(namespace=DEFAULT, partition=name)
        client = self._client.at(tenant)
        return Gateways(
            self._registry,
            pool_at(self._pool, tenant),
            visibility_at(self._visibility, client),
            client,
            datacenter="",
            place=place_of(name),
            guesses=self._guesses,
            tried=partial(self._sync.mark, _source(name)),
            changed=self._changed,
        )

    async def _follow(self, name: str) -> None:
        await self._gateways[name].run()


def place_of(partition: str) -> str:
    """How the accounts of the watches name a partition."""
    return f"partition {partition}"


def _source(name: str) -> str:
    return f"gateways of {place_of(name)}"
