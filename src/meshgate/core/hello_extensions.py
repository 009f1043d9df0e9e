"""The contents of a ClientHello's extensions: what they must look like, and the values the gateway wants from them.

A reader gets the whole message and the bounds of one extension's contents in it, so that nothing is copied but the
value it returns, and raises `MalformedError` where the contents break the RFC that defines them. A vector that should
fill its place and does not is an error at every level. `READERS` names the extensions whose contents are read; all
others may hold anything.
"""

import re
from collections.abc import Callable
from functools import lru_cache, partial
from struct import Struct, unpack_from
from typing import Any, Final, TypeAlias

from meshgate.core.hello_ca_name import is_distinguished_name
from meshgate.core.hello_key_share import Bytes, is_public_key

__all__ = [
    "KEY_SHARE",
    "NAMES",
    "PRE_SHARED_KEY",
    "PROTOCOLS",
    "READERS",
    "SERVER_NAME",
    "SUPPORTED_GROUPS",
    "SUPPORTED_VERSIONS",
    "Bytes",
    "MalformedError",
    "vector_end",
]

Reader: TypeAlias = Callable[[Bytes, int, int], Any]

SERVER_NAME: Final = 0
SUPPORTED_GROUPS: Final = 10
PROTOCOLS: Final = 16
PRE_SHARED_KEY: Final = 41
SUPPORTED_VERSIONS: Final = 43
KEY_SHARE: Final = 51

_HOST_NAME_TYPE: Final = 0
_MAX_HOST_NAME: Final = 255
_HOST_NAME: Final = re.compile(rb"(?![0-9.]+\Z)[0-9A-Za-z_-]+(?:\.[0-9A-Za-z_-]+)*")
_OCSP_STATUS_TYPE: Final = 1
_PLAIN_OCSP_REQUEST: Final = b"\x01\0\0\0\0"  # no responders, no request extensions
_MIN_BINDER: Final = 32
_MAX_PROTOCOLS: Final = 64
_ANY_NUMBER: Final = 1 << 16
_MAX_AUTHORITIES: Final = 2048

_short = Struct(">H").unpack_from


class MalformedError(Exception):
    """The hello breaks the protocol; the text is a short phrase for people."""


def vector_end(data: Bytes, position: int, width: int, end: int) -> int:
    """Where the vector ends whose length is the one or two bytes (`width`) at `position`; it must not pass `end`."""
    body = position + width
    if body > end:
        raise MalformedError("a length that is cut short")
    stop = body + (data[position] if width == 1 else _short(data, position)[0])
    if stop > end:
        raise MalformedError("a length that reaches too far")
    return stop


def _contents(data: Bytes, start: int, end: int, width: int) -> int:
    """Where the contents begin of the vector that must be all of data[start:end]."""
    body = start + width
    if body > end or (data[start] if width == 1 else _short(data, start)[0]) != end - body:
        raise MalformedError("a length that does not fit")
    return body


def _items(
    data: Bytes, start: int, end: int, width: int, *, before: int = 0, after: int = 0, most: int = _ANY_NUMBER
) -> list[tuple[int, int]]:
    """The bounds of the vectors that data[start:end] is made of, each non-empty and amid `before` and `after` bytes.

    One more than `most` are read, so that the caller sees that there are too many.
    """
    items: list[tuple[int, int]] = []
    while start < end and len(items) <= most:
        body = start + before + width
        if body > end:
            raise MalformedError("an item that is cut short")
        stop = body + (data[body - 1] if width == 1 else _short(data, body - 2)[0])
        if stop == body:
            raise MalformedError("an empty item")
        start = stop + after
        if start > end:
            raise MalformedError("an item that reaches too far")
        items.append((body, stop))
    return items


def _read_server_name(data: Bytes, start: int, end: int) -> bytes:
    """The host name (RFC 6066 section 3), as sent.

    Like OpenSSL this takes a list of one name of type host_name and nothing else: no other use of the list exists,
    and two readers that pick differently from a longer one would be a way around the routing. A name is letters,
    digits, `-` and `_` in labels joined by dots, 255 bytes at most. An IP address, a final dot, anything that is not
    ASCII are what the RFC rules out, and no name of the mesh needs them.
    """
    start = _contents(data, start, end, 2)
    if start == end:
        raise MalformedError("an empty list")
    if data[start] != _HOST_NAME_TYPE:
        raise MalformedError(f"a name of type {data[start]} instead of host_name")
    if vector_end(data, start + 1, 2, end) != end:
        raise MalformedError("more than one name")
    name = bytes(data[start + 3 : end])
    fault = host_name_fault(name)
    if fault:
        raise MalformedError(fault)
    return name


def host_name_fault(name: bytes) -> str:
    """What is wrong with a server name, such that a hello with it is refused as malformed; empty where nothing is."""
    if len(name) <= _MAX_HOST_NAME and _HOST_NAME.fullmatch(name):
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


def _read_protocols(data: Bytes, start: int, end: int) -> tuple[str, ...]:
    """The ALPN protocols (RFC 7301 section 3.1): printable ASCII, other bytes and backslashes escaped as in Python."""
    items = _items(data, _contents(data, start, end, 2), end, 1, most=_MAX_PROTOCOLS)
    if not items:
        raise MalformedError("an empty list")
    if len(items) > _MAX_PROTOCOLS:
        raise MalformedError(f"more than {_MAX_PROTOCOLS} protocols")
    return tuple([_printable(bytes(data[body:stop])) for body, stop in items])


@lru_cache(maxsize=512)
def _printable(protocol: bytes) -> str:
    return protocol.decode("latin-1").encode("unicode_escape").decode("ascii")


def _read_numbers(data: Bytes, start: int, end: int, width: int = 2) -> tuple[int, ...]:
    """The 16-bit numbers, at least one, of a vector whose length takes `width` bytes."""
    start = _contents(data, start, end, width)
    count, odd = divmod(end - start, 2)
    if count == 0 or odd:
        raise MalformedError("a list of an empty or odd length")
    return unpack_from(f">{count}H", data, start)


_read_short_list_of_numbers: Final = partial(_read_numbers, width=1)


def _read_key_share(data: Bytes, start: int, end: int) -> dict[int, int]:
    """The groups of the key shares (RFC 8446 section 4.2.8), and where the key of each begins."""
    groups: dict[int, int] = {}
    for body, stop in _items(data, _contents(data, start, end, 2), end, 2, before=2):
        (group,) = _short(data, body - 4)
        if group in groups:
            raise MalformedError(f"two shares of group {group}")
        if not is_public_key(group, data, body, stop):
            raise MalformedError(f"a share that is no public key of group {group}")
        groups[group] = body
    return groups


def _check_pre_shared_key(data: Bytes, start: int, end: int) -> None:
    """RFC 8446 section 4.2.11: identities, each with an age of four bytes, and a binder for each of them."""
    identities_end = vector_end(data, start, 2, end)
    identities = _items(data, start + 2, identities_end, 2, after=4)
    binders = _items(data, _contents(data, identities_end, end, 2), end, 1)
    if not identities or len(binders) != len(identities):
        raise MalformedError("not a binder for each identity")
    if any(stop - body < _MIN_BINDER for body, stop in binders):
        raise MalformedError(f"a binder shorter than {_MIN_BINDER} bytes")


def _check_certificate_authorities(data: Bytes, start: int, end: int) -> None:
    """RFC 8446 section 4.2.4.

    Names are costly to check, so a list that no client sends, being longer than `_MAX_AUTHORITIES`, is refused: else a
    few hundred hellos a second would keep a core busy.
    """
    if end - start > _MAX_AUTHORITIES:
        raise MalformedError(f"more than {_MAX_AUTHORITIES} bytes")
    for body, stop in _items(data, _contents(data, start, end, 2), end, 2):
        if not is_distinguished_name(data, body, stop):
            raise MalformedError("an item that is no distinguished name")


def _check_status_request(data: Bytes, start: int, end: int) -> None:
    """RFC 6066 section 8. Other types than OCSP are passed over.

    OpenSSL decodes responders and request extensions before the server name. No client in use fills them in, so
    rather than to decode them too, this refuses them.
    """
    if start == end:
        raise MalformedError("no status type")
    if data[start] == _OCSP_STATUS_TYPE and data[start:end] != _PLAIN_OCSP_REQUEST:
        raise MalformedError("an OCSP request that is cut short or names responders or extensions")


def _check_max_fragment_length(data: Bytes, start: int, end: int) -> None:
    if end - start != 1 or not 1 <= data[start] <= 4:
        raise MalformedError("not one of its four codes")


def _check_record_size_limit(data: Bytes, start: int, end: int) -> None:
    """RFC 8449 section 4."""
    if end - start != 2 or _short(data, start)[0] < 64:
        raise MalformedError("not a limit of 64 bytes or more")


def _check_bytes(data: Bytes, start: int, end: int) -> None:
    if _contents(data, start, end, 1) == end:
        raise MalformedError("an empty list")


def _check_srp(data: Bytes, start: int, end: int) -> None:
    _check_bytes(data, start, end)
    if b"\0" in bytes(data[start + 1 : end]):
        raise MalformedError("a user name with a NUL byte")


def _check_use_srtp(_data: Bytes, _start: int, _end: int) -> None:
    raise MalformedError("an extension of DTLS")


def _check_empty(_data: Bytes, start: int, end: int) -> None:
    if start != end:
        raise MalformedError("contents where none may be")


def _check_renegotiation_info(data: Bytes, start: int, end: int) -> None:
    """RFC 5746 section 3.4: empty in a stream's first hello."""
    if data[start:end] != b"\0":
        raise MalformedError("a first hello cannot renegotiate")


_TABLE: Final[tuple[tuple[int, str, Reader], ...]] = (
    (SERVER_NAME, "server_name", _read_server_name),
    (1, "max_fragment_length", _check_max_fragment_length),
    (5, "status_request", _check_status_request),
    (SUPPORTED_GROUPS, "supported_groups", _read_numbers),
    (11, "ec_point_formats", _check_bytes),
    (12, "srp", _check_srp),
    (13, "signature_algorithms", _read_numbers),
    (14, "use_srtp", _check_use_srtp),
    (PROTOCOLS, "application_layer_protocol_negotiation", _read_protocols),
    (23, "extended_master_secret", _check_empty),
    (27, "compress_certificate", _read_short_list_of_numbers),
    (28, "record_size_limit", _check_record_size_limit),
    (PRE_SHARED_KEY, "pre_shared_key", _check_pre_shared_key),
    (42, "early_data", _check_empty),
    (SUPPORTED_VERSIONS, "supported_versions", _read_short_list_of_numbers),
    (45, "psk_key_exchange_modes", _check_bytes),
    (47, "certificate_authorities", _check_certificate_authorities),
    (49, "post_handshake_auth", _check_empty),
    (50, "signature_algorithms_cert", _read_numbers),
    (KEY_SHARE, "key_share", _read_key_share),
    (0xFF01, "renegotiation_info", _check_renegotiation_info),
)
NAMES: Final = {kind: name for kind, name, _ in _TABLE}
READERS: Final = {kind: reader for kind, _, reader in _TABLE}
