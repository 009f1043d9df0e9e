"""Operating a real gateway: what it tells of its streams, its Consul and itself, and how it is drained by command."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from meshgate.adapters.mesh_tls import RefusedError
from tests.harness.caller import Caller
from tests.harness.gateway import LONG_DRAIN, GatewayProcess, gateway_beside
from tests.harness.native import native_service
from tests.harness.process import child_environment

from .world import World, until_equal

pytestmark = pytest.mark.consul

FIELDS = [
    "start_time",
    "duration_ms",
    "client",
    "listener",
    "sni",
    "alpn",
    "route",
    "kind",
    "endpoint",
    "attempts",
    "bytes_received",
    "bytes_sent",
    "reason",
    "end",
    "flags",
    "worker",
]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def until_lines(path: Path, wanted: int) -> list[dict[str, Any]]:
    async def count() -> int:
        return len(lines_of(path))

    await until_equal(f"lines in {path.name}", count, wanted, seconds=5)
    return lines_of(path)


async def command(gateway: GatewayProcess, *arguments: str) -> str:
    """What a command of meshgate prints that asks this gateway."""
    ended = await trio.run_process(
        [sys.executable, "-m", "meshgate", *arguments],
        env=child_environment(MESHGATE_ADMIN_BIND=gateway.admin),
        capture_stdout=True,
        capture_stderr=True,
    )
    assert ended.stderr == b""
    return bytes(ended.stdout).decode()


async def text_of(gateway: GatewayProcess, path: str) -> str:
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        response = await client.get(f"http://{gateway.admin}{path}")
        assert response.status_code == 200
        return response.text


@asynccontextmanager
async def routed_web(world: World, **settings: str) -> AsyncIterator[tuple[GatewayProcess, Caller]]:
    """A gateway that routes `web`, and a caller."""
    async with (
        native_service(world.federation.dc2, "web", world.federation.folder),
        gateway_beside(world.federation.dc2, world.token, **settings) as gateway,
    ):
        await until_equal("web", partial(ports, gateway, world.sni()), 1, seconds=20)
        yield gateway, await world.caller()


async def test_every_stream_is_a_line_in_the_access_log_across_a_rotation(world: World, tmp_path: Path) -> None:
    path, rotated = tmp_path / "access.log", tmp_path / "access.log.1"
    async with routed_web(world, MESHGATE_ACCESS_LOG=str(path)) as (gateway, caller):
        await caller.call(gateway.address, world.sni(), b"ping\n", expect=world.spiffe())
        with pytest.raises(RefusedError):
            await caller.call(gateway.address, world.sni("nosuch"))
        first, second = await until_lines(path, 2)
        path.rename(rotated)
        gateway.child.signal(signal.SIGHUP)
        await until_equal("the new file", partial(there, path), wanted=True, seconds=5)
        await caller.call(gateway.address, world.sni(), b"again\n")
        (third,) = await until_lines(path, 1)
    assert list(first) == list(second) == list(third) == FIELDS
    assert (first["sni"], first["route"], first["kind"]) == (world.sni(), world.sni(), "service")
    assert (first["reason"], first["attempts"]) == (None, 1)
    assert first["endpoint"].startswith("127.0.0.1:")
    assert min(first["bytes_received"], first["bytes_sent"]) > 1000
    assert first["client"].rpartition(":")[0] == "127.0.0.1"
    assert (second["sni"], second["route"], second["reason"]) == (world.sni("nosuch"), None, "unknown_sni")
    assert third["sni"] == world.sni()
    assert path.stat().st_mode & 0o137 == 0
    assert len(lines_of(rotated)) == 2


async def test_pages_show_an_open_stream_and_no_secret(world: World) -> None:
    async with routed_web(world) as (gateway, caller):
        async with caller.connect(gateway.address, world.sni(), expect=world.spiffe()) as stream:
            await stream.send_all(b"x")
            assert await stream.receive_some() == b"x"
            (row,) = [each for each in await gateway.ask("/connections") if each["state"] == "relaying"]
            assert (row["sni"], row["route"]) == (world.sni(), world.sni())
            # The only service of the agent on this machine, where the caller's address is.
            assert re.fullmatch(r"web on \S+", row["caller"])
            assert f"{world.sni()}::{row['endpoint']}::cx_active::1\n" in await text_of(gateway, "/clusters")
            assert f"\n{world.sni()}::cx_total::1\n" in await text_of(gateway, "/clusters")
            clusters = {each["name"]: each for each in (await gateway.ask("/clusters?format=json"))["cluster_statuses"]}
            (host,) = clusters[world.sni()]["host_statuses"]
            of_all = clusters[world.sni()]["meshgate"]
            assert (of_all["streams"], of_all["open"], of_all["connect_failures"]) == (1, 1, 0)
            assert 0 < of_all["first_byte_p50"] < 20
            assert (host["meshgate"]["streams"], host["meshgate"]["failures"], host["meshgate"]["ejected"]) == (
                1,
                0,
                None,
            )
            assert 0 < host["meshgate"]["first_byte_seconds"] < 20
            explained = await gateway.ask(f"/explain?sni={world.sni()}")
            (met,) = [step["outcome"] for step in explained["steps"] if step["rule"] == "endpoint"]
            assert re.fullmatch(r"\S+ on \S+: 1 stream, first byte in \S+ ms lately, last answered \S+ ago", met)
            assert host["health_status"]["eds_health_status"] == "HEALTHY"
            picture = json.loads(await command(gateway, "top", "--json", "--interval=0.5"))
            (web,) = [each for each in picture["destinations"]["rows"] if each["name"] == "web"]
            assert (web["open"], web["facts"]["streams"], web["healthy"]) == (1, 1, 1)
            assert " ready " in (await command(gateway, "top", "--once", "--interval=0.5")).splitlines()[0]
        info = await gateway.ask("/server_info")
        assert info["state"] == "LIVE"
        dump = await gateway.ask("/config_dump")
        assert {watch["kind"] for watch in dump["watches"]} >= {"services", "roots", "registration"}
        assert dump["table"]["trust_domain"] == world.federation.trust_domain
        assert dump["settings"]["CONSUL_HTTP_TOKEN"] == {"value": "********", "origin": "environment"}
        page = await text_of(gateway, "/stats/prometheus")
        for line in (
            "meshgate_ready 1.0",
            'meshgate_watches{state="failing"} 0.0',
            "meshgate_token_problem 0.0",
            'meshgate_log_lines_dropped_total{log="process"} 0.0',
            'meshgate_first_byte_seconds_count{destination="web",kind="service"} 1.0',
            'meshgate_unanswered_streams_total{destination="web",kind="service"} 0.0',
            'meshgate_client_hellos_total{destination="web",kind="service",resumption="none",version="TLSv1.3"} 1.0',
        ):
            assert f"\n{line}\n" in page
        for page in ("/config_dump", "/server_info", "/connections", "/clusters", "/routes", "/readyz", "/metrics"):
            assert world.token not in await text_of(gateway, page)


async def test_the_command_drain_waits_for_the_streams_and_for_the_end(world: World, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    async with routed_web(world, MESHGATE_ACCESS_LOG=str(path), **LONG_DRAIN) as (gateway, caller):
        printed: list[str] = []
        async with trio.open_nursery() as nursery:
            async with caller.connect(gateway.address, world.sni(), expect=world.spiffe()) as stream:
                await stream.send_all(b"x")
                assert await stream.receive_some() == b"x"
                with trio.fail_after(20):
                    await nursery.start(_drain, gateway, printed)
                assert await state_of(gateway) == "DRAINING"
                await stream.send_all(b"y")
                assert await stream.receive_some() == b"y"
                assert "the gateway is gone" not in "".join(printed)
        lines = "".join(printed).splitlines()
        assert lines[0].startswith("draining: 1 stream: 127.0.0.1:")
        assert lines[0].endswith(" to web.default.dc2")
        assert lines[-1].startswith("the gateway is gone, after ")
        with trio.fail_after(5):
            assert await gateway.child.wait() == 0
    # What ended last is in the log, too.
    assert [line["sni"] for line in lines_of(path)] == [world.sni()]


async def test_the_command_connections_names_who_talks_to_whom(world: World) -> None:
    async with routed_web(world) as (gateway, caller):
        async with caller.connect(gateway.address, world.sni(), expect=world.spiffe()) as stream:
            await stream.send_all(b"x" * 20_000)
            answered = 0
            while answered < 20_000:
                answered += len(await stream.receive_some())
            head, row = (await command(gateway, "connections", "--destination=web", "--client=127.0.0.1")).splitlines()
            (found,) = json.loads(await command(gateway, "connections", "--sni=web.default.dc2", "--json"))
            assert json.loads(await command(gateway, "connections", "--client=192.0.2.0/24", "--json")) == []
    assert head.split() == ["CLIENT", "DESTINATION", "IN", "OUT", "RATE", "AGE", "CALLER"]
    assert row.split()[:2] == [found["client"], "web.default.dc2"]
    assert found["client"].startswith("127.0.0.1:")
    assert (found["sni"], found["route"], found["state"]) == (world.sni(), world.sni(), "relaying")
    assert min(found["bytes_received"], found["bytes_sent"]) >= 20_000
    # All of it went before the two looks.
    assert (found["received_rate"], found["sent_rate"]) == (0.0, 0.0)


async def test_the_log_level_changes_while_it_runs(world: World) -> None:
    async with gateway_beside(world.federation.dc2, world.token) as gateway:
        async with httpx.AsyncClient(trust_env=False, base_url=f"http://{gateway.admin}") as client:
            assert (await client.post("/logging?level=debug")).json() == {"level": "debug"}
        assert await gateway.ask("/logging") == {"level": "debug"}


def test_an_access_log_that_cannot_be_opened_is_a_wrong_setting(tmp_path: Path) -> None:
    ended = subprocess.run(  # noqa: PLW1510 - the code is what is tested
        [sys.executable, "-m", "meshgate", "run", f"--access-log={tmp_path}", "--admin-bind=off"],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ended.returncode == 2
    assert f"MESHGATE_ACCESS_LOG={tmp_path}: cannot be opened: Is a directory" in ended.stderr.splitlines()[-1]


async def _drain(
    gateway: GatewayProcess, printed: list[str], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Drain a gateway by the command; started when that has told which streams it waits for."""
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            partial(
                trio.run_process,
                [sys.executable, "-m", "meshgate", "drain"],
                env=child_environment(MESHGATE_ADMIN_BIND=gateway.admin),
                stdout=subprocess.PIPE,
            )
        )
        async for chunk in process.stdout:
            begins = "\n" not in "".join(printed)
            printed.append(chunk.decode())
            if begins and "\n" in printed[-1]:
                task_status.started()


async def ports(gateway: GatewayProcess, sni: str) -> int:
    return sum((await gateway.endpoints(sni)).values())


async def there(path: Path) -> bool:
    return await trio.Path(path).exists()


async def state_of(gateway: GatewayProcess) -> str:
    return str((await gateway.ask("/server_info"))["state"])
