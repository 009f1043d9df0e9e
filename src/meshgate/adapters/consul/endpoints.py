"""Consul's HTTP API as far as a gateway needs it: one method per endpoint, typed answers.

Where python-consul2 has an endpoint right, its method is used; the rest goes through its HTTP client with a callback
of ours. Each failure is counted by its status.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Generic, TypeVar

from meshgate.core.durations import format_duration
from meshgate.core.gateway_options import NO_LIMITS, DestinationLimits

from . import agent_wire, registration_wire, wire
from .checks import NodeCheck, decode_node_checks
from .errors import ConsulError, InvalidAnswerError, NotFoundError, NotReadyError, PermissionDeniedError, Rule
from .maintenance import checks_filter
from .records import GATEWAY_KIND, AgentCheck, AgentFacts, CaRoots, Cursor, Instances, OwnRegistration, Page, Resolver
from .summaries import decode_summaries
from .transport import HttpClient, MeshConsul, Reply, accepted, decoded, segment

T = TypeVar("T")

SEE_SERVICES = Rule("service", prefix=True)
SEE_AGENT = Rule("agent", prefix=True)


class Endpoints:
    """A `Reader` over HTTP. Each request raises a `ConsulError` where it fails.

    A query with a cursor that blocks holds its connection up to `wait` and a sixteenth of it. Cancelling a request
    closes its connection.
    """

    def __init__(self, http: HttpClient, errors: Counter[str]) -> None:
        self._http = http
        self._consul = MeshConsul(http)
        self.errors = errors
        self._names = Remembered(wire.decode_service_names)

    async def ca_roots(self, cursor: Cursor) -> Page[CaRoots]:
        """`/v1/connect/ca/roots`. A secondary datacenter has no trust domain at first: NotReadyError."""
        with self._counted():
            page = _page(await self._http.get(decoded(wire.decode_ca_roots), "/v1/connect/ca/roots", _held(cursor)))
            if not page.value.trust_domain:
                raise NotReadyError("Consul Connect has no trust domain yet", "not_ready")
            return page

    async def service_names(self, cursor: Cursor) -> Page[tuple[str, ...]]:
        """`/v1/catalog/services`. A token without rights gets an empty list, not an error."""
        with self._counted(SEE_SERVICES):
            # Not by python-consul2's method: it decodes the tags of all services, each time one of them changes.
            return _page(await self._http.get(decoded(self._names), "/v1/catalog/services", _held(cursor)))

    async def connect_instances(self, service: str, cursor: Cursor, *, subset_filter: str = "") -> Page[Instances]:
        """`/v1/health/connect/:service`: sidecars, native instances and terminating gateways for a service.

        Newer versions answer 403 where the token may not read the service. 1.8 answers an empty list that it never
        looked up, with index 1 and without a known leader, and does so at once: that counts as a refusal too.
        """
        with self._counted(Rule("service", service)):
            path = f"/v1/health/connect/{segment(service)}"
            reply = await self._http.get(decoded(wire.decode_instances), path, _held(cursor, filter=subset_filter))
            if not reply.value and not reply.known_leader and (reply.index or 0) <= 1:
                raise PermissionDeniedError("Consul answered an empty list without a look")
            return _page(reply)

    async def instances(self, service: str, cursor: Cursor, *, datacenter: str = "", kind: str = "") -> Page[Instances]:
        """`/v1/health/service/:service`, optionally of another datacenter and of one kind only."""
        with self._counted(Rule("service", service)):
            chosen = f'Service.Kind == "{kind}"' if kind else ""
            params = _held(cursor, dc=datacenter, filter=chosen)
            reply = await self._http.get(
                decoded(wire.decode_instances), f"/v1/health/service/{segment(service)}", params
            )
            rows = tuple(instance for instance in reply.value if not kind or instance.kind == kind)
            return _page(replace(reply, value=rows))

    async def node_checks(self, node: str, *, datacenter: str = "") -> tuple[NodeCheck, ...]:
        """`/v1/health/node/:node`: the checks of a node with what they last said."""
        with self._counted(Rule("node", node)):
            params = _held(Cursor(), dc=datacenter)
            return (await self._http.get(decoded(decode_node_checks), f"/v1/health/node/{segment(node)}", params)).value

    async def summaries(self, cursor: Cursor) -> Page[Mapping[str, int]]:
        """`/v1/internal/ui/services` (undocumented, there since 1.6), as far as it tells of changes."""
        with self._counted(SEE_SERVICES):
            path = "/v1/internal/ui/services"
            return _page(await self._http.get(decoded(decode_summaries), path, _held(cursor)))

    async def resolvers(self, cursor: Cursor) -> Page[tuple[Resolver, ...]]:
        """`/v1/config/service-resolver`; entries of services that the token may not read are left out silently."""
        with self._counted(SEE_SERVICES):
            path = "/v1/config/service-resolver"
            return _page(await self._http.get(decoded(wire.decode_resolvers), path, _held(cursor)))

    async def resolver_exists(self, service: str, *, datacenter: str = "") -> bool:
        """`/v1/config/service-resolver/:service`: of all versions the one read that tells "none" from "may not"."""
        with self._counted(Rule("service", service)), suppress(NotFoundError):
            await self._consul.config.get("service-resolver", segment(service), datacenter or None)
            return True
        return False

    async def datacenters(self) -> Page[tuple[str, ...]]:
        """`/v1/catalog/datacenters`: what the WAN gossip knows. It cannot be held."""
        with self._counted():
            reply = await self._consul.catalog.datacenters()
            return Page(wire.datacenters(reply.value))

    async def federated_gateways(self, cursor: Cursor) -> Page[Mapping[str, Instances]]:
        """`/v1/internal/federation-states/mesh-gateways`: gateways by datacenter, the local one included."""
        with self._counted(SEE_SERVICES):
            path = "/v1/internal/federation-states/mesh-gateways"
            return _page(await self._http.get(decoded(wire.decode_federated_gateways), path, _held(cursor)))

    async def gateway_names(self, datacenter: str) -> Page[tuple[str, ...]]:
        """Service names of kind mesh-gateway, from `/v1/internal/ui/services` (undocumented, there since 1.6)."""
        with self._counted(SEE_SERVICES):
            chosen = f'Service.Kind == "{GATEWAY_KIND}"'
            params = _held(Cursor(), dc=datacenter, filter=chosen)
            reply = await self._http.get(decoded(wire.decode_gateway_names), "/v1/internal/ui/services", params)
            return Page(reply.value, filtered=reply.filtered)

    async def agent_facts(self) -> AgentFacts:
        """`/v1/agent/self`; where the token may not read that, the datacenter of Consul's own servers."""
        try:
            with self._counted(SEE_AGENT):
                reply = await self._consul.agent.self()
                return agent_wire.agent_facts(reply.value)
        except PermissionDeniedError as error:
            with suppress(ConsulError):
                for server in (await self.instances("consul", Cursor())).value:
                    return AgentFacts(datacenter=server.datacenter, limited=str(error))
            raise

    async def agent_service(self, service_id: str, cursor: Cursor) -> Page[OwnRegistration]:
        """`/v1/agent/service/:id`; held by its content hash instead of an index."""
        with self._counted(Rule("service", service_id)):
            path = f"/v1/agent/service/{segment(service_id)}"
            reply = await self._http.get(decoded(registration_wire.decode_own_registration), path, _held(cursor))
            return Page(reply.value, content_hash=reply.content_hash)

    async def destination_limits(self, service: str) -> DestinationLimits:
        """`/v1/config/service-defaults/:service`: what each destination of a gateway may have."""
        with self._counted(Rule("service", service)), suppress(NotFoundError):
            path = f"/v1/config/service-defaults/{service}"
            return (await self._http.get(decoded(registration_wire.decode_destination_limits), path)).value
        return NO_LIMITS

    async def agent_checks(self, service_id: str) -> tuple[AgentCheck, ...]:
        """`/v1/agent/checks`, those of other services left out as far as the agent can."""
        with self._counted(Rule("service", service_id)):
            params = _held(Cursor(), filter=checks_filter(service_id))
            return (
                await self._http.get(decoded(registration_wire.decode_agent_checks), "/v1/agent/checks", params)
            ).value

    async def register(self, payload: Mapping[str, Any]) -> None:
        """`PUT /v1/agent/service/register`. A registration of the same ID is replaced; its checks of other IDs stay."""
        with self._counted(Rule("service", str(payload["Name"]), "write")):
            await self._http.put(
                accepted(),
                "/v1/agent/service/register",
                data=json.dumps(payload),
            )

    async def deregister_check(self, check_id: str) -> None:
        """`PUT /v1/agent/check/deregister/:id`."""
        with self._counted():
            await self._http.put(accepted(), f"/v1/agent/check/deregister/{segment(check_id)}")

    async def deregister(self, service_id: str) -> None:
        """`PUT /v1/agent/service/deregister/:id`."""
        with self._counted(Rule("service", service_id, "write")):
            await self._consul.agent.service.deregister(segment(service_id))

    @contextmanager
    def _counted(self, needs: Rule | None = None) -> Iterator[None]:
        """Count a failure. `needs` is the rule to name where Consul refuses without naming one."""
        try:
            yield
        except PermissionDeniedError as error:
            self.errors[error.status] += 1
            raise error.for_want_of(needs) from None
        except ConsulError as error:
            self.errors[error.status] += 1
            raise


class Remembered(Generic[T]):
    """A decoder that knows the last answer, since an index may move without a change of what is asked for."""

    def __init__(self, decode: Callable[[bytes], T]) -> None:
        self._decode = decode
        self._last: tuple[bytes, T] | None = None

    def __call__(self, content: bytes) -> T:
        """What the content means; the same object for the same content."""
        if self._last is None or self._last[0] != content:
            self._last = content, self._decode(content)
        return self._last[1]


def _held(cursor: Cursor, **params: str) -> list[tuple[str, str]]:
    """Query parameters that are not empty, and those of a cursor that blocks."""
    query = [(name, value) for name, value in params.items() if value]
    if cursor.index:
        query.append(("index", str(cursor.index)))
    if cursor.content_hash:
        query.append(("hash", cursor.content_hash))
    if cursor.blocks:
        query.append(("wait", format_duration(cursor.wait)))
    return query


def _page(reply: Reply[T]) -> Page[T]:
    if reply.index is None:
        raise InvalidAnswerError("Consul's answer has no index", "invalid")
    return Page(reply.value, index=reply.index, filtered=reply.filtered)
