"""Reads the TLS ClientHello at the head of a stream, as far as routing needs it: bytes of a stranger in, a verdict out.

A gateway is no party to the handshake. What it has to agree on with the destination is the server name and nothing
else, so this is strict in what leads to the name and blind to the rest: record headers, the header of the handshake
message, the lengths of its fields, the list of extensions, the server name. Versions, cipher suites, key shares and the
contents of all other extensions are between the client and its destination, which refuses what it does not like.

What always holds:

- Whoever reads the stream by the RFCs (8446 sections 4 and 5.1, 6066 section 3) sees the name that is seen here. Where
  readers might differ (an extension that comes twice, a list of several names, a record without content) the hello is
  refused.
- Nothing raises, whatever the bytes are, and a verdict once given stays.
- A verdict depends on the stream alone, never on how it was cut into packets, and comes with the byte that decides it.
- The work is linear in the bytes, and a hello has at most 256 records and 256 extensions. No client sends more than a
  few of the one and a few dozen of the other, and each costs its reader far more than its sender.
- Bytes behind the hello are never read.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from struct import (
    Struct,
    error as TooShortError,  # noqa: N812 (the name it has in the standard library says nothing)
)
from typing import Final, Literal, NamedTuple, TypeAlias, get_args

from .reasons import Reason

Bytes: TypeAlias = bytes | bytearray

_HANDSHAKE: Final = 22
_TLS_MAJOR: Final = 3
_PLAIN_RECORD: Final = _HANDSHAKE << 8 | _TLS_MAJOR
_RECORD_HEADER: Final = 5
_MAX_RECORD: Final = 1 << 14
_MOST_RECORDS: Final = 256

_CLIENT_HELLO: Final = 1
_MESSAGE_HEADER: Final = 4
_RANDOM_END: Final = 34  # Two bytes of version, 32 of random.
_MAX_SESSION_ID: Final = 32
_MOST_EXTENSIONS: Final = 256

_SERVER_NAME: Final = 0
_PROTOCOLS: Final = 16
_SESSION_TICKET: Final = 35
_PRE_SHARED_KEY: Final = 41
_SUPPORTED_VERSIONS: Final = 43
_TLS_1_3: Final = b"\3\4"

_HOST_NAME_TYPE: Final = 0
_MAX_HOST_NAME: Final = 255
_is_host_name: Final = re.compile(rb"(?![0-9.]+\Z)[0-9A-Za-z_-]+(?:\.[0-9A-Za-z_-]+)*").fullmatch
# The log needs no more, and a stream must not keep all that a stranger can put into a hello.
_PROTOCOLS_TOLD: Final = 8

_short: Final = Struct(">H").unpack_from
_record_header: Final = Struct(">HxH").unpack_from  # Type and major version in one, and the length.
_extension_header: Final = Struct(">HH").unpack_from
_name_header: Final = Struct(">HBH").unpack_from


TlsVersion = Literal["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3", "other"]


class Offer(NamedTuple):
    """What a client offers its destination, as far as statistics want to know."""

    version: TlsVersion
    """The newest that it offers."""
    resumption: bool
    """Whether it offers to resume a session: by a pre-shared key (RFC 8446), a ticket (RFC 5077) or a session's ID."""


_NAMES: Final[dict[int, TlsVersion]] = dict(zip(range(0x0301, 0x0305), get_args(TlsVersion), strict=False))
# Made once: each stream gets one, and few kinds exist.
_FRESH: Final = {number: Offer(name, resumption=False) for number, name in _NAMES.items()}
_RESUMING: Final = {number: Offer(name, resumption=True) for number, name in _NAMES.items()}
_ODD: Final = Offer("other", resumption=False)


@dataclass(slots=True)
class Hello:
    """What a ClientHello says, as far as routing and logging want to know. Not to be changed.

    With Encrypted Client Hello this is the outer hello: the name is the one that the client shows the world, never
    the one it hides.
    """

    server_name: str | None
    """The name to route by, in lower case; None where the client sent none."""
    alpn: tuple[str, ...]
    """The first eight application protocols that can be read: printable ASCII, all else escaped as in Python."""
    length: int
    """How many bytes of the stream the hello takes from the start to its end, record headers included."""
    offer: Offer


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a stream is not carried; `detail` is one short English phrase for people, the same for the same stream."""

    reason: Reason
    detail: str


_MISFIT: Final = Refusal(Reason.HELLO_MALFORMED, "lengths that do not fit each other")


def parse_hello(data: bytes, max_bytes: int = 16384) -> Hello | Refusal | None:
    """The verdict on a stream that begins with `data`, or None where it takes more than that."""
    return read_whole(data, max_bytes) or HelloParser(max_bytes).feed(data)


def read_whole(data: bytes, max_bytes: int) -> Hello | Refusal | None:
    """The verdict on a hello that came whole in one record and one packet, as nearly all do; None on anything else.

    After None, start a `HelloParser` and feed it the same bytes first. Arguments and result are those of the parser.
    """
    if len(data) > _RECORD_HEADER + _MESSAGE_HEADER and data[5] == _CLIENT_HELLO:
        beginning, size = _record_header(data)
        start = _RECORD_HEADER + _MESSAGE_HEADER
        end = start + (data[6] << 16 | data[7] << 8 | data[8])
        whole = end <= len(data) and end <= max_bytes and end <= _RECORD_HEADER + size
        if whole and beginning == _PLAIN_RECORD and size <= _MAX_RECORD:
            return _read_message(data, start, end, end)
    return None


def is_cut(data: Bytes) -> bool:
    """Whether the hello that begins with `data` goes on in a second record.

    No client in use cuts its hello, and one cut into hundreds takes twenty times as long to read as one that is whole.
    What is no hello is not cut, and neither is what is too short to tell.
    """
    if len(data) < _RECORD_HEADER + 1 or data[0] != _HANDSHAKE:
        return False
    size = data[3] << 8 | data[4]
    if size < _MESSAGE_HEADER:
        return True
    if len(data) < _RECORD_HEADER + _MESSAGE_HEADER:
        return False
    return size < _MESSAGE_HEADER + (data[6] << 16 | data[7] << 8 | data[8])


class HelloParser:
    """Takes a stream piece by piece until the verdict on its hello is known; `stream` is all that was fed so far.

    At most `max_bytes` of it, record headers included, may come up to the end of the hello.
    """

    __slots__ = ("_max_bytes", "_record", "_records", "_rest", "_verdict", "_wanted", "stream")

    def __init__(self, max_bytes: int = 16384) -> None:
        self.stream = bytearray()
        self._max_bytes = max_bytes
        self._wanted = 1  # So many bytes of the stream it takes until there is something to decide.
        self._records = 0  # How many have come whole and do not end the message,
        self._record = 0  # and where the next one begins.
        self._rest = 0  # What that one and those behind it have to bring of the message; 0 while that is not known.
        self._verdict: Hello | Refusal | None = None

    def feed(self, data: bytes) -> Hello | Refusal | None:
        """Takes the next bytes of the stream; None while the verdict needs more.

        The reasons are `not_tls` (the stream does not begin like a TLS handshake), `hello_malformed` and
        `hello_too_large`. A hello without a server name is a `Hello`.
        """
        if self._verdict is None:
            self.stream += data
            if len(self.stream) >= self._wanted:
                self._verdict = self._advance()
        return self._verdict

    def _advance(self) -> Hello | Refusal | None:
        stream, have = self.stream, len(self.stream)
        while True:
            self._take_plain_records()
            body = self._record + _RECORD_HEADER
            fault = self._fault_of_header()
            if fault or have < body:
                self._wanted = have + 1
                return fault
            (size,) = _short(stream, body - 2)
            if not self._rest and have > body:
                fault = self._read_message_header(min(have, body + size, body + _MESSAGE_HEADER))
                if fault:
                    return fault
            if self._rest:
                if body + self._rest > self._max_bytes:
                    return Refusal(Reason.HELLO_TOO_LARGE, f"longer than {self._max_bytes} bytes")
                if self._rest <= size:
                    return self._finish(body + self._rest)
            if have < body + size:
                self._wanted = body + size if self._rest else have + 1
                return None
            self._records += 1
            self._record = body + size
            self._rest -= size if self._rest else 0

    def _take_plain_records(self) -> None:
        """Passes over records that have come whole and raise no question: the short way for hundreds of tiny ones."""
        if not self._rest or len(self.stream) <= self._record + _RECORD_HEADER:
            return
        stream, at, rest = self.stream, self._record, self._rest
        last = len(stream) - _RECORD_HEADER
        # Each adds a header to the least that the hello can take.
        most = min(_MOST_RECORDS - self._records, (self._max_bytes - at - rest) // _RECORD_HEADER)
        taken = 0
        while taken < most and at <= last:
            beginning, size = _record_header(stream, at)
            end = at + _RECORD_HEADER + size
            if beginning != _PLAIN_RECORD or not 0 < size < rest or size > _MAX_RECORD or end > last + _RECORD_HEADER:
                break
            at = end
            rest -= size
            taken += 1
        self._records += taken
        self._record = at
        self._rest = rest

    def _read_message_header(self, end: int) -> Refusal | None:
        """Learns the length of the message from its header, as far as that has come, and looks what message it is."""
        header = self._contents(end)
        if header[0] != _CLIENT_HELLO:
            return Refusal(Reason.HELLO_MALFORMED, f"handshake message {header[0]} instead of a ClientHello")
        if len(header) >= _MESSAGE_HEADER:
            before = self._record - self._records * _RECORD_HEADER
            self._rest = _MESSAGE_HEADER + int.from_bytes(header[1:_MESSAGE_HEADER]) - before
        return None

    def _finish(self, end: int) -> Hello | Refusal | None:
        """The message ends at stream[end], once that has come."""
        if len(self.stream) < end:
            self._wanted = end
            return None
        message = self._contents(end)
        return _read_message(message, _MESSAGE_HEADER, len(message), end)

    def _contents(self, end: int) -> bytes:
        """What the records up to stream[end] hold."""
        stream, at, contents = bytes(self.stream[:end]), 0, []
        while at < end:
            size = stream[at + 3] << 8 | stream[at + 4]
            at += _RECORD_HEADER
            contents.append(stream[at : at + size])
            at += size
        return b"".join(contents)

    def _fault_of_header(self) -> Refusal | None:
        """What is wrong with the header of the next record, as far as it has come; None where nothing is."""
        header = self.stream[self._record : self._record + _RECORD_HEADER]
        # A first record with the wrong type or version is some other protocol, a later one breaks this one.
        reason = Reason.HELLO_MALFORMED if self._records else Reason.NOT_TLS
        if header and header[0] != _HANDSHAKE:
            return Refusal(reason, f"a record of type {header[0]} where a TLS handshake (22) was expected")
        if len(header) > 1 and header[1] != _TLS_MAJOR:
            return Refusal(reason, f"a record of major version {header[1]} instead of 3")
        if len(header) < _RECORD_HEADER:
            return None
        if header[3:] == b"\0\0":
            return Refusal(Reason.HELLO_MALFORMED, "a record without content")
        if (header[3] << 8 | header[4]) > _MAX_RECORD:
            return Refusal(Reason.HELLO_MALFORMED, f"a record longer than {_MAX_RECORD} bytes")
        if self._records == _MOST_RECORDS:
            return Refusal(Reason.HELLO_TOO_LARGE, f"more than {_MOST_RECORDS} records")
        return None


def _read_message(data: Bytes, start: int, end: int, length: int) -> Hello | Refusal:
    """Reads the body of the ClientHello that is data[start:end]; `length` is that of the hello in the stream."""
    try:
        at = start + _RANDOM_END
        session_id = data[at]
        at += 1 + session_id
        at += 2 + (data[at] << 8 | data[at + 1])  # Cipher suites.
        at += 1 + data[at]  # Compression methods.
        places: dict[int, int] = {}
        if at != end:  # TLS 1.2 may leave the list of extensions out.
            at += 2
            if (data[at - 2] << 8 | data[at - 1]) != end - at:
                return _MISFIT
            # This loop is most of what a hello costs. Where it reads behind the end it also goes there.
            for count in range(_MOST_EXTENSIONS + 1):  # noqa: B007 (it is read behind the loop)
                if at >= end:
                    break
                kind, size = _extension_header(data, at)
                places[kind] = at
                at += 4 + size
            else:
                return Refusal(Reason.HELLO_TOO_LARGE, f"more than {_MOST_EXTENSIONS} extensions")
            if at == end and len(places) != count:
                return Refusal(Reason.HELLO_MALFORMED, "an extension that comes twice")
        if at != end or session_id > _MAX_SESSION_ID:
            return _MISFIT
    except (IndexError, TooShortError):
        return _MISFIT
    offer = _offer(data, start, places, session_id)
    name: str | None = None
    if _SERVER_NAME in places:
        start, end = _contents(data, places[_SERVER_NAME])
        raw = bytes(data[start + 5 : end])
        # The list must be one name of type host_name and nothing else: no other use of it exists.
        if end - start < 5 or _name_header(data, start) != (end - start - 2, _HOST_NAME_TYPE, len(raw)):
            return Refusal(Reason.HELLO_MALFORMED, "server_name: not a list of one host name")
        name = _host_name(raw)
        if not name:
            return Refusal(Reason.HELLO_MALFORMED, f"server_name: {host_name_fault(raw)}")
    alpn = _protocols(data, *_contents(data, places[_PROTOCOLS])) if _PROTOCOLS in places else ()
    return Hello(name, alpn, length, offer)


def _offer(data: Bytes, start: int, places: dict[int, int], session_id: int) -> Offer:
    """What is offered in the body that begins at data[start]; the session's ID has so many bytes."""
    version = data[start + 1] | data[start] << 8
    if _SUPPORTED_VERSIONS in places:
        at = places[_SUPPORTED_VERSIONS]
        if data.find(_TLS_1_3, at + 5, at + 4 + data[at + 3]) > 0:
            version = 0x0304
    elif session_id:
        return _RESUMING.get(version, _ODD)  # With TLS 1.3 an ID means nothing (RFC 8446 section 4.1.2).
    if _PRE_SHARED_KEY in places:
        return _RESUMING.get(version, _ODD)
    if _SESSION_TICKET in places:
        at = places[_SESSION_TICKET]
        if data[at + 3] or data[at + 2]:  # Without one in it, it asks for one.
            return _RESUMING.get(version, _ODD)
    return _FRESH.get(version, _ODD)


@lru_cache(maxsize=1024)  # A gateway's callers ask for few names, again and again.
def _host_name(raw: bytes) -> str:
    """The name in lower case, "" where it is none."""
    return str(raw, "ascii").lower() if len(raw) <= _MAX_HOST_NAME and _is_host_name(raw) else ""


def _contents(data: Bytes, place: int) -> tuple[int, int]:
    _, size = _extension_header(data, place)
    return place + 4, place + 4 + size


def _protocols(data: Bytes, start: int, end: int) -> tuple[str, ...]:
    """The ALPN protocols (RFC 7301 section 3.1), as many as are told, up to the first that is not in order."""
    found: list[str] = []
    at = start + 2
    while at < end and len(found) < _PROTOCOLS_TOLD:
        protocol = bytes(data[at + 1 : min(at + 1 + data[at], end)])
        if not protocol or len(protocol) != data[at]:
            break
        found.append(_printable(protocol))
        at += 1 + len(protocol)
    return tuple(found)


def _printable(protocol: bytes) -> str:
    text = str(protocol, "latin-1")
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    return text.encode("unicode_escape").decode("ascii")


def host_name_fault(name: bytes) -> str:
    """What is wrong with a server name, such that a hello with it is refused as malformed; empty where nothing is.

    A name is letters, digits, `-` and `_` in labels joined by dots, 255 bytes at most. An IP address, a final dot,
    anything that is not ASCII are what RFC 6066 rules out, and no name of the mesh needs them.
    """
    if len(name) <= _MAX_HOST_NAME and _is_host_name(name):
        return ""
    if not name:
        return "an empty name"
    if len(name) > _MAX_HOST_NAME:
        return f"a name longer than {_MAX_HOST_NAME} bytes"
    if b"\0" in name:
        return "a name with a NUL byte"
    if not name.isascii():
        return "a name that is not ASCII"
    if b":" in name or name.replace(b".", b"").isdigit():
        return "an IP address"
    if name.endswith(b"."):
        return "a name with a final dot"
    return "a name that is no host name"
