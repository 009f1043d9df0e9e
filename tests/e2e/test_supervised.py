"""A gateway under systemd, as far as systemd can tell: what a real one sends to the socket that it was given."""

import signal

import pytest
import trio

from tests.harness.gateway import GatewayProcess

from .supervisor import Systemd
from .world import World

pytestmark = pytest.mark.consul


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
