"""The gateway's registration kept with the agent, and what the agent makes of it followed.

The agent merges central configuration into the registration, so what it holds may ask for other listeners, limits and
name resolution than the settings, and may ask for others later. All of it takes effect while the gateway runs. What was
set for this process itself counts before what Consul says centrally.

With `MESHGATE_REGISTER=false` the registration is somebody else's, a service definition file of the agent as a rule:
nothing is bound before it is known, and its addresses and its meta decide.
"""

from collections.abc import Callable
from typing import Final

import structlog

from meshgate.adapters.consul import GATEWAY_KIND, ConsulClient, Cursor, OwnRegistration, Page, Registrar, WatchRegistry
from meshgate.adapters.consul.maintenance import Maintenance, maintenance_of
from meshgate.adapters.consul.watch import Watch
from meshgate.adapters.consul.watch_registry import WatchKey, ignore
from meshgate.adapters.relay.pool import RelayPool
from meshgate.app.gateway.listeners import Listeners
from meshgate.app.gateway.registration import definition_of, exposes_servers, listen_addresses, plan_of
from meshgate.app.gateway.relay_limits import limits_of
from meshgate.app.settings.settings import Settings
from meshgate.app.text import printable
from meshgate.core.catalog import NOWHERE, Snapshot
from meshgate.core.gateway_options import NO_LIMITS, NO_OPTIONS, DestinationLimits, GatewayOptions, gateway_options
from meshgate.core.host_names import with_one_host_name
from meshgate.core.listeners import ListenPlan
from meshgate.core.locality import measured

log = structlog.get_logger(module="meshgate")

# Seconds between two looks at what cannot be waited for: the gateway's own service-defaults and its maintenance.
_LOOK: Final = 10.0


class RegistrationKeeper:
    """Registers, follows, and gives the registration back at the end.

    Args:
        settings: of this process.
        client: Consul.
        registry: shared by all watches of the process.
        relay: gets the listeners and the limits.
        on_options: called when the answer of `seen` for the same snapshot may be another one.
    """

    def __init__(
        self,
        settings: Settings,
        client: ConsulClient,
        registry: WatchRegistry,
        relay: RelayPool,
        on_options: Callable[[], None],
    ) -> None:
        self.listeners = Listeners(relay)
        self.on_registration: Callable[[OwnRegistration], None] = ignore
        """Gets the registration each time it changed."""
        self._settings = settings
        self._client = client
        self._registry = registry
        self._relay = relay
        self._on_options = on_options
        self._options: GatewayOptions = NO_OPTIONS
        self._locality = NOWHERE
        self._of_each = NO_LIMITS
        self._exposes: bool | None = None
        self._missing = False
        self._held_out: tuple[Maintenance, ...] = ()
        self._registrar = Registrar(
            client, registry, definition_of(settings), register=settings.register, on_change=self._changed
        )

    def bind(self) -> None:
        """Take the addresses that are known from the settings.

        Raises:
            CommandError: an address cannot be bound.
        """
        if self._settings.register:
            self.listeners.bind(listen_addresses(self._settings))

    def stand_in(self) -> None:
        """Listen by the settings for want of anything better: Consul is not there to say where."""
        if not self.listeners.addresses:
            self.listeners.want(ListenPlan(listen_addresses(self._settings)))

    def seen(self, snapshot: Snapshot) -> Snapshot:
        """A snapshot as the registration wants it seen."""
        if self._options.one_host_name:
            snapshot = with_one_host_name(snapshot)
        return measured(snapshot, self._locality) if self._locality.region else snapshot

    def problems(self) -> list[str]:
        """What keeps the gateway from doing what its registration says, a line each."""
        missing = f"the agent holds no registration {self._settings.proxy_id!r}, and MESHGATE_REGISTER is false"
        held_out = [_words(each) for each in self._held_out]
        return [*([missing] if self._missing else []), *held_out, *self.listeners.problems()]

    async def existing(self) -> bool:
        """Wait for a registration that somebody else makes, and for a listener by it; whether it exposes servers."""
        registration = await self._registrar.registered()
        await self.listeners.until_bound()
        return exposes_servers(registration)

    async def run(self) -> None:
        """Register and follow until `give_back` or cancellation."""
        await self._registrar.run()

    async def follow_limits(self) -> None:
        """Follow the gateway's own service-defaults until cancelled."""
        name = self._settings.service

        async def ask(_: Cursor) -> Page[DestinationLimits]:
            return Page((await self._client.service_defaults(name)).limits)

        await Watch(self._registry, WatchKey("service-defaults", name), ask, self._limited, interval=_LOOK).run()

    async def follow_maintenance(self) -> None:
        """Follow whether an operator holds the gateway out of service, until cancelled. It serves all the same."""
        service_id = self._settings.proxy_id

        async def ask(_: Cursor) -> Page[tuple[Maintenance, ...]]:
            return Page(maintenance_of(await self._client.agent_checks(service_id), service_id))

        await Watch(self._registry, WatchKey("maintenance", service_id), ask, self._maintained, interval=_LOOK).run()

    def give_back(self) -> bool:
        """Take the registration back, where it is ours; whether there was one. Listeners stay as they are."""
        self.listeners.stop()
        ours = self._settings.register and self._registrar.registration is not None
        if ours:
            self._registrar.stop()
        return ours

    def _limited(self, of_each: DestinationLimits) -> None:
        if of_each != NO_LIMITS:
            log.info("service-defaults limit each destination", streams=of_each.connections, pending=of_each.pending)
        self._of_each = of_each
        self._limit()

    def _maintained(self, causes: tuple[Maintenance, ...]) -> None:
        for cause in causes:
            log.warning("held out of service in Consul: maintenance", node=cause.node, reason=cause.reason)
        if self._held_out and not causes:
            log.info("no longer held out of service in Consul")
        self._held_out = causes

    def _changed(self, registration: OwnRegistration | None) -> None:
        self._missing = registration is None and not self._settings.register
        if self._missing:
            log.warning("no such registration yet, waiting for it", id=self._settings.proxy_id)
        if registration is None:
            return
        self._notice(registration)
        self.on_registration(registration)
        self.listeners.want(plan_of(registration))
        before = self._options.one_host_name, self._locality
        self._options, self._locality = gateway_options(registration.config), registration.locality
        self._limit()
        if before != (self._options.one_host_name, self._locality):
            self._on_options()

    def _notice(self, registration: OwnRegistration) -> None:
        if registration.kind != GATEWAY_KIND:
            log.warning("the registration is of another kind", id=registration.id, kind=registration.kind)
        exposes = exposes_servers(registration)
        if self._exposes not in (None, exposes):
            log.warning("whether servers are exposed has changed: it takes effect at the next start", exposed=exposes)
        self._exposes = exposes

    def _limit(self) -> None:
        self._relay.limit(limits_of(self._settings, self._options, self._of_each))


def _words(maintenance: Maintenance) -> str:
    whose = "its node" if maintenance.node else "it"
    reason = f": {printable(maintenance.reason)}" if maintenance.reason else ""
    return f"{whose} is in maintenance in Consul, so other gateways send it no new streams{reason}"
