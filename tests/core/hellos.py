"""ClientHellos for tests: built by hand, made by OpenSSL, read from `tests/data/hellos`; and OpenSSL as an oracle."""

import gzip
import json
import ssl
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from meshgate.core.hello import Hello, HelloParser, Refusal, parse_hello
from meshgate.core.reasons import Reason

DATA = Path(__file__).parents[1] / "data" / "hellos"
NAME = b"web.default.dc2.internal.11111111-2222-3333-4444-555555555555.consul"
MAX = 1 << 16

# --- building by hand ---


def vector(width: int, content: bytes) -> bytes:
    return len(content).to_bytes(width) + content


def numbers(*values: int) -> bytes:
    return b"".join(value.to_bytes(2) for value in values)


def extension(kind: int, content: bytes = b"") -> bytes:
    return numbers(kind) + vector(2, content)


def server_name(name: bytes) -> bytes:
    return extension(0, vector(2, b"\0" + vector(2, name)))


def key_share(*shares: tuple[int, bytes]) -> bytes:
    return extension(51, vector(2, b"".join(numbers(group) + vector(2, key) for group, key in shares)))


def supported_groups(*groups: int) -> bytes:
    return extension(10, vector(2, numbers(*groups)))


def supported_versions(*versions: int) -> bytes:
    return extension(43, vector(1, numbers(*versions)))


@dataclass(frozen=True)
class Body:
    """The fields of a ClientHello; by default one of TLS 1.2 without extensions that is fine."""

    version: int = 0x0303
    session_id: bytes = b""
    suites: tuple[int, ...] = (0x1301, 0xC02F)
    compression: bytes = b"\0"
    extensions: bytes | None = None

    def __bytes__(self) -> bytes:
        fields = numbers(self.version) + bytes(range(32)) + vector(1, self.session_id)
        fields += vector(2, numbers(*self.suites)) + vector(1, self.compression)
        return fields if self.extensions is None else fields + vector(2, self.extensions)


def message(body: Body | bytes, kind: int = 1) -> bytes:
    return bytes((kind,)) + vector(3, bytes(body))


def record(content: bytes, kind: int = 22, version: int = 0x0301) -> bytes:
    return bytes((kind,)) + numbers(version) + vector(2, content)


def records(content: bytes, sizes: Iterable[int]) -> bytes:
    """The content in records of these sizes, over and over until it is used up."""
    sizes, wire = list(sizes), bytearray()
    while content:
        for size in sizes:
            if content:
                wire += record(content[:size])
                content = content[size:]
    return bytes(wire)


def hello(*extensions: bytes, body: Body | None = None) -> bytes:
    """A hello in one record."""
    return record(message(replace(body or Body(), extensions=b"".join(extensions))))


def hello_1_3(*extensions: bytes, suites: tuple[int, ...] = (0x1301,)) -> bytes:
    return hello(supported_versions(0x0304), *extensions, body=Body(suites=suites))


def hello_of(length: int) -> bytes:
    """A hello for NAME that takes `length` bytes in one record."""
    rest = length - len(hello(server_name(NAME), extension(21)))
    return hello(server_name(NAME), extension(21, bytes(rest)))


# --- verdicts ---


def judge(data: bytes, max_bytes: int = MAX) -> Hello | Refusal | None:
    """The verdict on bytes that came at once, which both ways in must agree on."""
    verdict = parse_hello(data, max_bytes)
    assert HelloParser(max_bytes).feed(data) == verdict
    return verdict


def judge_pieces(pieces: Iterable[bytes], max_bytes: int = MAX) -> Hello | Refusal | None:
    parser = HelloParser(max_bytes)
    verdict = None
    for piece in pieces:
        verdict = parser.feed(piece)
    return verdict


def accepted(data: bytes) -> Hello:
    verdict = judge(data)
    assert isinstance(verdict, Hello), verdict
    return verdict


def malformed(data: bytes) -> str:
    """What is wrong with the hello."""
    verdict = judge(data)
    assert isinstance(verdict, Refusal), verdict
    assert verdict.reason is Reason.HELLO_MALFORMED
    return verdict.detail


# --- OpenSSL ---


def client_context(alpn: Iterable[str] = ()) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if protocols := list(alpn):
        context.set_alpn_protocols(protocols)
    return context


def openssl_hello(name: str | None = NAME.decode(), context: ssl.SSLContext | None = None) -> bytes:
    """What OpenSSL's client sends first."""
    outgoing = ssl.MemoryBIO()
    client = (context or client_context()).wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError


@dataclass(frozen=True, slots=True)
class Oracle:
    """What an OpenSSL server made of a stream.

    Attributes:
        called: whether it came to its servername callback, which is when it has accepted the hello as such.
        name: what the callback got first; None also where the hello has no name.
        reason: why OpenSSL gave up, `want` where it waits for more.
    """

    called: bool
    name: str | None
    reason: str


@cache
def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sni_callback = _note
    return context


_noted: list[str | None] = []


def _note(_stream: Any, name: str | None, _context: ssl.SSLContext) -> None:
    _noted.append(name)


@contextmanager
def _unraisable_ignored() -> Iterator[None]:
    """Python reports a name that is not ASCII as an unraisable exception before it refuses the hello."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = hook


def ask_openssl(stream: bytes) -> Oracle:
    incoming = ssl.MemoryBIO()
    incoming.write(stream)
    server = _server_context().wrap_bio(incoming, ssl.MemoryBIO(), server_side=True)
    _noted.clear()
    try:
        with _unraisable_ignored():
            server.do_handshake()
    except ssl.SSLWantReadError:
        reason = "want"
    except ssl.SSLError as error:
        reason = error.reason or str(error)
    else:
        raise AssertionError
    return Oracle(called=bool(_noted), name=_noted[0] if _noted else None, reason=reason)


def assert_rule(stream: bytes, verdict: Hello | Refusal | None, openssl: Oracle, label: object = "") -> None:
    """What must hold of our verdict on a stream, next to OpenSSL's.

    Where OpenSSL came to the name, we see the same one or refuse the hello. Where it gave up before, for something that
    has no bearing on the name, we may see the one name there is in the hello. Another name we never see.
    """
    name = verdict.server_name if isinstance(verdict, Hello) else None
    told = (label, openssl, stream.hex())
    if openssl.called and openssl.name is not None:
        assert isinstance(verdict, Refusal) or name == openssl.name.lower(), told
    elif openssl.called:
        assert name is None, told
    elif name is not None:
        assert name == sole_name(stream), told


def sole_name(stream: bytes) -> str:
    """The server name of a hello that OpenSSL gives up before it comes to the name.

    A second reader takes the hello apart, with slices that are never short; OpenSSL reads the one extension that holds
    the name, in a hello that is otherwise beyond reproach.
    """
    content = b""
    while stream[:2] == b"\x16\x03" and (len(content) < 4 or len(content) < 4 + int.from_bytes(content[1:4])):
        content += cut(stream[3:], 2)[0]
        stream = stream[5 + int.from_bytes(stream[3:5]) :]
    body, _ = cut(content[1:], 3)
    rest = body[34:]
    for width in (1, 2, 1):  # session id, cipher suites, compression methods
        rest = cut(rest, width, whole=True)[1]
    extensions, rest = cut(rest, 2, whole=True)
    assert rest == b""
    found: list[bytes] = []
    while extensions:
        kind = extensions[:2]
        held, extensions = cut(extensions[2:], 2, whole=True)
        if kind == b"\0\0":
            found.append(held)
    (one,) = found
    answer = ask_openssl(hello(extension(0, one)))
    assert answer.called
    assert answer.name is not None
    return answer.name.lower()


def cut(data: bytes, width: int, *, whole: bool = False) -> tuple[bytes, bytes]:
    """The vector at the head of `data` and what is behind it."""
    end = width + int.from_bytes(data[:width])
    assert not whole or width <= end <= len(data)
    return data[width:end], data[end:]


# --- data ---


@dataclass(frozen=True, slots=True)
class Row:
    """A hello of the corpus and what OpenSSL said of it."""

    id: str
    stream: bytes
    openssl: Oracle


@cache
def corpus() -> tuple[Row, ...]:
    with gzip.open(DATA / "corpus.jsonl.gz", "rt", encoding="ascii") as lines:
        rows = [json.loads(line) for line in lines]
    return tuple(
        Row(
            row["id"],
            bytes.fromhex(row["hex"]),
            Oracle(row["openssl"]["called"], row["openssl"]["sni"], row["openssl"]["reason"]),
        )
        for row in rows
    )


@dataclass(frozen=True, slots=True)
class Client:
    """The recorded hello of a client, and what it was told to ask for."""

    client: str
    server_name: str
    alpn: tuple[str, ...]
    stream: bytes


@cache
def clients() -> tuple[Client, ...]:
    files = [DATA / name for name in ("clients.jsonl", "resumed.jsonl")]
    rows = [json.loads(line) for file in files for line in file.read_text(encoding="ascii").splitlines()]
    return tuple(
        Client(row["client"], row["server_name"], tuple(row["alpn"]), bytes.fromhex(row["hex"])) for row in rows
    )
