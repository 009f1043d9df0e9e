"""The running gateway goes on as another version: with its streams, its registration, and all that it knows."""

import json
import shutil
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import trio

from meshgate import __version__
from meshgate.app.gateway.upgrade import UpgradeRefusedError, check_path
from meshgate.app.gateway.upgrade_record import PATIENCE
from tests.harness.gateway import GatewayProcess
from tests.harness.installation import Installation
from tests.harness.native import native_service

from .supervisor import Systemd
from .world import World, until_equal

pytestmark = pytest.mark.consul

CACHE = Path(__file__).parents[2] / ".cache"


@contextmanager
def installed(version: str) -> Iterator[Installation]:
    """An installation at a place that the gateway believes in."""
    folder = CACHE / f"installation-{uuid.uuid4().hex[:8]}"
    folder.parent.mkdir(exist_ok=True)
    try:
        made = Installation(folder, version)
        try:
            check_path(made.python)
        except UpgradeRefusedError as error:
            pytest.skip(f"the checkout is at a place that no gateway believes in: {error}")
        yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def installation() -> Iterator[Installation]:
    with installed("7.0.0") as made:
        yield made


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


async def knock(admin: str) -> None:
    """Nobody is turned away at the admin address, and who is let in after the exec gets an answer."""
    host, port = admin.split(":")
    while True:
        async with await trio.open_tcp_stream(host, int(port)):
            await trio.sleep(0.001)


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def environment_of(pid: str) -> str:
    """As others see it; "" for one that is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_text(errors="replace")
    return ""


async def test_another_version_goes_on_with_streams_numbers_and_registration(
    world: World, installation: Installation
) -> None:
    log = world.federation.folder / f"access-{uuid.uuid4().hex}.log"
    async with gateway_of(world, MESHGATE_WORKERS="2", MESHGATE_ACCESS_LOG=str(log)) as gateway:
        caller = await world.caller(consul=world.federation.dc2)
        pid, sni = gateway.child.pid, world.sni()
        said_before = gateway.child.log.read_text()  # By gateways of other tests.
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
            async with trio.open_nursery() as nursery:
                nursery.start_soon(knock, gateway.admin)
                done = await gateway.upgrade("--python", installation.python, "--json")
                nursery.cancel_scope.cancel()
            assert done.returncode == 0, done.stderr
            told = [json.loads(line) for line in done.stdout.splitlines()]
            steps = [step for step in told if step["step"] != "waiting"]  # A busy machine may take its time.
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
        assert "deregistered" not in gateway.child.log.read_text().removeprefix(said_before)
        gateway.child.signal(signal.SIGTERM)
        with trio.fail_after(30):
            assert await gateway.child.wait() == 0
    log.unlink()


async def test_the_version_that_is_installed_in_place_goes_on_and_workers_it_cannot_understand_keep_their_streams(
    world: World, installation: Installation
) -> None:
    installation.replace("adapters/relay/messages.py", "VERSION: Final = 2", "VERSION: Final = 99")
    async with gateway_of(world, MESHGATE_WORKERS="2") as gateway:
        caller, sni = await world.caller(consul=world.federation.dc2), world.sni()
        async with caller.connect(gateway.address, sni, expect=world.spiffe()) as stream:
            await stream.send_all(b"before")
            assert await stream.receive_some() == b"before"
            done = await gateway.upgrade("--python", installation.python)
            assert done.returncode == 0, done.stderr
            assert "streams: 0 of 1 handed over, 1 kept by the old workers, 0 lost" in done.stdout
            await stream.send_all(b"after")
            assert await stream.receive_some() == b"after"
            assert (await caller.call(gateway.address, sni, b"new")).data == b"new"
            assert await gateway.counter("meshgate_connections_active") == 1
            # As if it had been installed in the place of the one that runs; the worker of before is still there.
            installation.replace("adapters/relay/messages.py", "VERSION: Final = 2", "VERSION: Final = 98")
            installation.version = "7.1.0"
            done = await gateway.upgrade()
            assert done.returncode == 0, done.stderr
            assert "upgraded from version 7.0.0 to version 7.1.0" in done.stdout
            await stream.send_all(b"again")
            assert await stream.receive_some() == b"again"
            assert (await caller.call(gateway.address, sni, b"new")).data == b"new"

        async def workers() -> int:
            return len(children_of(gateway.child.pid))

        installation.replace("adapters/relay/messages.py", "VERSION: Final = 2", "VERSION: Final = 2")
        await until_equal("the workers of before to be gone", workers, 2, seconds=10)
        assert await gateway.counter("meshgate_stream_ends_total", end="worker_lost") == 0
        assert await gateway.counter("meshgate_worker_restarts_total") == 0


async def test_a_version_that_cannot_go_on_changes_nothing_and_none_does_while_draining(
    world: World, installation: Installation
) -> None:
    async with gateway_of(world, MESHGATE_DRAIN_TIMEOUT="10s") as gateway:
        caller, sni = await world.caller(consul=world.federation.dc2), world.sni()
        async with caller.connect(gateway.address, sni, expect=world.spiffe()) as stream:
            before = await gateway.ask("/server_info")
            installation.replace("adapters/relay/worker.py", "import trio", "import nothing_of_that_name")
            refused = await gateway.upgrade("--python", installation.python)
            installation.replace("adapters/relay/worker.py", "import trio", "import trio")
            assert refused.returncode == 1
            assert refused.stderr.startswith(
                "meshgate: no upgrade, and nothing has changed: the trial failed with exit "
            )
            assert "nothing_of_that_name" in refused.stderr
            assert refused.stderr.count("\n") == 1
            # A version whose state is another one.
            installation.replace("app/gateway/upgrade_record.py", "FORMAT: Final = 1", "FORMAT: Final = 2")
            refused = await gateway.upgrade("--python", installation.python)
            installation.replace("app/gateway/upgrade_record.py", "FORMAT: Final = 1", "FORMAT: Final = 1")
            assert "the hand-over has format 1, and this meshgate takes format 2" in refused.stderr
            # One that dies after the exec, before it has taken anything, gives all of it back.
            installation.replace(
                "app/composition_root.py", "    hide_secrets(settings.secrets())", "    raise CommandError('a defect')"
            )
            failed = await gateway.upgrade("--python", installation.python)
            installation.replace("app/composition_root.py", "    hide_secrets(", "    hide_secrets(")
            assert failed.stderr == "meshgate: no upgrade, and nothing has changed: a defect\n"
            # One that hangs then.
            patience = f"PATIENCE: Final = {PATIENCE}"
            installation.replace("app/gateway/upgrade_record.py", patience, "PATIENCE: Final = 2")
            installation.replace(
                "app/composition_root.py",
                "    hide_secrets(settings.secrets())",
                "    threading = __import__('threading'); threading.Event().wait()",
            )
            failed = await gateway.upgrade("--python", installation.python)
            installation.replace("app/composition_root.py", "    hide_secrets(", "    hide_secrets(")
            installation.replace("app/gateway/upgrade_record.py", patience, patience)
            assert failed.stderr == "meshgate: no upgrade, and nothing has changed: it was not in charge after 2 s\n"
            after = await gateway.ask("/server_info")
            assert (after["version"], after["state"]) == (before["version"], "LIVE")
            assert await gateway.counter("meshgate_upgrades_total", result="refused") == 2
            assert await gateway.counter("meshgate_upgrades_total", result="failed") == 2
            await stream.send_all(b"still")
            assert await stream.receive_some() == b"still"
            gateway.child.signal(signal.SIGTERM)

            async def state() -> str:
                return str((await gateway.ask("/server_info"))["state"])

            await until_equal("the drain", state, "DRAINING")
            async with httpx.AsyncClient(verify=False, trust_env=False) as client:
                answer = await client.post(f"http://{gateway.admin}/upgrade")
            assert (answer.status_code, answer.json()) == (409, {"error": "the gateway is draining"})
        with trio.fail_after(30):
            assert await gateway.child.wait() == 0


async def test_a_supervisor_is_told_of_it_as_of_a_reload_and_nobody_sees_a_secret(
    world: World, systemd: tuple[Systemd, str]
) -> None:
    supervisor, path = systemd
    async with gateway_of(world, NOTIFY_SOCKET=path, WATCHDOG_USEC="4000000") as gateway:
        await supervisor.until("READY=1")
        pid, seen = gateway.child.pid, list[str]()

        async def look() -> None:
            # The process itself, and the trial, which is a child of it.
            while True:
                seen.extend(filter(None, map(environment_of, (str(pid), *children_of(pid)))))
                await trio.sleep(0.002)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            gateway.child.signal(signal.SIGUSR2)
            assert "MONOTONIC_USEC=" in await supervisor.until("RELOADING=1")
            await supervisor.until("READY=1")
            nursery.cancel_scope.cancel()
        assert any("_MESHGATE_HAND_OVER=" in each for each in seen)
        assert not any(world.token in each for each in seen)
        assert (await gateway.ask("/server_info"))["last_upgrade"]["result"] == "done"
        await supervisor.until("WATCHDOG=1")
        gateway.child.signal(signal.SIGTERM)
        await supervisor.until("STOPPING=1")
        with trio.fail_after(30):
            assert await gateway.child.wait() == 0


async def test_settings_that_a_reload_does_not_take_are_taken_and_another_registration_is_refused(
    world: World, tmp_path: Path
) -> None:
    file = tmp_path / "meshgate.env"
    file.write_text("MESHGATE_STATE_DIR=\n")
    async with gateway_of(world, MESHGATE_ENV_FILE=str(file)) as gateway:
        caller, sni = await world.caller(consul=world.federation.dc2), world.sni()
        async with caller.connect(gateway.address, sni, expect=world.spiffe()) as stream:
            file.write_text(f"MESHGATE_STATE_DIR={tmp_path / 'state'}\nMESHGATE_EXPOSE_SERVERS=true\n")
            refused = await gateway.upgrade()
            assert "exit code 2: MESHGATE_EXPOSE_SERVERS changed: that takes a restart" in refused.stderr
            file.write_text(f"MESHGATE_STATE_DIR={tmp_path / 'state'}\n")
            done = await gateway.upgrade()
            assert done.returncode == 0, done.stderr
            settings = (await gateway.ask("/config_dump"))["settings"]
            assert settings["MESHGATE_STATE_DIR"]["value"] == str(tmp_path / "state")

            async def kept() -> bool:
                return (tmp_path / "state" / "catalog.state").exists()

            await until_equal("the catalog on disk", kept, True, seconds=10)
            await stream.send_all(b"still")
            assert await stream.receive_some() == b"still"
