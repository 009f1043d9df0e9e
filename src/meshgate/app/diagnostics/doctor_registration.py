"""The gateway's own registration: whether it can be made, or is there where somebody else is to make it."""

from collections.abc import Collection

import trio

from meshgate.adapters.consul import lived_by
from meshgate.adapters.consul.api import GATEWAY_KIND, ConsulClient, ConsulError, OwnInstance, OwnRegistration
from meshgate.app.gateway.from_settings import definition_of, listen_addresses
from meshgate.app.gateway.listeners import OwnAddressKeeper
from meshgate.app.gateway.registration import missing_registration
from meshgate.app.settings.settings import Settings
from meshgate.core.prerequisites import Finding, failed, ok, warning

CHECK = "registration"
# Connections that are made anew to see whether they all lead to one agent.
_CONNECTIONS = 4


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
        return failed(CHECK, missing_registration(settings), advice)
    if held.kind != GATEWAY_KIND:
        detail = f"{held.id!r} is of kind {held.kind or 'none'}"
        return failed(CHECK, detail, f"register it with kind {GATEWAY_KIND}")
    return ok(CHECK, f"{held.id} at {_place(held)}")


async def _to_be_made(settings: Settings, held: OwnRegistration | None) -> Finding:
    if held is None:
        return ok(CHECK, f"no {settings.proxy_id} on this agent yet")
    addresses, bound = OwnAddressKeeper(settings), listen_addresses(settings)
    told = await lived_by(held, definition_of(settings), lambda *place: addresses.is_own(bound, *place))
    if told:
        detail, _, advice = told.partition(": ")
        return failed(CHECK, detail, advice)
    return ok(CHECK, f"{held.id} at {_place(held)}")


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
        try:
            async with client.dedicated() as reader:
                nodes.add((await reader.agent_self()).node)
        except ConsulError:
            pass

    async with trio.open_nursery() as nursery:
        for _ in range(_CONNECTIONS):
            nursery.start_soon(ask)
    return nodes


def _place(registration: OwnRegistration) -> str:
    host = registration.address or "the agent's address"
    return f"[{host}]:{registration.port}" if ":" in host else f"{host}:{registration.port}"
