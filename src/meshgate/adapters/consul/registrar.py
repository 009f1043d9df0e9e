"""Keeps the gateway registered with its agent, and follows what the agent makes of the registration.

The agent merges central configuration (proxy-defaults) into a registration, so what it holds may differ from what was
sent, and change later. It forgets registrations when it is restarted without its data; they are then sent again. So
are those of a token that has been replaced: the agent keeps a registration in the catalog, and takes it back at the
end, by the token that it came with (Consul's anti-entropy), which may have been deleted by then.

What an operator said of the gateway stands: maintenance outlives every registration that is sent again, by us or by the
agent itself. Only the removal at the end takes it away, since the agent drops a service with all its checks.
"""

import secrets
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog
import trio

from .api import (
    ConsulClient,
    ConsulError,
    ConsulUnreachableError,
    Cursor,
    NotFoundError,
    OwnRegistration,
    Page,
    PermissionDeniedError,
    Rule,
    ServerError,
)
from .maintenance import left_over
from .registration import GatewayDefinition
from .watch import Watch
from .watch_registry import WatchKey, WatchRegistry, ignore

log = structlog.get_logger(module="meshgate.consul")

# Seconds that the removal at the end may take.
FAREWELL: Final = 5.0
# Seconds between two looks for a registration that somebody else is to make.
_LOOK: Final = 2.0


class Registrar:
    """Registers the gateway.

    Args:
        client: Consul.
        registry: shared by all watches of the process.
        definition: what to register.
        register: False where the registration is somebody else's work: then it is only read, and never removed.
        on_change: gets the registration as the agent holds it, each time it changed; None while there is none.

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
        on_change: Callable[[OwnRegistration | None], None] = ignore,
    ) -> None:
        self.registration: OwnRegistration | None = None
        self._client = client
        self._registry = registry
        self._definition = definition
        self._payload = definition.payload() if register else None
        self._on_change = on_change
        self._present = trio.Event()
        self._stop = trio.Event()
        # Whether the agent has to be sent the definition still, and whether it may hold one that was sent.
        self._due = register
        self._sent = False
        self._token_version = 0

    async def run(self) -> None:
        """Register and follow until `stop()` or cancellation, then take the registration back.

        The removal is shielded from cancellation and ends after `FAREWELL` seconds at the latest.
        """
        try:
            async with self._client.dedicated() as reader, trio.open_nursery() as nursery:
                watch = Watch(
                    self._registry,
                    WatchKey("registration", self._definition.id),
                    partial(self._look, reader),
                    self._held,
                    minds_token=True,
                )
                nursery.start_soon(watch.run)
                await self._stop.wait()
                nursery.cancel_scope.cancel()
        finally:
            if self._sent:
                with trio.move_on_after(FAREWELL, shield=True):
                    await self._deregister()

    def stop(self) -> None:
        """Make `run` take the registration back and return. May be called more than once."""
        self._stop.set()

    async def registered(self) -> OwnRegistration:
        """Wait until the agent holds the registration."""
        while self.registration is None:
            await self._present.wait()
        return self.registration

    async def _look(self, reader: ConsulClient, cursor: Cursor) -> Page[OwnRegistration | None]:
        definition = self._definition
        try:
            return await self._look_or_register(reader, cursor)
        except ConsulUnreachableError:
            # A restarted agent takes its checks for critical until they have run, up to 10 s. A registration that is
            # sent again with a check of another ID starts as passing (one of the same ID keeps its state), so that the
            # outage of an agent is no outage of the gateway.
            if self._payload is not None:
                self._due = True
                check = {**self._payload["Check"], "CheckID": f"service:{definition.id}:{secrets.token_hex(4)}"}
                self._payload = {**self._payload, "Check": check}
            raise
        except PermissionDeniedError as error:
            access = "read" if self._payload is None else "write"
            raise error.for_want_of(Rule("service", definition.service, access)) from None

    async def _look_or_register(self, reader: ConsulClient, cursor: Cursor) -> Page[OwnRegistration | None]:
        definition = self._definition
        replaced = self._payload is not None and self._registry.token_version() != self._token_version
        if self._due or replaced:
            await self._register(reader)
            cursor = Cursor()
        try:
            return await reader.agent_service(definition.id, cursor)
        except NotFoundError:
            if self._payload is None:
                await trio.sleep(_LOOK)
                return Page(None)
            log.warning("the agent has lost the registration", service=definition.service, id=definition.id)
            await self._register(reader)
            return await reader.agent_service(definition.id, Cursor())

    async def _register(self, reader: ConsulClient) -> None:
        assert self._payload is not None
        service_id = self._definition.id
        # A request without an answer may have arrived; one that was refused has not.
        before, self._sent, self._due = self._sent, True, True
        self._token_version = self._registry.token_version()
        try:
            await reader.register(self._payload)
        except PermissionDeniedError:
            self._sent = before
            raise
        # Not by replace-existing-checks: the agent repeats a registration with the flags that it came with, each time
        # that central configuration changes, and would drop maintenance then.
        sent = self._payload["Check"].get("CheckID", f"service:{service_id}")
        for check in left_over(await reader.agent_checks(service_id), service_id, sent):
            await reader.deregister_check(check)
        self._due = False
        log.info("registered with the agent", service=self._definition.service, id=self._definition.id)

    def _held(self, registration: OwnRegistration | None) -> None:
        self.registration = registration
        if registration is not None:
            self._present.set()
            self._present = trio.Event()
        self._on_change(registration)

    async def _deregister(self) -> None:
        try:
            await self._client.deregister(self._definition.id)
        except ConsulError as error:
            if _gone(error):
                return
            log.warning("the registration stays behind", id=self._definition.id, error=str(error))
            return
        log.info("deregistered", service=self._definition.service, id=self._definition.id)


def _gone(error: ConsulError) -> bool:
    """Whether the agent holds no such registration: 404, and 500 with a text in 1.8."""
    return isinstance(error, NotFoundError) or (isinstance(error, ServerError) and "Unknown service" in str(error))
