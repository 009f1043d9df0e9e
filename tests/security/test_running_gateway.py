"""A real gateway with two workers under inspection: what it opens, what it shows, and what strangers' names can do."""

import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import httpx
import pytest
import trio

from meshgate.app.admin.admin_pages import admin_routes
from tests.core.hellos import extension, hello, server_name, vector
from tests.e2e.world import World, until_equal
from tests.harness.gateway import GatewayProcess, gateway_beside
from tests.harness.native import native_service
from tests.harness.ports import free_ports
from tests.harness.process import Child, child_environment

from . import processes

pytestmark = pytest.mark.consul

BASIC = "operator:basic-secret-of-the-agent"
# What a terminal obeys, what ends a line, and what turns text around or hides it.
DANGEROUS = frozenset(
    map(chr, (*range(32), *range(0x7F, 0xA0), 0x200B, 0x2028, 0x2029, *range(0x202A, 0x202F), 0xFEFF))
)
HOSTILE = [
    b"\x1b[2J\x1b]0;owned\x07.consul",
    b"a\n2026-01-01T00:00:00.000Z [ERROR] meshgate: forged",
    b'a"} 1\nmeshgate_forged_total{x="',
    b"a\r\nSet-Cookie: x",
    b"\0web",
    b"\x7f\x7f",
    "b\u00fccher\u202e.example".encode(),
    b"\xff\xfe\x9b31m",
    b"a" * 255,
    b"a" * 4000,
    b"'\"><script>alert(1)</script>",
    b"${jndi:ldap://x}",
    b"%s%n%x",
    b"web.default.nosuch.internal.consul",
]


def routes() -> list[tuple[str, str]]:
    """Every method and path that the admin address knows, whoever added it."""
    return list(admin_routes(MagicMock(), MagicMock()))


def paths(method: str) -> list[str]:
    return [path for known, path in routes() if known == method]


@asynccontextmanager
async def client_of(gateway: GatewayProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False, timeout=10, base_url=f"http://{gateway.admin}") as client:
        yield client


async def asked(client: httpx.AsyncClient, method: str, path: str, **options: Any) -> httpx.Response:
    """The head of an answer and as much of its body as comes: there may be pages without an end."""
    async with client.stream(method, path, **options) as response:
        body = bytearray()
        with suppress(httpx.ReadTimeout), trio.move_on_after(1.0):
            async for chunk in response.aiter_bytes():
                body += chunk
        return httpx.Response(response.status_code, headers=response.headers, content=bytes(body))


async def workers_of(gateway: GatewayProcess, count: int) -> list[int]:
    async def found() -> int:
        return len(processes.workers(gateway.child.pid))

    await until_equal("the workers", found, count, seconds=10)
    return processes.workers(gateway.child.pid)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@asynccontextmanager
async def gateway_with_secrets(world: World, folder: Path) -> AsyncIterator[GatewayProcess]:
    """A gateway of two workers that tells all it can, with every secret that can be given."""
    extra = {
        "MESHGATE_WORKERS": "2",
        "MESHGATE_LOG_LEVEL": "trace",
        "MESHGATE_ACCESS_LOG": str(folder / "access.log"),
        "MESHGATE_STATE_DIR": str(folder / "state"),
        "CONSUL_HTTP_AUTH": BASIC,
    }
    async with gateway_beside(world.federation.dc2, world.token, **extra) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def lasting(world: World) -> Iterator[GatewayProcess]:
    """A gateway with one worker for what must leave it as it was; the others of this module are in dc2."""
    gateway = GatewayProcess(world.federation.dc1, world.token)
    try:
        yield trio.run(gateway.start)
    finally:
        trio.run(gateway.stop)


# --- what it opens ---------------------------------------------------------------------------------------------------


async def test_nothing_but_the_relay_port_listens_beyond_loopback(world: World) -> None:
    (port,) = free_ports(1)
    listen = {"MESHGATE_BIND_ADDRESS": f"all=0.0.0.0:{port}", "MESHGATE_WORKERS": "2"}
    async with gateway_beside(world.federation.dc2, world.token, **listen) as gateway:
        parent, workers = gateway.child.pid, await workers_of(gateway, 2)
        async with client_of(gateway) as client:
            await client.get("/readyz")
        seen = [pid for pid in (parent, *workers) if processes.may_look(pid)]
        assert set(workers) <= set(seen)
        listening = {pid: [each for each in processes.tcp_sockets(pid) if each.listens] for pid in seen}
        beyond = {each.port for sockets in listening.values() for each in sockets if not each.is_loopback}
        assert beyond == {port}
        if parent in seen:
            assert {each.port for each in listening[parent]} == {port, int(gateway.admin.rpartition(":")[2])}
        for worker in workers:
            assert {each.port for each in listening[worker]} == {port}
        for pid in seen:
            assert processes.udp_sockets(pid) == []
            assert [name for accepts, name in processes.unix_sockets(pid) if accepts or name] == []


async def test_a_worker_holds_the_relay_and_its_parents_private_socket_alone(world: World) -> None:
    async with gateway_beside(world.federation.dc2, world.token, MESHGATE_WORKERS="2") as gateway:
        log = str(gateway.child.log)
        for worker in await workers_of(gateway, 2):
            # No connection to Consul, no admin address, no file but the log. Unix sockets are pairs without a name,
            # which nobody else can connect to: its parent's, and those that trio wakes itself by.
            # A worker that has just begun still reads its modules and waits for the listener.
            allowed = {"socket:", "pipe:", "anon_inode:", "/dev/null", "/memfd:meshgate-counts", log}

            async def holdings(pid: int = worker, allowed: set[str] = allowed) -> object:
                # A newer libffi keeps its own file open, to read only, for the callbacks of ctypes.
                links = [it for it in processes.descriptors(pid).values() if "/libffi.so" not in it]
                held = {link.partition("[")[0].partition(" ")[0] for link in links}
                ports = [each.port for each in processes.tcp_sockets(pid)]
                return ports, set(processes.unix_sockets(pid)), held - allowed

            wanted = ([gateway.address[1]], {(False, "")}, set[str]())
            await until_equal("what the worker holds", holdings, wanted, seconds=20)


async def test_a_worker_does_not_take_orders_by_signal(lasting: GatewayProcess) -> None:
    (worker,) = await workers_of(lasting, 1)
    await send(lasting.address, b"not TLS")  # answered, so the worker is up
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(worker, number)
    await send(lasting.address, b"not TLS")
    assert processes.children(lasting.child.pid) == [worker]


# --- secrets ---------------------------------------------------------------------------------------------------------


async def test_no_secret_is_in_any_log_page_file_or_process(world: World, tmp_path: Path) -> None:
    folder = world.federation.folder
    async with native_service(world.federation.dc2, "web", folder) as web, gateway_with_secrets(world, tmp_path) as gw:
        await until_equal("web", lambda: gw.endpoints(world.sni()), {web.port: True})
        await (await world.caller()).call(gw.address, world.sni(), expect=world.spiffe())
        pids = [gw.child.pid, *await workers_of(gw, 2)]
        shown = {f"process {pid}": processes.shown_to_others(pid) for pid in pids}
        async with client_of(gw) as client:
            for method, path in routes():
                if path not in {"/drain", "/upgrade"}:
                    answer = await asked(client, method, path, params={"sni": world.sni(), "format": "json"})
                    shown[f"{method} {path}"] = answer.content + str(answer.headers).encode()
            for path in ("/nosuch", "/explain", "/logging?level=nosuch", "/clusters?format=nosuch", "/.env"):
                shown[path] = (await asked(client, "GET", path)).content
            shown["drain"] = (await asked(client, "POST", "/drain")).content
        await gw.child.wait()
        shown["log"] = gw.child.log.read_bytes()
    shown |= files_in(tmp_path)
    assert len(shown) > 20
    assert b"[TRACE]" in shown["log"] or b"[DEBUG]" in shown["log"] or b"[INFO]" in shown["log"]
    for where, text in shown.items():
        for secret in (world.token, BASIC, BASIC.partition(":")[2], "PRIVATE KEY"):
            assert secret.encode() not in text, where


async def test_a_token_given_as_a_flag_is_gone_from_the_command_line(world: World, tmp_path: Path) -> None:
    port, admin = free_ports(2)
    command = [sys.executable, "-m", "meshgate", "run", f"--token={world.token}", "--workers=1", "--no-register"]
    command += [f"--http-addr={world.federation.dc2.http_addr}", f"--address=127.0.0.1:{port}"]
    gateway = Child([*command, f"--admin-bind=127.0.0.1:{admin}"], name="gateway", log=tmp_path / "log")
    try:

        async def workers() -> int:
            return len(processes.workers(gateway.pid))

        await until_equal("the worker", workers, 1, seconds=20)
        for pid in (gateway.pid, *processes.workers(gateway.pid)):
            shown = processes.shown_to_others(pid)
            assert world.token.encode() not in shown
        cmdline = processes.of(gateway.pid, "cmdline").decode()
        assert f"--token={'*' * len(world.token)}" in cmdline
        assert f"--http-addr={world.federation.dc2.http_addr}" in cmdline
    finally:
        await gateway.stop()


async def test_workers_get_no_variable_of_consul_or_the_supervisor(world: World) -> None:
    given = {"NOTIFY_SOCKET": "/nonexistent", "AWS_SECRET_ACCESS_KEY": "not-ours"}
    async with gateway_beside(world.federation.dc2, world.token, **given) as gateway:
        (worker,) = await workers_of(gateway, 1)
        names = {line.partition(b"=")[0] for line in processes.of(worker, "environ").split(b"\0")}
        assert b"PATH" in names
        assert not [name for name in names if name.startswith((b"CONSUL_", b"MESHGATE_", b"NOTIFY_", b"AWS_"))]


async def test_neither_parent_nor_worker_may_dump_core(lasting: GatewayProcess) -> None:
    for pid in (lasting.child.pid, *await workers_of(lasting, 1)):
        limits = processes.of(pid, "limits").decode().splitlines()
        (line,) = [line for line in limits if line.startswith("Max core file size")]
        assert line.split()[4:6] == ["0", "0"]


# --- the admin address -----------------------------------------------------------------------------------------------


async def test_no_get_changes_anything_whatever_it_asks_for(lasting: GatewayProcess) -> None:
    everything = {"level": "error", "drain": "1", "sni": "x", "format": "json", "method": "POST", "_method": "POST"}
    async with client_of(lasting) as client:
        before = (await client.get("/logging")).json()
        for path in sorted({path for _, path in routes()}):
            for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE"):
                answer = await asked(client, method, path, params=everything)
                if method not in ("GET", "HEAD") or path not in paths("GET"):
                    assert answer.status_code == 405, (method, path)
        assert (await client.get("/logging")).json() == before
        assert (await client.get("/server_info")).json()["state"] == "LIVE"


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"host": "evil.example"},
    ],
)
async def test_no_other_sites_page_changes_anything(lasting: GatewayProcess, headers: Mapping[str, str]) -> None:
    own = {"origin": f"http://{lasting.admin}"}
    async with client_of(lasting) as client:
        for path in paths("POST"):
            answer = await asked(client, "POST", path, params={"level": "error"}, headers=headers)
            assert answer.status_code in (403, 421), path
            assert "access-control-allow-origin" not in answer.headers
        assert (await client.get("/logging")).json() == {"level": "info"}
        assert (await client.get("/server_info")).json()["state"] == "LIVE"
        for level in ("warn", "info"):
            assert (await client.post(f"/logging?level={level}", headers=own)).json() == {"level": level}


# --- strangers' names ------------------------------------------------------------------------------------------------


async def send(address: tuple[str, int], data: bytes) -> None:
    async with await trio.open_tcp_stream(*address) as stream:
        with suppress(trio.BrokenResourceError), trio.move_on_after(5):
            await stream.send_all(data)
            while await stream.receive_some():
                pass


def hostile_hellos() -> list[bytes]:
    names = [hello(server_name(name)) for name in HOSTILE]
    protocols = [hello(extension(16, vector(2, vector(1, name[:255])))) for name in HOSTILE]
    return [*names, *protocols, b"GET /\x1b[31m HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x1b]0;owned\x07"]


@pytest.mark.parametrize("as_json", ["false", "true"])
async def test_hostile_names_reach_no_log_label_or_terminal_unescaped(
    world: World, tmp_path: Path, as_json: str
) -> None:
    log = tmp_path / "access.log"
    extra = {"MESHGATE_LOG_LEVEL": "trace", "MESHGATE_LOG_JSON": as_json, "MESHGATE_ACCESS_LOG": str(log)}
    sent = hostile_hellos()
    async with gateway_beside(world.federation.dc2, world.token, instance=f"json-{as_json}", **extra) as gateway:
        for data in sent:
            await send(gateway.address, data)

        async def all_told() -> bool:
            # Consul's own checks of the port may be among them.
            return len(log.read_text().splitlines()) >= len(sent)

        await until_equal("a line for each", all_told, wanted=True, seconds=10)
        async with client_of(gateway) as client:
            pages = [(path, (await asked(client, "GET", path)).text) for path in paths("GET")]
        metrics = dict(pages)["/metrics"]
        printed = ""
        for name in (HOSTILE[0] + HOSTILE[1], *HOSTILE[6:8]):
            printed += await explained(gateway, name)
    for where, text in [
        *pages,
        ("explain", printed),
        ("log", gateway.child.log.read_text()),
        ("access", log.read_text()),
    ]:
        assert not DANGEROUS & set(text.replace("\n", "")), where
        assert "<script>" not in text or where in ("log", "access", "explain"), where
    # No line was forged, and no name became a label.
    assert "\nmeshgate_forged" not in metrics
    assert "jndi" not in metrics
    assert "aaaa" not in metrics
    for line in gateway.child.log.read_text().splitlines():
        assert not line.startswith("2026-01-01"), line
        if as_json == "true":
            assert "@message" in json.loads(line)
    for line in log.read_text().splitlines():
        assert json.loads(line)["route"] is None


async def explained(gateway: GatewayProcess, name: bytes) -> str:
    """What `meshgate explain` prints for a name that an operator copied from somewhere."""
    ended = await trio.run_process(
        [sys.executable.encode(), b"-m", b"meshgate", b"explain", b"--", name],
        env=child_environment(MESHGATE_ADMIN_BIND=gateway.admin),
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    assert ended.returncode in (1, 2)
    return bytes(ended.stdout + ended.stderr).decode()


# --- a worker that somebody took over --------------------------------------------------------------------------------

# Runs as a worker's own start does, before any module of it: asks the admin address once its rights are gone.
TAKEN_OVER = """
import os, sys
if "meshgate.adapters.relay.worker" in sys.orig_argv:
    import http.client
    from meshgate.adapters.relay import sandbox
    host, _, port = os.environ["PYTHON_ADMIN"].rpartition(":")
    report = os.open(os.environ["PYTHON_REPORT"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    confined = sandbox.confine

    def attack():
        failed = confined()
        for method, path in (("GET", "/routes"), ("POST", "/drain"), ("POST", "/logging?level=trace")):
            try:
                connection = http.client.HTTPConnection(host, int(port), timeout=20)
                connection.request(method, path)
                answer = connection.getresponse()
                said = f"{answer.status} {answer.read()!r}"
            except OSError as error:
                said = repr(error)
            os.write(report, f"{method} {path}: {said}\\n".encode())
        return failed

    sandbox.confine = attack
"""


async def test_a_worker_that_is_taken_over_gets_no_answer_of_the_admin_address(world: World, tmp_path: Path) -> None:
    gateway = GatewayProcess(world.federation.dc2, world.token, instance="taken-over")
    (tmp_path / "sitecustomize.py").write_text(TAKEN_OVER)
    report = tmp_path / "report"
    environ = {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH")))),
        "PYTHON_ADMIN": gateway.admin,
        "PYTHON_REPORT": str(report),
        "MESHGATE_SANDBOX": "require",
    }
    try:
        await gateway.start(environ)

        async def told() -> int:
            return report.read_text().count("\n") if report.exists() else 0

        await until_equal("all attempts", told, 3, seconds=30)
        for line in report.read_text().splitlines():
            assert ': 403 b\'{"error":"not for relay workers' in line, line
        async with client_of(gateway) as client:
            info = (await client.get("/server_info")).json()
            assert info["state"] == "LIVE"
            assert info["sandbox"] | {"landlock": 0} == {
                "mode": "require",
                "seccomp": True,
                "landlock": 0,
                "missing": [],
            }
            assert (await client.get("/logging")).json() == {"level": "info"}
        assert "refused what may be a relay worker" in gateway.child.log.read_text()
    finally:
        await gateway.stop()
