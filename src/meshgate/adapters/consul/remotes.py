"""The other datacenters of the federation and their mesh gateways.

Two views, as in Consul's own gateway. Direct: the WAN's datacenters are polled, and each one's gateways are watched in
its own catalog (Consul forwards the query). Federation states: one watch in the local datacenter for the gateways of
all. As long as a datacenter answers for itself its answer counts: federation states may hold a gateway for long after
it has deregistered (seen with Consul 1.8). Where it does not, the view with the newest registration counts
(`newer_gateways`). The datacenters known are those of both views.

A datacenter that cannot be reached, or refuses the token, keeps its last known gateways and disturbs no other. One
that left the WAN is given up by the direct view after `GONE_AFTER` seconds, since a restarted server lists fewer
datacenters until gossip has told it; the federation states go on counting as long as they name it.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import trio

from meshgate.core.catalog import RemoteDatacenter, newer_gateways

from .acl_visibility import AclVisibility, vanished
from .api import GATEWAY_KIND, ConsulClient, Cursor, Instances, Page, PermissionDeniedError
from .blocking_query_pool import BlockingQueryPool
from .gateways import POLL, Gateways
from .initial_sync import InitialSync, KeyedTasks
from .watch import Watch
from .watch_registry import WatchRegistry

DATACENTERS: Final = "datacenters"
FEDERATION: Final = "federation states"
# Seconds that a datacenter must be missing from the WAN: at least two polls.
GONE_AFTER: Final = 60.0


class RemoteGateways:
    """Follows the remote datacenters.

    Args:
        client: for short requests.
        registry: shared by all watches.
        pool: connections for the federation states, and for the watches of single gateway services.
        visibility: decides whether a shorter answer is believed.
        datacenter: the gateway's own, which is none of the remote ones.
        gateway_service: the gateway's own name: others are probably called the same.
        sync: told of each source that is to be waited for at the start.
        changed: called whenever `remotes()` may have changed.
    """

    def __init__(
        self,
        client: ConsulClient,
        registry: WatchRegistry,
        pool: BlockingQueryPool,
        visibility: AclVisibility,
        *,
        datacenter: str,
        gateway_service: str,
        sync: InitialSync,
        changed: Callable[[], None],
    ) -> None:
        self._client = client
        self._registry = registry
        self._pool = pool
        self._visibility = visibility
        self._datacenter = datacenter
        self._gateway_service = gateway_service
        self._sync = sync
        self._changed = changed
        self._direct: dict[str, Gateways] = {}
        self._absent: dict[str, float] = {}
        self._federated: Mapping[str, Instances] = {}
        self._hidden: dict[str, str] = {}
        self._tasks: KeyedTasks[str]
        sync.add(DATACENTERS)
        sync.add(FEDERATION)

    async def run(self) -> None:
        """Follow until cancelled."""
        async with self._pool.dedicated() as reader, trio.open_nursery() as nursery:
            self._tasks = KeyedTasks(nursery)
            federation = Watch(
                self._registry,
                "federation-states",
                FEDERATION,
                partial(self._ask_federation, reader),
                self._federation_changed,
                on_error=lambda _: self._sync.mark(FEDERATION),
                minds_token=True,
            )
            nursery.start_soon(federation.run)
            await Watch(
                self._registry,
                "datacenters",
                DATACENTERS,
                self._ask_datacenters,
                self._datacenters_changed,
                on_error=lambda _: self._sync.mark(DATACENTERS),
                interval=POLL,
            ).run()

    def remotes(self) -> tuple[RemoteDatacenter, ...]:
        """Every datacenter that either view knows, with the gateways that count."""
        return tuple(
            RemoteDatacenter(name, newer_gateways(self._seen_directly(name), self._seen_by_others(name)))
            for name in sorted(self._direct.keys() | self._federated.keys())
        )

    def problems(self) -> list[str]:
        """What the token is known not to see."""
        return list(self._hidden.values())

    def _seen_directly(self, name: str) -> Instances:
        return self._direct[name].instances() if name in self._direct else ()

    def _seen_by_others(self, name: str) -> Instances:
        """What the federation states hold of a datacenter that it does not say itself."""
        gateways = self._federated.get(name, ())
        direct = self._direct.get(name)
        if direct is None:
            return gateways
        return tuple(gateway for gateway in gateways if not direct.speaks_for(gateway.service))

    async def _ask_datacenters(self, _: Cursor) -> Page[tuple[str, ...]]:
        listed = set((await self._client.datacenters()).value) - {self._datacenter}
        now = trio.current_time()
        missing = self._direct.keys() - listed
        self._absent = {name: self._absent.get(name, now) for name in missing}
        kept = {name for name in missing if now - self._absent[name] < GONE_AFTER}
        return Page(tuple(sorted(listed | kept)))

    def _datacenters_changed(self, names: tuple[str, ...]) -> None:
        for name in self._direct.keys() - set(names):
            del self._direct[name]
            self._sync.mark(_source(name))
        for name in set(names) - self._direct.keys():
            self._sync.add(_source(name))
            self._direct[name] = Gateways(
                self._registry,
                self._pool,
                self._visibility,
                self._client,
                datacenter=name,
                place=name,
                guesses=frozenset((self._gateway_service, GATEWAY_KIND)),
                tried=partial(self._sync.mark, _source(name)),
                changed=self._changed,
            )
            self._direct[name].federated(self._federated.get(name, ()))
        self._tasks.keep(names, self._follow)
        self._sync.mark(DATACENTERS)
        self._changed()

    async def _follow(self, name: str) -> None:
        await self._direct[name].run()

    async def _ask_federation(self, reader: ConsulClient, cursor: Cursor) -> Page[Mapping[str, Instances]]:
        page = await reader.federated_gateways(cursor)
        since = trio.current_time()
        federated = {name: rows for name, rows in page.value.items() if rows and name != self._datacenter}
        hidden: dict[str, str] = {}
        for name, known in self._federated.items():
            try:
                for service in {gateway.service for gateway in vanished(known, federated.get(name, ()))}:
                    await self._visibility.confirm(service, since=since)
            except PermissionDeniedError as error:
                federated[name], hidden[name] = known, str(error)
        self._hidden = hidden
        return Page(federated, index=page.index)

    def _federation_changed(self, federated: Mapping[str, Instances]) -> None:
        self._federated = federated
        for name, gateways in self._direct.items():
            gateways.federated(federated.get(name, ()))
        self._sync.mark(FEDERATION)
        self._changed()


def _source(name: str) -> str:
    return f"gateways of {name}"
