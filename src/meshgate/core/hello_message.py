"""The ClientHello message: its fields and its list of extensions (RFC 8446 section 4.1.2, RFC 5246 section 7.4.1.2).

The bar is OpenSSL's: what it refuses before it looks at the server name is refused here too, so that no stream is
routed by a name that its destination would not come to see. What is unknown (versions, cipher suites, groups,
extensions, the reserved values of RFC 8701) is passed over.
"""

from dataclasses import dataclass, field
from struct import Struct, unpack_from
from typing import Any, Final

from meshgate.core.hello_extensions import (
    KEY_SHARE,
    NAMES,
    PRE_SHARED_KEY,
    PROTOCOLS,
    READERS,
    SERVER_NAME,
    SUPPORTED_GROUPS,
    SUPPORTED_VERSIONS,
    Bytes,
    MalformedError,
    vector_end,
)
from meshgate.core.hello_key_share import X25519

__all__ = ["Bytes", "Hello", "MalformedError", "read_hello"]

_SSL_3: Final = 0x0300
_TLS_1_2: Final = 0x0303
_TLS_1_3: Final = 0x0304
_RANDOM_END: Final = 34  # two bytes of version, 32 of random
_MAX_SESSION_ID: Final = 32
# Those that OpenSSL, BoringSSL and Go serve by default; the two with CCM they do not, and no client offers only these.
_TLS_1_3_SUITES: Final = frozenset((0x1301, 0x1302, 0x1303))
_FALLBACK_SCSV: Final = 0x5600

_short = Struct(">H").unpack_from
_two_shorts = Struct(">HH").unpack_from


@dataclass(frozen=True, slots=True)
class Hello:
    """What a ClientHello says, as far as routing and logging want to know.

    With Encrypted Client Hello this is the outer hello: the name is the one that the client shows the world, never
    the one it hides.
    """

    server_name: str | None
    """The name to route by, in lower case; None where the client sent none."""
    raw_name: bytes | None
    """The same name as it was sent."""
    alpn: tuple[str, ...]
    """The application protocols offered: printable ASCII, other bytes and backslashes escaped as in Python."""
    versions: tuple[int, ...]
    """The versions offered (0x0304 is TLS 1.3), unknown and reserved ones among them, in the client's order."""
    length: int
    """How many bytes of the stream the hello takes from the start to its end, record headers included."""
    share: int | None = field(default=None, compare=False, repr=False)
    """Where in the message's body an X25519 key lies that is the only key share, when no session is to be resumed. Its
    32 bytes, the random and the session id are what has no bearing on anything above."""


def read_hello(data: Bytes, start: int, end: int, length: int, *, fills_record: bool) -> Hello:
    """Reads the body of the ClientHello that is data[start:end], and nothing outside of it.

    Args:
        data: where the message lies.
        start: the first byte behind the handshake header.
        end: the end of the message.
        length: what to say in `Hello.length`.
        fills_record: whether the record that holds the message's end holds nothing behind it.

    Raises:
        MalformedError: the hello breaks the protocol.
    """
    session_id = start + _RANDOM_END
    if session_id >= end:
        raise MalformedError("it ends within its fixed fields")
    (legacy_version,) = _short(data, start)
    suites_start = vector_end(data, session_id, 1, end)
    if data[session_id] > _MAX_SESSION_ID:
        raise MalformedError(f"a session id longer than {_MAX_SESSION_ID} bytes")
    compression = vector_end(data, suites_start, 2, end)
    extensions = vector_end(data, compression, 1, end)
    # The null method must be among them; TLS 1.3 allows nothing else, but neither OpenSSL nor this insists so early.
    if 0 not in data[compression + 1 : extensions]:
        raise MalformedError("no null compression method")

    values = _read_extensions(data, extensions, end)
    listed: tuple[int, ...] | None = values.get(SUPPORTED_VERSIONS)
    versions = _check_versions(legacy_version, listed)
    offers_1_3 = listed is not None and _TLS_1_3 in listed
    _check_suites(data, suites_start + 2, compression, offers_1_3=offers_1_3)
    if offers_1_3 and not fills_record:
        raise MalformedError("its record goes on behind it")
    if offers_1_3 and KEY_SHARE in values:
        if SUPPORTED_GROUPS not in values:
            raise MalformedError("key_share without supported_groups")
        if not values[KEY_SHARE].keys() <= set(values[SUPPORTED_GROUPS]):
            raise MalformedError("key_share: a share of a group that supported_groups does not list")

    raw_name: bytes | None = values.get(SERVER_NAME)
    name = None if raw_name is None else raw_name.decode("ascii").lower()
    return Hello(name, raw_name, values.get(PROTOCOLS, ()), versions, length, _only_share(values, start))


def _only_share(values: dict[int, Any], start: int) -> int | None:
    shares: dict[int, int] = values.get(KEY_SHARE, {})
    return shares[X25519] - start if shares.keys() == {X25519} and PRE_SHARED_KEY not in values else None


def _read_extensions(data: Bytes, position: int, end: int) -> dict[int, Any]:
    """What the extensions that end the message say, by their type; None for those that are not read."""
    values: dict[int, Any] = {}
    if position == end:  # TLS 1.2 may leave the list out
        return values
    if vector_end(data, position, 2, end) != end:
        raise MalformedError("bytes behind its extensions")
    position += 2
    while position < end:
        start = position + 4
        if start > end:
            raise MalformedError("an extension that is cut short")
        kind, size = _two_shorts(data, position)
        position = start + size
        if position > end:
            raise MalformedError(f"extension {kind} reaches too far")
        if kind in values:
            raise MalformedError(f"extension {kind} twice")
        read = READERS.get(kind)
        try:
            values[kind] = read(data, start, position) if read else None
        except MalformedError as problem:
            raise MalformedError(f"{NAMES[kind]}: {problem}") from None
    if PRE_SHARED_KEY in values and next(reversed(values)) != PRE_SHARED_KEY:
        raise MalformedError("pre_shared_key is not the last extension")
    return values


def _check_versions(legacy_version: int, listed: tuple[int, ...] | None) -> tuple[int, ...]:
    """The versions offered, at least one of which must be TLS 1.2 or 1.3 (RFC 8446 section 4.2.1 and appendix D)."""
    if listed is None:
        # Without the list a version is an upper limit, so a number above TLS 1.2 offers TLS 1.2.
        if legacy_version < _TLS_1_2:
            raise MalformedError("it offers nothing from TLS 1.2 up")
        return (legacy_version,)
    if legacy_version <= _SSL_3:
        raise MalformedError("a version of SSL 3 or older")
    if _TLS_1_3 not in listed and _TLS_1_2 not in listed:
        raise MalformedError("it offers nothing from TLS 1.2 up")
    return listed


def _check_suites(data: Bytes, start: int, end: int, *, offers_1_3: bool) -> None:
    size = end - start
    if size == 0 or size % 2:
        raise MalformedError("a list of cipher suites of an empty or odd length")
    suites = unpack_from(f">{size // 2}H", data, start)
    if offers_1_3 and _TLS_1_3_SUITES.isdisjoint(suites):
        raise MalformedError("it offers TLS 1.3 without a cipher suite for it")
    # RFC 7507: a client that says it fell back from a better version. What would refuse it knows TLS 1.3.
    if not offers_1_3 and _FALLBACK_SCSV in suites:
        raise MalformedError("a fallback from a version that failed")
