"""Where the running product is put together: the gateway, then what looks at it, then all of it is started.

Everything that only looks (pages, numbers) is made here and handed to the gateway, which knows none of it.
"""

import os

import structlog
import trio

from meshgate.adapters.admin.confined_clients import is_confined
from meshgate.adapters.admin.http_server import AdminServer, Bind
from meshgate.adapters.consul.api import ConsulClient, OwnRegistration
from meshgate.adapters.machine import RESERVED, raise_descriptor_limit
from meshgate.adapters.relay.sandbox import Mode, support
from meshgate.adapters.sd_notify import Notifier
from meshgate.app.admin.admin_pages import PROBES, admin_routes
from meshgate.app.admin.gateway_view import GatewayView
from meshgate.app.admin.metrics import Metrics
from meshgate.app.admin.statsd_export import StatsdExport
from meshgate.app.errors import CommandError, ConfigError
from meshgate.app.gateway.from_settings import client_of, definition_of
from meshgate.app.gateway.gateway import Gateway
from meshgate.app.gateway.hardening import forbid_core_dumps, hide_secrets
from meshgate.app.logs import logs
from meshgate.app.logs.access_log import CentralAccessLog
from meshgate.app.settings.settings import Settings
from meshgate.core.prerequisites import Status, descriptors

log = structlog.get_logger(module="meshgate")


def run_gateway(settings: Settings) -> int | None:
    """Run until drained.

    Raises:
        ConfigError: the settings do not fit this machine, or Consul's address, token file or TLS files are wrong.
        CommandError: an address cannot be bound.
    """
    logs.configure(settings.log_level, json=settings.log_json)
    _check_sandbox(settings)
    _check_descriptors(settings)
    hide_secrets(settings.secrets())
    forbid_core_dumps()
    client = client_of(settings)
    try:
        if settings.register:
            definition_of(settings).payload()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    for notice in client.address.warnings:
        log.warning(notice)
    trio.run(_main, settings, client)
    return None


def _check_sandbox(settings: Settings) -> None:
    if settings.sandbox == Mode.OFF:
        log.warning("relay workers keep all rights of this user: MESHGATE_SANDBOX is off")
    elif missing := support().missing:
        if settings.sandbox == Mode.REQUIRE:
            raise ConfigError(f"MESHGATE_SANDBOX is require: {'; '.join(missing)}")
        log.warning("relay workers are confined as far as this system can", missing="; ".join(missing))


def _check_descriptors(settings: Settings) -> None:
    found = descriptors(raise_descriptor_limit(), settings.max_connections, RESERVED)
    if found.status is not Status.OK:
        log.warning("the limit of open files is low", limit=found.detail, advice=found.advice)


class Telemetry:
    """What Consul asks centrally to be told of a gateway: its streams in an access log, its numbers by statsd.

    `metrics` are the numbers that all share; `statsd` is to be run.
    """

    def __init__(self, view: GatewayView, gateway: Gateway) -> None:
        self.metrics = Metrics(view, lambda: self.statsd.dropped)
        self.statsd = StatsdExport(self.metrics.families)
        self._access_log = CentralAccessLog(gateway.settings, gateway.observer.use, gateway.relay.want_records)
        gateway.registration.on_registration = self._follow

    def _follow(self, registration: OwnRegistration) -> None:
        self._access_log.follow(registration.access_logs)
        self.statsd.follow(registration.config)


async def _main(settings: Settings, client: ConsulClient) -> None:
    async with client:
        gateway = Gateway(settings, client, Notifier.from_environment(os.environ))
        view = GatewayView(gateway)
        telemetry = Telemetry(view, gateway)

        async def start_onlookers(nursery: trio.Nursery) -> None:
            nursery.start_soon(telemetry.statsd.run)
            if settings.admin_bind is not None:
                refuses = None if settings.sandbox == Mode.OFF else is_confined
                # A probe from a container beside this one may look like a worker; restarting over that helps nobody.
                server = AdminServer(admin_routes(view, telemetry.metrics), refuses=refuses, for_anybody=PROBES)
                bound = await _serve_admin(nursery, server, settings)
                if isinstance(bound, tuple):
                    gateway.tables.guard(bound)

        await gateway.run(start_onlookers)


async def _serve_admin(nursery: trio.Nursery, server: AdminServer, settings: Settings) -> Bind:
    try:
        bound: Bind = await nursery.start(server.serve, settings.admin_bind)
    except OSError as error:
        shown = settings.shown("MESHGATE_ADMIN_BIND")
        raise CommandError(f"cannot bind the admin address {shown}: {error.strerror}") from None
    log.info("admin address is open", address=bound if isinstance(bound, os.PathLike) else f"{bound[0]}:{bound[1]}")
    return bound
