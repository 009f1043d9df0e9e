"""Identities of the mesh: a TLS context from Consul's leaf and roots, and the SPIFFE ID in a certificate."""

import os
import ssl
import tempfile
from pathlib import Path

from cryptography import x509

from meshgate.app.demo.agent import Json


class WrongPeerError(Exception):
    """The other side proved an identity, but not one that was expected."""


def mesh_context(leaf: Json, roots: Json, folder: Path, *, server: bool = False) -> ssl.SSLContext:
    """A context for mTLS inside the mesh from Consul's answers for the leaf and the roots.

    Names are not checked, since SPIFFE IDs are no host names; the peer's chain must lead to one of the roots. The key
    is on disk, in `folder` and readable by its owner alone, only while OpenSSL reads it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata="\n".join(root["RootCert"] for root in roots["Roots"]))
    descriptor, name = tempfile.mkstemp(dir=folder, suffix=".pem")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(leaf["CertPEM"] + "\n" + leaf["PrivateKeyPEM"])
        context.load_cert_chain(name)
    finally:
        Path(name).unlink()
    return context


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
