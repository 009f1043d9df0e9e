import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from prometheus_client.core import CounterMetricFamily, Metric

from meshgate.app.admin.statsd_export import StatsdExport

FAST = {"envoy_stats_flush_interval": "100ms"}


class Numbers:
    def __init__(self) -> None:
        self.count = 100
        self.faults: list[Exception] = []

    async def families(self) -> list[Metric]:
        await trio.lowlevel.checkpoint()
        if self.faults:
            raise self.faults.pop()
        routed = CounterMetricFamily("meshgate_connections", "", labels=("kind", "destination"))
        routed.add_metric(("service", "web"), self.count)
        return [routed]


@contextmanager
def reader(path: Path | None = None) -> Any:
    with socket.socket(socket.AF_UNIX if path else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path) if path else ("127.0.0.1", 0))
        sock.setblocking(False)
        yield trio.socket.from_stdlib_socket(sock)


@asynccontextmanager
async def exporting(numbers: Numbers, environ: dict[str, str] | None = None) -> AsyncIterator[StatsdExport]:
    export = StatsdExport(numbers.families, environ or {})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(export.run)
        yield export
        nursery.cancel_scope.cancel()


async def until_said(sock: Any, line: str) -> list[str]:
    """All lines up to the one that is waited for."""
    lines: list[str] = []
    with trio.fail_after(60):
        while line not in lines:
            lines += (await sock.recv(65536)).decode().splitlines()
    return lines


@pytest.mark.parametrize(
    "form", ["udp://127.0.0.1:{port}", "udp://localhost:{port}", "$STATSD_URL", "udp://$HOST_IP:{port}"]
)
async def test_what_came_is_sent_to_a_real_socket(form: str) -> None:
    numbers = Numbers()
    with reader() as sock:
        port = sock.getsockname()[1]
        environ = {"STATSD_URL": f"udp://127.0.0.1:{port}", "HOST_IP": "127.0.0.1"}
        async with exporting(numbers, environ) as export:
            export.follow(FAST | {"envoy_statsd_url": form.format(port=port)})
            await trio.testing.wait_all_tasks_blocked(0.05)
            numbers.count += 7
            lines = await until_said(sock, "meshgate.connections.service.web:7|c")
        # The hundred of before were counted by whoever was asked then.
        assert "meshgate.connections.service.web:107|c" not in lines
        assert export.dropped == 0


@pytest.mark.parametrize("tags", [["env=test"], "env=test", [5, "env=test"]], ids=str)
async def test_dogstatsd_is_spoken_over_a_unix_socket_with_tags(tmp_path: Path, tags: object) -> None:
    numbers = Numbers()
    with reader(tmp_path / "dd.sock") as sock:
        async with exporting(numbers) as export:
            export.follow(FAST | {"envoy_dogstatsd_url": f"unix://{tmp_path / 'dd.sock'}", "envoy_stats_tags": tags})
            await trio.testing.wait_all_tasks_blocked(0.05)
            numbers.count += 1
            await until_said(sock, "meshgate.connections:1|c|#env:test,kind:service,destination:web")


async def test_another_target_is_followed_while_it_runs_and_none_ends_it() -> None:
    numbers = Numbers()
    with reader() as first, reader() as second:
        async with exporting(numbers) as export:
            for sock in (first, second):
                export.follow(FAST | {"envoy_statsd_url": f"udp://127.0.0.1:{sock.getsockname()[1]}"})
                await trio.testing.wait_all_tasks_blocked(0.05)
                numbers.count += 1
                await until_said(sock, "meshgate.connections.service.web:1|c")
            export.follow({})
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert export._targets == ()


async def test_what_cannot_be_used_is_said_once_and_harms_nothing() -> None:
    numbers = Numbers()
    with structlog.testing.capture_logs() as entries:
        async with exporting(numbers) as export:
            for _ in range(3):
                export.follow({"envoy_statsd_url": "tcp://h:1", "envoy_dogstatsd_url": "$UNSET", "other": 5})
    assert [(entry["log_level"], entry["setting"]) for entry in entries] == [
        ("warning", "envoy_statsd_url"),
        ("warning", "envoy_dogstatsd_url"),
    ]


async def test_a_fault_is_logged_and_the_next_interval_tried() -> None:
    numbers = Numbers()
    with reader() as sock, structlog.testing.capture_logs() as entries:
        async with exporting(numbers) as export:
            export.follow(FAST | {"envoy_statsd_url": f"udp://127.0.0.1:{sock.getsockname()[1]}"})
            await trio.testing.wait_all_tasks_blocked(0.05)
            numbers.faults.append(RuntimeError("a fault"))
            with trio.fail_after(60):
                while numbers.faults:
                    await trio.sleep(0.01)
            numbers.count += 1
            await until_said(sock, "meshgate.connections.service.web:1|c")
    assert [entry["log_level"] for entry in entries] == ["info", "error"]


async def test_a_fault_of_the_first_look_is_logged_and_ends_nothing() -> None:
    numbers = Numbers()
    numbers.faults.append(RuntimeError("a fault"))
    with reader() as sock, structlog.testing.capture_logs() as entries:
        async with exporting(numbers) as export:
            export.follow(FAST | {"envoy_statsd_url": f"udp://127.0.0.1:{sock.getsockname()[1]}"})
            with trio.fail_after(60):
                while not any(export.left().values()):
                    await trio.sleep(0.01)
            numbers.count += 1
            await until_said(sock, "meshgate.connections.service.web:1|c")
    assert [entry["log_level"] for entry in entries] == ["info", "error"]


async def test_a_name_that_leads_nowhere_drops_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = Numbers()
    real, answers = trio.socket.getaddrinfo, [socket.gaierror(socket.EAI_NONAME, "unknown")]

    async def getaddrinfo(host: str, *args: Any, **more: Any) -> Any:
        if answers:
            raise answers.pop()
        return await real("127.0.0.1", *args, **more)

    monkeypatch.setattr(trio.socket, "getaddrinfo", getaddrinfo)
    with reader() as sock:
        async with exporting(numbers) as export:
            export.follow(FAST | {"envoy_statsd_url": f"udp://statsd.invalid:{sock.getsockname()[1]}"})
            await trio.testing.wait_all_tasks_blocked(0.05)
            numbers.count += 1
            with trio.fail_after(60):
                while not export.dropped:
                    await trio.sleep(0.01)
            numbers.count += 3
            await until_said(sock, "meshgate.connections.service.web:3|c")


async def test_another_program_goes_on_from_what_was_told_so_that_nothing_is_left_out() -> None:
    numbers = Numbers()
    with reader() as sock:
        config = FAST | {"envoy_statsd_url": f"udp://127.0.0.1:{sock.getsockname()[1]}"}
        async with exporting(numbers) as export:
            export.follow(config)
            await trio.testing.wait_all_tasks_blocked(0.05)
            numbers.count += 7
            await until_said(sock, "meshgate.connections.service.web:7|c")
            left = export.left()
        numbers.count += 5  # Between the two.
        async with exporting(numbers) as after:
            after.go_on(left, 3)
            after.follow(config)
            await until_said(sock, "meshgate.connections.service.web:5|c")
            assert after.dropped == 3
