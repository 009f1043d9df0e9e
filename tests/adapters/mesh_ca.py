"""A CA of a mesh for tests: a root, an intermediate as a secondary datacenter has one, and leaves with SPIFFE IDs."""

import datetime as dt
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.harness.tls import mesh_context

NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)


@dataclass(frozen=True)
class Signer:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> str:
        return pem_of(self.certificate)

    @property
    def key_pem(self) -> str:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()

    def authority(self, name: str, *, path_length: int | None = None, uri: str = "spiffe://td.consul") -> "Signer":
        """One with an empty name is like the intermediate of a secondary datacenter since Consul 1.11."""
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        return _signed(name, self, [*_authority_extensions(path_length), (names, False)], dt.timedelta(days=365))

    def leaf(self, *uris: str, hours: float = 72, san: bool = True) -> "Signer":
        names = [(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris]), False)]
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_key_usage(signs=False), True),
            (x509.ExtendedKeyUsage(uses), False),
            *(names if san else []),
        ]
        # Since 1.11 Consul's leaves have no subject either.
        return _signed(
            "" if not list(self.certificate.subject) else "leaf", self, extensions, dt.timedelta(hours=hours)
        )


def mesh_root(name: str = "root") -> Signer:
    return _signed(name, None, _authority_extensions(), dt.timedelta(days=3650))


def pem_of(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def serving_context(signer: Signer, chain: str, roots: Sequence[str]) -> ssl.SSLContext:
    """A server that shows a chain of PEM certificates, and trusts callers of these roots."""
    with TemporaryDirectory() as folder:
        leaf = {"CertPEM": chain, "PrivateKeyPEM": signer.key_pem}
        return mesh_context(leaf, {"Roots": [{"RootCert": pem} for pem in roots]}, Path(folder), server=True)


def _authority_extensions(path_length: int | None = None) -> list[tuple[x509.ExtensionType, bool]]:
    return [(x509.BasicConstraints(ca=True, path_length=path_length), True), (_key_usage(signs=True), True)]


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _signed(
    name: str, issuer: Signer | None, extensions: list[tuple[x509.ExtensionType, bool]], life: dt.timedelta
) -> Signer:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
    signer = issuer.key if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - dt.timedelta(hours=1))
        .not_valid_after(NOW + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return Signer(builder.sign(signer, hashes.SHA256()), key)
