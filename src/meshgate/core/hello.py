"""Reads the TLS ClientHello at the head of a stream: hostile bytes in, a `Hello` or a `Refusal` out.

This module is the record layer (RFC 8446 section 5.1): it puts the handshake message together from any cut of the
stream into packets and records, and hands it to `hello_message`. What always holds:

- Nothing raises, whatever the bytes are, and a verdict once given stays.
- A verdict depends on the stream alone, never on how it was cut into packets.
- No byte is looked at more than twice, and no more than the handshake message is kept, so the work is linear in what
  arrives and the memory is bounded by `max_bytes`.
- A refusal comes as early as it is certain: plain text is refused at its first byte, a hello that cannot fit
  `max_bytes` at the length that says so.
- Bytes behind the hello are never read. That there are some in the same record follows from its length, and counts
  only against a hello that offers TLS 1.3, which must end its record (RFC 8446 section 5.1; OpenSSL holds to it).

Stricter than the RFC in what no client sends: a record without content is refused wherever it stands.
"""

from dataclasses import dataclass
from typing import Final

from meshgate.core.hello_message import Bytes, Hello, MalformedError, read_hello
from meshgate.core.reasons import Reason

__all__ = ["Hello", "HelloParser", "Refusal", "parse_hello"]

_HANDSHAKE: Final = 22
_TLS_MAJOR: Final = 3
_CLIENT_HELLO: Final = 1
_RECORD_HEADER: Final = 5
_MESSAGE_HEADER: Final = 4
_MAX_RECORD: Final = 1 << 14


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a stream is not carried; `detail` is one short English phrase for people, the same for the same stream."""

    reason: Reason
    detail: str


class _RefusedError(Exception):
    """Carries a refusal out of the depths of the record layer. Never leaves this module."""

    def __init__(self, reason: Reason, detail: str) -> None:
        self.refusal = Refusal(reason, detail)


def parse_hello(data: Bytes, max_bytes: int = 16384) -> Hello | Refusal | None:
    """The verdict on a stream that begins with `data`, or None where it takes more than that.

    The fast path for the common case, a hello that came whole in one record and one packet: it is read where it lies.
    After None, start a `HelloParser` and feed it the same bytes first. Arguments and result are those of the parser.
    """
    if len(data) > _RECORD_HEADER + _MESSAGE_HEADER and data[0] == _HANDSHAKE and data[1] == _TLS_MAJOR:
        record_end = _RECORD_HEADER + (data[3] << 8 | data[4])
        hello_end = _RECORD_HEADER + _MESSAGE_HEADER + (data[6] << 16 | data[7] << 8 | data[8])
        whole = hello_end <= min(len(data), max_bytes, record_end) and record_end <= _RECORD_HEADER + _MAX_RECORD
        if whole and data[5] == _CLIENT_HELLO:
            start = _RECORD_HEADER + _MESSAGE_HEADER
            return _judge(data, start, hello_end, hello_end, fills_record=hello_end == record_end)
    return HelloParser(max_bytes).feed(data)


def _judge(data: Bytes, start: int, end: int, length: int, *, fills_record: bool) -> Hello | Refusal:
    try:
        return read_hello(data, start, end, length, fills_record=fills_record)
    except MalformedError as problem:
        return Refusal(Reason.HELLO_MALFORMED, str(problem))


class HelloParser:
    """Takes a stream piece by piece until the verdict on its hello is known.

    Args:
        max_bytes: the most bytes of the stream, record headers included, up to the end of the hello.
    """

    __slots__ = ("_header", "_left", "_max_bytes", "_message", "_needed", "_verdict", "_wire")

    def __init__(self, max_bytes: int = 16384) -> None:
        self._max_bytes = max_bytes
        self._wire = 0  # bytes of the stream taken so far
        self._header = bytearray()  # the header of the next record, as far as it has come
        self._left = 0  # bytes of the current record that are still to come
        self._message = bytearray()  # the handshake message so far, its header included
        self._needed = _MESSAGE_HEADER  # the length the message has at least; exact once its header is known
        self._verdict: Hello | Refusal | None = None

    def feed(self, data: Bytes) -> Hello | Refusal | None:
        """Takes the next bytes of the stream; None while the verdict needs more. After it, `data` is not looked at.

        The reasons are `not_tls` (the stream does not begin like a TLS handshake), `hello_malformed` and
        `hello_too_large`. A hello without a server name is a `Hello`.
        """
        if self._verdict is None:
            try:
                self._verdict = self._advance(data)
            except _RefusedError as refused:
                self._verdict = refused.refusal
            if self._verdict is not None:
                self._message.clear()
        return self._verdict

    def _advance(self, data: Bytes) -> Hello | Refusal | None:
        position = 0
        while position < len(data):
            position = self._take_small_records(data, position)
            if position == len(data):
                break
            take = self._take_message if self._left else self._take_record_header
            position += take(data, position)
            if len(self._message) == self._needed:
                fills_record = not self._left
                return _judge(self._message, _MESSAGE_HEADER, self._needed, self._wire, fills_record=fills_record)
        return None

    def _take_small_records(self, data: Bytes, position: int) -> int:
        """Takes records that lie in `data` as a whole and raise no question; gives where they end.

        A hello may be cut into thousands of records of a byte each. This is the short way for them; everything else,
        the end of the message and all that is wrong, is left to the methods below.
        """
        message, end = self._message, len(data) - _RECORD_HEADER
        # A record that leaves more than itself to come, and room for it, changes no verdict.
        room = self._max_bytes - self._wire - (self._needed // _MAX_RECORD + 2) * _RECORD_HEADER
        if self._header or self._left or len(message) < _MESSAGE_HEADER:
            return position
        start, rest = position, self._needed - len(message)
        while position < end and data[position] == _HANDSHAKE and data[position + 1] == _TLS_MAJOR:
            size = data[position + 3] << 8 | data[position + 4]
            stop = position + _RECORD_HEADER + size
            if not 0 < size < min(rest, _MAX_RECORD) or stop > len(data) or stop - start + rest - size > room:
                break
            message += data[position + _RECORD_HEADER : stop]
            rest -= size
            position = stop
        self._wire += position - start
        return position

    def _take_record_header(self, data: Bytes, position: int) -> int:
        """Takes what there is of a record header, and judges it as soon as a byte of it can be wrong."""
        header = self._header
        piece = data[position : position + _RECORD_HEADER - len(header)]
        header += piece
        self._wire += len(piece)
        # A first record with the wrong type or version is some other protocol, a later one breaks this one.
        reason = Reason.HELLO_MALFORMED if self._message else Reason.NOT_TLS
        if header[0] != _HANDSHAKE:
            raise _RefusedError(reason, f"a record of type {header[0]} where a TLS handshake (22) was expected")
        if len(header) > 1 and header[1] != _TLS_MAJOR:
            raise _RefusedError(reason, f"a record of major version {header[1]} instead of 3")
        if len(header) == _RECORD_HEADER:
            self._left = header[3] << 8 | header[4]
            header.clear()
            if not self._left:
                raise _RefusedError(Reason.HELLO_MALFORMED, "a record without content")
            if self._left > _MAX_RECORD:
                raise _RefusedError(Reason.HELLO_MALFORMED, f"a record longer than {_MAX_RECORD} bytes")
            self._check_size()
        return len(piece)

    def _take_message(self, data: Bytes, position: int) -> int:
        """Takes what there is of the message in the current record, nothing behind its end."""
        message = self._message
        header_known = len(message) >= _MESSAGE_HEADER
        piece = data[position : position + min(self._left, self._needed - len(message))]
        message += piece
        self._wire += len(piece)
        self._left -= len(piece)
        if not header_known:
            if message[0] != _CLIENT_HELLO:
                raise _RefusedError(Reason.HELLO_MALFORMED, f"handshake message {message[0]} instead of a ClientHello")
            # Bytes of the length that are still to come count as zero: `_needed` never says too much.
            self._needed = _MESSAGE_HEADER + int.from_bytes(message[1:_MESSAGE_HEADER].ljust(3, b"\0"))
            self._check_size()
        return len(piece)

    def _check_size(self) -> None:
        """Refuses once even the fewest records could not bring the rest of the message within `max_bytes`."""
        rest = self._needed - len(self._message)
        more_records = -(-max(rest - self._left, 0) // _MAX_RECORD)
        if self._wire + rest + more_records * _RECORD_HEADER > self._max_bytes:
            raise _RefusedError(Reason.HELLO_TOO_LARGE, f"longer than {self._max_bytes} bytes")
