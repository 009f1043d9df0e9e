"""The access log at the end of the process: also the streams that are cut then have their lines."""

import json
import signal
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
    assert [(record["sni"], record["bytes_sent"]) for record in records] == [(WEB, len(HELLO))] * STREAMS
