"""What a shorter answer of Consul is worth: whether the token still sees.

Consul leaves out, with status 200, what a token may not see: a token that lost its rights reads an empty catalog. So
what vanished from an answer is only believed when, after that answer came, the token was seen to see:

1. It may read the service in question. Reading the discovery chain of that name answers 403 if and only if the token
   may not read the service, in every version and whether or not there is such a service.
2. It may read nodes: the gateway's own registration, one of Consul's own servers or, for a token that may read neither
   of these services, any node is visible to it.
3. Where Consul says so (header `X-Consul-Results-Filtered-By-ACLs`, 1.11 and later; never in an answer that comes from
   a stream of events): it does not leave out more than it did before. A token that never saw all of a service is served
   what it sees.

An answer that fails this is an error of its watch: what was known stays in use, the missing rule is reported, and the
watch asks again. And since the token may have been blind for that one answer, an empty one has to come twice, before
the proof and after it. All that is three short requests, so a legitimate removal is not held up. An answer that only
adds needs no proof, and neither does the first one, except an empty list of services. Instances of a service that are
still in an answer prove 1 and 2 themselves: they are shown to nobody who may not read the service, and a node.
"""

from collections.abc import Awaitable, Callable
from copy import copy

import trio

from .api import NOW, SEE_NODES, ConsulClient, Cursor, Instances, Page, PermissionDeniedError

SERVERS = "consul"


class AclVisibility:
    """Proves that the token sees. One for a gateway; `at` gives those of other places.

    `gateway_service` is the name under which the gateway is registered. In a `partition` other than the default one
    there may be no nodes.
    """

    def __init__(self, client: ConsulClient, gateway_service: str, *, partition: bool = False) -> None:
        self._client = self._home = client
        self._gateway_service = gateway_service
        self._partition = partition
        self._lock = trio.Lock()
        # By datacenter: when the last request that showed a node was begun.
        self._seen: dict[str, float] = {}

    def at(self, client: ConsulClient) -> "AclVisibility":
        """The same for what another client asks.

        Whether the token sees nodes is asked at home all the same: elsewhere there may be none to see, and every Consul
        that has other places says itself when it leaves out rows (see `VerifiedInstances`).
        """
        other = copy(self)
        other._client = client  # noqa: SLF001 - its own
        return other

    async def confirm(self, service: str, *, since: float, datacenter: str = "") -> None:
        """Prove that the token sees the instances of a service, for an answer that came at `since`.

        Raises:
            PermissionDeniedError: it does not see them.
            ConsulError: there is no telling now.
        """
        await self._client.confirm_readable(service, datacenter=datacenter)
        await self.confirm_nodes(since=since, datacenter=datacenter)

    async def confirm_nodes(self, *, since: float, datacenter: str = "") -> None:
        """Prove that the token sees nodes at all; errors as those of `confirm`. One proof serves all who wait."""
        async with self._lock:
            if self._seen.get(datacenter, -1.0) >= since:
                return
            now = trio.current_time()
            if not await self._sees_nodes(datacenter):
                raise PermissionDeniedError("no node is visible", SEE_NODES)
            self._seen[datacenter] = now

    async def _sees_nodes(self, datacenter: str) -> bool:
        for name in (SERVERS,) if datacenter else (self._gateway_service, SERVERS):
            if (await self._home.instances(name, datacenter=datacenter)).value:
                return True
        # Last, since of a large datacenter it is a large answer.
        nodes = await self._home.visible_nodes(datacenter)
        # A partition may have none; every version that has partitions says when it leaves out rows.
        return nodes.value > 0 or (self._partition and not datacenter and not nodes.filtered)


class VerifiedInstances:
    """The instances behind one health query, as far as they can be believed.

    `value` is what is in use, `known` says whether an answer was accepted yet, and `service` is the name to ask for.
    """

    __slots__ = ("_datacenter", "_filtered", "_visibility", "known", "service", "value")

    def __init__(self, visibility: AclVisibility, service: str, *, datacenter: str = "", start: Instances = ()) -> None:
        self.value = start
        self.known = False
        self.service = service
        self._visibility = visibility
        self._datacenter = datacenter
        self._filtered = False

    async def accept(
        self,
        page: Page[Instances],
        cursor: Cursor = NOW,
        *,
        again: Callable[[], Awaitable[Page[Instances]]] | None = None,
    ) -> None:
        """Take over the answer to a query that was held by `cursor`; errors as those of `AclVisibility.confirm`.

        `again` asks once more; to be left out only where an answer is never empty, or nothing was known before.
        """
        since = trio.current_time()
        self._refuse_filtered(page)
        if self.value and not page.value:
            await self._visibility.confirm(self.service, since=since, datacenter=self._datacenter)
            if again:
                # The token may have been blind for a moment: what is gone is missing again, now that it sees.
                page = await again()
                self._refuse_filtered(page)
        # What was held may have come from a stream, which never says that it was filtered.
        self._filtered = page.filtered or (self._filtered and cursor.blocks)
        if page.value != self.value:
            # What is equal stays the same object, so that nothing is planned again for it.
            self.value = page.value
        self.known = True

    def _refuse_filtered(self, page: Page[Instances]) -> None:
        if page.filtered and not self._filtered and vanished(self.value, page.value):
            raise PermissionDeniedError(f"Consul now leaves out instances of {self.service}", SEE_NODES)


def vanished(before: Instances, after: Instances) -> Instances:
    present = {(instance.node, instance.id) for instance in after}
    return tuple(instance for instance in before if (instance.node, instance.id) not in present)
