"""Why a stream was refused or ended, and the TLS alert that tells the client so.

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


def envoy_flags(reason: Reason) -> str:
    """The letters of Envoy's response flags that come nearest to a reason; "" where none does."""
    return _FLAGS.get(reason, "")


def alert_record(reason: Reason) -> bytes:
    """The TLS record to send before closing for `reason`; empty where a plain close is due.

    A fatal alert in the clear (RFC 8446 section 6: level 2, then the description), in a record with the legacy
    version 3.3 that every TLS client since 1.0 reads.
    """
    description = _ALERTS.get(reason)
    if description is None:
        return b""
    return bytes((21, 3, 3, 0, 2, 2, description))
