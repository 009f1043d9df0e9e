"""The small parts under the demo, without Consul: children, ports, waiting, alerts, and what is said of failures."""

import signal
import socket
import ssl
import time
from pathlib import Path

import pytest
import trio

from meshgate.adapters.mesh_tls import RefusedError
from tests.cuts import needs_cuts
from tests.harness.backend import serving
from tests.harness.caller import Caller
from tests.harness.cluster import Federation, StartError, find_consul
from tests.harness.ports import free_ports
from tests.harness.process import child_process
from tests.harness.waiting import LateError, until

from .remains import entries, gone


def pretender(folder: Path, agent: str) -> str:
    """A program that passes for Consul until it is started as an agent."""
    path = folder / "consul"
    path.write_text(f'#!/bin/sh\nif [ "$1" = version ]; then echo "Consul v1.8.7"; exit; fi\n{agent}\n')
    path.chmod(0o755)
    return str(path)


async def test_an_agent_that_ends_by_itself_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = tmp_path / "temporary"
    folders.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folders))
    with pytest.raises(StartError, match=r"(?s)ended with 1.*the log of dc1 ends:\nno such luck"):
        await Federation.start(pretender(tmp_path, "echo no such luck; exit 1"))
    assert entries(folders) == []


async def test_a_port_that_was_taken_meanwhile_is_replaced(tmp_path: Path) -> None:
    said: list[str] = []
    used = tmp_path / "used"
    agent = f"""cat "$3" >>{used}; echo "listen tcp: bind: address already in use"; exit 1"""
    with pytest.raises(StartError, match="no free ports"):
        await Federation.start(pretender(tmp_path, agent), said.append)
    assert said.count("a port was taken meanwhile, trying others") == 3
    ports = [line for line in used.read_text().splitlines() if '"http"' in line]
    assert len(set(ports)) == 3


async def test_datacenters_that_never_get_ready_say_what_lacked(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"not within 0.3 s \(no leader\)"):
        await Federation.start(pretender(tmp_path, "sleep 60"), seconds=0.3)


async def test_a_program_that_is_no_consul_is_named() -> None:
    with pytest.raises(ValueError, match="no Consul"):
        await Federation.start("true")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        await Federation.start("/nowhere/consul")


def test_the_consul_to_use_is_the_named_one_then_the_path_then_a_known_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = tmp_path / "fetched"
    monkeypatch.delenv("CONSUL_BIN", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="CONSUL_BIN"):
        find_consul(fetched)
    for path in (fetched, tmp_path / "consul", tmp_path / "named"):
        path.write_text("")
        path.chmod(0o755)
        if path.name == "named":
            monkeypatch.setenv("CONSUL_BIN", str(path))
        assert find_consul(fetched) == str(path)
    monkeypatch.setenv("CONSUL_BIN", str(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError, match="missing"):
        find_consul(fetched)


async def test_a_child_that_ignores_the_term_signal_is_killed_after_its_grace(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    async with child_process(["sh", "-c", script], name="stubborn", log=log) as child:

        async def missing() -> str | None:
            return None if child.last_lines() == "ready" else "not ready"

        await until("the child", missing)
        started = time.monotonic()
        await child.stop(grace=0.3)
        assert time.monotonic() - started >= 0.3
    assert child.returncode == -signal.SIGKILL


async def test_a_child_is_stopped_in_order_when_its_block_is_cancelled(tmp_path: Path) -> None:
    script = "trap 'echo ended; exit' TERM; echo ready; while :; do sleep 0.05; done"
    with trio.CancelScope() as scope:
        async with child_process(["sh", "-c", script], name="child", log=tmp_path / "log") as child:

            async def missing() -> str | None:
                return None if child.last_lines() == "ready" else "not ready"

            await until("the child", missing)
            scope.cancel()
            await trio.sleep_forever()
    assert child.returncode == 0
    assert child.last_lines() == "ready\nended"


async def test_what_a_child_started_ends_with_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with child_process(["sh", "-c", "sleep 60 & echo $!; wait"], name="parent", log=log) as child:

        async def missing() -> str | None:
            return None if child.last_lines().isdigit() else "nothing printed"

        await until("the child", missing)
        grandchild = int(child.last_lines())
        assert not gone(grandchild)

    async def living() -> str | None:
        return None if gone(grandchild) else "it lives"

    await until("the grandchild to end", living, seconds=5)


async def test_a_child_sees_none_of_the_variables_that_steer_consul_or_the_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "secret")
    monkeypatch.setenv("MESHGATE_ADDRESS", ":1")
    async with child_process(["env"], name="env", log=tmp_path / "log") as child:
        assert await child.wait() == 0
    assert "PATH=" in (tmp_path / "log").read_text()
    assert not {"CONSUL_HTTP_TOKEN", "MESHGATE_ADDRESS"} & set(
        (tmp_path / "log").read_text().replace("=", "\n").split()
    )


async def test_waiting_ends_with_what_lacked() -> None:
    async def missing() -> str | None:
        return "the moon"

    with pytest.raises(LateError, match=r"an eclipse: not within 0.1 s \(the moon\)"):
        await until("an eclipse", missing, seconds=0.1)


def test_free_ports_are_different_and_outside_those_the_kernel_gives_away() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    with socket.create_server(("127.0.0.1", 0)) as given:
        low, high = (int(word) for word in Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
        assert low <= given.getsockname()[1] <= high
    assert not any(low <= port <= high for port in ports)


@pytest.mark.parametrize(
    ("sent", "alert"),
    [
        (bytes((21, 3, 3, 0, 2, 2, 112)), "unrecognized_name"),
        (bytes((21, 3, 3, 0, 2, 2, 80)), "internal_error"),
        (bytes((21, 3, 3, 0, 2, 2, 50)), "decode_error"),
        pytest.param(b"", None, marks=needs_cuts),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", None),
    ],
)
async def test_a_caller_names_the_alert_that_refused_it(sent: bytes, alert: str | None) -> None:
    async def refuse(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(sent)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    async with serving(refuse) as port:
        with pytest.raises(RefusedError) as refused:
            await Caller("caller", "spiffe://td/caller", "td", context).call(("127.0.0.1", port), "web.internal.td")
    assert (refused.value.stage, refused.value.alert) == ("handshake", alert)


async def test_a_caller_says_that_nobody_listens() -> None:
    caller = Caller("caller", "spiffe://td/caller", "td", ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    with pytest.raises(RefusedError, match="connect: ") as refused:
        await caller.call(("127.0.0.1", free_ports(1)[0]), "web.internal.td")
    assert refused.value.stage == "connect"


async def test_a_caller_waits_for_a_handshake_only_so_long() -> None:
    async def silent(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    caller = Caller("caller", "spiffe://td/caller", "td", context)
    async with serving(silent) as port:
        with pytest.raises(RefusedError, match=r"handshake: nothing within 0.2 s"):
            async with caller.connect(("127.0.0.1", port), None, seconds=0.2):
                pass


async def test_what_fails_in_a_handler_or_in_the_block_of_a_server_comes_out() -> None:
    async def broken(stream: trio.SocketStream) -> None:
        raise ZeroDivisionError

    with pytest.raises(KeyError, match="block"):
        async with serving(broken):
            raise KeyError("block")
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with serving(broken) as port:
            async with await trio.open_tcp_stream("127.0.0.1", port):
                await trio.sleep_forever()
