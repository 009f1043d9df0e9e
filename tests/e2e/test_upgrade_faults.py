"""An upgrade goes wrong, for want of something or by a kill -9: each stream has one process afterwards, and goes on.

What is short is really short: limits of the kernel on the running gateway (prlimit(2)), or a disk of its own that is
full. Whoever is killed is killed at a step, by a line more in a version of its own.
"""

import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.harness.caller import Conversation
from tests.harness.gateway import GatewayProcess
from tests.harness.installation import Installation
from tests.harness.native import native_service
from tests.security.processes import descriptors, workers as workers_of

from .test_upgrade import installation
from .world import World, until_equal

__all__ = ["installation"]

pytestmark = [pytest.mark.consul, pytest.mark.timeout(180)]

PATIENCE = 60.0


def long(value: object) -> object:
    """As a parameter of the long run: its neighbors go most of the same way."""
    return pytest.param(value, marks=pytest.mark.long)


@dataclass
class Streams:
    """A gateway with open streams, whose every message comes back."""

    world: World
    gateway: GatewayProcess
    open: list[Conversation]

    async def live(self) -> None:
        """None of them has noticed anything."""
        for number, stream in enumerate(self.open):
            said = f"{number} is here {trio.current_time()}".encode()
            await stream.send_all(said)
            heard = b""
            with trio.fail_after(20):
                while len(heard) < len(said):
                    heard += (more := await stream.receive_some())
                    assert more, f"stream {number} has ended"
            assert heard == said

    async def another(self) -> None:
        """A new one is served."""
        caller = await self.world.caller(consul=self.gateway.consul)
        with trio.fail_after(PATIENCE):
            assert (await caller.call(self.gateway.address, self.world.sni(), b"new")).data == b"new"

    async def upgraded(self) -> dict[str, Any]:
        """What came of an upgrade that a signal asks for: who has no descriptor left is not asked in another way."""
        last = (await self.gateway.ask("/server_info"))["last_upgrade"]
        self.gateway.child.signal(signal.SIGUSR2)
        return await self.over(last["number"] if last else 0)

    async def over(self, number: int) -> dict[str, Any]:
        """What came of the upgrade behind this one."""
        last: dict[str, Any] = {}

        async def result() -> bool:
            nonlocal last
            with suppress(httpx.HTTPError):
                last = (await self.gateway.ask("/server_info"))["last_upgrade"] or {}
            return bool(last) and last["number"] > number and last["result"] != "under_way"

        await until_equal("the end of the upgrade", result, True, PATIENCE)
        return last


@asynccontextmanager
async def streams_of(world: World, python: str = sys.executable, **extra: str) -> AsyncIterator[Streams]:
    """Three streams through a gateway of dc2 with two workers; after the block they end as they should."""
    dc2 = world.federation.dc2
    gateway = GatewayProcess(dc2, world.token)
    gateway.python = python
    async with native_service(dc2, "web", world.federation.folder):
        try:
            await gateway.start({"MESHGATE_WORKERS": "2", "MESHGATE_DRAIN_TIMEOUT": "60s", **extra})
            caller = await world.caller(consul=dc2)
            async with (
                caller.connect(gateway.address, world.sni(), expect=world.spiffe()) as one,
                caller.connect(gateway.address, world.sni(), expect=world.spiffe()) as two,
                caller.connect(gateway.address, world.sni(), expect=world.spiffe()) as three,
            ):
                streams = Streams(world, gateway, [one, two, three])
                await streams.live()
                yield streams
                await streams.live()
                await streams.another()
        finally:
            await gateway.stop()


# --- want of something ------------------------------------------------------------------------------------------------


@contextmanager
def scarce(pid: int, limit: int, most: int) -> Iterator[None]:
    """The process may have so much, for the length of the block; it can have more again by itself."""
    before = resource.prlimit(pid, limit)
    resource.prlimit(pid, limit, (most, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, limit, before)


def first_free(pid: int) -> int:
    taken = descriptors(pid)
    return next(number for number in range(len(taken) + 1) if number not in taken)


@pytest.mark.parametrize("spare", [0, long(1), 3])
async def test_a_parent_without_descriptors_loses_nothing(world: World, spare: int) -> None:
    """So many are left: none for the record, or one for that and none for the trial."""
    async with streams_of(world) as streams:
        gateway = streams.gateway
        pid = gateway.child.pid
        before = gateway.child.log.read_text()  # By gateways of other tests.

        async def refused() -> bool:
            return "result=refused" in gateway.child.log.read_text().removeprefix(before)

        with scarce(pid, resource.RLIMIT_NOFILE, first_free(pid) + spare):
            gateway.child.signal(signal.SIGUSR2)
            await until_equal("the refusal", refused, True, PATIENCE)
            await streams.live()
        last = await streams.over(0)
        assert last["reason"].endswith("Too many open files")
        assert gateway.child.pid == pid
        assert (await streams.upgraded())["result"] == "done"


LESS = """
        import resource
        kind, spare = {limit}
        if kind == resource.RLIMIT_NOFILE:
            spare += (free := os.dup(0))
            os.close(free)
        resource.setrlimit(kind, (spare, resource.getrlimit(kind)[1]))
"""
BEGINS = "        self.relay = RelayPool(\n"


@pytest.mark.parametrize(
    ("kind", "spare", "result"),
    [
        # Not even for trying whether its address can be bound: it gives everything back.
        (resource.RLIMIT_NOFILE, 0, "failed"),
        # Some are taken by then, for this or for that.
        pytest.param(resource.RLIMIT_NOFILE, 4, "done or failed", marks=pytest.mark.long),
        (resource.RLIMIT_NOFILE, 12, "done or failed"),
        # No room for the counts of a worker.
        (resource.RLIMIT_FSIZE, 500_000, "done"),
    ],
)
async def test_while_there_is_nothing_for_new_workers_those_of_before_serve(
    world: World, installation: Installation, kind: int, spare: int, result: str
) -> None:
    """As soon as there is again, new ones take over."""
    async with streams_of(world) as streams, trio.open_nursery() as nursery:
        gateway, pid = streams.gateway, streams.gateway.child.pid
        before, old = resource.prlimit(pid, kind), workers_of(pid)
        less = LESS.format(limit=(int(kind), spare))
        installation.replace("app/gateway/gateway.py", BEGINS, less + BEGINS)
        try:
            nursery.start_soon(gateway.upgrade, "--python", installation.python)

            async def is_short() -> bool:
                await streams.live()
                return resource.prlimit(pid, kind)[0] != before[0] or await is_over()

            async def is_over() -> bool:
                with suppress(httpx.HTTPError):
                    last = (await gateway.ask("/server_info"))["last_upgrade"]
                    return last is not None and last["result"] != "under_way"
                return False

            await until_equal("the next version", is_short, True, PATIENCE)
            ends = trio.current_time() + 3
            while trio.current_time() < ends:
                await streams.live()
                await trio.sleep(0.02)
            await streams.another()
        finally:
            installation.replace("app/gateway/gateway.py", BEGINS, BEGINS)
            resource.prlimit(pid, kind, before)
        last = await streams.over(0)
        assert last["result"] in result.split(" or ")
        assert (last["lost"], gateway.child.pid) == (0, pid)

        async def new_ones() -> bool:
            return len(workers_of(pid)) == 2 and not set(old) & set(workers_of(pid))

        await until_equal("new workers", new_ones, True, PATIENCE)


async def test_a_record_that_does_not_fit_into_a_memory_file_is_refused(world: World) -> None:
    async with streams_of(world) as streams:
        with scarce(streams.gateway.child.pid, resource.RLIMIT_FSIZE, 1000):
            last = await streams.upgraded()
            assert last["reason"] == "the hand-over cannot be written: File too large"
            await streams.another()
        assert (await streams.upgraded())["result"] == "done"


def small(installation: Installation, megabytes: int) -> str:
    """A Python that has little memory."""
    path = Path(installation.python).with_name("python-small")
    path.write_text(f'#!/bin/sh\nulimit -v {megabytes}000\nexec {installation.python} "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("megabytes", [long(1), 20, long(50)])
async def test_a_trial_without_memory_is_refused(world: World, installation: Installation, megabytes: int) -> None:
    async with streams_of(world) as streams:
        done = await streams.gateway.upgrade("--python", small(installation, megabytes))
        assert done.returncode == 1
        assert done.stderr.startswith("meshgate: no upgrade, and nothing has changed: the trial ")
        assert done.stderr.count("\n") == 1


# --- a full disk ------------------------------------------------------------------------------------------------------

ON_A_DISK = """#!/bin/sh
exec unshare {user} --mount sh -c 'mount -t tmpfs -o size=64k tmpfs "$0" && exec "$@"' {folder} {python} "$@"
"""


@pytest.fixture
def on_a_disk(tmp_path: Path) -> tuple[str, Path]:
    """A Python for which a folder is a disk of its own, with 64 kB; others find it below /proc/PID/root."""
    user = "" if os.geteuid() == 0 else "--user --map-root-user"
    folder = tmp_path / "disk"
    folder.mkdir()
    script = tmp_path / "python"
    script.write_text(ON_A_DISK.format(user=user, folder=folder, python=sys.executable))
    script.chmod(0o755)
    tried = subprocess.run([script, "-c", ""], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip(f"no mount namespace here: {tried.stderr.decode()}")
    return str(script), folder


async def test_a_full_disk_costs_access_log_lines_and_no_stream(world: World, on_a_disk: tuple[str, Path]) -> None:
    python, folder = on_a_disk
    extra = {"MESHGATE_STATE_DIR": str(folder / "state"), "MESHGATE_ACCESS_LOG": str(folder / "access.log")}
    async with streams_of(world, python, **extra) as streams:
        gateway = streams.gateway
        there = Path(f"/proc/{gateway.child.pid}/root{folder}")
        await until_equal(
            "the catalog on disk", partial(trio.Path(there / "state" / "catalog.state").exists), True, PATIENCE
        )
        lines = await lost_lines(gateway)
        await streams.another()
        await until_equal("a line", partial(trio.Path(there / "access.log").exists), True, PATIENCE)
        full = there / "full"
        with full.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(512))
        while (await lost_lines(gateway)) == lines:
            await streams.another()
        last = await streams.upgraded()
        # Where half a line is in the file, the rest of it is not thrown away for an upgrade.
        assert last["result"] == "done" or last["reason"] == "the access log does not take its lines"
        assert last["lost"] == 0
        full.unlink()
        await streams.another()
        dropped = await lost_lines(gateway)
        last = await streams.upgraded()
        assert (last["result"], last["lost"]) == ("done", 0)
        assert await lost_lines(gateway) == dropped
        assert all(json.loads(line) for line in (there / "access.log").read_text().splitlines())


async def lost_lines(gateway: GatewayProcess) -> float:
    return await gateway.counter("meshgate_log_lines_dropped_total", log="access")


# --- kill -9 ----------------------------------------------------------------------------------------------------------

KILL = "__import__('os').kill(__import__('os').{who}, 9)"
STEPS = {
    "in the trial": ("app/composition_root.py", "    # What only workers need has to be there too.\n", "getppid()"),
    "before the exec": ("app/gateway/upgrade.py", "                os.execve(python, command", "getpid()"),
    "after the exec": ("app/gateway/upgrade_record.py", "        self._notifier.watchdog()\n        for", "getpid()"),
    "before it is in charge": ("app/gateway/gateway.py", "                self._taken.take_charge()", "getpid()"),
    "as workers start": (
        "adapters/relay/worker_process.py",
        "        process = _Process(child, ours, stderr)",
        "getpid()",
    ),
    "as streams go": ("adapters/relay/pool.py", "        await it.over.wait()\n        handed", "getpid()"),
}


@pytest.mark.parametrize("step", [long(each) if each == "before it is in charge" else each for each in STEPS])
async def test_streams_outlive_a_gateway_that_is_killed_in_an_upgrade(
    world: World, installation: Installation, step: str
) -> None:
    module, line, who = STEPS[step]
    indent = re.match(" *", line)
    assert indent is not None
    killing = f"{indent[0]}{KILL.format(who=who)}\n{line}"
    if step == "before the exec":
        installation.replace(module, line, killing)
    try:
        async with streams_of(world, installation.python) as streams:
            installation.replace(module, line, killing)
            gateway, pid = streams.gateway, streams.gateway.child.pid
            old = workers_of(pid)
            gateway.child.signal(signal.SIGUSR2)
            with trio.fail_after(PATIENCE):
                while gateway.child.running:
                    await streams.live()
                    await trio.sleep(0.01)
            installation.replace(module, line, line)
            assert gateway.child.returncode == -signal.SIGKILL
            await streams.live()
            # A supervisor starts another one in its place.
            await gateway.start({"MESHGATE_WORKERS": "2"})
            await streams.live()
            await streams.another()
            assert await gateway.counter("meshgate_connections_active") == 0
        with trio.fail_after(PATIENCE):
            while set(old).intersection(map(int, filter(str.isdigit, os.listdir("/proc")))) or left_of(installation):
                await trio.sleep(0.05)
    finally:
        installation.replace(module, line, line)


def left_of(installation: Installation) -> list[int]:
    """Processes that run by an installation."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if each.read_bytes().startswith(installation.python.encode() + b"\0"):
                found.append(int(each.parent.name))
        except OSError:
            continue
    return found
