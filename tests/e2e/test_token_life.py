"""The token's life beside a gateway that runs: deleted, replaced, its file gone for a while. No stream notices.

Consul is a real one, with ACLs that deny by default.
"""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from meshgate.adapters.consul.policy import acl_policy
from tests.harness.gateway import GatewayProcess, gateway_beside
from tests.harness.native import native_service

from .world import World, until_equal

pytestmark = pytest.mark.consul

UNKNOWN = "Consul does not know the token"


@asynccontextmanager
async def gateway_with(world: World, file: Path) -> AsyncIterator[GatewayProcess]:
    """A gateway of dc1 whose token is in a file."""
    async with gateway_beside(world.federation.dc1, "", CONSUL_HTTP_TOKEN_FILE=str(file)) as gateway:
        yield gateway


async def replace(file: Path, token: str) -> None:
    """Another token at once: as secret stores do it."""
    fresh = file.with_suffix(".new")
    fresh.write_text(token)
    fresh.replace(file)


async def problem(gateway: GatewayProcess, words: str) -> bool:
    ready = await gateway.ask("/readyz")
    assert ready["ready"]
    return any(words in line for line in ready["problems"])


async def test_token_that_is_deleted_and_replaced_is_followed_without_a_restart(world: World, tmp_path: Path) -> None:
    dc1, folder = world.federation.dc1, world.federation.folder
    first, second = [await world.federation.create_policy_token(acl_policy(), name) for name in ("first", "second")]
    file = tmp_path / "token"
    file.write_text(first)
    caller = await world.caller()
    name, spiffe = world.sni(datacenter="dc1"), world.spiffe(datacenter="dc1")
    async with native_service(dc1, "web", folder) as server, gateway_with(world, file) as gateway:
        pid = gateway.child.pid

        async def routes(service: str = "web") -> dict[int, bool]:
            return await gateway.endpoints(world.sni(service, "dc1"))

        await until_equal("web", routes, {server.port: True}, seconds=20)
        async with caller.connect(gateway.address, name, expect=spiffe) as stream:
            accessor = (await dc1.get("/v1/acl/token/self", token=first))["AccessorID"]
            await dc1.delete(f"/v1/acl/token/{accessor}")
            # Whatever changes in the catalog wakes the lists, which Consul then refuses.
            async with native_service(dc1, "wakes", folder):
                await until_equal("the deleted token", lambda: problem(gateway, UNKNOWN), True, seconds=30)
                assert await gateway.counter("meshgate_token_problem") == 1
                assert await gateway.counter("meshgate_consul_errors_total", status="403") > 0
                await stream.send_all(b"still open")
                assert await stream.receive_some() == b"still open"
                await caller.call(gateway.address, name, expect=spiffe)
                assert await routes() == {server.port: True}

                await replace(file, second)
                await until_equal("the new token", lambda: problem(gateway, UNKNOWN), False, seconds=30)
            async with native_service(dc1, "later", folder) as later:
                await until_equal("later", lambda: routes("later"), {later.port: True}, seconds=30)
            await stream.send_all(b"to the end")
            assert await stream.receive_some() == b"to the end"
        assert await gateway.counter("meshgate_token_problem") == 0
        assert gateway.child.pid == pid
        told = gateway.child.log.read_text()
        assert first not in told
        assert second not in told


async def test_token_file_that_is_gone_is_a_problem_that_is_told_and_sighup_looks_at_it(
    world: World, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(world.token)
    async with gateway_with(world, file) as gateway:
        assert (await gateway.ask("/readyz"))["problems"] == []
        file.unlink()
        gateway.child.signal(signal.SIGHUP)

        async def logged(words: str) -> bool:
            return words in gateway.child.log.read_text()

        gone = f"the token file {file} cannot be read, the last token stays in use"
        await until_equal("the missing file", lambda: problem(gateway, gone), True, seconds=20)
        assert await gateway.counter("meshgate_token_problem") == 1
        await until_equal("the answer to SIGHUP", lambda: logged("token and TLS files read again"), True, seconds=20)
        file.write_text(world.token)
        gateway.child.signal(signal.SIGHUP)
        await until_equal("the file's return", lambda: problem(gateway, gone), False, seconds=20)
        assert await gateway.counter("meshgate_token_problem") == 0
