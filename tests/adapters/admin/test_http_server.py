import functools
import json
import re
import socket
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
import trio
import trio.testing

from meshgate.adapters.admin import http_server
from meshgate.adapters.admin.http_server import (
    AdminServer,
    Lane,
    Response,
    error_response,
    json_response,
)

HOST = ("127.0.0.1", 0)


def echo(request: Any) -> Any:
    return json_response({"method": request.method, "path": request.path, "query": dict(request.query)})


async def slow(request: Any) -> Any:
    await trio.lowlevel.checkpoint()
    return Response(body=b"slow\n")


def broken(request: Any) -> None:
    raise RuntimeError("a secret detail")


ROUTES = {
    ("GET", "/echo"): echo,
    ("POST", "/echo"): echo,
    ("GET", "/slow"): slow,
    ("GET", "/broken"): broken,
    ("POST", "/drain"): lambda request: Response(202, b"draining\n"),
    ("GET", "/page"): lambda request: Response(
        200, b"<p>", "text/html", (("Content-Security-Policy", "default-src 'self'"), ("x-own", "1"))
    ),
    ("GET", "/bad-header"): lambda request: Response(200, b"", headers=(("a\nb", "c"),)),
    ("GET", "/big"): lambda request: Response(200, b"x" * (1 << 24)),
}


@pytest.fixture
def serve(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> Any:
    async def start(bind: Any = HOST, routes: Any = ROUTES, **limits: Any) -> Any:
        for name, value in limits.items():
            monkeypatch.setattr(http_server, name.upper(), value)
        return await nursery.start(AdminServer(routes).serve, bind)

    return start


def client_for(bound: tuple[str, int], **options: Any) -> Any:
    host, port = bound
    return httpx.AsyncClient(base_url=f"http://{host}:{port}", trust_env=False, timeout=5, **options)


@asynccontextmanager
async def raw(bound: tuple[str, int]) -> Any:
    async with await trio.open_tcp_stream(*bound) as stream:
        yield stream


async def read_all(stream: Any, seconds: Any = 5.0) -> Any:
    data = b""
    with trio.fail_after(seconds):
        async for chunk in stream:
            data += chunk
    return data


async def exchange(bound: tuple[str, int], data: Any, *, end: Any = False) -> Any:
    """All that the server sends until it closes."""
    async with raw(bound) as stream:
        await stream.send_all(data)
        if end:
            await stream.send_eof()
        return await read_all(stream)


def statuses(data: Any) -> Any:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", data)]


SMUGGLED = (
    b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"0\r\n\r\nGET /echo HTTP/1.1\r\nHost: localhost\r\n\r\n"
)


def get(path: str = "/echo", extra: Any = "", host: str = "localhost") -> Any:
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{extra}\r\n".encode()


LAST = "Connection: close\r\n"


async def test_answers_a_request_with_everything_a_handler_needs(serve: Any) -> None:
    bound = await serve()
    async with client_for(bound) as client:
        response = await client.get("/echo", params={"a": "1 2", "b": "", "c": "ü"})
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        assert response.json() == {
            "method": "GET",
            "path": "/echo",
            "query": {"a": "1 2", "b": "", "c": "ü"},
        }
        response = await client.post("/echo", content="x" * 65536)
        assert response.json()["method"] == "POST"
        assert (await client.get("/slow")).text == "slow\n"
        assert (await client.post("/drain")).status_code == 202


async def test_a_connection_serves_many_requests(serve: Any) -> None:
    bound = await serve()
    async with client_for(bound, limits=httpx.Limits(max_connections=1)) as client:
        ports = set()
        for _ in range(5):
            response = await client.get("/echo")
            ports.add(response.extensions["network_stream"].get_extra_info("client_addr"))
    assert len(ports) == 1


async def test_security_headers_are_on_every_answer(serve: Any) -> None:
    bound = await serve()
    async with client_for(bound) as client:
        for path in ("/echo", "/nowhere", "/broken"):
            headers = (await client.get(path)).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == "no-store"
            assert headers["cross-origin-resource-policy"] == "same-origin"
            assert headers["content-security-policy"].startswith("default-src 'none'")
            assert "access-control-allow-origin" not in headers
            assert "date" in headers
            assert "server" not in headers


async def test_a_handler_may_replace_headers(serve: Any) -> None:
    async with client_for(await serve()) as client:
        headers = (await client.get("/page")).headers
    assert headers.get_list("content-security-policy") == ["default-src 'self'"]
    assert (headers["x-own"], headers["content-type"]) == ("1", "text/html")


async def test_head_is_get_without_the_body(serve: Any) -> None:
    bound = await serve()
    async with client_for(bound) as client:
        head, full = await client.head("/slow"), await client.get("/slow")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == full.headers["content-length"] == "5"
    data = await exchange(bound, b"HEAD /slow HTTP/1.1\r\nHost: localhost\r\n\r\n" + get("/slow", LAST))
    assert statuses(data) == [200, 200]
    assert data.count(b"slow\n") == 1


async def test_unknown_paths_and_methods(serve: Any) -> None:
    async with client_for(await serve()) as client:
        response = await client.get("/nowhere")
        assert (response.status_code, response.json()) == (404, {"error": "Not Found"})
        response = await client.delete("/echo")
        assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD, POST")
        response = await client.get("/drain")
        assert (response.status_code, response.headers["allow"]) == (405, "POST")
        assert (await client.options("/echo")).status_code == 405
        # The connection lives on.
        assert (await client.get("/echo")).status_code == 200


async def test_a_failing_handler_tells_the_log_and_not_the_client(serve: Any) -> None:
    with structlog.testing.capture_logs() as entries:
        async with client_for(await serve()) as client:
            response = await client.get("/broken")
            assert (response.status_code, response.json()) == (500, {"error": "Internal Server Error"})
            assert (await client.get("/echo")).status_code == 200
    (entry,) = entries
    assert (entry["log_level"], entry["path"], str(entry["exc_info"])) == ("error", "/broken", "a secret detail")


async def test_a_header_that_cannot_be_sent_costs_only_its_connection(serve: Any) -> None:
    bound = await serve()
    with structlog.testing.capture_logs() as entries:
        assert await exchange(bound, get("/bad-header")) == b""
    assert [entry["event"] for entry in entries] == ["a connection failed"]
    assert statuses(await exchange(bound, get(extra=LAST))) == [200]


async def test_pipelined_requests_are_answered_in_order(serve: Any) -> None:
    data = await exchange(await serve(), get("/echo?n=1") + get("/nowhere") + get("/slow") + get("/echo?n=2", LAST))
    assert statuses(data) == [200, 404, 200, 200]
    assert data.index(b'"n":"1"') < data.index(b"slow") < data.index(b'"n":"2"')


async def test_a_request_may_come_byte_by_byte(serve: Any) -> None:
    bound = await serve()
    async with raw(bound) as stream:
        for byte in get(extra=LAST):
            await stream.send_all(bytes((byte,)))
        assert statuses(await read_all(stream)) == [200]


async def test_http_1_0_is_answered_and_closed(serve: Any) -> None:
    data = await exchange(await serve(), b"GET /echo HTTP/1.0\r\n\r\n")
    assert data.startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500, 400),
        (b"GARBAGE\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /echo HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET http://localhost/echo HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (get("/echo?" + "&".join(f"a{n}=1" for n in range(40))), 400),
        (get(extra="Bad Header: 1\r\n"), 400),
        (get(extra="X: 1\r\n folded\r\n" + LAST), 200),
        (b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", 400),
        (b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 65537\r\n\r\n", 413),
        (b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (SMUGGLED, 400),
        (b"POST /echo HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET /" + b"a" * 17000 + b" HTTP/1.1\r\n", 431),
        (get(extra="X: " + "y" * 17000 + "\r\n"), 431),
    ],
)
async def test_what_is_no_proper_request_is_refused_and_closed(serve: Any, sent: bytes, status: int) -> None:
    with structlog.testing.capture_logs() as entries:
        assert statuses(await exchange(await serve(), sent)) == [status]
    assert entries == []


async def test_a_chunked_body_is_limited_too(serve: Any) -> None:
    bound = await serve(body_bytes=100)
    head = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"3c\r\n" + b"x" * 60 + b"\r\n"
    end = b"0\r\n\r\n"
    assert statuses(await exchange(bound, head + chunk * 2 + end)) == [413]
    async with raw(bound) as stream:
        await stream.send_all(head + chunk + end)
        assert statuses(await stream.receive_some()) == [200]


async def test_the_answer_to_an_oversized_body_is_not_lost(serve: Any) -> None:
    """Closing with unread bytes would reset the connection under the client."""
    body = b"x" * (1 << 20)
    head = f"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    assert statuses(await exchange(await serve(), head + body)) == [413]


async def test_a_client_that_waits_for_continue_gets_it(serve: Any) -> None:
    bound = await serve()
    async with raw(bound) as stream:
        head = "POST /echo HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 2\r\n" + LAST
        await stream.send_all(head.encode() + b"\r\n")
        with trio.fail_after(5):
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 100 ")
        await stream.send_all(b"hi")
        assert b'"method":"POST"' in await read_all(stream)


async def test_half_a_request_and_the_end_is_refused(serve: Any) -> None:
    bound = await serve()
    assert statuses(await exchange(bound, get()[:20], end=True)) == [400]
    half = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhalf"
    assert statuses(await exchange(bound, half, end=True)) == [400]
    assert await exchange(bound, b"", end=True) == b""


async def test_a_client_that_ends_its_side_still_gets_its_answers(serve: Any) -> None:
    assert statuses(await exchange(await serve(), get() + get("/slow"), end=True)) == [200, 200]


async def test_slow_headers_run_into_the_request_timeout(serve: Any) -> None:
    bound = await serve(request_timeout=0.3, idle_timeout=30)
    started, all_sent = time.monotonic(), False
    async with raw(bound) as stream:
        async with trio.open_nursery() as nursery:

            async def trickle() -> None:
                nonlocal all_sent
                for byte in b"GET /echo HTTP/1.1\r\nX: " + b"y" * 1000:
                    try:
                        await stream.send_all(bytes((byte,)))
                    except trio.BrokenResourceError:
                        return
                    await trio.sleep(0.01)
                all_sent = True

            nursery.start_soon(trickle)
            assert statuses(await read_all(stream)) == [408]
            nursery.cancel_scope.cancel()
    assert time.monotonic() - started > 0.25
    assert not all_sent


async def test_a_slow_body_runs_into_the_request_timeout(serve: Any) -> None:
    bound = await serve(request_timeout=0.2)
    sent = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhalf"
    assert statuses(await exchange(bound, sent)) == [408]


async def test_an_idle_connection_is_closed_without_a_word(serve: Any) -> None:
    bound = await serve(idle_timeout=0.2)
    assert await exchange(bound, b"") == b""
    data = await exchange(bound, get())
    assert statuses(data) == [200]


async def test_a_client_that_does_not_read_is_dropped(serve: Any) -> None:
    bound = await serve(write_timeout=0.2)
    async with raw(bound) as stream:
        await stream.send_all(get("/big"))
        await trio.sleep(0.6)  # well past the write timeout
        received = 0
        with trio.fail_after(5), suppress(trio.BrokenResourceError):
            while data := await stream.receive_some():
                received += len(data)
        assert received < 1 << 24


async def test_too_many_requests_at_once_get_a_503_and_room_is_made_when_one_ends(serve: Any) -> None:
    done = trio.Event()

    async def wait(request: Any) -> Any:
        await done.wait()
        return Response(body=b"done\n")

    bound = await serve(routes=ROUTES | {("GET", "/wait"): wait}, max_connections=2)
    async with raw(bound) as first, raw(bound) as second:
        for stream in (first, second):
            await stream.send_all(get("/wait"))
        with trio.fail_after(20):
            while statuses(await exchange(bound, get(extra=LAST))) != [503]:
                await trio.sleep(0.01)
        done.set()
        for stream in (first, second):
            assert statuses(await stream.receive_some()) == [200]
        assert statuses(await exchange(bound, get(extra=LAST))) == [200]


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nx:", get(), get() + b"GET"], ids=repr)
async def test_silent_connections_keep_nobody_out(serve: Any, said: bytes) -> None:
    """An attack: as many connections as the server takes, which then say nothing more."""
    bound = await serve(max_connections=8)
    async with AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(raw(bound)) for _ in range(40)]
        for stream in silent:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(said)
        for _ in range(20):
            assert statuses(await exchange(bound, get(extra=LAST))) == [200]
        # The first to come are the first to go.
        with trio.fail_after(20), suppress(trio.BrokenResourceError):
            while await silent[0].receive_some():
                pass


async def test_who_is_silent_is_not_looked_at_and_keeps_nobody_out(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at where a client comes from takes time, and nobody who is looked at can make room."""
    looked: list[int] = []

    def refuses(sock: socket.socket) -> bool:
        looked.append(sock.getpeername()[1])
        return False

    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 2)
    server = AdminServer(ROUTES, refuses=refuses)
    bound = await nursery.start(server.serve, HOST)
    async with AsyncExitStack() as stack:
        for _ in range(10):
            await stack.enter_async_context(raw(bound))
        for asked in range(1, 4):
            assert statuses(await exchange(bound, get(extra=LAST))) == [200]
            assert len(looked) == asked


async def test_who_is_refused_may_ask_what_anybody_may_and_no_more(nursery: trio.Nursery) -> None:
    server = AdminServer(ROUTES, refuses=lambda _: True, for_anybody=("/echo",))
    bound = await nursery.start(server.serve, HOST)
    assert statuses(await exchange(bound, get("/echo", extra=LAST))) == [200]
    assert statuses(await exchange(bound, get("/echo") + get("/page", extra=LAST))) == [200, 403]


async def test_clients_that_do_not_read_keep_nobody_out(serve: Any) -> None:
    bound = await serve(max_connections=4)
    async with AsyncExitStack() as stack:
        for _ in range(12):
            stream = await stack.enter_async_context(raw(bound))
            with suppress(trio.BrokenResourceError):
                await stream.send_all(get("/big"))
        with trio.fail_after(20):
            # A moment passes until the answers are made and only the reading is left.
            while statuses(await exchange(bound, get(extra=LAST))) != [200]:
                await trio.sleep(0.01)


async def test_a_client_that_resets_harms_nobody(serve: Any) -> None:
    bound = await serve()
    with structlog.testing.capture_logs() as entries:
        for sent in (b"", b"GET", get("/big"), get()):
            with socket.create_connection(bound) as sock:
                sock.sendall(sent)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        assert statuses(await exchange(bound, get(extra=LAST))) == [200]
    assert entries == []


async def test_running_out_of_descriptors_pauses_and_goes_on(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    accept, failures = trio.SocketListener.accept, iter([24, 23])

    async def fails_twice(self: trio.SocketListener) -> trio.SocketStream:
        for number in failures:
            raise OSError(number, "Too many open files")
        return await accept(self)

    monkeypatch.setattr(trio.SocketListener, "accept", fails_twice)
    with structlog.testing.capture_logs() as entries:
        assert statuses(await exchange(await serve(accept_pause=0.01), get(extra=LAST))) == [200]
    assert [entry["log_level"] for entry in entries] == ["warning", "warning"]


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:19000", "127.0.0.1", "127.0.0.1:1", "[::1]:19000", "10.1.2.3"]
)
async def test_names_of_this_machine_are_answered(serve: Any, host: str) -> None:
    assert statuses(await exchange(await serve(), get(extra=LAST, host=host))) == [200]


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:19000",
        "127.0.0.1.evil.example",
        "localhost.evil",
        "[x]",
        "[::1].evil",
        "[::1]evil.example:80",
        "[::1",
        "[]",
        "::1",
        "localhost:80.evil.example",
        "127.0.0.1:evil",
        "evil@127.0.0.1",
        "[fe80::1%25evil]",
    ],
)
async def test_a_rebound_name_is_refused_for_reads_and_writes(serve: Any, host: str) -> None:
    bound = await serve()
    for method in ("GET", "POST"):
        sent = f"{method} /echo HTTP/1.1\r\nHost: {host}\r\n{LAST}\r\n".encode()
        data = await exchange(bound, sent)
        assert statuses(data) == [421]
        assert b"path" not in data


async def test_the_machine_is_known_by_its_name(serve: Any) -> None:
    bound = await serve()
    assert statuses(await exchange(bound, get(extra=LAST, host=f"{socket.gethostname().upper()}:80"))) == [200]
    assert statuses(await exchange(bound, get(extra=LAST, host=socket.gethostname()))) == [200]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 202),
        ({"Origin": "http://{host}"}, 202),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "https://{host}"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://{host}"}, 202),
        ({"Sec-Fetch-Site": "none"}, 202),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:1"}, 403),
    ],
)
async def test_other_sites_pages_cannot_post(serve: Any, headers: dict[str, str], status: int) -> None:
    bound = await serve()
    host = f"127.0.0.1:{bound[1]}"
    async with client_for(bound) as client:
        response = await client.post("/drain", headers={name: text.format(host=host) for name, text in headers.items()})
    assert response.status_code == status


@pytest.mark.parametrize("path", ["/echo", "/nothing-there"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, True),
        ({"Sec-Fetch-Site": "same-site"}, True),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, True),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}, True),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, True),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, False),
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}, False),
        ({"Sec-Fetch-Site": "none"}, False),
        ({}, False),
    ],
)
async def test_other_sites_pages_cannot_make_it_work(
    serve: Any, headers: dict[str, str], refused: bool, method: str, path: str
) -> None:
    async with client_for(await serve()) as client:
        response = await client.request(method, path, headers=headers)
    assert (response.status_code == 403) is refused


async def test_a_unix_socket_serves_any_host_and_is_only_the_owners(serve: Any, tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    assert await serve(path) == path
    assert path.stat().st_mode & 0o777 == 0o600
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    async with httpx.AsyncClient(transport=transport, base_url="http://anything.example") as client:
        assert (await client.get("/echo")).json()["path"] == "/echo"
        assert (await client.post("/drain", headers={"Origin": "http://evil.example"})).status_code == 403


async def test_the_socket_is_free_again_when_the_server_is_cancelled(tmp_path: Path) -> None:
    for bind in (("127.0.0.1", 0), tmp_path / "admin.sock"):
        bound = None
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                bound = await nursery.start(AdminServer(ROUTES).serve, bound or bind)
                nursery.cancel_scope.cancel()
    assert not (tmp_path / "admin.sock").exists()


async def test_ipv6_is_served(serve: Any) -> None:
    host, port = await serve(("::1", 0))
    async with httpx.AsyncClient(base_url=f"http://[{host}]:{port}", trust_env=False) as client:
        assert (await client.get("/echo")).status_code == 200


async def test_an_address_in_use_is_an_error(serve: Any) -> None:
    bound = await serve()
    with pytest.raises(OSError, match="in use"):
        await AdminServer(ROUTES).serve(bound)


async def test_handlers_do_not_hold_each_other_up(serve: Any) -> None:
    waiting, release = trio.Event(), trio.Event()

    async def wait(request: Any) -> Any:
        waiting.set()
        await release.wait()
        return Response(body=b"done\n")

    bound = await serve(routes={**ROUTES, ("GET", "/wait"): wait})
    got = []
    async with client_for(bound) as client, trio.open_nursery() as nursery:

        async def ask() -> None:
            got.append((await client.get("/wait")).text)

        nursery.start_soon(ask)
        await waiting.wait()
        assert (await client.get("/echo")).status_code == 200
        assert got == []
        release.set()
    assert got == ["done\n"]


async def test_many_clients_at_once(serve: Any) -> None:
    bound = await serve()
    answers: list[int] = []

    async def ask(number: int) -> None:
        async with client_for(bound) as client:
            for _ in range(3):
                response = await client.get("/echo", params={"n": number})
                answers.append(int(response.json()["query"]["n"]))

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(functools.partial(ask, number))
    assert sorted(answers) == sorted(list(range(20)) * 3)


def test_a_response_is_json_with_a_newline() -> None:
    response = json_response({"a": [1, None]})
    assert response.body.endswith(b"\n")
    assert json.loads(response.body) == {"a": [1, None]}


@pytest.mark.parametrize("char", [*"\x7f\x80\x9b\xad\u200f\u202e\u2028\ufeff\u00fc\U0001f600"])
def test_json_is_ascii_that_a_terminal_may_show(char: str) -> None:
    data = {f"a{char}": [char, "plain"]}
    for response, content in ((json_response(data), data), (error_response(400, f"a {char}"), {"error": f"a {char}"})):
        text = response.body.decode("ascii")
        assert text.removesuffix("\n").isprintable()
        assert json.loads(text) == content


# --- pages that take time to make ------------------------------------------------------------------------------------


class Dear:
    """A page whose making takes `seconds` of processor time. Tells when it was begun, and by which request."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.spent = 0.0
        self.begun: list[float] = []
        self.at_once = self.most_at_once = 0
        self.lane = Lane(lambda: self.spent)

    async def make(self) -> int:
        self.begun.append(trio.current_time())
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        await trio.sleep(self.seconds)
        self.spent += self.seconds
        self.at_once -= 1
        return len(self.begun)

    async def ask(self, key: object = "page") -> int:
        return await self.lane.share(key, self.make)


async def test_a_dear_page_is_made_once_a_second_however_many_ask(autojump_clock: trio.testing.MockClock) -> None:
    dear, seconds = Dear(0.06), 10

    async def hammer() -> None:
        while True:
            asked = trio.current_time()
            number = await dear.ask()
            assert dear.begun[number - 1] >= asked

    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for _ in range(60):
                nursery.start_soon(hammer)
    assert seconds - 2 <= len(dear.begun) <= seconds
    assert dear.most_at_once == 1


async def test_pages_of_one_lane_are_made_one_at_a_time_and_take_a_twentieth_together(
    autojump_clock: trio.testing.MockClock,
) -> None:
    dear = Dear(0.01)

    async def hammer(number: int) -> None:
        for turn in range(1_000_000):
            await dear.ask((number, turn))

    with trio.move_on_after(10):
        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(hammer, number)
    assert dear.most_at_once == 1
    assert dear.spent <= 10 / 20
    assert len(dear.lane._made) <= 60


async def test_a_cheap_page_waits_for_nothing(autojump_clock: trio.testing.MockClock) -> None:
    dear = Dear(0.001)
    for _ in range(100):
        await dear.ask()
    assert trio.current_time() - dear.begun[0] == pytest.approx(0.1)


async def test_who_waits_for_a_page_gets_it_when_whoever_had_it_made_goes_away(
    autojump_clock: trio.testing.MockClock,
) -> None:
    dear, got = Dear(0.05), []

    async def ask() -> None:
        got.append(await dear.ask())

    async with trio.open_nursery() as nursery:
        with trio.move_on_after(0.01):
            async with trio.open_nursery() as first:
                first.start_soon(dear.ask)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(ask)
    assert got == [2]


async def test_a_page_that_fails_is_made_again_for_the_next_one(autojump_clock: trio.testing.MockClock) -> None:
    lane, tries = Lane(lambda: 0.0), []

    async def make() -> str:
        tries.append(1)
        await trio.sleep(0.1)
        if len(tries) == 1:
            raise ValueError("once")
        return "made"

    async def fails() -> None:
        with pytest.raises(ValueError, match="once"):
            await lane.share("page", make)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fails)
        await trio.testing.wait_all_tasks_blocked()
        assert await lane.share("page", make) == "made"


async def test_one_request_is_begun_in_a_turn_of_the_loop(serve: Any) -> None:
    """So that a turn stays short, and whatever else waits for the loop gets its turn between any two requests."""
    turns: list[int] = []
    turn = 0

    class Counter(trio.abc.Instrument):
        def before_io_wait(self, timeout: float) -> None:
            nonlocal turn
            turn += 1

    def note(_request: Any) -> Any:
        turns.append(turn)
        return Response(body=b"noted\n")

    bound = await serve(routes={("GET", "/note"): note})
    streams = [await trio.open_tcp_stream(*bound) for _ in range(30)]
    await trio.testing.wait_all_tasks_blocked()
    trio.lowlevel.add_instrument(instrument := Counter())
    for stream in streams:
        await stream.send_all(get("/note"))
    for stream in streams:
        assert b"noted" in await stream.receive_some(1 << 16)
        await stream.aclose()
    trio.lowlevel.remove_instrument(instrument)
    assert len(turns) == len(set(turns)) == 30
