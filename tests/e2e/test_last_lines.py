"""The access log at the end of a process, of the gateway or of a relay: streams that are cut have their lines."""

import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from meshgate.adapters.state import Kept, write
from meshgate.app.gateway.gateway import ONE_STOP_SECONDS
from meshgate.core.catalog import Instance, Service, Snapshot
from tests.adapters.consul.fake_consul import fake_consul
from tests.adapters.relay.streams import backend, echo, hello_for, receive_exactly
from tests.harness.gateway import GatewayProcess
from tests.harness.process import child_environment
from tests.security import processes

from .test_operating import text_of
from .test_start_without_consul import WEB, hanging_agent, spawned, until_ready

STREAMS = 25
HELLO = hello_for(WEB)


@asynccontextmanager
async def gateway_to(port: int, folder: Path, **variables: str) -> AsyncIterator[GatewayProcess]:
    """A gateway whose only route leads to a port, by the last known catalog: its agent never answers."""
    web = Instance("n1", "dc1", "web", "web", "127.0.0.1", port, "127.0.0.1", kind="connect-proxy")
    write(folder, Kept(Snapshot("dc1", "td.consul", services=(Service("web", (web,)),)), "mesh-gateway", 1.7e9))
    async with fake_consul() as double:
        with hanging_agent(double):
            async with spawned(double, folder) as gateway:
                await gateway.stop()
                gateway.spawn({"MESHGATE_STATE_DIR": str(folder), **variables})
                await until_ready(gateway, from_disk=True, seconds=20)
                yield gateway


@pytest.mark.parametrize(
    ("drain_timeout", "signals"),
    [("1s", [signal.SIGTERM]), ("60s", [signal.SIGTERM, signal.SIGTERM]), ("60s", [signal.SIGINT, signal.SIGTERM])],
)
async def test_streams_that_are_cut_at_the_end_are_in_the_access_log(
    tmp_path: Path, drain_timeout: str, signals: list[signal.Signals]
) -> None:
    access_log = tmp_path / "access.log"
    variables = {"MESHGATE_ACCESS_LOG": str(access_log), "MESHGATE_DRAIN_TIMEOUT": drain_timeout}
    async with backend(echo) as port, gateway_to(port, tmp_path, **variables) as gateway:
        clients = [await trio.open_tcp_stream(*gateway.address) for _ in range(STREAMS)]
        for client in clients:
            await client.send_all(HELLO)
            assert await receive_exactly(client, len(HELLO)) == HELLO
        gateway.child.signal(signals[0])
        with trio.fail_after(20):
            while "draining" not in gateway.child.log.read_text():
                await trio.sleep(0.02)
        for number in signals[1:]:  # At once: the drain timeout is far away.
            assert (await gateway.ask("/readyz"))["ready"] is False
            # Sooner it would be the same wish.
            await trio.sleep(ONE_STOP_SECONDS)
            gateway.child.signal(number)
        with trio.fail_after(30):
            await gateway.child.wait()
        for client in clients:
            await client.aclose()
    lines = access_log.read_text()
    assert lines.endswith("\n")
    records = [json.loads(line) for line in lines.splitlines()]
    assert [(record["sni"], record["bytes_sent"], record["end"], record["reason"]) for record in records] == [
        (WEB, len(HELLO), "drain", None)
    ] * STREAMS


async def test_a_worker_that_is_killed_leaves_a_line_for_each_of_its_streams(tmp_path: Path) -> None:
    access_log = tmp_path / "access.log"
    # Where a timeout is short, a stream is looked at early; by then it counts as one that may live long.
    variables = {"MESHGATE_ACCESS_LOG": str(access_log), "MESHGATE_WORKERS": "1", "MESHGATE_HANDSHAKE_TIMEOUT": "1s"}
    async with backend(echo) as port, gateway_to(port, tmp_path, **variables) as gateway:
        clients = [await trio.open_tcp_stream(*gateway.address) for _ in range(3)]
        for client in clients:
            for said in (HELLO, b"x"):
                await client.send_all(said)
                assert await receive_exactly(client, len(said)) == said
        with trio.fail_after(20):
            while min((each["age_seconds"] for each in await gateway.ask("/connections")), default=0) < 3:
                await trio.sleep(0.1)
        (worker,) = processes.children(gateway.child.pid)
        os.kill(worker, signal.SIGKILL)
        with trio.fail_after(20):
            while not access_log.exists() or access_log.read_text().count("\n") < 3:
                await trio.sleep(0.05)
        told = await trio.run_process(
            [sys.executable, "-m", "meshgate", "connections", "--ended", "--destination=web"],
            env=child_environment(MESHGATE_ADMIN_BIND=gateway.admin),
            capture_stdout=True,
            capture_stderr=True,
        )
        metrics = await text_of(gateway, "/metrics")
        ours = {f"127.0.0.1:{client.socket.getsockname()[1]}" for client in clients}
        for client in clients:
            await client.aclose()
    records = [json.loads(line) for line in access_log.read_text().splitlines()]
    assert [(each["sni"], each["end"], each["reason"], each["flags"]) for each in records] == [
        (WEB, "worker_lost", None, "")
    ] * 3
    assert {each["client"] for each in records} == ours
    assert all(each["duration_ms"] >= 3000 for each in records)
    rows = [line.split() for line in told.stdout.decode().splitlines()[1:]]
    assert {(row[1], row[2]) for row in rows} == {("worker_lost", client) for client in ours}
    assert "relay process 0 ended (killed) with 3 streams\n" in told.stderr.decode()
    assert '\nmeshgate_stream_ends_total{end="worker_lost"} 3.0\n' in metrics
    assert '\nmeshgate_worker_restarts_total{reason="killed"} 1.0\n' in metrics
