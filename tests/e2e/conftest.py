"""Two real datacenters for a test module, and what tests ask of the gateways beside them."""

from collections.abc import Iterator

import pytest
import trio

from meshgate.adapters.consul.policy import acl_policy
from tests.harness.cluster import Federation

from .world import World


@pytest.fixture(scope="module")
def world(consul_binary: str) -> Iterator[World]:
    """Two datacenters, one global token with the documented policy, and leave for `shop` to call `web`."""
    federation = trio.run(Federation.start, consul_binary)

    async def prepare() -> World:
        token = await federation.create_policy_token(acl_policy(), "mesh-gateway")
        await federation.set_intention("shop", "web", "allow")
        return World(federation, token)

    try:
        yield trio.run(prepare)
    finally:
        trio.run(federation.stop)
