"""Why a stream was refused or how it ended, the TLS alert for the client, and what any alert says about a call.

The strings are the product's contract: `/explain`, the metrics and the access log use exactly these. An alert is
only ever sent to a client that spoke TLS; the others see a plain close.
"""

from enum import StrEnum
from typing import Final


class Reason(StrEnum):
    """Why a stream was not carried. The value is the name users see."""

    NOT_TLS = "not_tls"
    HELLO_MALFORMED = "hello_malformed"
    HELLO_TOO_LARGE = "hello_too_large"
    HELLO_TIMEOUT = "hello_timeout"
    NO_SNI = "no_sni"
    UNKNOWN_SNI = "unknown_sni"
    NO_HEALTHY_ENDPOINT = "no_healthy_endpoint"
    CONNECT_FAILED = "connect_failed"
    CONNECT_TIMEOUT = "connect_timeout"
    MAX_CONNECTIONS = "max_connections"
    MAX_CONNECTIONS_PER_CLIENT = "max_connections_per_client"
    DRAINING = "draining"


class StreamEnd(StrEnum):
    """How a stream ended. The value is the name users see."""

    CLOSED = "closed"
    CLIENT_RESET = "client_reset"
    ENDPOINT_RESET = "endpoint_reset"
    IDLE = "idle"  # A timeout: idle, half closed, or nothing behind the hello.
    DRAIN = "drain"
    WORKER_LOST = "worker_lost"
    SHED = "shed"
    REFUSED = "refused"
    INTERNAL_ERROR = "internal_error"


_DECODE_ERROR: Final = 50
_INTERNAL_ERROR: Final = 80
_UNRECOGNIZED_NAME: Final = 112

_ALERTS: Final = {
    Reason.HELLO_MALFORMED: _DECODE_ERROR,
    Reason.HELLO_TOO_LARGE: _DECODE_ERROR,
    Reason.NO_SNI: _UNRECOGNIZED_NAME,
    Reason.UNKNOWN_SNI: _UNRECOGNIZED_NAME,
    Reason.NO_HEALTHY_ENDPOINT: _INTERNAL_ERROR,
    Reason.CONNECT_FAILED: _INTERNAL_ERROR,
    Reason.CONNECT_TIMEOUT: _INTERNAL_ERROR,
    Reason.MAX_CONNECTIONS: _INTERNAL_ERROR,  # A destination's: others are noticed before a client has spoken.
    Reason.DRAINING: _INTERNAL_ERROR,
}

_FLAGS: Final = {
    Reason.NOT_TLS: "DPE",
    Reason.HELLO_MALFORMED: "DPE",
    Reason.HELLO_TOO_LARGE: "DPE",
    Reason.HELLO_TIMEOUT: "DPE",
    Reason.NO_SNI: "NR",
    Reason.UNKNOWN_SNI: "NR",
    Reason.NO_HEALTHY_ENDPOINT: "UH",
    Reason.CONNECT_FAILED: "UF",
    Reason.CONNECT_TIMEOUT: "UF",
    Reason.MAX_CONNECTIONS: "UO",
    Reason.MAX_CONNECTIONS_PER_CLIENT: "UO",
}

_END_FLAGS: Final = {
    StreamEnd.CLIENT_RESET: "DC",
    StreamEnd.ENDPOINT_RESET: "UC",
    StreamEnd.IDLE: "SI",
    StreamEnd.SHED: "OM",
}


def envoy_flags(reason: Reason | None, end: StreamEnd) -> str:
    """The letters of Envoy's response flags that come nearest; "" where none does."""
    return _END_FLAGS.get(end, "") if reason is None else _FLAGS.get(reason, "")


def alert_record(reason: Reason) -> bytes:
    """The TLS record to send before closing for `reason`; empty where a plain close is due.

    A fatal alert in the clear (RFC 8446 section 6: level 2, then the description), in a record with the legacy
    version 3.3 that every TLS client since 1.0 reads.
    """
    description = _ALERTS.get(reason)
    if description is None:
        return b""
    return bytes((21, 3, 3, 0, 2, 2, description))


class Alert(StrEnum):
    """What a TLS alert says, by its name in RFC 8446 section 6. Those that a mesh hardly sees are `OTHER`."""

    CLOSE_NOTIFY = "close_notify"
    HANDSHAKE_FAILURE = "handshake_failure"
    BAD_CERTIFICATE = "bad_certificate"
    CERTIFICATE_REVOKED = "certificate_revoked"
    CERTIFICATE_EXPIRED = "certificate_expired"
    CERTIFICATE_UNKNOWN = "certificate_unknown"
    UNKNOWN_CA = "unknown_ca"
    ACCESS_DENIED = "access_denied"
    PROTOCOL_VERSION = "protocol_version"
    INTERNAL_ERROR = "internal_error"
    UNRECOGNIZED_NAME = "unrecognized_name"
    CERTIFICATE_REQUIRED = "certificate_required"
    OTHER = "other"


_ALERT_NUMBERS: Final = dict(zip((0, 40, 42, 44, 45, 46, 48, 49, 70, _INTERNAL_ERROR, 112, 116), Alert, strict=False))
ALERT_BYTES: Final = 7
"""A record with one alert in the clear has so many."""


def alert_in(data: bytes) -> Alert | None:
    """The alert that a peer sends in the clear, where `data`, read at once, begins with one.

    One that is encrypted is longer, or its record is of another type.
    """
    if len(data) < ALERT_BYTES or data[:2] != b"\x15\3" or data[3:5] != b"\0\2":
        return None
    return _ALERT_NUMBERS.get(data[6], Alert.OTHER)


# The first three are what this gateway sends itself; the others come from the destination, whose bytes it passes on.
_MEANINGS: Final = {
    "unrecognized_name": "the gateway has no route for this name; `meshgate explain` with it says why",
    "internal_error": (
        "a gateway on the way could not reach any endpoint, or none is healthy, or the destination has all the "
        "connections it may have, or it failed; "
        "`meshgate explain` with the name says which, on this gateway and on the one of the destination's datacenter"
    ),
    "decode_error": "the gateway could not read the ClientHello",
    "bad_certificate": "the destination refuses this caller: no intention allows it, or it distrusts the certificate",
    "access_denied": "the destination refuses this caller: no intention allows it",
    "unknown_ca": "the destination does not trust the caller's CA: another trust domain, or a root not rotated yet",
    "certificate_unknown": "the destination refuses the caller's certificate",
    "certificate_expired": "the caller's leaf has expired for the destination: compare the clocks",
    "certificate_revoked": "the destination takes the caller's leaf for revoked",
    "certificate_required": "the destination wants a certificate and got none",
    "handshake_failure": "the two sides have no TLS parameters in common",
    "protocol_version": "the destination does not speak TLS 1.3",
    "no_application_protocol": "the destination wants an ALPN protocol that was not offered",
    "decrypt_error": "a signature did not verify: the bytes were changed, or key and certificate do not match",
}


def meaning_of(alert: str) -> str:
    """What an alert (its name in RFC 8446 section 6, lower case) says about a call; never empty."""
    return _MEANINGS.get(alert, "sent by the destination, or by something in between that speaks TLS")
