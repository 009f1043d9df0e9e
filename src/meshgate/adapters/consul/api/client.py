"""One client for Consul's HTTP API, as far as a gateway and its diagnostics need it: a method for each question.

`endpoints` knows the requests, `transport` sends them, `records` has the answers. Each request raises a `ConsulError`
where it fails, is counted by its status then, and leaves nothing behind when it is cancelled.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from copy import copy
from dataclasses import replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, Final, Self, TypeVar

import structlog
import trio

from meshgate.core.catalog import Export, SamenessGroup
from meshgate.core.durations import format_duration
from meshgate.core.proxy_config import NO_LIMITS, DestinationLimits
from meshgate.core.sni import DEFAULT

from . import records
from .address import ConsulAddress
from .consul_errors import (
    BadRequestError,
    ConsulError,
    EndpointBlockedError,
    InvalidAnswerError,
    LoginError,
    NotFoundError,
    NotReadyError,
    PermissionDeniedError,
    Rule,
    ServerError,
    UnexpectedStatusError,
)
from .credentials import Login, LoginToken, TlsContext, TokenSource
from .endpoints import CONSUL, Request, segment
from .records import (
    GATEWAY_KIND,
    NOW,
    AgentFacts,
    CaRoots,
    Chain,
    Cursor,
    HealthCheck,
    Instances,
    Intention,
    LeafCertificate,
    OwnInstance,
    OwnRegistration,
    Page,
    Peering,
    Replication,
    Resolver,
    ServiceDefaults,
    Sidecar,
    Tenant,
)
from .transport import Answer, Transport

log = structlog.get_logger(module="meshgate.consul")

T = TypeVar("T")

SEE_SERVICES: Final = Rule("service", prefix=True)
SEE_NODES: Final = Rule("node", prefix=True)
SEE_AGENT: Final = Rule("agent", prefix=True)
SEE_PEERINGS: Final = Rule("peering")
SEE_MESH: Final = Rule("mesh")
SEE_PARTITIONS: Final = Rule("operator")
# Seconds that the logout at the end may take.
LOGOUT_TIMEOUT: Final = 5.0
# Connections that short requests share.
SHORT_CONNECTIONS: Final = 4
# Consul with `peering { enabled = false }`.
_SWITCHED_OFF: Final = "peering must be enabled"
# Consul that is older than a kind of config entry; with status 500.
_UNKNOWN_KIND: Final = "invalid config entry kind"


class ConsulClient:
    """A client for short requests, which makes clients with a connection of their own for those that are held.

    Use it as an asynchronous context manager. A query with a cursor that blocks holds its connection up to `wait` and a
    sixteenth of it; cancelling a request closes its connection. `datacenter` asks another datacenter through the local
    agent; "" is the agent's own. `errors` counts failed requests by status, those of all clients made from this one
    included; `token` is where the credentials come from. With `login`, a token is obtained from an auth method before
    the first request, again when Consul no longer knows it, and given back at the end.

    Raises:
        ConsulConfigError: the token file or a TLS file cannot be read.
    """

    def __init__(self, address: ConsulAddress, *, login: Login | None = None) -> None:
        self.address = address
        self._login = LoginToken(login, address.http_auth) if login else None
        self.token = self._login or TokenSource(address.token, address.token_file, address.http_auth)
        self.errors: Counter[str] = Counter()
        # What the token was seen to be allowed, and in which partition; shared by all clients made from this one.
        self._granted: set[tuple[Rule, str]] = set()
        self._tls = TlsContext(address)
        self._transport = self._connections(SHORT_CONNECTIONS)
        self._place: Mapping[str, str] = {"ns": address.namespace, "partition": address.partition}
        # The index moves with every registration, the names hardly ever.
        self._names = lru_cache(maxsize=1)(records.decode_service_names)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address.url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._log_out()
        await self._transport.aclose()

    @property
    def logs_out(self) -> bool:
        """Whether the token ends with this client."""
        return self._login is not None

    def login(self) -> tuple[str, float] | None:
        """The token of a login, and how many seconds old it is, for the program that goes on with this process."""
        return (self._login.secret(), self._login.age) if self._login is not None and self._login.given else None

    def adopt_login(self, token: str, age: float) -> None:
        """Go on with the login of another program, where this client is one that logs in."""
        if self._login is not None:
            self._login.adopt(token, age)

    def refresh(self) -> None:
        """Read the files of token and TLS now, where they have changed; the next request would do so anyway."""
        self.token.refresh()
        self._tls.refresh()

    def problems(self) -> list[str]:
        """What keeps requests from being made as they should be, a line each."""
        return list(filter(None, [self.token.problem, self._tls.problem]))

    def at(self, tenant: Tenant) -> Self:
        """The same client, for requests elsewhere. It lives as long as this one does."""
        there = {"ns": tenant.namespace, "partition": tenant.partition, "peer": tenant.peer}
        return self._view(_place={**self._place, **{name: value for name, value in there.items() if value}})

    @asynccontextmanager
    async def dedicated(self) -> AsyncIterator[Self]:
        """The same client on a connection of its own, which is closed at the end of the block."""
        transport = self._connections(1)
        try:
            yield self._view(_transport=transport)
        finally:
            await transport.aclose()

    def _view(self, **differing: object) -> Self:
        view = copy(self)
        vars(view).update(differing, _names=lru_cache(maxsize=1)(records.decode_service_names))
        return view

    def _connections(self, number: int) -> Transport:
        return Transport(self.address, self.token, self._tls, connections=number)

    # --- the catalog and the health of its services -------------------------------------------------------------------

    async def service_names(self, cursor: Cursor = NOW) -> Page[tuple[str, ...]]:
        """All that the token may read, as they are spelled, sorted. A token without rights gets none, and no error."""
        return await self._page(CONSUL.catalog.services(), self._names, SEE_SERVICES, cursor)

    async def connect_instances(
        self, service: str, cursor: Cursor = NOW, *, datacenter: str = "", subset_filter: str = ""
    ) -> Page[Instances]:
        """What answers for a service in the mesh: sidecars, native instances and terminating gateways.

        Newer versions answer 403 where the token may not read the service. 1.8 answers an empty list that it never
        looked up, with index 1 and without a known leader, and does so at once: that counts as a refusal too.

        Raises:
            BadRequestError: the filter does not compile.
        """
        request = CONSUL.health.connect(segment(service), datacenter)
        needs = Rule("service", service)
        with self._counting(needs):
            page = await self._ask(request, records.decode_instances, cursor, filter=subset_filter)
            if not page.value and not page.looked_up:
                raise PermissionDeniedError("Consul answered an empty list without a look")
            return _indexed(page)

    async def instances(
        self, service: str, cursor: Cursor = NOW, *, datacenter: str = "", kind: str = ""
    ) -> Page[Instances]:
        """The instances that have this very name, of one kind only where `kind` is given."""
        # Sorted by distance, Consul (1.10 and later) does not answer from a stream of events. Where such a stream to
        # another datacenter cannot be made, it would neither answer nor fail.
        request = CONSUL.health.service(segment(service), dc=datacenter, near="_agent" if datacenter else "")
        needs, chosen = Rule("service", service), _equals("Service.Kind", kind)
        page = await self._page(request, records.decode_instances, needs, cursor, filter=chosen)
        return replace(page, value=tuple(instance for instance in page.value if not kind or instance.kind == kind))

    async def own_instances(self, service: str, service_id: str, cursor: Cursor = NOW) -> Page[tuple[OwnInstance, ...]]:
        """The registrations of an ID in the catalog, one a node; from 1.13 on with central configuration merged."""
        asked = {"filter": _equals("Service.ID", service_id), "merge-central-config": "true"}
        request, needs = CONSUL.health.service(segment(service)), Rule("service", service)
        page = await self._page(request, records.decode_own_instances, needs, cursor, **asked)
        return replace(page, value=tuple(each for each in page.value if each.registration.id == service_id))

    async def node_checks(self, node: str, *, datacenter: str = "") -> tuple[HealthCheck, ...]:
        request = CONSUL.health.node(segment(node), dc=datacenter)
        return (await self._read(request, records.decode_node_checks, Rule("node", node))).value

    async def visible_nodes(self, datacenter: str = "") -> Page[int]:
        """How many nodes the token sees, whatever services it may read."""
        return await self._read(CONSUL.catalog.nodes(dc=datacenter), records.decode_nodes, SEE_NODES)

    async def datacenters(self) -> Page[tuple[str, ...]]:
        """What the WAN gossip knows, the local datacenter included. It cannot be held."""
        return await self._read(CONSUL.catalog.datacenters(), records.decode_datacenters)

    async def summaries(self, cursor: Cursor = NOW) -> Page[Mapping[str, int]]:
        """For each service a number that changes with its instances, their nodes or their health; for this run only.

        The answer is that which Consul's pages are made of. No documented endpoint answers for all services at once;
        nothing depends on this one but how soon the change of a service without traffic is noticed.
        """
        return await self._page(CONSUL.internal.ui_services(), records.decode_summaries, SEE_SERVICES, cursor)

    async def gateway_names(self, datacenter: str = "") -> Page[tuple[str, ...]]:
        request, chosen = CONSUL.internal.ui_services(datacenter), _equals("Service.Kind", GATEWAY_KIND)
        return await self._read(request, records.decode_gateway_names, SEE_SERVICES, filter=chosen)

    async def gateway_names_by_catalog(self, datacenter: str = "") -> Page[tuple[str, ...]] | None:
        """The same from the public list of services, for an agent that blocks the other; None before Consul 1.15."""
        page = await self._read(
            CONSUL.catalog.services(dc=datacenter),
            records.decode_service_names,
            SEE_SERVICES,
            filter=_equals("ServiceKind", GATEWAY_KIND),
        )
        # Older versions know no filter here, and list everything.
        return None if "consul" in page.value else page

    async def federated_gateways(self, cursor: Cursor = NOW) -> Page[Mapping[str, Instances]]:
        """The mesh gateways of each datacenter, the local one included, as the federation states have them."""
        request = CONSUL.internal.federation_states()
        return await self._page(request, records.decode_federated_gateways, SEE_SERVICES, cursor)

    # --- config entries and what is made of them ----------------------------------------------------------------------

    async def resolvers(self, cursor: Cursor = NOW) -> Page[tuple[Resolver, ...]]:
        """All service-resolvers; those of services that the token may not read are left out silently."""
        return await self._page(CONSUL.config.list("service-resolver"), records.decode_resolvers, SEE_SERVICES, cursor)

    async def service_defaults(self, service: str) -> ServiceDefaults:
        """The service-defaults of a service; an empty one where it has none."""
        request = CONSUL.config.get("service-defaults", segment(service))
        with self._counting(Rule("service", service)), suppress(NotFoundError):
            return (await self._ask(request, records.decode_service_defaults)).value
        return ServiceDefaults()

    async def destination_limits(self, service: str, cursor: Cursor = NOW) -> Page[DestinationLimits]:
        """What each destination of a gateway may have by the service-defaults of the gateway's service.

        The list is asked for: Consul logs an error for each question about a single entry that does not exist. Versions
        that do not know the filter send all.
        """
        request, needs = CONSUL.config.list("service-defaults"), Rule("service", service)
        chosen = _equals("Name", service)
        page = await self._page(request, records.decode_destination_limits, needs, cursor, filter=chosen)
        return Page(page.value.get(service, NO_LIMITS), index=page.index)

    async def proxy_defaults_mode(self) -> str:
        """The gateway mode of the global proxy-defaults; "" where there is none."""
        # All of the one entry there is: to ask for it by name is an error in Consul's log where it is not.
        return (await self._read(CONSUL.config.list("proxy-defaults"), records.decode_proxy_defaults)).value

    async def discovery_chain(self, service: str, cursor: Cursor = NOW, *, datacenter: str = "") -> Page[Chain]:
        request = CONSUL.discovery_chain.get(segment(service), datacenter)
        return await self._page(request, records.decode_chain, Rule("service", service), cursor)

    async def confirm_readable(self, service: str, *, datacenter: str = "") -> None:
        """Return if the token may read a service, whether or not there is one.

        Its discovery chain is read and ignored: for a config entry that does not exist Consul would log an error, and
        all other reads answer "none" where the truth is "may not".

        Raises:
            PermissionDeniedError: if and only if it may not.
        """
        with self._counting(Rule("service", service)):
            await self._ask(CONSUL.discovery_chain.get(segment(service), dc=datacenter), bytes)

    # --- the agent and what it holds ----------------------------------------------------------------------------------

    async def agent_self(self) -> AgentFacts:
        return (await self._read(CONSUL.agent.self(), records.decode_agent_facts, SEE_AGENT)).value

    async def agent_facts(self) -> AgentFacts:
        """What the agent says of itself; where the token may not read that, the datacenter of Consul's own servers."""
        try:
            return await self.agent_self()
        except PermissionDeniedError as error:
            with suppress(ConsulError):
                for server in (await self.instances("consul")).value:
                    return AgentFacts(datacenter=server.datacenter, limited=str(error))
            raise

    async def agent_clock(self) -> float | None:
        """The agent's Unix time in whole seconds, from the `Date` of an answer; needs no rights. None: not told."""
        with self._counting():
            answer = await self._send(CONSUL.status.leader())
        try:
            return parsedate_to_datetime(answer.headers.get("Date", "")).timestamp()
        except (TypeError, ValueError):
            return None

    async def agent_service(self, service_id: str, cursor: Cursor = NOW) -> Page[OwnRegistration]:
        """A registration as the agent holds it, held by its content hash; NotFoundError where there is none."""
        request = CONSUL.agent.service.get(segment(service_id))
        return await self._read(request, records.decode_own_registration, Rule("service", service_id), cursor)

    async def agent_registration(self, service_id: str) -> OwnRegistration | None:
        """A registration as the agent holds it now; None where it holds none, which is no error in its log then."""
        request, needs = CONSUL.agent.services(), Rule("service", service_id)
        chosen = _equals("ID", service_id)
        return (await self._read(request, records.decode_own_registrations, needs, filter=chosen)).value.get(service_id)

    async def agent_checks(self, service_id: str) -> tuple[HealthCheck, ...]:
        chosen, needs = _equals("ServiceID", service_id), Rule("service", service_id)
        return (await self._read(CONSUL.agent.checks(), records.decode_agent_checks, needs, filter=chosen)).value

    async def sidecars(self) -> tuple[Sidecar, ...]:
        return (await self._read(CONSUL.agent.services(), records.decode_sidecars)).value

    async def register(self, definition: Mapping[str, Any]) -> None:
        """Register a service with the agent. One of the same ID is replaced, but for its checks of other IDs."""
        request = CONSUL.agent.service.register_definition(definition)
        await self._read(request, bytes, Rule("service", str(definition["Name"]), "write"))

    async def deregister_check(self, check_id: str) -> None:
        await self._read(CONSUL.agent.check.deregister(segment(check_id)), bytes)

    async def deregister(self, service_id: str) -> None:
        request = CONSUL.agent.service.deregister(segment(service_id))
        await self._read(request, bytes, Rule("service", service_id, "write"))

    # --- certificates -------------------------------------------------------------------------------------------------

    async def ca_roots(self, cursor: Cursor = NOW, *, datacenter: str = "") -> Page[CaRoots]:
        """The trust domain and its certificates. A secondary datacenter has none at first: NotReadyError."""
        request = CONSUL.connect.certificates.list()
        with self._counting():
            page = _indexed(await self._ask(request, records.decode_ca_roots, cursor, dc=datacenter))
            if not page.value.trust_domain:
                raise NotReadyError("Consul Connect has no trust domain yet", "not_ready")
            return page

    async def leaf(self, service: str) -> LeafCertificate:
        """A certificate with its key. It stays in the agent's cache for days."""
        request = CONSUL.agent.connect.leaf_certificates(segment(service))
        return (await self._read(request, records.decode_leaf, Rule("service", service, "write"))).value

    # --- tokens -------------------------------------------------------------------------------------------------------

    async def token_expiry(self, datacenter: str = "") -> datetime | None:
        """When the token ends, None for never. Another datacenter knows no local token: PermissionDeniedError."""
        end: datetime | None = (await self._read(CONSUL.acl.tokens.self(), records.decode_token, dc=datacenter)).value
        return end

    async def allowed(self, rules: Sequence[Rule], datacenter: str = "") -> tuple[bool, ...]:
        """What the token may do, one answer a rule.

        A prefix rule is asked as the right to everything that begins so, which only a prefix policy grants.
        """
        with self._counting():
            return await self._allowed(rules, datacenter)

    async def _allowed(self, rules: Sequence[Rule], datacenter: str = "", partition: str = "") -> tuple[bool, ...]:
        # Enterprise looks at a right's own partition; the community edition has no such field, and answers 400.
        place = {} if partition in ("", DEFAULT) else {"Partition": partition}
        rights = [{"Resource": rule.resource, "Access": rule.access, "Segment": rule.name, **place} for rule in rules]
        granted = (await self._ask(CONSUL.internal.authorize(rights, datacenter), records.decode_allowed)).value
        if len(granted) != len(rules):
            raise InvalidAnswerError(f"Consul was asked for {len(rules)} rights and told {len(granted)}", "invalid")
        return granted

    async def acl_replication(self, datacenter: str = "") -> Replication:
        return (await self._read(CONSUL.acl.replication(datacenter), records.decode_replication)).value

    async def intention(self, source: str, destination: str) -> Intention:
        """What intentions, in the end their default, say of a call between services of the default namespace here."""
        needs = Rule("service", destination)
        request = CONSUL.connect.intentions.check(source, destination)
        if (await self._read(request, records.decode_intention_check, needs)).value:
            return Intention.ALLOW
        # An intention with permissions counts as denied there: what it allows depends on the request.
        request = CONSUL.connect.intentions.list_match("destination", destination)
        by_request = (await self._read(request, records.decode_intention_match, needs)).value
        return Intention.PERMISSIONS if by_request.get(source, by_request.get("*")) else Intention.DENY

    # --- namespaces, partitions (Enterprise) and peerings -------------------------------------------------------------

    async def namespaces(self, cursor: Cursor = NOW) -> Page[tuple[str, ...]]:
        """The namespaces of the partition in which the token has any right."""
        return await self._page(CONSUL.namespaces.list(), records.decode_namespaces, None, cursor)

    async def partitions(self) -> Page[tuple[str, ...]]:
        """The admin partitions of the datacenter; they cannot be held."""
        return await self._read(CONSUL.partitions.list(), records.decode_partitions, SEE_PARTITIONS)

    async def peerings(self, cursor: Cursor = NOW) -> Page[tuple[Peering, ...] | None]:
        """The peerings of the partition; None where this Consul knows none, being too old or told not to.

        It can be held for a new peering since 1.14.8; what a peering imports moves no index.
        """
        with self._counting(SEE_PEERINGS):
            try:
                await self._demand_peerings()
                return await self._ask(CONSUL.peerings.list(), records.decode_peerings, cursor)
            except NotFoundError:
                return Page(None)
            except (ServerError, UnexpectedStatusError) as error:
                if _SWITCHED_OFF in str(error):
                    return Page(None)
                raise

    async def peering_roots(self, name: str) -> tuple[str, ...]:
        """The CA roots of a peer, as PEM; none where this Consul does not tell. NotFoundError without the peering."""
        return (await self._read(CONSUL.peerings.get(segment(name)), records.decode_peering_roots, SEE_PEERINGS)).value

    async def _demand_peerings(self) -> None:
        """Raise NotFoundError where Consul knows no peerings, PermissionDeniedError where the token may not see them.

        The list itself says the latter after 11 s only, and with an error in Consul's log.
        """
        partition = self._place["partition"]
        if (SEE_PEERINGS, partition) in self._granted:
            return
        # Older versions write an error into their log where they are asked for a right that they do not know.
        await self._ask(CONSUL.peerings.options(), bytes)
        # Where ACLs are off (401), or somebody keeps this endpoint from us, the list has to tell.
        with suppress(BadRequestError, EndpointBlockedError, NotFoundError, UnexpectedStatusError):
            (allowed,) = await self._allowed([SEE_PEERINGS], partition=partition)
            if not allowed:
                raise PermissionDeniedError("the token may not see peerings", SEE_PEERINGS)
        self._granted.add((SEE_PEERINGS, partition))

    async def peer_through(self, cursor: Cursor = NOW) -> Page[bool]:
        """Whether the peering control plane goes through mesh gateways; it takes no right to read."""
        return await self._entry("mesh", "mesh", records.decode_peer_through, None, cursor, missing=False)

    async def exported_services(self, cursor: Cursor = NOW) -> Page[tuple[Export, ...]]:
        """What the partition exports, wildcards and sameness groups resolved; NotFoundError before Consul 1.17.3."""
        request = CONSUL.exported_services.list()
        return await self._page(request, records.decode_exported_services, SEE_MESH, cursor)

    async def exported_entry(self, cursor: Cursor, partition: str) -> Page[tuple[Export, ...]]:
        """What a partition exports, as it was written: `*` stands for every service or namespace.

        `groups` are the sameness groups to whose members something is exported, too.
        """
        decode = records.decode_exported_entries
        return await self._entry("exported-services", partition, decode, SEE_MESH, cursor, missing=())

    async def sameness_group(self, name: str, cursor: Cursor = NOW) -> Page[SamenessGroup]:
        """The members of a group (Enterprise 1.16 and later), none where it does not exist.

        Raises:
            BadRequestError: this version of Consul knows no groups.
        """
        decode, missing = records.decode_sameness_groups, SamenessGroup(name)
        try:
            return await self._entry("sameness-group", name, decode, SEE_MESH, cursor, missing=missing)
        except ServerError as error:
            if _UNKNOWN_KIND in str(error):
                raise BadRequestError("this version of Consul knows no sameness groups", "400") from error
            raise

    # --- one request --------------------------------------------------------------------------------------------------

    async def _entry(
        self,
        kind: str,
        name: str,
        decode: Callable[[bytes], Mapping[str, T]],
        needs: Rule | None,
        cursor: Cursor,
        *,
        missing: T,
    ) -> Page[T]:
        """A config entry that need not exist, from the list of its kind.

        To ask for one by its name is an error in Consul's log as long as there is none. The list leaves out silently
        what the token may not read, but says so in every version that has the kinds which are asked for here.
        """
        with self._counting(needs):
            page = _indexed(await self._ask(CONSUL.config.list(kind), decode, cursor))
            if page.filtered and name not in page.value:
                raise PermissionDeniedError(f"Consul leaves out entries of kind {kind}")
            return Page(page.value.get(name, missing), page.index, filtered=page.filtered)

    async def _page(
        self, request: Request, decode: Callable[[bytes], T], needs: Rule | None, cursor: Cursor, **params: str
    ) -> Page[T]:
        with self._counting(needs):
            return _indexed(await self._ask(request, decode, cursor, **params))

    async def _read(
        self,
        request: Request,
        decode: Callable[[bytes], T],
        needs: Rule | None = None,
        cursor: Cursor = NOW,
        **params: str,
    ) -> Page[T]:
        """An answer. `needs` is the rule to name where Consul refuses without naming one."""
        with self._counting(needs):
            return await self._ask(request, decode, cursor, **params)

    async def _ask(
        self, request: Request, decode: Callable[[bytes], T], cursor: Cursor = NOW, **params: str
    ) -> Page[T]:
        answer = await self._send(request, cursor, **params)
        content_hash = answer.headers.get("X-Consul-ContentHash", "")
        try:
            return Page(decode(answer.content), answer.index, content_hash, answer.filtered, answer.looked_up)
        except InvalidAnswerError as error:
            raise InvalidAnswerError(f"{error} ({request.path})", error.status) from None

    async def _send(self, request: Request, cursor: Cursor = NOW, **params: str) -> Answer:
        asked = request.asking({**self._place, **params, **_held(cursor)})
        if self._login is None:
            return await self._transport.send(asked)
        version = await self._login.version_in_use(self._log_in)
        try:
            return await self._transport.send(asked)
        except PermissionDeniedError as error:
            # Deleted by somebody, or at the end of its life.
            if not error.unknown_token or not await self._login.renewed(version, self._log_in):
                raise
        return await self._transport.send(asked)

    async def _log_in(self, auth_method: str, bearer_token: str) -> str:
        try:
            answer = await self._transport.send(CONSUL.acl.login(auth_method, bearer_token))
        except PermissionDeniedError as error:
            text = f"no login with the auth method {auth_method}: {error.answer}"
            raise LoginError(text, error.status) from None
        secret: str = records.decode_login(answer.content)
        return secret

    async def _log_out(self) -> None:
        """Give the token back; whoever waits for the end is not kept waiting."""
        if self._login is None or not self._login.given:
            return
        with trio.move_on_after(LOGOUT_TIMEOUT, shield=True):
            try:
                await self._transport.send(CONSUL.acl.logout())
            except ConsulError as error:
                log.warning("not logged out, the token stays until it ends by itself", error=str(error))
            else:
                log.info("logged out of Consul")

    @contextmanager
    def _counting(self, needs: Rule | None = None) -> Iterator[None]:
        try:
            yield
        except PermissionDeniedError as error:
            self.errors[error.status] += 1
            self._granted.clear()
            raise error.for_want_of(needs) from None
        except ConsulError as error:
            self.errors[error.status] += 1
            raise


def _held(cursor: Cursor) -> dict[str, str]:
    return {
        "index": str(cursor.index or ""),
        "hash": cursor.content_hash,
        "wait": format_duration(cursor.wait) if cursor.blocks else "",
    }


def _equals(field: str, text: str) -> str:
    """A filter; none for no text, and for one that cannot stand between its quotes: it knows no escapes."""
    return f'{field} == "{text}"' if text and not {'"', "\\"} & set(text) else ""


def _indexed(page: Page[T]) -> Page[T]:
    if page.index is None:
        raise InvalidAnswerError("Consul's answer has no index", "invalid")
    return page
