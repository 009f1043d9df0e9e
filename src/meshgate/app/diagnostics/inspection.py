"""What the commands that ask Consul directly have in common: a client for a moment, and how gateways are found."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar

import trio

from meshgate.adapters.consul.api import (
    GATEWAY_KIND,
    ConsulClient,
    ConsulError,
    EndpointBlockedError,
    Instances,
    PermissionDeniedError,
    Tenant,
)
from meshgate.app.errors import CommandError
from meshgate.app.gateway.from_settings import client_of
from meshgate.app.settings.settings import Settings
from meshgate.core.catalog import Instance
from meshgate.core.endpoint_maker import assess
from meshgate.core.sni import DEFAULT

T = TypeVar("T")

# Said before any rule that is missing: it is the anonymous token that lacks it.
NONE_GIVEN: Final = "no token was given"
HOW_TO_GIVE_ONE: Final = "use --token-file (CONSUL_HTTP_TOKEN_FILE) or --token (CONSUL_HTTP_TOKEN)"


def inspect(settings: Settings, look: Callable[[ConsulClient], Awaitable[T]]) -> T:
    """What `look` gives for a client to the local agent.

    Raises:
        ConfigError: Consul's address, the token file or TLS files are wrong.
        CommandError: Consul did not answer, or not with success.
    """
    client = client_of(settings)

    async def main() -> T:
        async with client:
            return await look(client)

    try:
        return trio.run(main)
    except ConsulError as error:
        raise CommandError(refusal(client, error)) from None


def refusal(client: ConsulClient, error: ConsulError) -> str:
    """What a command says of an error; where Consul refuses somebody who gave no token, that and nothing of rules."""
    if isinstance(error, EndpointBlockedError):
        return str(error)
    if isinstance(error, PermissionDeniedError) and not client.token.given:
        return f"{NONE_GIVEN}, and Consul refuses to answer without: {HOW_TO_GIVE_ONE} ({error.answer})"
    return str(error)


async def gateways_in(
    client: ConsulClient, datacenter: str, *, guess: str = GATEWAY_KIND, tenant: Tenant | None = None
) -> Instances:
    """The mesh gateways of a datacenter, healthy ones first; with `tenant` those of a partition of Enterprise.

    Its own catalog is asked; where that cannot be, the federation states tell, which remember a gateway for long after
    it is gone. `guess` is a service name to try beside those that Consul lists.

    Raises:
        ConsulError: neither can be asked.
    """
    try:
        found = await _listed(client if tenant is None else client.at(tenant), datacenter, guess)
    except ConsulError:
        found = ()
        if tenant is None or tenant.partition == DEFAULT:
            with suppress(ConsulError):
                found = (await client.federated_gateways()).value.get(datacenter, ())
        if not found:
            raise
    return tuple(sorted(found, key=lambda gateway: not healthy(gateway)))


async def _listed(client: ConsulClient, datacenter: str, guess: str) -> Instances:
    names = {guess}
    with suppress(ConsulError):
        names |= set((await client.gateway_names(datacenter)).value)
    found: list[Instance] = []
    for name in sorted(names):
        found += (await client.instances(name, datacenter=datacenter, kind=GATEWAY_KIND)).value
    return tuple(found)


def healthy(instance: Instance) -> bool:
    return assess(instance).healthy
