"""What the token may not see is missing, and nothing else; and the gateway says why."""

import httpx
import pytest

from meshgate.adapters.consul.policy import acl_policy
from tests.harness.gateway import GatewayProcess, gateway_beside
from tests.harness.native import native_service

from .world import World, until_equal

pytestmark = pytest.mark.consul


async def test_service_that_may_not_be_read_is_missing_alone_and_explain_says_why(world: World) -> None:
    dc2, folder = world.federation.dc2, world.federation.folder
    rules = acl_policy() + '\nservice "secret" { policy = "deny" }\n'
    token = await world.federation.create_policy_token(rules, "all-but-secret")
    async with (
        native_service(dc2, "web", folder) as web,
        native_service(dc2, "secret", folder),
        gateway_beside(dc2, token) as gateway,
    ):
        await until_equal("web", lambda: gateway.endpoints(world.sni()), {web.port: True})
        assert await gateway.endpoints(world.sni("secret")) == {}
        explanation = await gateway.ask(f"/explain?sni={world.sni('secret')}")
        assert explanation["reason"] == "unknown_sni"
        said = " ".join(step["outcome"] for step in explanation["steps"])
        assert 'service "secret" { policy = "read" }' in said
        unknown = await gateway.ask(f"/explain?sni={world.sni('nosuch')}")
        assert "no such service" in " ".join(step["outcome"] for step in unknown["steps"])


async def test_token_that_may_not_register_is_told_the_missing_rule(world: World) -> None:
    rules = acl_policy().replace('service "mesh-gateway"', 'service "another"')
    token = await world.federation.create_policy_token(rules, "may-not-register")
    gateway = GatewayProcess(world.federation.dc2, token)
    gateway.spawn()
    try:

        async def told() -> bool:
            try:
                problems = (await gateway.ask("/readyz"))["problems"]
            except httpx.TransportError:
                return False
            return any('add service "mesh-gateway" { policy = "write" }' in problem for problem in problems)

        await until_equal("the missing rule", told, True, seconds=15)
        assert "token may not register service" in gateway.child.last_lines(50)
        assert gateway.child.running
        assert token not in gateway.child.log.read_text()
    finally:
        await gateway.stop()


async def test_wrong_token_is_said_and_never_shown(world: World) -> None:
    token = "00000000-dead-beef-0000-000000000000"
    gateway = GatewayProcess(world.federation.dc2, token)
    gateway.spawn()
    try:

        async def told() -> bool:
            return "ACL not found" in gateway.child.last_lines(50)

        await until_equal("the refused token in the log", told, True, seconds=10)
        assert gateway.child.running
        assert not (await gateway.ask("/readyz"))["ready"]
        assert token not in gateway.child.log.read_text()
    finally:
        await gateway.stop()
