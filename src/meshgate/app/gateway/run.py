"""`meshgate run`: one gateway in the foreground, until a signal drains it."""

import os

import structlog
import trio

from meshgate.adapters.consul import ConsulAddress, ConsulClient, ConsulConfigError
from meshgate.adapters.sd_notify import Notifier
from meshgate.app.errors import ConfigError
from meshgate.app.gateway.gateway import Gateway
from meshgate.app.gateway.hardening import forbid_core_dumps, hide_secrets
from meshgate.app.gateway.limits import raise_descriptor_limit
from meshgate.app.gateway.registration import definition_of
from meshgate.app.logs import logs
from meshgate.app.settings.settings import Settings

log = structlog.get_logger(module="meshgate")


def run_gateway(settings: Settings) -> int | None:
    """Run until drained.

    Raises:
        ConfigError: the settings do not fit this machine, or Consul's address, token file or TLS files are wrong.
        CommandError: an address cannot be bound.
    """
    logs.configure(settings.log_level, json=settings.log_json)
    raise_descriptor_limit()
    hide_secrets(settings.secrets())
    forbid_core_dumps()
    try:
        address = ConsulAddress.from_settings(settings.consul)
        if settings.register:
            definition_of(settings).payload()
        client = ConsulClient(address)
    except (ConsulConfigError, ValueError) as error:
        raise ConfigError(str(error)) from None
    for notice in address.warnings:
        log.warning(notice)
    trio.run(_main, settings, client)
    return None


async def _main(settings: Settings, client: ConsulClient) -> None:
    async with client:
        await Gateway(settings, client, Notifier.from_environment(os.environ)).run()
