"""Consul's own servers of the gateway's datacenter, which a gateway for WAN federation offers to other datacenters.

They are in the catalog as the service `consul`, one instance a server. A datacenter without servers answers nothing,
so an empty list always means that the token may not see them, and is an error of the watch. As with all that a gateway
follows, a shorter answer counts once the token is seen to see.
"""

from typing import Final

from .acl_visibility import SERVERS, VerifiedInstances
from .api import ConsulClient, Cursor, Instances, Page, PermissionDeniedError, Rule
from .scope import Scope
from .watch_registry import WatchKey, ignore

LOCAL_SERVERS: Final = WatchKey("servers", "local servers")


class LocalServers:
    """Follows the servers, where `scope` is."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._held = VerifiedInstances(scope.visibility, SERVERS)

    async def run(self) -> None:
        """Follow until cancelled."""
        await self._scope.watch(LOCAL_SERVERS, self._ask, ignore, dedicated=True)

    def instances(self) -> Instances:
        """One instance a server, in a stable order; their checks are as Consul has them."""
        return tuple(sorted(self._held.value, key=lambda server: (server.node, server.id)))

    async def _ask(self, reader: ConsulClient, cursor: Cursor) -> Page[Instances]:
        page = await reader.instances(SERVERS, cursor)
        if not page.value:
            raise PermissionDeniedError("Consul shows none of its own servers", Rule("service", SERVERS))
        await self._held.accept(page, cursor)
        return page
