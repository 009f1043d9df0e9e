"""Identities of the mesh: a TLS context from Consul's leaf and roots, the SPIFFE ID in a certificate, its chain.

A private key is on a disk only where the caller names a folder or the system has no files in memory, and then readable
by its owner alone and only while OpenSSL reads it: OpenSSL takes keys from files alone.
"""

import os
import ssl
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError


class WrongPeerError(Exception):
    """The other side proved an identity, but not one that was expected."""


def mesh_context(
    certificates: str, key: str, roots: Sequence[str], *, folder: Path | None = None, server: bool = False
) -> ssl.SSLContext:
    """A context for mTLS inside the mesh from the PEM text of a leaf with its intermediates, its key, and the roots.

    Names are not checked, since SPIFFE IDs are no host names; the peer's chain must lead to one of the roots. The key
    passes through `folder`; in memory where None.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata="\n".join(roots))
    with _as_file(f"{certificates}\n{key}", folder) as name:
        context.load_cert_chain(name)
    return context


@contextmanager
def _as_file(text: str, folder: Path | None) -> Iterator[str]:
    """The name under which `text` can be read during the block, and by this user alone."""
    if folder is None and hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("leaf")
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            yield f"/proc/self/fd/{descriptor}"
        return
    descriptor, name = tempfile.mkstemp(dir=folder, suffix=".pem")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        yield name
    finally:
        Path(name).unlink()


def spiffe_id(certificate: x509.Certificate) -> str:
    """The one SPIFFE ID of a certificate.

    Raises:
        WrongPeerError: it has none or several (SPIFFE X509-SVID, section 2).
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise WrongPeerError("its certificate names no SPIFFE ID") from None
    identities = [
        uri for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if uri.startswith("spiffe://")
    ]
    if len(identities) != 1:
        raise WrongPeerError(f"its certificate names {len(identities)} SPIFFE IDs")
    return identities[0]


def verify(
    certificate: x509.Certificate, *, roots: Sequence[str], intermediates: Sequence[str] = (), now: datetime
) -> tuple[x509.Certificate, ...]:
    """The chain from a leaf to one of the roots (both in PEM, as the intermediates), valid at `now` (UTC).

    A second opinion beside OpenSSL's in the handshake, by another implementation.

    Raises:
        WrongPeerError: there is none.
    """
    anchors = [each for pem in roots for each in x509.load_pem_x509_certificates(pem.encode())]
    between = [each for pem in intermediates for each in x509.load_pem_x509_certificates(pem.encode())]
    # Certificates of the mesh name no hosts; the verifier of clients is the one that asks for none.
    verifier = PolicyBuilder().store(Store(anchors)).time(now).build_client_verifier()
    try:
        return tuple(verifier.verify(certificate, between).chain)
    except VerificationError as error:
        raise WrongPeerError(f"its certificate does not lead to the CA roots: {error}") from None
