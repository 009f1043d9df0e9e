"""A Connect-native destination: a service that terminates its mTLS itself, with its real leaf, in this process.

It judges callers as Consul's native integration does: the chain by the mesh's roots in the handshake, the intention by
`/v1/agent/connect/authorize` after it. Unlike Consul's built-in proxy it carries half-closed streams faithfully.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio
from cryptography import x509

from meshgate.adapters.mesh_tls import RefusedError, spiffe_id
from tests.harness.agent import Consul, ConsulError
from tests.harness.backend import echo, serving
from tests.harness.instance import HOST, Instance
from tests.harness.tls import TlsStream, mesh_context


async def _may_call(consul: Consul, service: str, encoded: bytes) -> bool:
    certificate = x509.load_der_x509_certificate(encoded)
    serial = certificate.serial_number.to_bytes(20, "big").lstrip(b"\0").hex(":")
    question = {"Target": service, "ClientCertURI": spiffe_id(certificate), "ClientCertSerial": serial}
    try:
        answer = await consul.post("/v1/agent/connect/authorize", question)
    except ConsulError:
        return False
    return bool(answer["Authorized"])


@asynccontextmanager
async def native_service(
    consul: Consul, service: str, folder: Path, *, instance: str | None = None, named: bool = False, **extra: object
) -> AsyncIterator[Instance]:
    """An instance of `service` that speaks mTLS itself and echoes, for the length of the block.

    `folder` is where its key passes through; the rest is as for `sidecar_for`. A caller that an intention forbids is
    cut off after the handshake, without an alert.
    """
    identity = instance or service
    greeting = f"{identity}\n".encode() if named else b""
    leaf = await consul.get(f"/v1/agent/connect/ca/leaf/{service}")
    roots = await consul.get("/v1/agent/connect/ca/roots")
    context = mesh_context(leaf, roots, folder, server=True)

    async def serve(transport: trio.SocketStream) -> None:
        stream = TlsStream(transport, context, server=True)
        with suppress(RefusedError):
            await stream.do_handshake()
            encoded = stream.tls.getpeercert(binary_form=True)
            if encoded is not None and await _may_call(consul, service, encoded):
                await echo(stream, greeting)

    native = Instance(consul, service, identity, listed_as=identity)
    async with serving(serve) as native.port:
        registration = {
            "ID": identity,
            "Name": service,
            "Address": HOST,
            "Port": native.port,
            "Connect": {"Native": True},
            "Checks": [native.check],
        }
        try:
            await consul.register(registration | extra)
            await native.set_health(native.health)
            yield native
        finally:
            await native.forget()
