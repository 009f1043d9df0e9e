"""Where the running product is put together: the gateway, then what looks at it, then all of it is started.

Everything that only looks (pages, numbers) is made here and handed to the gateway, which knows none of it.
"""

import importlib
import os
import socket
import sys
from pathlib import Path
from typing import Final

import msgspec
import structlog
import trio

from meshgate import __version__
from meshgate.adapters.admin.confined_clients import is_confined
from meshgate.adapters.admin.http_server import AdminServer, Bind, listening
from meshgate.adapters.consul.api import ConsulClient, OwnRegistration
from meshgate.adapters.error_words import words_of
from meshgate.adapters.machine import RESERVED, raise_descriptor_limit
from meshgate.adapters.relay.sandbox import Mode, support
from meshgate.adapters.sd_notify import Notifier
from meshgate.app.admin.admin_pages import PROBES, admin_routes
from meshgate.app.admin.gateway_view import GatewayView
from meshgate.app.admin.metrics import Metrics
from meshgate.app.admin.statsd_export import StatsdExport
from meshgate.app.errors import CommandError, ConfigError
from meshgate.app.gateway.from_settings import checked_client
from meshgate.app.gateway.gateway import Gateway
from meshgate.app.gateway.hardening import forbid_core_dumps, hide_secrets
from meshgate.app.gateway.upgrade import Trial, identity_of
from meshgate.app.gateway.upgrade_record import OnlookersLeft, Taken
from meshgate.app.logs import logs
from meshgate.app.logs.access_log import AccessLog, CentralAccessLog
from meshgate.app.settings.settings import Settings
from meshgate.core.addresses import host_port
from meshgate.core.prerequisites import Status, descriptors

log = structlog.get_logger(module="meshgate")

_ADMIN: Final = "MESHGATE_ADMIN_BIND"


def run_gateway(settings: Settings, taken: Taken | None) -> int | None:
    """Run until drained; where there is something `taken` from the version before, go on with that.

    Raises:
        ConfigError: the settings do not fit this machine, or Consul's address, token file or TLS files are wrong.
        CommandError: an address cannot be bound.
    """
    if taken is not None and taken.is_trial:
        return _try(settings, taken)
    logs.configure(settings.log_level, json=settings.log_json)
    _check_sandbox(settings)
    _check_descriptors(settings)
    hide_secrets(settings.secrets())
    forbid_core_dumps()
    client = checked_client(settings)
    for notice in client.address.warnings:
        log.warning(notice)
    trio.run(_main, settings, client, taken)
    return None


def _try(settings: Settings, taken: Taken) -> int:
    """Find out whether this version could go on, and say so; nothing is changed.

    Raises:
        CommandError: it could not.
    """
    # What only workers need has to be there too.
    importlib.import_module("meshgate.adapters.relay.worker")
    if settings.sandbox == Mode.REQUIRE and (missing := support().missing):
        raise ConfigError(f"MESHGATE_SANDBOX is require: {'; '.join(missing)}")
    checked_client(settings)
    if settings.access_log != "off":
        AccessLog(settings.access_log).close()
    admin = taken.record.onlookers.admin
    if settings.admin_bind is not None and (admin is None or admin[0] != settings.shown(_ADMIN)):
        bind = settings.admin_bind
        try:
            with listening(bind if isinstance(bind, Path) else (bind.host, bind.port)):
                pass
        except OSError as error:
            raise _not_bound(settings, error) from None
    before, now = taken.record.identity, identity_of(settings)
    if changed := [name for name in now if before.get(name, now[name]) != now[name]]:
        raise ConfigError(f"{', '.join(changed)} changed: that takes a restart")
    sys.stdout.write(msgspec.json.encode(Trial(__version__)).decode() + "\n")
    return 0


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
        self._access_log = CentralAccessLog(gateway.settings, self._use)
        self._gateway = gateway
        gateway.registration.on_registration = self._follow

    def _use(self, access: AccessLog | None) -> None:
        self._gateway.observer.use(access)
        self._gateway.want_records()

    def _follow(self, registration: OwnRegistration) -> None:
        self._access_log.follow(registration.access_logs)
        self.statsd.follow(registration.config)


async def _main(settings: Settings, client: ConsulClient, taken: Taken | None) -> None:
    async with client:
        gateway = Gateway(settings, client, Notifier.from_environment(os.environ), taken)
        view = GatewayView(gateway)
        telemetry = Telemetry(view, gateway)
        before = OnlookersLeft() if taken is None else taken.record.onlookers
        view.history.remember(before.history)
        telemetry.statsd.go_on(before.statsd_said, before.statsd_dropped)
        refuses = None if settings.sandbox == Mode.OFF else is_confined
        # A probe from a container beside this one may look like a worker; restarting over that helps nobody.
        server = AdminServer(admin_routes(view, telemetry.metrics), refuses=refuses, for_anybody=PROBES)

        def left() -> OnlookersLeft:
            admin = None if server.descriptor < 0 else (settings.shown(_ADMIN), server.descriptor)
            return OnlookersLeft(
                statsd_dropped=telemetry.statsd.dropped,
                statsd_said=telemetry.statsd.left(),
                admin=admin,
                history=[*view.history.minutes],
            )

        gateway.onlookers_left = left

        async def start_onlookers(nursery: trio.Nursery) -> None:
            nursery.start_soon(telemetry.statsd.run)
            nursery.start_soon(view.history.run, view.totals)
            was, inherited = before.admin or ("", -1)
            same = was == settings.shown(_ADMIN)
            if settings.admin_bind is not None:
                bound = await _serve_admin(nursery, server, settings, inherited if same else -1)
                if isinstance(bound, tuple):
                    gateway.tables.guard(bound)
            if inherited >= 0 and not same:
                _give_up(inherited)

        await gateway.run(start_onlookers)


def _give_up(descriptor: int) -> None:
    """Close the admin address of the version before, where this one has another."""
    with socket.socket(fileno=descriptor) as sock:
        if sock.family == socket.AF_UNIX:
            Path(sock.getsockname()).unlink(missing_ok=True)


def _not_bound(settings: Settings, error: OSError) -> CommandError:
    return CommandError(f"cannot bind the admin address {settings.shown(_ADMIN)}: {words_of(error)}")


async def _serve_admin(nursery: trio.Nursery, server: AdminServer, settings: Settings, inherited: int) -> Bind:
    try:
        bound: Bind = await nursery.start(server.serve, settings.admin_bind, inherited)
    except OSError as error:
        raise _not_bound(settings, error) from None
    if inherited < 0:
        log.info("admin address is open", address=bound if isinstance(bound, Path) else host_port(*bound))
    return bound
