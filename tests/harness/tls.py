"""TLS with what tests of a relay need: half-close that lets the answer in, and alerts by name.

trio's own TLS stream offers neither. TLS 1.3 closes each direction by itself (RFC 8446 section 6.1), so after
`send_eof` receiving goes on until the peer has closed its direction too.
"""

import os
import ssl
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

import trio

from meshgate.adapters.mesh_tls import RefusedError, alert_name
from tests.harness.agent import Json

Result = TypeVar("Result")

_CHUNK: Final = 65536


def mesh_context(leaf: Json, roots: Json, folder: Path, *, server: bool = False) -> ssl.SSLContext:
    """A context for either side of the mesh from Consul's answers; the key passes through `folder`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata="\n".join(root["RootCert"] for root in roots["Roots"]))
    descriptor, name = tempfile.mkstemp(dir=folder, suffix=".pem")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{leaf['CertPEM']}\n{leaf['PrivateKeyPEM']}")
        context.load_cert_chain(name)
    finally:
        Path(name).unlink()
    return context


async def shake_hands(stream: "TlsStream", *, seconds: float) -> None:
    """The handshake of `stream`.

    Raises:
        RefusedError: of stage `handshake`; refused, or not done within `seconds`.
    """
    with trio.move_on_after(seconds):
        await stream.do_handshake()
        return
    raise RefusedError("handshake", None, f"nothing within {seconds:g} s")


class TlsStream(trio.abc.HalfCloseableStream):
    """One TLS connection. Sending and receiving may go on in two tasks at once.

    Abandoned by a cancellation in the middle of a send it can only be closed.
    """

    def __init__(
        self,
        transport: trio.SocketStream,
        context: ssl.SSLContext,
        *,
        sni: str | None = None,
        server: bool = False,
        received: bytes = b"",
    ) -> None:
        """`sni` is the name that a client sends, None for none; nothing is sent before `do_handshake`.

        `received` is what has been read from the transport already.
        """
        self._transport = transport
        self._incoming = ssl.MemoryBIO()
        self._incoming.write(received)
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server, server_hostname=sni)
        self._sending = trio.Lock()
        self._early = bytearray()
        self._stage = "handshake"

    @property
    def tls(self) -> ssl.SSLObject:
        """The session: version, cipher, peer certificate."""
        return self._tls

    async def do_handshake(self) -> None:
        """Shakes hands. A client of TLS 1.3 is through before the server has judged its certificate.

        Raises:
            RefusedError: the peer refused or went away, or its certificate is not trusted.
        """
        await self._until_done(self._tls.do_handshake)
        self._stage = "stream"

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Sends all of `data`; returns when the kernel has it.

        Raises:
            trio.BrokenResourceError: the connection is broken; `receive_some` may still tell why.
        """
        for start in range(0, len(data), _CHUNK):
            self._tls.write(data[start : start + _CHUNK])
            await self._flush()

    async def wait_send_all_might_not_block(self) -> None:
        """As the transport's."""
        await self._transport.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Up to `max_bytes` (64 KiB where None); empty after the peer's close_notify.

        Raises:
            RefusedError: the peer sent an alert, reset the connection, or closed it without close_notify.
        """
        size = max_bytes or _CHUNK

        def take() -> bytes:
            if not self._early:
                return self._tls.read(size)
            data = bytes(self._early[:size])
            del self._early[:size]
            return data

        try:
            return await self._until_done(take)
        except ssl.SSLZeroReturnError:
            return b""

    async def send_eof(self) -> None:
        """Ends the sending direction: close_notify, then FIN. Receiving goes on."""
        # OpenSSL looks for the peer's close_notify at once and stumbles over data that is there already: take it first.
        with suppress(ssl.SSLError):
            while data := self._tls.read(_CHUNK):
                self._early += data
        with suppress(ssl.SSLError):
            self._tls.unwrap()
        await self._flush()
        await self._transport.send_eof()

    async def aclose(self) -> None:
        """Closes the connection at once; use `send_eof` before for an end in order."""
        await self._transport.aclose()

    async def _flush(self) -> None:
        async with self._sending:
            while data := self._outgoing.read():
                await self._transport.send_all(data)

    async def _until_done(self, operation: Callable[[], Result]) -> Result:
        """Runs `operation`, fetching bytes for it as often as it wants some."""
        while True:
            try:
                result = operation()
            except ssl.SSLWantReadError:
                await self._flush_if_heard()
                await self._fetch()
            except ssl.SSLZeroReturnError:
                raise
            except ssl.SSLError as error:
                await self._flush_if_heard()
                detail = "closed without close_notify" if isinstance(error, ssl.SSLEOFError) else str(error)
                raise RefusedError(self._stage, alert_name(error), detail) from error
            else:
                await self._flush_if_heard()
                return result

    async def _fetch(self) -> None:
        try:
            data = await self._transport.receive_some(_CHUNK)
        except trio.BrokenResourceError as error:
            raise RefusedError(self._stage, None, "connection reset") from error
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def _flush_if_heard(self) -> None:
        """Sends what OpenSSL made by the way; where the peer is gone, receiving tells why.

        Never waits for a sender, who may wait for this side to receive: whoever sends takes along what is there.
        """
        if self._outgoing.pending and not self._sending.locked():
            with suppress(trio.BrokenResourceError):
                await self._flush()
        else:
            await trio.lowlevel.checkpoint()
