"""TLS alerts, and what each means for a call into the mesh through a gateway.

The first three are what this gateway sends itself (before the handshake it is the only one that speaks); the others
come from the destination, whose bytes the gateway passes on.
"""

from typing import Final

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
