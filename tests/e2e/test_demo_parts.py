"""The real parts that the demo and the end-to-end tests stand on do what they say, and leave nothing behind."""

import hashlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from meshgate.app.demo.agent import Consul, ConsulError
from meshgate.app.demo.backend import serving
from meshgate.app.demo.caller import Caller
from meshgate.app.demo.cluster import Federation, StartError, find_consul, two_datacenters
from meshgate.app.demo.identity import WrongPeerError
from meshgate.app.demo.mtls import RefusedError
from meshgate.app.demo.native import native_service
from meshgate.app.demo.ports import free_ports
from meshgate.app.demo.process import Child, child_process
from meshgate.app.demo.sidecar import sidecar_for
from meshgate.app.demo.waiting import LateError, until

real = pytest.mark.consul
together = pytest.mark.xdist_group("consul-parts")


def gone(pid: int) -> bool:
    """Whether no such process runs; one that ended and was not collected by its new parent does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def entries(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def pids(federation: Federation) -> list[int]:
    return [consul.child.pid for consul in federation.datacenters]


@pytest.fixture(scope="module")
def federation(consul_binary: str) -> Iterator[Federation]:
    federation = trio.run(Federation.start, consul_binary)
    try:
        # A secondary takes over a handful of changes to intentions at once, then one each five seconds.
        trio.run(federation.set_intention, "caller", "*", "allow")
        trio.run(federation.set_intention, "caller", "closed", "deny")
        yield federation
    finally:
        trio.run(federation.stop)
    assert all(gone(pid) for pid in pids(federation))
    assert not federation.folder.exists()


def sni(federation: Federation, service: str) -> str:
    return f"{service}.default.dc2.internal.{federation.trust_domain}"


# The datacenters


@real
@together
async def test_each_datacenter_answers_for_the_other_under_one_trust_domain(federation: Federation) -> None:
    for consul in federation.datacenters:
        for other in federation.datacenters:
            nodes = await consul.get("/v1/catalog/nodes", dc=other.datacenter)
            assert [node["Node"] for node in nodes] == [other.node]
        roots = await consul.get("/v1/connect/ca/roots")
        assert roots["TrustDomain"] == federation.trust_domain


@real
@together
async def test_without_a_token_nothing_is_shown_or_done(federation: Federation) -> None:
    assert await federation.dc2.get("/v1/catalog/services", token="") == {}
    with pytest.raises(ConsulError, match="Permission denied") as refused:
        await federation.dc2.put("/v1/agent/service/register", {"Name": "x"}, token="")
    assert refused.value.status == 403


@real
@together
async def test_a_policy_token_may_what_its_rules_say_in_both_datacenters_at_once(federation: Federation) -> None:
    rules = 'service_prefix "consul" { policy = "read" }\nnode_prefix "" { policy = "read" }'
    secret = await federation.create_policy_token(rules, "reads-consul")
    for consul in federation.datacenters:
        assert list(await consul.get("/v1/catalog/services", token=secret)) == ["consul"]
        with pytest.raises(ConsulError, match="Permission denied"):
            await consul.put("/v1/agent/service/register", {"Name": "other"}, token=secret)


@real
@together
async def test_a_local_token_is_unknown_in_the_other_datacenter(federation: Federation) -> None:
    rules = 'service_prefix "" { policy = "read" }\nnode_prefix "" { policy = "read" }'
    secret = await federation.create_policy_token(rules, "local-to-dc2", local_to=federation.dc2)
    assert "consul" in await federation.dc2.get("/v1/catalog/services", token=secret)
    with pytest.raises(ConsulError, match="ACL not found"):
        await federation.dc1.get("/v1/catalog/services", token=secret)


@real
@together
async def test_a_configuration_entry_is_in_both_datacenters_once_written_and_in_none_once_deleted(
    federation: Federation,
) -> None:
    for timeout in ("3s", "4s", "4s"):
        entry = {"Kind": "service-resolver", "Name": "entry", "ConnectTimeout": timeout}
        await federation.write_config_entry(entry)
        for consul in federation.datacenters:
            assert (await consul.get("/v1/config/service-resolver/entry"))["ConnectTimeout"] == timeout
    for _ in range(2):
        await federation.delete_config_entry("service-resolver", "entry")
        for consul in federation.datacenters:
            assert await consul.get("/v1/config/service-resolver") == []


# Sidecars and callers


@real
@together
async def test_a_caller_of_dc1_meets_the_sidecar_of_dc2(federation: Federation) -> None:
    async with sidecar_for(federation.dc2, "web", named=True) as web:
        caller = await Caller.of(federation.dc1, "caller", federation.folder)
        identity = f"spiffe://{federation.trust_domain}/ns/default/dc/dc2/svc/web"
        answer = await caller.call(web.address, sni(federation, "web"), b"hello\n", expect=identity)
        assert answer.data == b"web\nhello\n"
        assert answer.met.spiffe_id == identity
        assert answer.met.tls_version == "TLSv1.3"
        assert 0 < answer.met.connect_seconds + answer.met.handshake_seconds < 5
        assert caller.spiffe_id == f"spiffe://{federation.trust_domain}/ns/default/dc/dc1/svc/caller"
        assert not list(federation.folder.glob("*.pem"))


@real
@together
async def test_a_caller_notices_that_it_met_somebody_else(federation: Federation) -> None:
    async with sidecar_for(federation.dc2, "other") as other:
        caller = await Caller.of(federation.dc1, "caller", federation.folder)
        wanted = f"spiffe://{federation.trust_domain}/ns/default/dc/dc2/svc/web"
        with pytest.raises(WrongPeerError, match=f"expected {wanted}, met .*svc/other"):
            await caller.call(other.address, sni(federation, "web"), expect=wanted)


@real
@together
@pytest.mark.parametrize("source", ["caller", "stranger"])
async def test_the_sidecar_refuses_who_is_denied_and_who_is_not_allowed(federation: Federation, source: str) -> None:
    async with sidecar_for(federation.dc2, "closed") as closed:
        caller = await Caller.of(federation.dc1, source, federation.folder)
        with pytest.raises(RefusedError) as refused:
            await caller.call(closed.address, sni(federation, "closed"))
        assert (refused.value.stage, refused.value.alert) == ("stream", "bad_certificate")


@real
@together
async def test_a_native_service_judges_callers_by_intentions_and_proves_its_identity(federation: Federation) -> None:
    async with native_service(federation.dc2, "native", federation.folder, named=True) as native:
        stranger = await Caller.of(federation.dc1, "stranger", federation.folder)
        with pytest.raises(RefusedError, match=r"stream: (closed|connection reset)"):
            await stranger.call(native.address, sni(federation, "native"))
        caller = await Caller.of(federation.dc1, "caller", federation.folder)
        answer = await caller.call(native.address, sni(federation, "native"), b"hello")
        assert answer.data == b"native\nhello"
        assert answer.met.spiffe_id == f"spiffe://{federation.trust_domain}/ns/default/dc/dc2/svc/native"


@real
@together
async def test_intentions_are_written_changed_and_removed(federation: Federation) -> None:
    async def actions(consul: Consul) -> list[str]:
        rows = await consul.get("/v1/connect/intentions")
        return [row["Action"] for row in rows if row["DestinationName"] == "changing"]

    for action in ("allow", "deny", None):
        await federation.set_intention("caller", "changing", action)
        for consul in federation.datacenters:
            assert await actions(consul) == ([action] if action else [])


@real
@together
async def test_after_the_caller_ended_sending_all_that_is_under_way_still_arrives(federation: Federation) -> None:
    sent = os.urandom(4 << 20)
    received = hashlib.sha256()
    async with native_service(federation.dc2, "halves", federation.folder) as halves:
        caller = await Caller.of(federation.dc1, "caller", federation.folder)
        async with caller.connect(halves.address, sni(federation, "halves")) as conversation:

            async def send() -> None:
                await conversation.send_all(sent)
                await conversation.send_eof()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                while data := await conversation.receive_some():
                    received.update(data)
    assert received.digest() == hashlib.sha256(sent).digest()


@real
@together
async def test_what_was_decrypted_before_the_caller_ended_sending_is_not_lost(federation: Federation) -> None:
    async with native_service(federation.dc2, "early", federation.folder, named=True) as early:
        caller = await Caller.of(federation.dc1, "caller", federation.folder)
        async with caller.connect(early.address, sni(federation, "early")) as conversation:
            received = await conversation.receive_some(1)
            await conversation.send_eof()
            while data := await conversation.receive_some(2):
                received += data
    assert received == b"early\n"


@real
@together
async def test_a_sidecar_turns_critical_recovers_moves_and_leaves_in_the_catalog(federation: Federation) -> None:
    async def rows() -> list[tuple[str, int, set[str]]]:
        answer = await federation.dc1.get("/v1/health/connect/moving", dc="dc2")
        return [
            (row["Service"]["ID"], row["Service"]["Port"], {check["Status"] for check in row["Checks"]})
            for row in answer
        ]

    async with sidecar_for(federation.dc2, "moving", instance="moving-1", Meta={"version": "v1"}) as moving:
        first = moving.port
        assert await rows() == [("moving-1-sidecar-proxy", first, {"passing"})]
        await moving.set_health("critical")
        assert await rows() == [("moving-1-sidecar-proxy", first, {"passing", "critical"})]
        await moving.set_health("passing")
        await moving.move()
        assert moving.port != first
        assert await rows() == [("moving-1-sidecar-proxy", moving.port, {"passing"})]
        with pytest.raises(OSError, match="connect"):
            await trio.open_tcp_stream("127.0.0.1", first)
        (row,) = await federation.dc2.get("/v1/health/connect/moving")
        assert row["Service"]["Meta"] == {"version": "v1"}
        await moving.deregister()
        assert await rows() == []


@real
@together
async def test_an_agent_that_was_killed_comes_back_with_what_was_registered(federation: Federation) -> None:
    async with sidecar_for(federation.dc2, "kept") as kept:
        before = federation.dc2.child.pid
        await federation.dc2.kill()
        assert gone(before)
        with pytest.raises(ConsulError, match="no answer"):
            await federation.dc2.get("/v1/status/leader")
        await federation.dc2.restart()
        assert federation.dc2.child.pid != before
        await federation.until_ready()
        (state,) = (await federation.dc2.get("/v1/agent/checks", filter=f'ServiceID == "{kept.listed_as}"')).values()
        assert state["Status"] == "passing"
        await kept.until_listed()


@real
@together
async def test_a_paused_agent_answers_nothing_until_it_goes_on(federation: Federation) -> None:
    federation.dc1.child.pause()
    try:
        with trio.move_on_after(0.5) as waited:
            await federation.dc1.get("/v1/status/leader")
        assert waited.cancelled_caught
    finally:
        federation.dc1.child.resume()
    await federation.until_ready()


# Nothing is left behind


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
from meshgate.app.demo.cluster import two_datacenters
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


# What goes wrong is said


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


# Small parts


async def test_a_child_that_ignores_the_term_signal_is_killed_after_its_grace(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    async with child_process(["sh", "-c", script], name="stubborn", log=log) as child:

        async def missing() -> str | None:
            return None if child.last_lines() == "ready" else "not ready"

        await until("the child", missing)
        started = time.monotonic()
        await child.stop(grace=0.3)
        assert 0.3 <= time.monotonic() - started < 3
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
        (b"", None),
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
