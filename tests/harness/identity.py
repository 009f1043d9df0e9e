"""A TLS context of the mesh from Consul's answers as the demo reads them."""

import ssl
from pathlib import Path

from meshgate.adapters import mesh_tls
from tests.harness.agent import Json


def mesh_context(leaf: Json, roots: Json, folder: Path, *, server: bool = False) -> ssl.SSLContext:
    """A context from Consul's answers for the leaf and the roots; the key passes through `folder`."""
    certificates = [root["RootCert"] for root in roots["Roots"]]
    return mesh_tls.mesh_context(leaf["CertPEM"], leaf["PrivateKeyPEM"], certificates, folder=folder, server=server)
