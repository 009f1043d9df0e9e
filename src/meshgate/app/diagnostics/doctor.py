"""The examination: all checks in the order in which a person would put a broken setup right.

A check that cannot be made says why, as a finding; it never ends the others. Nothing is changed anywhere, and no leaf
is asked for, since that would put a key into the agent's cache. Advice names a rule only where the token lacks it.
"""

import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Final, TypeVar

import trio

from meshgate.adapters.consul import GIVE_OWN_ID, rival_of
from meshgate.adapters.consul.api import (
    GATEWAY_KIND,
    SEE_AGENT,
    SEE_NODES,
    SEE_PEERINGS,
    SEE_SERVICES,
    AgentFacts,
    ConsulClient,
    ConsulError,
    ConsulUnreachableError,
    EndpointBlockedError,
    NotFoundError,
    OwnInstance,
    OwnRegistration,
    PermissionDeniedError,
    Replication,
    Rule,
    Tenant,
)
from meshgate.adapters.machine import RESERVED, reachable_descriptors
from meshgate.adapters.mesh_tls import RefusedError, connect
from meshgate.app.diagnostics import doctor_machine
from meshgate.app.diagnostics.inspection import HOW_TO_GIVE_ONE, NONE_GIVEN, gateways_in, healthy
from meshgate.app.gateway.from_settings import definition_of, listen_addresses
from meshgate.app.gateway.listeners import OwnAddressKeeper
from meshgate.app.gateway.registration import missing_registration
from meshgate.app.settings.settings import Settings
from meshgate.core import prerequisites
from meshgate.core.addresses import HostPort
from meshgate.core.catalog import Export, Instance, in_namespace
from meshgate.core.endpoint_maker import best_address
from meshgate.core.prerequisites import Finding, Status, failed, ok, warning
from meshgate.core.sni import DEFAULT
from meshgate.core.text import counted

T = TypeVar("T")

_REGISTRATION: Final = "registration"
# Connections that are made anew to see whether they all lead to one agent.
_CONNECTIONS: Final = 4
_PURPOSE: Final = {
    SEE_SERVICES: "see the services",
    SEE_NODES: "see the nodes with their addresses and health",
    SEE_AGENT: "ask the agent what it is",
}
_MOST_EXPORTS: Final = 50
_COMPARE: Final = "compare its policy with the one that `meshgate policy` prints"


class Examination:
    """One look at everything; `found` grows with each check. What one check learns the next ones use."""

    def __init__(self, client: ConsulClient, settings: Settings) -> None:
        self.found: list[Finding] = []
        self._client = client
        self._settings = settings
        self._agent = AgentFacts("")
        self._trust_domain = ""
        self._others: tuple[str, ...] = ()
        self._replications: dict[str, Replication | ConsulError] = {}

    async def run(self) -> list[Finding]:
        """All findings, in order; where the agent does not answer, that and what can be said of this machine."""
        before = time.time()
        try:
            clock = await self._client.agent_clock()
        except ConsulUnreachableError as error:
            self._failed("agent", str(error), "is it running, and is CONSUL_HTTP_ADDR its address?")
            await self._machine(None, reached=False)
            return self.found
        except ConsulError:
            clock = None
        skew = None if clock is None else _skew(before, time.time(), clock)
        await self.agent()
        await self._ca()
        agent = self._agent
        self.found.append(prerequisites.central_config(agent.central_config, agent.version))
        self.found.append(prerequisites.grpc_port(agent.grpc_ports))
        self.found += prerequisites.blocked_endpoints(agent.blocked)
        if keys := prerequisites.keys_of_services(agent.version, agent.blocked):
            self.found.append(keys)
        await self._rights()
        await self._datacenters()
        await self._federation()
        await self._elsewhere()
        await self._gateways()
        await self.partitions()
        await self.peerings()
        self.found += await self._answered(failed, _REGISTRATION, registration(self._client, self._settings)) or ()
        await self._machine(skew, reached=True)
        return self.found

    # --- the agent ---------------------------------------------------------------------------------------------------

    async def agent(self) -> None:
        """What it is, which everything else builds on."""
        try:
            self._agent = agent = await self._client.agent_self()
        except PermissionDeniedError as error:
            self._warning("agent", "the token may not ask it what it is", await self._advice(error))
        except ConsulError as error:
            self._warning("agent", str(error))
        else:
            self._ok("agent", f"{agent.node} of {agent.datacenter}")
            self.found.append(prerequisites.consul_version(agent.version))
            return
        with suppress(ConsulError):
            self._agent = await self._client.agent_facts()

    async def _ca(self) -> None:
        try:
            ca = (await self._client.ca_roots()).value
        except ConsulError as error:
            self.found.append(prerequisites.connect_enabled(self._agent.connect, ""))
            self._failed("CA roots", str(error), "set connect { enabled = true } on the servers")
            return
        self._trust_domain = ca.trust_domain
        self.found.append(prerequisites.connect_enabled(self._agent.connect, ca.trust_domain))
        self.found.append(prerequisites.ca_roots(len(ca.roots), ca.expires, time.time()))

    # --- the token ---------------------------------------------------------------------------------------------------

    async def _rights(self) -> None:
        """A finding for each right that the gateway needs in its own datacenter."""
        agent = self._agent
        if agent.acls is False:
            self._ok("ACLs", "off in this agent: no token is needed")
            return
        first, known = len(self.found), Rule("agent", agent.node) if agent.node else SEE_AGENT
        needed = [SEE_SERVICES, SEE_NODES, SEE_AGENT]
        if self._settings.register:
            needed.insert(0, Rule("service", self._settings.service, "write"))
        try:
            granted = await self._client.allowed([known if rule == SEE_AGENT else rule for rule in needed])
            for rule, allowed in zip(needed, granted, strict=True):
                await self._right(rule, allowed=allowed)
        except ConsulError as error:
            if _unknown_token(error):
                self._failed("token", str(error), "give it one that this datacenter knows")
            else:
                self._warning("token", str(error), "" if isinstance(error, EndpointBlockedError) else _COMPARE)
        lacking = {finding.status for finding in self.found[first:]} - {Status.OK}
        if lacking and not self._client.token.given:
            # To be said before all else.
            worst = Status.FAILED if Status.FAILED in lacking else Status.WARNING
            detail = f"{NONE_GIVEN}, so what follows is what anybody may do"
            self.found.insert(0, Finding("token", worst, detail, HOW_TO_GIVE_ONE))

    async def _right(self, rule: Rule, *, allowed: bool) -> None:
        check, purpose = f"token: {rule.resource}:{rule.access}", _PURPOSE.get(rule, f"register {rule.name}")
        advice, here = f"add {rule} to its policy", Rule("node", self._agent.node)
        if allowed:
            self._ok(check, purpose)
        elif rule == SEE_AGENT:
            self._warning(check, f"may not {purpose}", advice)
        elif rule == SEE_SERVICES:
            await self._sees_services(check, advice)
        elif rule == SEE_NODES and here.name and all(await self._client.allowed([here])):
            self._warning(check, f"may not {purpose}, or not all of them", advice)
        else:
            self._failed(check, f"may not {purpose}", advice)

    async def _sees_services(self, check: str, advice: str) -> None:
        """A narrower rule works as well, and what it leaves out has no route."""
        try:
            seen = len((await self._client.service_names()).value)
        except ConsulError as error:
            self._warning(check, f"may not see all services ({error})", advice)
            return
        if seen:
            self._warning(check, f"sees {counted(seen, 'service')}, and not all: the others have no route", advice)
        else:
            detail = f"sees no service of {self._agent.datacenter or 'this datacenter'}: none of them gets a route"
            self._failed(check, detail, advice)

    async def _elsewhere(self) -> None:
        """Whether each other datacenter knows the token, lets it see gateways, and replicates tokens."""
        if self._agent.acls is False:
            return
        for datacenter in self._others:
            await self._known_in(datacenter)
            self._replicates(datacenter, self._replications[datacenter])

    async def _known_in(self, datacenter: str) -> None:
        check, needed = f"token in {datacenter}", (SEE_SERVICES, SEE_NODES)
        try:
            await self._client.token_expiry(datacenter)
            granted = await self._client.allowed(needed, datacenter)
        except ConsulError as error:
            advice = "make a global token (not -local) in the primary datacenter, and let it replicate"
            self._failed(check, str(error), advice if _unknown_token(error) else f"look at {datacenter}'s servers")
            return
        lacking = [str(rule) for rule, allowed in zip(needed, granted, strict=True) if not allowed]
        if lacking:
            detail = "known, but it may not see all services and nodes: gateways among them stay hidden"
            self._warning(check, detail, f"add {' and '.join(lacking)} to its policy")
        else:
            self._ok(check, "known, and it may see the gateways")

    def _replicates(self, datacenter: str, answer: Replication | ConsulError) -> None:
        check, setting = f"ACL replication to {datacenter}", "acl { enable_token_replication = true }"
        if self._agent.primary_datacenter == datacenter:
            self._ok(check, "it is the primary")
            return
        if isinstance(answer, ConsulError):
            self._warning(check, str(answer), f"look at the servers of {datacenter}")
        elif not answer.enabled:
            self._warning(check, "off", f"set {setting} in {datacenter}")
        elif not answer.running:
            self._failed(check, "on, but not running", f"set the replication token of {datacenter}'s servers")
        elif answer.kind != "tokens":
            advice = f"set {setting} in {datacenter}, or each request is a trip to the primary"
            self._warning(check, f"{answer.kind} only", advice)
        else:
            self._ok(check, f"tokens from {answer.source}")

    # --- other datacenters -------------------------------------------------------------------------------------------

    async def _datacenters(self) -> None:
        check, own = "datacenters", self._agent.datacenter
        if not own:
            self._failed(check, "the token may not see which one this is", "give the token the rights above")
            return
        try:
            self._others = tuple(sorted(name for name in (await self._client.datacenters()).value if name != own))
        except ConsulError as error:
            self._failed(check, str(error))
            return
        others = ", ".join(self._others)
        self._ok(check, f"{own}, and {others}" if others else f"{own} alone: nothing to route to elsewhere")

    async def _federation(self) -> None:
        told: dict[str, tuple[str, str]] = {}
        unasked: list[Finding] = []
        for name in self._others:
            source = ""
            # Without ACLs there is no replication, and Consul refuses the question.
            if self._agent.acls is not False:
                answer = self._replications[name] = await self._replication_of(name)
                # A primary replicates from nobody and says so with an empty name.
                source = "" if isinstance(answer, ConsulError) else answer.source
            try:
                told[name] = (await self._client.ca_roots(datacenter=name)).value.trust_domain, source
            except ConsulError as error:
                advice = f"join {name}'s servers over the WAN, or let it federate through gateways"
                unasked.append(failed(f"primary of {name}", str(error), advice))
        primary = self._agent.primary_datacenter or self._agent.datacenter
        self.found += [*prerequisites.one_primary((self._trust_domain, primary), told), *unasked]

    async def _replication_of(self, datacenter: str) -> Replication | ConsulError:
        try:
            return await self._client.acl_replication(datacenter)
        except ConsulError as error:
            return error

    async def _gateways(self) -> None:
        for datacenter in self._others:
            check = f"gateways of {datacenter}"
            looked = gateways_in(self._client, datacenter, guess=self._settings.service)
            instances = await self._answered(failed, check, looked, datacenter)
            if instances is None:
                continue
            if not instances:
                advice = f"start one in {datacenter}: until then nothing there can be reached through gateways"
                self._warning(check, "none that the token can see", advice)
            await self._dial_all(check, instances)

    async def _dial_all(self, check: str, instances: Collection[Instance]) -> None:
        results: dict[int, Finding] = {}

        async def dial(number: int, instance: Instance) -> None:
            results[number] = await self._dial(check, instance)

        async with trio.open_nursery() as nursery:
            for number, instance in enumerate(instances):
                nursery.start_soon(dial, number, instance)
        self.found += [finding for _, finding in sorted(results.items())]

    async def _dial(self, check: str, instance: Instance) -> Finding:
        address = HostPort(*best_address(instance, wan=True))
        shown = f"{instance.id} at {address}"
        try:
            await (await connect(address.host, address.port, seconds=self._settings.connect_timeout)).aclose()
        except RefusedError as error:
            advice = "is it running, is that its right WAN address, and does a firewall let this machine through?"
            return failed(check, f"{shown}: {error.detail}", advice)
        if not healthy(instance):
            return warning(check, f"{shown} answers, but is unhealthy for Consul", "look at its checks")
        return ok(check, f"{shown} answers")

    # --- partitions (Enterprise) and peerings: where Consul knows neither there is nothing to say --------------------

    async def partitions(self) -> None:
        own = self._settings.partition or self._agent.partition or DEFAULT
        namespace = self._settings.namespace
        if namespace not in ("", DEFAULT):
            detail = f"the gateway is registered in {namespace}; Consul wants mesh gateways in {DEFAULT}"
            self._warning("namespace", detail, "leave CONSUL_NAMESPACE out")
        known = await self._answered(warning, "partitions", self._client.partitions())
        if known is None:
            return
        others = [name for name in known.value if name != own]
        self._ok("partitions", f"{own}, and {', '.join(others)}" if others else f"{own} alone")
        for name in others:
            check, tenant = f"gateways of partition {name}", Tenant(namespace=DEFAULT, partition=name)
            looked = gateways_in(self._client, "", guess=self._settings.service, tenant=tenant)
            if await self._answered(warning, check, looked) == ():
                advice = f"start one in {name}: until then nothing there can be reached through gateways"
                self._warning(check, "none to be seen", advice)

    async def peerings(self) -> None:
        """The peerings, and each exported service that is no matter for a gateway like this."""
        check = "cluster peering"
        # Consul's own refusal takes twelve seconds. One that knows no peerings does not know the right either.
        if not await self._may(SEE_PEERINGS):
            self._warning(
                check, "the token may not read peerings: peers have no routes", f"add {SEE_PEERINGS} to its policy"
            )
            return
        answer = await self._answered(warning, check, self._client.peerings())
        if answer is None or (found := answer.value) is None:
            return
        self._ok(check, ", ".join(f"{it.name} ({it.state.lower()})" for it in found) or "no peerings")
        if any(it.active for it in found):
            await self._exports({peering.name for peering in found})

    async def _exports(self, peers: set[str]) -> None:
        check = "exported services"
        exported = await self._answered(warning, check, self._client.exported_services())
        if exported is None:
            return
        ours = [export for export in exported.value if peers.intersection(export.peers)]
        self._ok(check, f"{len(ours)} to peers")
        for export in ours[:_MOST_EXPORTS]:
            await self._export(export)

    async def _export(self, export: Export) -> None:
        check = f"export of {in_namespace(export.namespace, export.service)}"
        place = self._client.at(Tenant(namespace=export.namespace if self._agent.enterprise else ""))
        answer = await self._answered(warning, check, place.discovery_chain(export.service))
        if answer is None:
            return
        chain = answer.value
        if chain.protocol != "tcp":
            passed = self._settings.pass_http_exports
            self.found.append(prerequisites.http_export(check, export.service, chain.protocol, passed=passed))
        elif chain.target is None:
            self._failed(
                check, "its resolver leads out of this datacenter or partition", "export the service where it is"
            )

    # --- this machine ------------------------------------------------------------------------------------------------

    async def _machine(self, skew: float | None, *, reached: bool) -> None:
        settings, agent = self._settings, self._agent
        federated = bool(self._others) or not agent.datacenter
        self.found += doctor_machine.addresses(settings, federated=federated, reached=reached)
        self.found += await doctor_machine.names(settings)
        self.found += await doctor_machine.ports(settings)
        self.found += await trio.to_thread.run_sync(doctor_machine.files, settings)
        self.found.append(doctor_machine.sandbox(settings))
        if agent.datacenter:
            self.found.append(prerequisites.clock(skew))
        self.found.append(prerequisites.descriptors(reachable_descriptors(), settings.max_connections, RESERVED))
        if reached:
            self.found.append(prerequisites.agent_connections(agent.max_connections, settings.catalog_watches))

    # --- asking and saying it -----------------------------------------------------------------------------------------

    def _ok(self, check: str, detail: str) -> None:
        self.found.append(ok(check, detail))

    def _warning(self, check: str, detail: str, advice: str = "") -> None:
        self.found.append(warning(check, detail, advice))

    def _failed(self, check: str, detail: str, advice: str = "") -> None:
        self.found.append(failed(check, detail, advice))

    async def _answered(
        self, say: Callable[[str, str, str], Finding], check: str, asked: Awaitable[T], datacenter: str = ""
    ) -> T | None:
        """What Consul answers. Else `say` makes a finding of why not; a Consul without such a thing is none."""
        try:
            return await asked
        except NotFoundError:
            return None
        except ConsulError as error:
            self.found.append(say(check, str(error), await self._advice(error, datacenter)))
            return None

    async def _advice(self, error: ConsulError, datacenter: str = "") -> str:
        """The rule that the token lacks. One that it has would not help: then something else is in the way."""
        if not isinstance(error, PermissionDeniedError) or isinstance(error, EndpointBlockedError):
            return ""
        rule = error.missing_rule
        if rule is None:
            return "give it another token"
        if await self._may(rule, datacenter, unknown=False):
            return f"the token has {rule}: {_COMPARE}, and look for rules that deny"
        return f"add {rule} to the token's policy"

    async def _may(self, rule: Rule, datacenter: str = "", *, unknown: bool = True) -> bool:
        """Whether the token has a right; `unknown` where Consul does not say."""
        if self._agent.acls is False:
            return True
        try:
            return all(await self._client.allowed([rule], datacenter))
        except ConsulError:
            return unknown


def _skew(before: float, after: float, agent: float) -> float:
    """How far this clock is ahead of the agent's, which tells whole seconds: the least that explains the answer."""
    if agent > after:
        return after - agent
    return max(0.0, before - (agent + 1))


def _unknown_token(error: ConsulError) -> bool:
    blocked = isinstance(error, EndpointBlockedError)
    return isinstance(error, PermissionDeniedError) and error.missing_rule is None and not blocked


# --- the registration: whether it can be made, or is there where somebody else is to make it --------------------------


async def registration(client: ConsulClient, settings: Settings) -> list[Finding]:
    """Findings about the registration, and about the agents that the address leads to.

    Raises:
        ConsulError: neither the agent nor the catalog tells.
    """
    held = None if settings.node_name else await client.agent_registration(settings.proxy_id)
    instances = (await client.own_instances(settings.service, settings.proxy_id)).value
    if not settings.register:
        if settings.node_name:
            held = next((each.registration for each in instances if each.node == settings.node_name), None)
        return [_existing(settings, held)]
    nodes = await _agents(client)
    findings = [await _to_be_made(settings, held), *(_left_behind(settings, instances, nodes) if nodes else ())]
    if len(nodes) > 1:
        detail = f"the address leads to the agents of {', '.join(sorted(nodes))} by turns"
        advice = "set CONSUL_HTTP_ADDR to one of them: only the agent that has the registration can follow it"
        findings.append(failed("one agent", detail, advice))
    return findings


def _existing(settings: Settings, held: OwnRegistration | None) -> Finding:
    if held is None:
        advice = (
            "register it in the catalog under these names (consul-k8s does), or correct MESHGATE_PROXY_ID and "
            "MESHGATE_NODE_NAME; the token needs service:read and node:read"
            if settings.node_name
            else "consul services register with kind, name and id of the gateway, or leave out --no-register; "
            "MESHGATE_NODE_NAME where no agent holds it"
        )
        return failed(_REGISTRATION, missing_registration(settings), advice)
    if held.kind != GATEWAY_KIND:
        detail = f"{held.id!r} is of kind {held.kind or 'none'}"
        return failed(_REGISTRATION, detail, f"register it with kind {GATEWAY_KIND}")
    return ok(_REGISTRATION, f"{held.id} at {_place(held)}")


async def _to_be_made(settings: Settings, held: OwnRegistration | None) -> Finding:
    if held is None:
        return ok(_REGISTRATION, f"no {settings.proxy_id} on this agent yet")
    addresses, bound = OwnAddressKeeper(settings), listen_addresses(settings)
    told = await rival_of(held, definition_of(settings), lambda *place: addresses.is_own(bound, *place))
    if told:
        return failed(_REGISTRATION, told, GIVE_OWN_ID)
    return ok(_REGISTRATION, f"{held.id} at {_place(held)}")


def _left_behind(settings: Settings, instances: Collection[OwnInstance], nodes: Collection[str]) -> list[Finding]:
    place = (settings.address.host, settings.address.port)
    found = []
    for each in instances:
        same = place[0] and (each.registration.address, each.registration.port) == place
        if same and each.node not in nodes:
            detail = f"{each.registration.id} at {_place(each.registration)} is registered on node {each.node} too"
            advice = f"consul services deregister -id={each.registration.id} there"
            found.append(warning("one registration", detail, advice))
    return found


async def _agents(client: ConsulClient) -> set[str]:
    """The nodes of the agents that new connections lead to; none where the token may not know."""
    nodes: set[str] = set()

    async def ask() -> None:
        with suppress(ConsulError):
            async with client.dedicated() as reader:
                nodes.add((await reader.agent_self()).node)

    async with trio.open_nursery() as nursery:
        for _ in range(_CONNECTIONS):
            nursery.start_soon(ask)
    return nodes


def _place(registration: OwnRegistration) -> HostPort:
    return HostPort(registration.address or "the agent's address", registration.port)
