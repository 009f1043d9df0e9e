"""The description of the admin address against a real gateway, by a tool that makes up requests from it."""

import json
import sys
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio

from meshgate.app.admin.admin_pages import admin_routes
from meshgate.app.admin.openapi import openapi_document
from tests.harness.gateway import gateway_beside
from tests.harness.native import native_service
from tests.harness.process import child_environment

from .world import World, until_equal

pytestmark = pytest.mark.consul
DOCUMENT = json.loads(openapi_document())


@pytest.mark.timeout(300)
async def test_a_running_gateway_answers_as_its_description_says(world: World, tmp_path: Path) -> None:
    async with (
        native_service(world.federation.dc2, "web", world.federation.folder),
        gateway_beside(world.federation.dc2, world.token) as gateway,
    ):

        async def routed() -> bool:
            return bool(await gateway.endpoints(world.sni()))

        await until_equal("web", routed, wanted=True, seconds=20)
        caller = await world.caller()
        async with caller.connect(gateway.address, world.sni(), expect=world.spiffe()):
            await schemathesis(gateway.admin, tmp_path)
        async with httpx.AsyncClient(base_url=f"http://{gateway.admin}", trust_env=False, timeout=10) as client:
            assert (await client.get("/openapi.json")).json() == DOCUMENT
            # Last, as nothing comes after it.
            drained = await client.post("/drain")
        assert drained.status_code == 200
        assert drained.json().keys() == DOCUMENT["components"]["schemas"]["Draining"]["properties"].keys()


async def schemathesis(admin: str, folder: Path) -> None:
    """All its checks of answers; the requests are the same each time."""
    document = await trio.to_thread.run_sync(partial((folder / "openapi.json").write_bytes, openapi_document()))
    assert document
    with trio.fail_after(240):
        ended = await trio.run_process(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", str(folder / "openapi.json")),
                *("--url", f"http://{admin}", "--exclude-path", "/drain", "--checks", "all"),
                *("--phases", "examples,coverage,fuzzing", "--max-examples", "10", "--seed", "1"),
                *("--generation-database", "none", "--request-timeout", "60", "--no-color"),
            ],
            capture_stdout=True,
            check=False,
            cwd=folder,
            env=child_environment(),
        )
    assert ended.returncode == 0, bytes(ended.stdout).decode()


def test_the_description_names_each_path_that_there_is_and_no_other() -> None:
    class Nobody:
        """Whose handlers are made and never called."""

        def __getattr__(self, name: str) -> "Nobody":
            return self

    served = {
        (method, "/dashboard/{file}" if "." in path and path.startswith("/dashboard/") else path)
        for method, path in admin_routes(Nobody(), Nobody())  # type: ignore[arg-type]
    }
    described = {(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert served == described
