"""The gateway's registration: kept with the agent or found in the catalog, and followed with what Consul says of it.

The agent merges central configuration (proxy-defaults) into a registration, so what it holds may differ from what was
sent, and change later. It forgets registrations when it is restarted without its data; they are then sent again. So
are those of a token that has been replaced: the agent keeps a registration in the catalog, and takes it back at the
end, by the token that it came with (Consul's anti-entropy), which may have been deleted by then.

What always holds: what an operator said of the gateway stands, since maintenance outlives every registration that is
sent again, by us or by the agent itself; a registration that another process lives by is not taken over; and behind an
address that leads to several agents only one of them ever has the registration.
"""

import secrets
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import msgspec
import structlog
import trio

from meshgate.core.addresses import host_port
from meshgate.core.proxy_config import NO_LIMITS, DestinationLimits

from .api import (
    NODE_MAINTENANCE,
    ConsulClient,
    ConsulError,
    ConsulUnreachableError,
    Cursor,
    NotFoundError,
    OwnInstance,
    OwnRegistration,
    Page,
    PermissionDeniedError,
    Rule,
    ServerError,
)
from .retry import DEREGISTRATIONS
from .service_definition import GatewayDefinition
from .watch import Watch, WatchKey, WatchRegistry

log = structlog.get_logger(module="meshgate.consul")

# Seconds that the removal at the end may take.
DEREGISTRATION_TIMEOUT: Final = 5.0
# Seconds between two looks for a registration that somebody else is to make.
_POLL: Final = 2.0
# Seconds between two answers about the gateway's service-defaults; older versions send those of all services.
_DEFAULTS_PACE: Final = 5.0
# Seconds in which another process has to take a connection to count as alive.
_PROBE_TIMEOUT: Final = 1.0
GIVE_OWN_ID: Final = "give this gateway a --proxy-id of its own"


class OtherAgentError(ConsulError):
    """The address leads to another agent than the one that has the registration."""


@dataclass(frozen=True, slots=True)
class Maintenance:
    """Why a service is out of service. `node` where its whole node is; `reason` is anybody's text."""

    node: bool
    reason: str


@dataclass(frozen=True, slots=True)
class OwnHealth:
    """What the catalog says of the gateway's instance.

    `failing` are its other critical checks with what they last said, `elsewhere` nodes that hold a registration of the
    same ID and address: one that was left behind.
    """

    maintenance: tuple[Maintenance, ...] = ()
    failing: tuple[tuple[str, str], ...] = ()
    elsewhere: tuple[str, ...] = ()


class RegistrarLeft(msgspec.Struct, frozen=True):
    """What a registrar knows, for another program that goes on with it; `payload` is what the agent was last sent."""

    registration: OwnRegistration | None
    missing: bool
    health: OwnHealth
    limits: DestinationLimits
    node: str
    sent: tuple[str, int] | None
    payload: dict[str, Any] | None


class Registrar:
    """Registers the gateway, or waits for a registration that somebody else makes, and follows it.

    Args:
        client: Consul.
        registry: shared by all watches of the process.
        definition: what to register.
        register: False where the registration is somebody else's work: then it is only read, and never removed.
        node: where somebody else makes it in the catalog, on this node, and no agent holds it.
        is_own: whether who dials an address and port meets this very process.
        until_listening: waits until the gateway listens where the definition says, so that nobody is sent elsewhere.
        on_change: called each time one of the attributes below has changed.

    Attributes:
        registration: as Consul holds it, central configuration merged; None before the first answer.
        missing: whether Consul says that there is none, or none any more.
        health: what the catalog says of it.
        limits: what each destination may have by the service-defaults of the gateway's service.

    Raises:
        RegistrationError: the definition cannot work on this machine (only with `register`).
    """

    def __init__(
        self,
        client: ConsulClient,
        registry: WatchRegistry,
        definition: GatewayDefinition,
        *,
        register: bool = True,
        node: str = "",
        is_own: Callable[[str, int], bool] = lambda _host, _port: False,
        until_listening: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.registration: OwnRegistration | None = None
        self.missing = False
        self.health = OwnHealth()
        self.limits = NO_LIMITS
        self._client = client
        self._registry = registry
        self._definition = definition
        self._payload = definition.payload() if register else None
        self._in_catalog = bool(node)
        self._node = node
        self._is_own = is_own
        self._until_listening = until_listening
        self._on_change = on_change
        self._present = trio.Event()
        self._stop = trio.Event()
        self._round = trio.CancelScope()
        # What is held of the agent, on a connection of its own.
        self._connection = AsyncExitStack()
        self._reader = client
        # Whether the agent has to be sent the definition still, and the address of the one of ours that it may hold.
        self._due = register
        self._sent: tuple[str, int] | None = None
        self._instances: tuple[OwnInstance, ...] = ()
        self._token_version = 0

    def left(self) -> RegistrarLeft:
        return RegistrarLeft(
            self.registration,
            self.missing,
            self.health,
            self.limits,
            self._node,
            self._sent,
            None if self._due else self._payload,
        )

    def adopt(self, left: RegistrarLeft, *, same_token: bool) -> None:
        """Go on with what another program has registered; what is other by now is sent, and nothing taken back."""
        self.registration, self.missing = left.registration, left.missing
        self.health, self.limits = left.health, left.limits
        self._node, self._sent = left.node or self._node, left.sent
        if self._payload is not None and left.payload is not None:
            # The agent knows the check by the ID that it was last sent with.
            if check := left.payload["Check"].get("CheckID"):
                self._payload = {**self._payload, "Check": {**self._payload["Check"], "CheckID": check}}
            if same_token and self._payload == left.payload:
                self._due, self._token_version = False, self._registry.token_version()
        self._on_change()

    async def run(self) -> None:
        """Register and follow until `stop()` or cancellation, then take the registration back.

        The removal is shielded from cancellation and ends after `DEREGISTRATION_TIMEOUT` seconds at the latest.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._follow_catalog)
                if not self._in_catalog:
                    nursery.start_soon(self._follow_agent)
                await self._stop.wait()
                nursery.cancel_scope.cancel()
        finally:
            if self._sent:
                with trio.move_on_after(DEREGISTRATION_TIMEOUT, shield=True) as scope:
                    await self._deregister()
                if scope.cancelled_caught:
                    log.warning("the registration stays behind", id=self._definition.id, node=self._node or "unknown")

    def stop(self) -> None:
        """Make `run` take the registration back and return. May be called more than once."""
        self._stop.set()

    def define(self, definition: GatewayDefinition) -> None:
        """Have another definition of the same ID registered from now on; after a RegistrationError nothing changes."""
        if self._payload is None or self._definition == definition:
            return
        self._payload = definition.payload()
        self._definition, self._due = definition, True
        self._round.cancel()

    async def registered(self) -> OwnRegistration:
        while self.registration is None:
            await self._present.wait()
        return self.registration

    async def follow_limits(self) -> None:
        service = self._definition.service
        async with self._client.dedicated() as reader:
            ask = partial(reader.destination_limits, service)
            key = WatchKey("service-defaults", service)
            await Watch(self._registry, key, ask, self._limited, pace=lambda: _DEFAULTS_PACE).run()

    # --- with the agent -----------------------------------------------------------------------------------------------

    async def _follow_agent(self) -> None:
        key = WatchKey("registration", self._definition.id)
        while True:
            async with self._connection:
                await self._connect()
                with trio.CancelScope() as self._round:
                    await Watch(self._registry, key, self._look, self._held, minds_token=True).run()

    async def _connect(self) -> None:
        """Exchange the connection to the agent for a new one: behind a balancer that may lead to another agent."""
        await self._connection.aclose()
        self._reader = await self._connection.enter_async_context(self._client.dedicated())

    async def _look(self, cursor: Cursor) -> Page[OwnRegistration | None]:
        definition = self._definition
        try:
            if self._payload is None:
                return await self._wait_for_agent(self._reader, cursor)
            return await self._look_or_register(self._reader, cursor)
        except OtherAgentError:
            await self._connect()
            raise
        except (ConsulUnreachableError, PermissionDeniedError, ServerError) as error:
            # A restarted agent takes its checks for critical until they have run, up to 10 s. A registration that is
            # sent again with a check of another ID starts as passing (one of the same ID keeps its state), so that the
            # outage of an agent is no outage of the gateway. One that has just started may also answer that it knows no
            # token yet (403), or no leader (500).
            if self._payload is not None and (self._sent or isinstance(error, ConsulUnreachableError)):
                self._due = True
                check = {**self._payload["Check"], "CheckID": f"service:{definition.id}:{secrets.token_hex(4)}"}
                self._payload = {**self._payload, "Check": check}
            if isinstance(error, PermissionDeniedError):
                access = "read" if self._payload is None else "write"
                raise error.for_want_of(Rule("service", definition.service, access)) from None
            raise

    async def _wait_for_agent(self, reader: ConsulClient, cursor: Cursor) -> Page[OwnRegistration | None]:
        definition = self._definition
        if not cursor.blocks and await reader.agent_registration(definition.id) is None:
            await trio.sleep(_POLL)
            await self._connect()
            return Page(None)
        try:
            page = await reader.agent_service(definition.id, cursor)
        except NotFoundError:
            return Page(None)
        if not self._node:
            self._node = (await reader.agent_facts()).node
        return page

    async def _look_or_register(self, reader: ConsulClient, cursor: Cursor) -> Page[OwnRegistration | None]:
        definition = self._definition
        due = self._due or self._registry.token_version() != self._token_version
        held: OwnRegistration | None
        if due:
            held = await reader.agent_registration(definition.id)
        else:
            try:
                page = await reader.agent_service(definition.id, cursor)
            except NotFoundError:
                held = None
            else:
                if _place(page.value) == self._sent:
                    return page
                held = page.value
        if held is not None and (told := await self._rival_of(held)):
            raise ConsulError(told, "taken")
        await self._register(reader, lost=held is None and not due)
        return await reader.agent_service(definition.id)

    async def rival(self) -> str | None:
        """Say which other process lives by a registration of this ID; None where there is none."""
        held = await self._client.agent_registration(self._definition.id)
        return None if held is None else await self._rival_of(held)

    async def _rival_of(self, held: OwnRegistration) -> str | None:
        told = None if _place(held) == self._sent else await rival_of(held, self._definition, self._is_own)
        return told and f"{told}: {GIVE_OWN_ID}"

    async def _register(self, reader: ConsulClient, *, lost: bool) -> None:
        assert self._payload is not None
        definition = self._definition
        await self._until_listening()
        node = await self._right_agent(reader)
        if lost:
            log.warning("the agent has lost the registration", service=definition.service, id=definition.id)
        # A request without an answer may have arrived; one that was refused has not.
        before, self._sent, self._due = self._sent, (definition.address, definition.port), True
        self._token_version = self._registry.token_version()
        try:
            await reader.register(self._payload)
        except PermissionDeniedError:
            self._sent = before
            raise
        self._node = node
        # Not by replace-existing-checks: the agent repeats a registration with the flags that it came with, each time
        # that central configuration changes, and would drop maintenance then.
        sent = self._payload["Check"].get("CheckID", f"service:{definition.id}")
        for check in await reader.agent_checks(definition.id):
            if check.service_id == definition.id and check.id not in (sent, maintenance_check(definition.id)):
                await reader.deregister_check(check.id)
        self._due = False
        log.info("registered with the agent", service=definition.service, id=definition.id, node=node or "unknown")

    async def _right_agent(self, reader: ConsulClient) -> str:
        """The node of the agent that answers; "" where the token may not know.

        Raises:
            OtherAgentError: another agent has the registration, and is there still.
        """
        try:
            node = (await reader.agent_facts()).node
        except PermissionDeniedError:
            return ""
        registered = self._node if self._sent else ""
        if not (node and registered) or node == registered or not await reader.node_checks(registered):
            return node
        raise OtherAgentError(
            f"the gateway is registered with the agent of node {registered}, and the agent of node {node} answers now: "
            "CONSUL_HTTP_ADDR has to lead to one agent",
            "other_agent",
        )

    def _held(self, registration: OwnRegistration | None) -> None:
        self.registration, self.missing = registration, registration is None
        if registration is not None:
            self._present.set()
            self._present = trio.Event()
        self.health = own_health(self._instances, self._node, registration)
        self._on_change()

    async def _deregister(self) -> None:
        service_id = self._definition.id
        try:
            await DEREGISTRATIONS.retrying()(self._take_back)
        except ConsulError as error:
            # The agent holds no such registration: 404, and 500 with a text in 1.8.
            if not isinstance(error, NotFoundError) and "Unknown service" not in str(error):
                log.warning("the registration stays behind", id=service_id, error=str(error))
            return
        log.info("deregistered", service=self._definition.service, id=service_id)

    async def _take_back(self) -> None:
        definition = self._definition
        # Behind a balancer each new connection may lead to another agent.
        async with self._client.dedicated() as reader:
            await self._right_agent(reader)
            if self._registry.token_version() != self._token_version:
                # The agent takes it out of the catalog by the token that it came with.
                await self._register(reader, lost=False)
            await reader.deregister(definition.id)
            # A login has to last until the agent has taken it out of the catalog, by the token of the login.
            cursor, there = Cursor(), self._client.logs_out
            while there:
                page = await reader.own_instances(definition.service, definition.id, cursor)
                there = any(each.node == self._node for each in page.value)
                cursor = Cursor(page.index or 0)

    # --- in the catalog -----------------------------------------------------------------------------------------------

    async def _follow_catalog(self) -> None:
        """Follow what the catalog has of this ID: the instance's health, and where no agent holds it all of it."""
        definition = self._definition
        async with self._client.dedicated() as reader:
            ask = partial(reader.own_instances, definition.service, definition.id)
            key = WatchKey("own-health", definition.id)
            await Watch(self._registry, key, ask, self._found, minds_token=True).run()

    def _found(self, instances: tuple[OwnInstance, ...]) -> None:
        self._instances = instances
        if self._in_catalog:
            ours = (each.registration for each in instances if each.node == self._node)
            self._held(next(ours, None))
        elif (health := own_health(instances, self._node, self.registration)) != self.health:
            self.health = health
            self._on_change()

    def _limited(self, limits: DestinationLimits) -> None:
        self.limits = limits
        self._on_change()


async def rival_of(
    held: OwnRegistration, definition: GatewayDefinition, is_own: Callable[[str, int], bool]
) -> str | None:
    """Say which other process lives by a registration of the definition's ID; None where there is none.

    A restart finds the registration of its predecessor at its own address. One at another address is that of a gateway
    that has moved, unless something takes connections there that is not this process.
    """
    if _place(held) == (definition.address, definition.port):
        return None
    # Without an address it is on the agent's machine, as we are.
    host = held.address or "127.0.0.1"
    if is_own(host, held.port):
        return None
    with trio.move_on_after(_PROBE_TIMEOUT), suppress(OSError):
        await (await trio.open_tcp_stream(host, held.port)).aclose()
        return (
            f"{definition.id!r} is registered at {host_port(host, held.port)} by another process, which answers there"
        )
    return None


def own_health(instances: Iterable[OwnInstance], node: str, registration: OwnRegistration | None) -> OwnHealth:
    """What the instances of an ID say of the one on `node`; where that is unknown, of the one at the same address."""
    if registration is None:
        return OwnHealth()
    same = [each for each in instances if _place(each.registration) == _place(registration)]
    ours = next((each for each in same if each.node == node or not node), None)
    checks = () if ours is None else ours.checks
    causes = {maintenance_check(registration.id): False, NODE_MAINTENANCE: True}
    maintenance = [Maintenance(causes[check.id], check.notes) for check in checks if check.id in causes]
    return OwnHealth(
        tuple(sorted(maintenance, key=lambda cause: cause.node)),
        tuple((each.name, each.output) for each in checks if each.status == "critical" and each.id not in causes),
        tuple(sorted(each.node for each in same if each is not ours and registration.address)) if ours else (),
    )


def maintenance_check(service_id: str) -> str:
    """The ID of the check that stands for the maintenance of a service (`consul maint -service`)."""
    return f"_service_maintenance:{service_id}"


def _place(registration: OwnRegistration) -> tuple[str, int]:
    return registration.address, registration.port
