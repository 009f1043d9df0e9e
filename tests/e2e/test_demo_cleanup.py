"""Real Consul agents and their folder are gone however the block around them ends."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.harness.cluster import Federation, two_datacenters
from tests.harness.process import Child
from tests.harness.sidecar import sidecar_for
from tests.harness.waiting import until

from .remains import entries, gone, pids

real = pytest.mark.consul


@real
async def test_nothing_is_left_when_the_body_raises(consul_binary: str) -> None:
    with pytest.raises(ZeroDivisionError):
        async with two_datacenters(consul_binary) as federation:
            async with sidecar_for(federation.dc2, "web") as web:
                address = web.address
                raise ZeroDivisionError
    assert all(gone(pid) for pid in pids(federation))
    assert not federation.folder.exists()
    with pytest.raises(OSError, match="connect"):
        await trio.open_tcp_stream(*address)


@real
@pytest.mark.parametrize("moment", ["dc1 is starting", "dc2 has no leader yet"])
async def test_nothing_is_left_when_the_start_is_cancelled_half_way(
    consul_binary: str, moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    started: list[Child] = []
    monkeypatch.setattr(Child, "wait", watched(Child.wait, started))
    with trio.CancelScope() as scope:

        def report(said: str) -> None:
            if said == moment:
                scope.cancel()

        await Federation.start(consul_binary, report)
    assert scope.cancelled_caught
    assert entries(tmp_path) == []
    assert len({child.pid for child in started}) == (1 if moment == "dc1 is starting" else 2)
    assert all(gone(child.pid) for child in started)


def watched(method: Callable[[Child], object], seen: list[Child]) -> Callable[[Child], object]:
    def call(child: Child) -> object:
        seen.append(child)
        return method(child)

    return call


@real
async def test_ctrl_c_ends_the_agents_in_order_and_removes_the_folder(consul_binary: str) -> None:
    child, reported = start_elsewhere(consul_binary)
    # A terminal sends it to the whole group; the agents are in others, so that only the parent hears it.
    assert [os.getpgid(pid) for pid in reported.pids] == reported.pids
    os.killpg(child.pid, signal.SIGINT)
    output, _ = await trio.to_thread.run_sync(child.communicate)
    assert "KeyboardInterrupt" in output
    assert all(gone(pid) for pid in reported.pids)
    assert not reported.folder.exists()


@real
async def test_the_agents_die_with_a_parent_that_is_killed(consul_binary: str) -> None:
    child, reported = start_elsewhere(consul_binary)
    child.kill()
    child.communicate()

    async def missing() -> str | None:
        left = [pid for pid in reported.pids if not gone(pid)]
        return f"{left} live" if left else None

    await until("the agents to die", missing, seconds=5)
    shutil.rmtree(reported.folder)


class Reported:
    """What another process said of its datacenters."""

    def __init__(self, line: str) -> None:
        folder, *numbers = line.split()
        self.folder = Path(folder)
        self.pids = [int(number) for number in numbers]


def start_elsewhere(consul_binary: str) -> tuple["subprocess.Popen[str]", Reported]:
    """Datacenters in a process of their own, ready."""
    program = """
import sys, trio
from tests.harness.cluster import two_datacenters
async def main():
    async with two_datacenters(sys.argv[1]) as federation:
        print(federation.folder, *(consul.child.pid for consul in federation.datacenters), flush=True)
        await trio.sleep_forever()
trio.run(main)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", program, consul_binary],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert child.stdout is not None
    return child, Reported(child.stdout.readline())
