"""A datacenter that is built anew: its servers have lost all data, so its index starts over."""

import shutil
from contextlib import AsyncExitStack
from functools import partial

import pytest

from meshgate.adapters.consul import acl_policy
from tests.harness.agent import Consul
from tests.harness.cluster import two_datacenters
from tests.harness.gateway import gateway_beside
from tests.harness.ports import free_ports
from tests.harness.waiting import until

pytestmark = [pytest.mark.consul, pytest.mark.timeout(240)]


async def gateway_at(consul: Consul, port: int) -> int:
    """Register a gateway; the index that its registration has."""
    await consul.register({"Name": "mesh-gateway", "Kind": "mesh-gateway", "Address": "127.0.0.1", "Port": port})
    rows: list[int] = []

    async def missing() -> str | None:
        rows[:] = [
            row["Service"]["ModifyIndex"]
            for row in await consul.ask("/v1/health/service/mesh-gateway") or ()
            if row["Service"]["Port"] == port
        ]
        return None if rows else "it is not in the catalog"

    await until("the gateway's registration", missing, seconds=30)
    return rows[0]


async def test_gateways_of_a_datacenter_that_was_built_anew_are_found_within_a_minute(
    consul_binary: str,
) -> None:
    before, after = free_ports(2)
    async with AsyncExitStack() as stack:
        federation = await stack.enter_async_context(two_datacenters(consul_binary))
        dc1, dc2 = federation.datacenters
        for number in range(100):
            await dc2.put(f"/v1/kv/history/{number}", number)
        old_index = await gateway_at(dc2, before)
        token = await federation.create_policy_token(acl_policy(), "mesh-gateway")
        gateway = await stack.enter_async_context(gateway_beside(dc1, token))
        sni = f"*.dc2.internal.{federation.trust_domain}"

        async def missing(port: int) -> str | None:
            found = await gateway.endpoints(sni)
            return None if set(found) == {port} else f"there are {found}"

        await until("the gateway of dc2", partial(missing, before), seconds=30)
        await dc2.stop()
        shutil.rmtree(dc2.folder / "data")
        dc2.start()
        await federation.until_ready()
        assert await gateway_at(dc2, after) < old_index
        await until("the new gateway of dc2", partial(missing, after), seconds=60)
