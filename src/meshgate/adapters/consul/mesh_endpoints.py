"""The endpoints of Consul's API for what lies beyond one namespace, partition and cluster: Enterprise and peering.

None of the parameters `ns` and `partition` is ever sent unless a setting or an answer of Enterprise asks for it: the
community edition refuses them, the default ones too.
"""

from collections.abc import Callable
from typing import Final, TypeVar

from meshgate.core.catalog import SamenessGroup

from . import mesh_wire as wire
from .endpoints import Endpoints, _held, _page
from .errors import BadRequestError, NotFoundError, Rule, ServerError, UnexpectedStatusError
from .mesh_records import Chain, Exported, Peering, Tenant
from .records import Cursor, Page
from .transport import HttpClient, decoded, segment

T = TypeVar("T")

SEE_PEERINGS: Final = Rule("peering")
SEE_MESH: Final = Rule("mesh")
SEE_NODES: Final = Rule("node", prefix=True)
SEE_PARTITIONS: Final = Rule("operator")
# Consul with `peering { enabled = false }`.
_SWITCHED_OFF: Final = "peering must be enabled"
# Consul before 1.16, of sameness groups; with status 500.
_UNKNOWN_KIND: Final = "invalid config entry kind"


class MeshEndpoints(Endpoints):
    """A `MeshReader` over HTTP."""

    def within(self, tenant: Tenant) -> "MeshEndpoints":
        """The same connections, for requests elsewhere."""
        return MeshEndpoints(self.http_at(tenant), self.errors)

    def http_at(self, tenant: Tenant) -> HttpClient:
        """The HTTP client for requests elsewhere."""
        return self._http.within(ns=tenant.namespace, partition=tenant.partition, peer=tenant.peer)

    async def namespaces(self, cursor: Cursor) -> Page[tuple[str, ...]]:
        """`/v1/namespaces` (Enterprise); those in which the token has any right."""
        with self._counted():
            return _page(await self._http.get(decoded(wire.decode_namespaces), "/v1/namespaces", _held(cursor)))

    async def nodes_visible(self) -> bool:
        """`/v1/catalog/nodes`; every version that has partitions says when it leaves out rows."""
        with self._counted(SEE_NODES):
            reply = await self._http.get(decoded(wire.decode_nodes), "/v1/catalog/nodes")
            return reply.value > 0 or not reply.filtered

    async def partitions(self) -> Page[tuple[str, ...]]:
        """`/v1/partitions` (Enterprise 1.11 and later); it cannot be held."""
        with self._counted(SEE_PARTITIONS):
            return Page((await self._http.get(decoded(wire.decode_partitions), "/v1/partitions")).value)

    async def peerings(self) -> Page[tuple[Peering, ...] | None]:
        """`/v1/peerings` (1.13 and later). What a peering imports moves no index, so it is not worth holding."""
        with self._counted(SEE_PEERINGS):
            try:
                return Page((await self._http.get(decoded(wire.decode_peerings), "/v1/peerings")).value)
            except NotFoundError:
                return Page(None)
            except (ServerError, UnexpectedStatusError) as error:
                if _SWITCHED_OFF in str(error):
                    return Page(None)
                raise

    async def peer_through(self, cursor: Cursor) -> Page[bool]:
        """`/v1/config/mesh/mesh`; it takes no right to read."""
        with self._counted():
            return await self._entry(wire.decode_peer_through, "/v1/config/mesh/mesh", cursor, missing=False)

    async def exported_services(self, cursor: Cursor) -> Page[tuple[Exported, ...]]:
        """`/v1/exported-services` (1.17.3 and later), with wildcards and sameness groups resolved."""
        with self._counted(SEE_MESH):
            path = "/v1/exported-services"
            return _page(await self._http.get(decoded(wire.decode_exported_services), path, _held(cursor)))

    async def exported_entry(self, cursor: Cursor, partition: str) -> Page[tuple[Exported, ...]]:
        """`/v1/config/exported-services/:partition`, as it was written."""
        with self._counted(SEE_MESH):
            path = f"/v1/config/exported-services/{segment(partition)}"
            return await self._entry(wire.decode_exported_entry, path, cursor, missing=())

    async def sameness_group(self, name: str, cursor: Cursor) -> Page[SamenessGroup]:
        """`/v1/config/sameness-group/:name` (Enterprise 1.16 and later). The community edition never has one."""
        with self._counted(SEE_MESH):
            path = f"/v1/config/sameness-group/{segment(name)}"
            try:
                return await self._entry(wire.decode_sameness_group, path, cursor, missing=SamenessGroup(name))
            except ServerError as error:
                if _UNKNOWN_KIND in str(error):
                    raise BadRequestError("this version of Consul knows no sameness groups", "400") from error
                raise

    async def discovery_chain(self, service: str, cursor: Cursor) -> Page[Chain]:
        """`/v1/discovery-chain/:service`, as evaluated in this datacenter."""
        with self._counted(Rule("service", service)):
            path = f"/v1/discovery-chain/{segment(service)}"
            return _page(await self._http.get(decoded(wire.decode_chain), path, _held(cursor)))

    async def _entry(self, decode: Callable[[bytes], T], path: str, cursor: Cursor, *, missing: T) -> Page[T]:
        """A config entry that need not exist: its absence has an index too, and can be held."""
        try:
            return _page(await self._http.get(decoded(decode), path, _held(cursor)))
        except NotFoundError as error:
            if error.index is None:
                raise
            return Page(missing, index=error.index)
