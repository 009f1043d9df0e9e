"""An authority and a leaf for both sides of a stream, and the TLS contexts that use them."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def make_certificates(folder: Path) -> None:
    """An authority `ca.pem`, and a leaf for both sides, `leaf.pem` with its key: P-256, as Consul's own are."""
    issuer, subject = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("authority", "leaf"))
    now = datetime.now(UTC)

    def certify(key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey, *, ca: bool) -> bytes:
        name = issuer if ca else subject
        builder = x509.CertificateBuilder(issuer, name, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True)
        return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    authority, leaf = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    (folder / "ca.pem").write_bytes(certify(authority, authority, ca=True))
    private = leaf.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "leaf.pem").write_bytes(certify(leaf, authority, ca=False) + private)


def client_context(folder: Path) -> ssl.SSLContext:
    """Of a client that shows the leaf, and takes any name of the authority's."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, folder)


def server_context(folder: Path) -> ssl.SSLContext:
    """Of a server that wants a leaf."""
    return _context(ssl.PROTOCOL_TLS_SERVER, folder)


def _context(purpose: int, folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(purpose)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(folder / "ca.pem")
    context.load_cert_chain(folder / "leaf.pem")
    return context
