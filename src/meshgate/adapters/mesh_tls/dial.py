"""The steps of a call into the mesh, one function each, so that whoever calls can time and name the one that failed."""

import os
import socket
import ssl
from dataclasses import dataclass

import trio
from cryptography import x509

from .identity import WrongPeerError, spiffe_id
from .stream import RefusedError, TlsStream


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a handshake, as its certificate says.

    `intermediates` are the certificates (PEM) that it sent along; empty before Python 3.13, which hides them.
    """

    certificate: x509.Certificate
    intermediates: tuple[str, ...]
    spiffe_id: str
    tls_version: str
    cipher: str


async def connect(host: str, port: int, *, seconds: float) -> trio.SocketStream:
    """A TCP connection; of several addresses of a name the first that answers.

    Raises:
        RefusedError: of stage `connect`; nobody answers, or not within `seconds`.
    """
    with trio.move_on_after(seconds):
        try:
            return await trio.open_tcp_stream(host, port)
        except OSError as error:
            raise RefusedError("connect", None, _reason(error)) from error
    raise RefusedError("connect", None, f"nothing within {seconds:g} s")


async def shake_hands(stream: TlsStream, *, seconds: float) -> None:
    """The handshake of `stream`.

    Raises:
        RefusedError: of stage `handshake`; refused, or not done within `seconds`.
    """
    with trio.move_on_after(seconds):
        await stream.do_handshake()
        return
    raise RefusedError("handshake", None, f"nothing within {seconds:g} s")


def peer_of(tls: ssl.SSLObject) -> Peer:
    """Whom a session that has shaken hands has met.

    Raises:
        WrongPeerError: it proved no identity, or none of a mesh.
    """
    encoded, cipher = tls.getpeercert(binary_form=True), tls.cipher()
    if encoded is None or cipher is None:
        raise WrongPeerError("it proved no identity")
    certificate = x509.load_der_x509_certificate(encoded)
    sent: list[bytes] = getattr(tls, "get_unverified_chain", list)()
    between = tuple(ssl.DER_cert_to_PEM_cert(der) for der in sent[1:])
    return Peer(certificate, between, spiffe_id(certificate), tls.version() or "", cipher[0])


def _reason(error: OSError) -> str:
    """What went wrong, once: trio packs the failures of several addresses into a group."""
    cause: BaseException = error.__cause__ or error
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    if isinstance(cause, socket.gaierror):
        return cause.strerror or str(cause)
    return os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else str(cause)
