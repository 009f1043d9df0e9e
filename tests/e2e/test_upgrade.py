"""The running gateway goes on as another version: with its streams, its registration, and all that it knows."""

import json
import shutil
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from meshgate import __version__
from meshgate.app.gateway.upgrade import UpgradeRefusedError, check_path
from tests.harness.gateway import GatewayProcess
from tests.harness.installation import Installation
from tests.harness.native import native_service

from .world import World, until_equal

pytestmark = pytest.mark.consul

CACHE = Path(__file__).parents[2] / ".cache"


@pytest.fixture(scope="module")
def installation() -> Iterator[Installation]:
    """Version 7.0.0, at a place that the gateway believes in."""
    folder = CACHE / f"installation-{uuid.uuid4().hex[:8]}"
    folder.parent.mkdir(exist_ok=True)
    try:
        made = Installation(folder, "7.0.0")
        try:
            check_path(made.python)
        except UpgradeRefusedError as error:
            pytest.skip(f"the checkout is at a place that no gateway believes in: {error}")
        yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def gateway_of(world: World, **extra: str) -> AsyncIterator[GatewayProcess]:
    """A ready gateway of dc2 beside a service `web` that echoes."""
    dc2 = world.federation.dc2
    gateway = GatewayProcess(dc2, world.token)
    async with native_service(dc2, "web", world.federation.folder):
        try:
            await gateway.start(extra)
            yield gateway
        finally:
            await gateway.stop()


async def registration_of(gateway: GatewayProcess) -> tuple[object, ...]:
    """What the catalog has of a gateway that changes with each write: indexes, and the states of its checks."""
    (row,) = await gateway.consul.get(f"/v1/health/service/{gateway.service}")
    checks = [(check["CheckID"], check["Status"]) for check in row["Checks"]]
    return row["Service"]["CreateIndex"], checks


def grows_only(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """Series that count and have gone back, or are gone."""
    counting = ("_total{", "_count{", "_sum{", "_bucket{")
    # Of the one process before and of the one after: a relay worker's own, and those of Python's garbage collector.
    others = ("meshgate_worker_cpu_seconds_total", "python_gc_")
    return [
        f"{name}: {value} -> {after.get(name)}"
        for name, value in before.items()
        if any(each in name for each in counting)
        and not name.startswith(others)
        and after.get(name, float("-inf")) < value
    ]


async def test_another_version_goes_on_with_streams_numbers_and_registration(
    world: World, installation: Installation
) -> None:
    log = world.federation.folder / f"access-{uuid.uuid4().hex}.log"
    async with gateway_of(world, MESHGATE_WORKERS="2", MESHGATE_ACCESS_LOG=str(log)) as gateway:
        caller = await world.caller(consul=world.federation.dc2)
        pid, sni = gateway.child.pid, world.sni()
        for _ in range(3):
            await caller.call(gateway.address, sni, b"x" * 1000)
        with pytest.raises(Exception, match="unrecognized_name"):
            await caller.call(gateway.address, world.sni("nobody"))
        async with caller.connect(gateway.address, sni, expect=world.spiffe()) as stream:
            await stream.send_all(b"before")
            assert await stream.receive_some() == b"before"
            before, held, dashboard = (
                await gateway.series(),
                await registration_of(gateway),
                await gateway.ask("/dashboard/state"),
            )
            done = await gateway.upgrade("--python", installation.python, "--json")
            assert done.returncode == 0, done.stderr
            steps = [json.loads(line) for line in done.stdout.splitlines()]
            assert [step["step"] for step in steps] == ["before", "trial", "exec", "streams", "done"]
            assert steps[-1] == {"step": "done", "before": __version__, "after": "7.0.0"}
            assert steps[-2]["streams"] == 1
            assert steps[-2]["handed_over"] + steps[-2]["kept"] == 1
            assert gateway.child.pid == pid
            assert gateway.child.running
            info = await gateway.ask("/server_info")
            assert (info["version"], info["state"]) == ("7.0.0", "LIVE")
            assert await gateway.counter("meshgate_build_info", version="7.0.0") == 1
            after = await gateway.series()
            assert grows_only(before, after) == []
            assert await gateway.counter("meshgate_upgrades_total", result="done") == 1
            assert await gateway.counter("meshgate_connections_active") == 1
            now = await gateway.ask("/dashboard/state")
            assert now["gateway"]["started"] == dashboard["gateway"]["started"]
            assert now["refused"]["recent"] == dashboard["refused"]["recent"]
            assert await registration_of(gateway) == held
            await stream.send_all(b"after")
            assert await stream.receive_some() == b"after"
            assert (await caller.call(gateway.address, sni, b"new")).data == b"new"
            # And back, by the Python that the test runs by.
            back = await gateway.upgrade("--python", str(Path(shutil.which("python") or "")))
            assert back.returncode == 0, back.stderr
            assert (await gateway.ask("/server_info"))["version"] == __version__
            assert grows_only(after, await gateway.series()) == []
            assert await registration_of(gateway) == held
            await stream.send_all(b"again")
            assert await stream.receive_some() == b"again"

        async def lines() -> int:
            return len(log.read_text().splitlines())

        await until_equal("a line for each stream", lines, 6)
        ended = [json.loads(line) for line in log.read_text().splitlines()]
        assert max(line["duration_ms"] for line in ended) > 1000
        assert "deregistered" not in gateway.child.log.read_text()
        gateway.child.signal(signal.SIGTERM)
        with trio.fail_after(30):
            assert await gateway.child.wait() == 0
    log.unlink()
