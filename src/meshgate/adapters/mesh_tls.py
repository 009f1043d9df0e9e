"""mTLS of the mesh as a caller's sidecar does it: an identity from Consul's leaf, a handshake, and who was met.

The chain is verified by OpenSSL in the handshake, against the roots of the mesh alone. That is what sidecars do, and it
takes the certificates that Consul makes: since 1.11 a secondary datacenter's intermediate has an empty subject, which
stricter readers of RFC 5280 (pyca's verifier, OpenSSL's own X509_STRICT) refuse. What OpenSSL does not know, the rules
of a SPIFFE leaf, is checked here.

The gateway itself never comes here: it holds no key.
"""

import os
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import trio
from cryptography import x509

from meshgate.adapters.error_words import words_of

# OpenSSL names an alert it received by the protocol version that brought it in: TLSV1_ALERT_INTERNAL_ERROR,
# SSLV3_ALERT_BAD_CERTIFICATE, TLSV1_UNRECOGNIZED_NAME, TLSV13_ALERT_CERTIFICATE_REQUIRED.
_ALERT_PREFIXES: Final = ("SSLV3_ALERT_", "TLSV1_ALERT_", "TLSV13_ALERT_", "TLSV1_", "TLSV13_")
# What OpenSSL says of bytes that are no record of TLS.
_NOT_TLS: Final = frozenset(("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"))
NO_TLS: Final = "what answers there speaks no TLS"


class RefusedError(Exception):
    """The other side ended the connection otherwise than in order.

    `stage` is `connect`, `handshake` or `stream`; `alert` is the name of the TLS alert that it sent (RFC 8446 section
    6, `unrecognized_name`), None where it sent none.
    """

    def __init__(self, stage: str, alert: str | None, detail: str) -> None:
        super().__init__(f"{stage}: {f'alert {alert}' if alert else detail}")
        self.stage = stage
        self.alert = alert
        self.detail = detail


class UntrustedError(RefusedError):
    """The other side's certificate does not lead to the roots: it was refused here."""


class WrongPeerError(Exception):
    """The other side proved no identity of the mesh, or not the one that was expected."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a handshake, as its certificate says; `met` of `probe --json` is made of it."""

    spiffe_id: str
    expires: datetime
    tls_version: str
    cipher: str


def mesh_context(certificates: str, key: str, roots: Sequence[str]) -> ssl.SSLContext:
    """A caller's context from the PEM text of a leaf with its intermediates, its key, and the roots.

    TLS 1.2 and newer. Names are not checked, since SPIFFE IDs are no host names; who was met is for `peer_of` to say.

    Raises:
        ssl.SSLError: no certificate, or the key is not that of the leaf.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    # Whatever Consul names as a root is one, an intermediate of another CA too. So do Go and Envoy.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata="\n".join(roots))
    with _as_file(f"{certificates}\n{key}") as name:
        context.load_cert_chain(name)
    return context


async def connect(host: str, port: int, *, seconds: float) -> trio.SocketStream:
    """A TCP connection; of several addresses of a name the first that answers. RefusedError of stage `connect`."""
    with trio.move_on_after(seconds):
        try:
            return await trio.open_tcp_stream(host, port)
        except OSError as error:
            raise RefusedError("connect", None, words_of(error)) from error
    raise RefusedError("connect", None, f"nothing within {seconds:g} s")


async def shake_hands(stream: trio.SSLStream[trio.SocketStream], *, seconds: float) -> None:
    """The handshake. A client of TLS 1.3 is through before the server has judged its certificate.

    Raises:
        UntrustedError: the peer's chain does not lead to the roots of the context.
        RefusedError: of stage `handshake`; refused, or not done within `seconds`.
    """
    with trio.move_on_after(seconds), _refusals("handshake"):
        await stream.do_handshake()
        return
    raise RefusedError("handshake", None, f"nothing within {seconds:g} s")


async def listen(stream: trio.SSLStream[trio.SocketStream], *, seconds: float) -> bytes | None:
    """What the peer says first within `seconds`; empty where it ends the connection in order, None where it is silent.

    Raises:
        RefusedError: of stage `stream`; an alert, a reset, or the end without a close_notify.
    """
    with trio.move_on_after(seconds), _refusals("stream"):
        return bytes(await stream.receive_some(1024))
    return None


def peer_of(session: ssl.SSLObject | trio.SSLStream[trio.SocketStream]) -> Peer:
    """Whom a session that has shaken hands has met; WrongPeerError where it proved no identity of a mesh."""
    encoded, cipher = session.getpeercert(binary_form=True), session.cipher()
    if encoded is None or cipher is None:
        raise WrongPeerError("it proved no identity")
    certificate = x509.load_der_x509_certificate(encoded)
    return Peer(spiffe_id(certificate), certificate.not_valid_after_utc, session.version() or "", cipher[0])


def spiffe_id(certificate: x509.Certificate) -> str:
    """The one SPIFFE ID of a leaf.

    Raises:
        WrongPeerError: it is none of a workload (SPIFFE X509-SVID, sections 2, 4.1 and 4.3): it has no SPIFFE ID or
            several names of that kind, or it may sign certificates.
    """
    extensions = certificate.extensions
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise WrongPeerError("its certificate names no SPIFFE ID") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    identities = [uri for uri in uris if uri.startswith("spiffe://")]
    if len(identities) != 1 or len(uris) != 1:
        raise WrongPeerError(f"its certificate names {len(identities)} SPIFFE IDs among {len(uris)} URIs")
    for extension in extensions:
        value = extension.value
        if (isinstance(value, x509.BasicConstraints) and value.ca) or (
            isinstance(value, x509.KeyUsage) and (value.key_cert_sign or value.crl_sign)
        ):
            raise WrongPeerError("its certificate is one of an authority, not of a service")
    return identities[0]


def alert_name(error: ssl.SSLError) -> str | None:
    """The name of the alert that the peer sent, None where `error` is no received alert."""
    reason = error.reason or ""
    for prefix in _ALERT_PREFIXES:
        if reason.startswith(prefix):
            return reason.removeprefix(prefix).lower()
    return None


@contextmanager
def _refusals(stage: str) -> Iterator[None]:
    """What trio makes a BrokenResourceError of, told apart."""
    try:
        yield
    except trio.BrokenResourceError as broken:
        error = broken.__cause__
        if isinstance(error, ssl.SSLCertVerificationError):
            detail = f"its certificate does not lead to the roots of the mesh: {error.verify_message}"
            raise UntrustedError(stage, None, detail) from error
        if isinstance(error, ssl.SSLEOFError):
            raise RefusedError(stage, None, "closed without close_notify") from error
        if isinstance(error, ssl.SSLError):
            reason = error.reason or str(error)
            detail = NO_TLS if reason in _NOT_TLS else reason.replace("_", " ").lower()
            raise RefusedError(stage, alert_name(error), detail) from error
        raise RefusedError(stage, None, "connection reset") from broken


@contextmanager
def _as_file(text: str) -> Iterator[str]:
    """The name under which `text`, a key, can be read during the block: OpenSSL takes it from a file alone."""
    with os.fdopen(os.memfd_create("leaf"), "w") as file:
        file.write(text)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"
