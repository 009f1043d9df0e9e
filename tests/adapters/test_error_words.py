"""What a person reads of an error is words: whatever a library really raises, and wherever the product shows it."""

import ast
import errno
import json
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
import h11
import httpx
import msgspec
import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric import utils

import meshgate
from meshgate.adapters.error_words import words_of
from tests.adapters.consul.certificates import Authority
from tests.cuts import needs_cuts
from tests.harness.ports import free_ports

Serve = Callable[[trio.SocketStream], Awaitable[None]]

PRODUCT = Path(meshgate.__file__).parent
# A class by its name, the number of an errno, a place in Python's source, an object, bytes, a value of Rust's.
NO_WORDS = re.compile(r"\w(Error|Exception|Timeout|Group)\b|Errno|_ssl\.c|<\w|0x|\w\(b?['\"]|bytearray|\{|\bNone\b")


class Shape(msgspec.Struct):
    port: int


@asynccontextmanager
async def answering(serve: Serve) -> AsyncIterator[int]:
    """The port of somebody who serves each connection so."""
    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def error_of(url: str, **options: Any) -> Exception:
    """What httpx raises for a request, over the transport that the client of Consul uses."""
    transport = httpx.AsyncHTTPTransport(trust_env=False, **options)
    async with httpx.AsyncClient(transport=transport, timeout=httpx.Timeout(5, read=0.2)) as client:
        with pytest.raises(httpx.HTTPError) as raised:
            await client.get(url)
    return raised.value


def sends(answer: bytes, *, resets: bool = False) -> Serve:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        if answer:
            await stream.send_all(answer)
        if resets:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        await stream.aclose()

    return serve


async def silent(_: trio.SocketStream) -> None:
    await trio.sleep_forever()


@pytest.mark.parametrize(
    ("serve", "kind", "words"),
    [
        (silent, httpx.ReadTimeout, "read timeout"),
        (sends(b""), httpx.RemoteProtocolError, "Server disconnected without sending a response."),
        (sends(b"nonsense\r\n\r\n"), httpx.RemoteProtocolError, "illegal status line"),
        (
            sends(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"),
            httpx.RemoteProtocolError,
            "peer closed connection without sending complete message body (received 4 bytes, expected 9)",
        ),
        (sends(b"", resets=True), httpx.ReadError, "Connection reset by peer"),
    ],
)
async def test_what_httpx_raises(serve: Serve, kind: type[Exception], words: str) -> None:
    async with answering(serve) as port:
        error = await error_of(f"http://127.0.0.1:{port}")
    assert isinstance(error, kind)
    assert words_of(error) == words


async def test_what_is_wrapped_is_said_in_the_systems_words() -> None:
    (port,) = free_ports(1)
    assert words_of(await error_of(f"http://127.0.0.1:{port}")) == "Connection refused"
    with pytest.raises(OSError, match="all attempts to connect") as refused:
        await trio.open_tcp_stream("127.0.0.1", port)
    assert words_of(refused.value) == "Connection refused"


def test_so_it_is_where_httpx_blocks() -> None:
    with pytest.raises(httpx.ConnectError) as raised:
        httpx.get(f"http://127.0.0.1:{free_ports(1)[0]}", trust_env=False)
    assert words_of(raised.value) == "Connection refused"


@needs_cuts
async def test_what_tls_refuses_is_said_in_words(tmp_path: Path) -> None:
    context = Authority(tmp_path).server_context("localhost", wants_client=False)
    heard: list[Exception] = []

    async def serve(stream: trio.SocketStream) -> None:
        with pytest.raises(trio.BrokenResourceError) as broken:
            await trio.SSLStream(stream, context, server_side=True).do_handshake()
        heard.append(broken.value)

    async with answering(serve) as port:
        error = await error_of(f"https://127.0.0.1:{port}")
        await trio.testing.wait_all_tasks_blocked()
    assert isinstance(error, httpx.ConnectError)
    assert words_of(error) in ("self-signed certificate in certificate chain", "unable to get local issuer certificate")
    assert [type(each.__cause__) for each in heard] == [ssl.SSLEOFError]
    assert "eof" in words_of(heard[0]).lower()
    async with answering(sends(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        error = await error_of(f"https://127.0.0.1:{port}")
    assert words_of(error) in ("wrong version number", "record layer failure")


async def test_a_stream_of_trio_that_broke_says_why() -> None:
    ours, theirs = socket.socketpair()
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    theirs.close()
    with pytest.raises(trio.BrokenResourceError) as broken:
        await stream.send_all(b"x")
    assert words_of(broken.value) == "Broken pipe"
    await stream.aclose()
    with pytest.raises(trio.ClosedResourceError) as closed:
        await stream.send_all(b"x")
    assert words_of(closed.value) == "this socket was already closed"
    assert words_of(trio.BrokenResourceError()) == "broken resource"


def load(text: str) -> None:
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (lambda: Path("/no/such/file").read_text("utf-8"), "No such file or directory"),
        (lambda: Path("/proc/self/stat/x").read_text("utf-8"), "Not a directory"),
        (lambda: socket.getaddrinfo("::1", None, socket.AF_INET), "Address family for hostname not supported"),
        (b"\xff".decode, "not UTF-8"),
        (lambda: ("x" * 64).encode("idna"), "label too long"),
        (lambda: msgspec.json.decode(b"{", type=Shape), "Input data was truncated"),
        (lambda: msgspec.json.decode(b'{"port": "a"}', type=Shape), "Expected `int`, got `str` - at `$.port`"),
        (lambda: msgspec.json.decode(b"\xff"), "JSON is malformed: invalid character (byte 0)"),
        (lambda: json.loads("{,"), "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (lambda: json.loads("[" * 200_000), "nested too deeply"),
        (lambda: httpx.get("ftp://localhost"), "Request URL has an unsupported protocol 'ftp://'."),
        (lambda: h11.Request(method="GET", target="/", headers=[]), "Missing mandatory Host: header"),
        (lambda: click.IntRange(0, 5).convert(9, None, None), "9 is not in the range 0<=x<=5."),
        (lambda: utils.decode_dss_signature(b"x"), "error parsing asn1 value"),
        (lambda: load("none"), "no start line: cadata does not contain a certificate"),
        (
            lambda: fail(ExceptionGroup("", [OSError(errno.EMFILE, "x: Too many open files"), ValueError("y")])),
            "Too many open files",
        ),
        # As the product itself says what the system has no words for.
        (lambda: fail(OSError(errno.EINVAL, "not a regular file", "/a")), "not a regular file"),
        (lambda: fail(OSError("descriptors are missing")), "descriptors are missing"),
        (lambda: fail(MemoryError()), "out of memory"),
        (lambda: fail(TimeoutError()), "timeout"),
    ],
)
def test_what_other_libraries_raise(action: Callable[[], object], words: str) -> None:
    with pytest.raises(Exception) as raised:  # noqa: PT011 - of any library
        action()
    said = words_of(raised.value)
    # What is refused is worded by the versions of OpenSSL and Python, too.
    assert said == words or (isinstance(raised.value, ssl.SSLError | UnicodeError) and not NO_WORDS.search(said))
    assert not NO_WORDS.search(said)


def test_a_defect_is_called_one() -> None:
    with pytest.raises(KeyError) as raised:
        dict[str, str]()["no"]
    assert words_of(raised.value) == "unexpected KeyError: 'no'"


# --- wherever the product shows one ----------------------------------------------------------------------------------

# Errors of libraries, and what stands for any. Those of the product are words, and so are its own ValueErrors.
FOREIGN = {"Exception", "BaseException", "OSError", "UnicodeError", "UnicodeDecodeError", "MemoryError"}
LIBRARIES = {"httpx", "httpcore", "msgspec", "ssl", "socket", "trio", "h11"}


def shown_raw(source: str) -> Iterator[str]:
    """Where a caught error is shown in another way than by `words_of`, in source code."""
    for handler in ast.walk(ast.parse(source)):
        if not isinstance(handler, ast.ExceptHandler) or handler.name is None or handler.type is None:
            continue
        kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
        foreign = any(
            (isinstance(kind, ast.Name) and kind.id in FOREIGN)
            or (isinstance(kind, ast.Attribute) and isinstance(kind.value, ast.Name) and kind.value.id in LIBRARIES)
            for kind in kinds
        )
        for statement in handler.body:
            for node in ast.walk(statement):
                if _is_raw(node, handler.name, foreign=foreign):
                    yield f"{node.lineno}: {ast.unparse(node)}"  # type: ignore[attr-defined]


def _is_raw(node: ast.AST, name: str, *, foreign: bool) -> bool:
    def is_error(value: ast.AST) -> bool:
        return isinstance(value, ast.Name) and value.id == name

    if isinstance(node, ast.Attribute):
        return node.attr == "strerror" and is_error(node.value)
    if isinstance(node, ast.FormattedValue):
        return is_error(node.value) and (foreign or node.conversion == ord("r"))
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Name):
        return node.func.id in (("repr", "str") if foreign else ("repr",)) and any(map(is_error, node.args))
    logs = (
        isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name) and "log" in node.func.value.id
    )
    return logs and any(map(is_error, [*node.args, *(each.value for each in node.keywords if each.arg != "exc_info")]))


def test_no_error_of_a_library_is_shown_as_it_is() -> None:
    sources = {str(file.relative_to(PRODUCT)): file.read_text("utf-8") for file in PRODUCT.rglob("*.py")}
    assert {name: raw for name, source in sources.items() if (raw := list(shown_raw(source)))} == {}
    assert [name for name, source in sources.items() if "%r" in source] == []


@pytest.mark.parametrize(
    ("kind", "shows", "raw"),
    [
        ("OSError", 'log.warning("no", error=str(error))', True),
        ("ours.OurError", 'log.warning("no", error=str(error))', False),
        ("ours.OurError", 'log.warning("no", error=error)', True),
        ("ours.OurError", 'log.warning("no: %s", error)', True),
        ("ours.OurError", 'raise ValueError(f"no: {error!r}")', True),
        ("(ours.OurError, httpx.HTTPError)", 'raise ValueError(f"no: {error}")', True),
        ("Exception", "self.why = repr(error)[:200]", True),
        ("OSError", 'raise ValueError(f"no: {error.strerror}")', True),
        ("Exception", 'log.error("no", exc_info=error)', False),
        ("Exception", 'log.error("no", error=words_of(error))', False),
    ],
)
def test_the_search_finds_what_it_is_for(kind: str, shows: str, *, raw: bool) -> None:
    assert bool(list(shown_raw(f"try: pass\nexcept {kind} as error: {shows}"))) is raw
