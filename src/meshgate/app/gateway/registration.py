"""The gateway's registration: as the settings describe it, and what comes of the one that Consul holds.

Consul merges central configuration into the registration, so what it holds may ask for other listeners, limits and
name resolution than the settings, and may ask for others later. All of it takes effect while the gateway runs. What was
set for this process itself counts before what Consul says centrally.

With `MESHGATE_REGISTER=false` the registration is somebody else's: a service definition file of the agent as a rule, or
a row of the catalog that no agent holds (`MESHGATE_NODE_NAME`). Nothing is bound before it is known, and its addresses
and its meta decide.
"""

from collections.abc import Callable, Iterable, Iterator

import structlog

from meshgate.adapters.consul import OwnHealth, Registrar, RegistrarLeft, WatchRegistry
from meshgate.adapters.consul.api import GATEWAY_KIND, ConsulClient, ConsulError, OwnRegistration
from meshgate.adapters.consul.watch import ignore
from meshgate.adapters.relay.pool import RelayPool
from meshgate.app.errors import CommandError
from meshgate.app.gateway.from_settings import definition_of, limits_of, listen_addresses
from meshgate.app.gateway.listeners import Listeners, OwnAddressKeeper
from meshgate.app.settings.settings import Settings
from meshgate.core.catalog import NOWHERE, Locality
from meshgate.core.federation_routes import WAN_FEDERATION
from meshgate.core.proxy_config import (
    NO_LIMITS,
    NO_OPTIONS,
    BindAddress,
    GatewayOptions,
    ListenPlan,
    gateway_options,
    listen_plan,
)
from meshgate.core.text import printable

log = structlog.get_logger(module="meshgate")

# Characters of what a check says that are quoted; it may say kilobytes.
_QUOTE = 200


class GatewayRegistration:
    """Follows what `registrar`, which is to be run, makes of it. The relay gets the listeners and the limits.

    `on_options` gets whether one host name of each destination is to be used, and the gateway's locality, when one of
    them changed.
    """

    def __init__(
        self,
        settings: Settings,
        client: ConsulClient,
        registry: WatchRegistry,
        relay: RelayPool,
        on_options: Callable[[bool, Locality], None],
    ) -> None:
        self.listeners = Listeners(relay)
        self.on_registration: Callable[[OwnRegistration], None] = ignore
        """Gets the registration each time it changed."""
        self._settings = settings
        self._relay = relay
        self._on_options = on_options
        self._own_addresses = OwnAddressKeeper(settings)
        self._options: GatewayOptions = NO_OPTIONS
        self._locality = NOWHERE
        self._limits = NO_LIMITS
        self._seen: OwnRegistration | None = None
        self._missing = False
        self._health = OwnHealth()
        self.registrar = Registrar(
            client,
            registry,
            definition_of(settings),
            register=settings.register,
            node=settings.node_name,
            is_own=self._is_own,
            until_listening=self.listeners.until_settled,
            on_change=self._changed,
        )

    def bind(self) -> None:
        """Take the addresses that are known from the settings; CommandError where one cannot be bound."""
        if self._settings.register:
            self.listeners.bind(listen_addresses(self._settings))

    def go_on(
        self,
        left: RegistrarLeft,
        listeners: Iterable[tuple[BindAddress, tuple[str, int]]],
        addresses: Iterable[BindAddress],
        *,
        same_token: bool,
    ) -> None:
        """Go on with the registration and the listeners of the version before; by its settings it had `addresses`."""
        self.listeners.go_on(listeners)
        self.registrar.adopt(left, same_token=same_token)
        if self._settings.register and (wanted := listen_addresses(self._settings)) != tuple(addresses):
            self.listeners.want(ListenPlan((*self.listeners.addresses, *wanted)))

    def stand_in(self) -> None:
        """Listen by the settings for want of anything better: Consul is not there to say where."""
        if not self.listeners.addresses:
            self.listeners.want(ListenPlan(listen_addresses(self._settings)))

    def problems(self) -> list[str]:
        """What keeps the gateway from doing what its registration says, a line each."""
        missing = f"{missing_registration(self._settings)}, and MESHGATE_REGISTER is false"
        return [*([missing] if self._missing else []), *_problems_of(self._health), *self.listeners.problems()]

    async def refuse_rival(self) -> None:
        """Raise CommandError where another process lives by the registration that is to be made."""
        try:
            told = await self.registrar.rival()
        except ConsulError:
            return  # The registrar looks again, and says what is wrong.
        if told:
            raise CommandError(told)

    async def existing(self) -> bool:
        """Wait for a registration that somebody else makes, and for a listener by it; whether it exposes servers."""
        registration = await self.registrar.registered()
        await self.listeners.opened.wait()
        return exposes_servers(registration)

    def use(self, settings: Settings) -> None:
        """Go by other settings from now on; after a RegistrationError nothing has changed."""
        self.registrar.define(definition_of(settings))
        addresses = listen_addresses(settings)
        if settings.register and addresses != listen_addresses(self._settings):
            # Those that are to be registered come first, those that are in the registration still go with it.
            self.listeners.want(ListenPlan((*self.listeners.addresses, *addresses)))
        self._settings, self._own_addresses = settings, OwnAddressKeeper(settings)
        self._limit()

    def give_back(self) -> bool:
        """Take the registration back, where it is ours; whether it is. Listeners stay as they are.

        What Consul has not told of yet is there all the same: a gateway that crashed and stands in for Consul is known
        to its callers by the registration of before.
        """
        self.listeners.stop()
        if self._settings.register:
            self.registrar.stop()
        return self._settings.register

    def _is_own(self, host: str, port: int) -> bool:
        return self._own_addresses.is_own(self.listeners.addresses, host, port)

    def _changed(self) -> None:
        self._follow_limits_of_destinations()
        self._follow_health()
        registration = self.registrar.registration
        if self.registrar.missing and not self._missing:
            log.warning("no such registration yet, waiting for it", id=self._settings.proxy_id)
        self._missing = self.registrar.missing
        if registration is not None and registration != self._seen:
            before, self._seen = self._seen, registration
            self._notice(before or registration, registration)
            self._follow(registration)

    def _follow_limits_of_destinations(self) -> None:
        limits = self.registrar.limits
        if limits != self._limits:
            log.info("service-defaults limit each destination", streams=limits.connections, pending=limits.pending)
            self._limits = limits
            self._limit()

    def _follow_health(self) -> None:
        before, self._health = self._health, self.registrar.health
        for cause in self._health.maintenance:
            if cause not in before.maintenance:
                log.warning("held out of service in Consul: maintenance", node=cause.node, reason=cause.reason)
        if before.maintenance and not self._health.maintenance:
            log.info("no longer held out of service in Consul")
        for name, output in self._health.failing:
            if name not in dict(before.failing):
                log.warning("a check of the gateway is critical in Consul", check=name, output=output[:_QUOTE])

    def _follow(self, registration: OwnRegistration) -> None:
        self.on_registration(registration)
        self.listeners.want(plan_of(registration))
        before = self._options.one_host_name, self._locality
        self._options, self._locality = gateway_options(registration.config), registration.locality
        self._limit()
        if before != (self._options.one_host_name, self._locality):
            self._on_options(self._options.one_host_name, self._locality)

    def _notice(self, before: OwnRegistration, registration: OwnRegistration) -> None:
        if registration.kind != GATEWAY_KIND:
            log.warning("the registration is of another kind", id=registration.id, kind=registration.kind)
        exposes = exposes_servers(registration)
        if exposes_servers(before) != exposes:
            log.warning("whether servers are exposed has changed: it takes effect at the next start", exposed=exposes)

    def _limit(self) -> None:
        self._relay.limit(limits_of(self._settings, self._options, self._limits))


def plan_of(registration: OwnRegistration) -> ListenPlan:
    """Where a registration that Consul holds wants the gateway to listen, central configuration merged."""
    return listen_plan(registration.address, registration.port, registration.tagged, registration.config)


def exposes_servers(registration: OwnRegistration) -> bool:
    """Whether a registration offers Consul's servers to other datacenters: that very text, as Consul has it."""
    return WAN_FEDERATION in registration.meta.items()


def missing_registration(settings: Settings) -> str:
    """What is not there, where somebody else is to register the gateway."""
    node = settings.node_name
    if not node:
        return f"the agent holds no registration {settings.proxy_id!r}"
    return f"the catalog has no registration {settings.proxy_id!r} on node {node!r} that the token may see"


def _problems_of(health: OwnHealth) -> Iterator[str]:
    for cause in health.maintenance:
        whose = "its node" if cause.node else "it"
        reason = f": {printable(cause.reason)}" if cause.reason else ""
        yield f"{whose} is in maintenance in Consul, so other gateways send it no new streams{reason}"
    for name, output in health.failing:
        said = f": {printable(output[:_QUOTE])}" if output else ""
        yield f"its check {printable(name)!r} is critical in Consul, so other gateways send it no new streams{said}"
    for node in health.elsewhere:
        yield f"it is registered on node {printable(node)} too: use consul services deregister there"
