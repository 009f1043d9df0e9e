"""Consul's own servers of the gateway's datacenter, which a gateway for WAN federation offers to other datacenters.

They are in the catalog as the service `consul`, one instance a server. A datacenter without servers answers nothing,
so an empty list always means that the token may not see them, and is an error of the watch. As with all that a gateway
follows, a shorter answer counts once the token is seen to see.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

from .acl_visibility import SERVERS, AclVisibility, VerifiedInstances
from .api import ConsulClient, Cursor, Instances, Page, PermissionDeniedError, Rule
from .blocking_query_pool import BlockingQueryPool
from .initial_sync import InitialSync
from .watch import Watch
from .watch_registry import WatchRegistry

LOCAL_SERVERS: Final = "local servers"


class LocalServers:
    """Follows the servers.

    Args:
        pool: gives the connection of the watch.
        registry: shared by all watches.
        visibility: decides whether a shorter answer is believed.
        sync: told when the servers are known, or cannot be.
        changed: called whenever `instances()` may have changed.
    """

    def __init__(
        self,
        pool: BlockingQueryPool,
        registry: WatchRegistry,
        visibility: AclVisibility,
        *,
        sync: InitialSync,
        changed: Callable[[], None],
    ) -> None:
        self._pool = pool
        self._registry = registry
        self._sync = sync
        self._changed = changed
        self._held = VerifiedInstances(visibility, SERVERS)
        sync.add(LOCAL_SERVERS)

    async def run(self) -> None:
        """Follow until cancelled."""
        async with self._pool.dedicated() as reader:
            await Watch(
                self._registry,
                "servers",
                LOCAL_SERVERS,
                partial(self._ask, reader),
                self._answered,
                on_error=lambda _: self._sync.mark(LOCAL_SERVERS),
            ).run()

    def instances(self) -> Instances:
        """One instance a server, in a stable order; their checks are as Consul has them."""
        return tuple(sorted(self._held.value, key=lambda server: (server.node, server.id)))

    async def _ask(self, reader: ConsulClient, cursor: Cursor) -> Page[Instances]:
        page = await reader.instances(SERVERS, cursor)
        if not page.value:
            raise PermissionDeniedError("Consul shows none of its own servers", Rule("service", SERVERS))
        await self._held.accept(page)
        return page

    def _answered(self, _: Instances) -> None:
        self._sync.mark(LOCAL_SERVERS)
        self._changed()
