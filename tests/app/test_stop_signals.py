"""Signals that end a gateway."""

import signal
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from meshgate.adapters.consul.api import ConsulAddress, ConsulClient
from meshgate.adapters.sd_notify import Notifier
from meshgate.app.gateway.gateway import ONE_STOP_SECONDS, Gateway
from meshgate.app.settings.settings import Settings


@pytest.fixture
async def gateway() -> Any:
    settings = Settings.load({}, environ={"MESHGATE_WORKERS": "1"})
    async with ConsulClient(ConsulAddress.from_settings({})) as client:
        yield Gateway(settings, client, Notifier())


async def test_two_signals_within_a_second_are_one_wish(gateway: Gateway, autojump_clock: MockClock) -> None:
    with capture_logs() as entries:
        gateway._stop_at(signal.SIGTERM)
        await trio.sleep(ONE_STOP_SECONDS / 2)
        gateway._stop_at(signal.SIGTERM)
        assert gateway._drain.is_set()
        await trio.sleep(ONE_STOP_SECONDS)
        with pytest.raises(SystemExit) as ended:
            gateway._stop_at(signal.SIGINT)
    assert ended.value.code == 128 + signal.SIGINT
    assert [entry["event"] for entry in entries] == ["signal received", "second signal: stopping at once"]


async def test_a_first_signal_does_not_cut_a_drain_short_that_somebody_else_began(gateway: Gateway) -> None:
    gateway.drain()
    gateway._stop_at(signal.SIGTERM)
