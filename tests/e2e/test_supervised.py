"""A gateway under systemd, as far as systemd can tell: what a real one sends to the socket that it was given.

The socket is a hand-written double of systemd's side of sd_notify(3).
"""

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.harness.gateway import GatewayProcess

from .world import World

pytestmark = pytest.mark.consul


class Systemd:
    """Collects what arrives; `until` waits for a message that begins with the given line."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock
        self.seen: list[str] = []

    async def until(self, begins: str) -> str:
        with trio.fail_after(30):
            while True:
                message = (await self._sock.recv(4096)).decode()
                self.seen.append(message)
                if message.startswith(begins):
                    return message


@pytest.fixture
async def systemd(tmp_path: Path) -> AsyncIterator[tuple[Systemd, str]]:
    path = str(tmp_path / "notify")
    with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_DGRAM) as sock:
        await sock.bind(path)
        yield Systemd(sock), path


async def test_systemd_is_told_of_start_life_reload_and_end(world: World, systemd: tuple[Systemd, str]) -> None:
    supervisor, path = systemd
    gateway = GatewayProcess(world.federation.dc2, world.token)
    gateway.spawn({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "400000"})
    try:
        await supervisor.until("READY=1")
        assert not [message for message in supervisor.seen if message.startswith("STOPPING")]
        await supervisor.until("WATCHDOG=1")
        await supervisor.until("WATCHDOG=1")
        gateway.child.signal(signal.SIGHUP)
        assert "MONOTONIC_USEC=" in await supervisor.until("RELOADING=1")
        await supervisor.until("READY=1")
        gateway.child.signal(signal.SIGTERM)
        await supervisor.until("STOPPING=1")
        with trio.fail_after(30):
            assert await gateway.child.wait() == 0
    finally:
        await gateway.stop()
