"""What newer Consul agents give to any token, and the setting that keeps it back while Envoy sidecars go on."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import ClassVar

import pytest

from meshgate.adapters.consul.policy import acl_policy
from meshgate.core.prerequisites import gives_keys_away
from tests.e2e.test_envoy_peering import greeting
from tests.e2e.world import World, until_equal
from tests.harness.agent import ConsulError
from tests.harness.backend import backend
from tests.harness.envoy_sidecar import XdsFederation, envoy_sidecar_for
from tests.harness.visit import Visitor
from tests.versions import XDS

pytestmark = [pytest.mark.consul, pytest.mark.envoy, pytest.mark.since_consul(*XDS)]

LEAF = "/v1/agent/connect/ca/leaf/"


@asynccontextmanager
async def mesh(binary: str, *blocked: str) -> AsyncIterator[World]:
    """Two datacenters whose agents answer nothing below the paths that are blocked."""

    class Blocking(XdsFederation):
        more: ClassVar[Mapping[str, object]] = {"http_config": {"block_endpoints": list(blocked)}}

    federation = await Blocking.start(binary)
    try:
        token = await federation.create_policy_token(acl_policy(), "mesh-gateway")
        await federation.set_intention("shop", "*", "allow")
        yield World(federation, token)
    finally:
        await federation.stop()


@pytest.mark.parametrize("blocked", [(), ("/v1/agent/connect/ca/leaf",)], ids=["open", "blocked"])
async def test_block_endpoints_keeps_the_keys_and_envoy_sidecars_still_get_theirs(
    consul_binary: str, blocked: tuple[str, ...]
) -> None:
    upstream = {"DestinationName": "web", "Datacenter": "dc2", "MeshGateway": {"Mode": "local"}}
    async with mesh(consul_binary, *blocked) as world:
        dc1, dc2 = world.federation.datacenters
        async with (
            backend(b"web\n") as port,
            envoy_sidecar_for(dc2, "web", backend_port=port),
            world.gateways(),
            envoy_sidecar_for(dc1, "shop", upstreams=[upstream]) as shop,
        ):
            await until_equal("web", partial(greeting, shop.listens["web"]), "web\n", seconds=60)
            answers = []
            for consul, service in ((dc1, "shop"), (dc2, "web")):
                try:
                    leaf = await consul.get(f"{LEAF}{service}", token=world.token)
                    answers.append((200, "PRIVATE KEY" in leaf["PrivateKeyPEM"]))
                except ConsulError as error:
                    answers.append((error.status, "blocked by agent configuration" in str(error)))
            given_away = gives_keys_away(".".join(map(str, dc1.version))) and not blocked
            assert answers == [(200 if given_away else 403, given_away or bool(blocked))] * 2
            doctor = json.loads((await Visitor(dc1, world.token).ask("doctor", "--json"))[1])
            told = [check["status"] for check in doctor["checks"] if check["check"] == "keys of services"]
            assert told == (["warning"] if given_away else ["ok"] if blocked else [])
