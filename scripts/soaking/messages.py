"""What the streams carry, so that a byte lost, doubled, moved or of another stream is noticed at once.

Most streams are TLS, and prove who they are by certificates. Quick ones, of which there are far more, have a hello with
`PLAIN` in it, so that a gateway does for them what it does for all, and then the same frames in the clear.

Each direction is a row of frames. A frame names the service and says at which byte it begins, and ends with the hash of
everything in this direction so far. The last frame is empty.
"""

import hashlib
import os
import struct
from contextlib import suppress
from random import Random
from socket import MSG_OOB
from ssl import PROTOCOL_TLS_CLIENT, MemoryBIO, SSLContext, SSLWantReadError
from typing import Final, Protocol

import trio

from meshgate.adapters.mesh_tls import RefusedError

_HEAD: Final = struct.Struct(">IQB")
_DIGEST: Final = 16
_NOISE: Final = os.urandom(1 << 20)
MOST: Final = 64 << 10
PLAIN: Final = b"soak/plain"
_ALERT: Final = 21
_ALERTS: Final = {80: "internal_error", 112: "unrecognized_name"}


class DamagedError(Exception):
    """What arrived is not what was sent on this stream."""


class OverError(Exception):
    """The other side ended the connection, in order as far as TLS can tell, before its last frame."""


# Whatever a broken connection may raise.
BROKEN: Final = (RefusedError, OverError, trio.BrokenResourceError, trio.ClosedResourceError, OSError)


def spot(address: str, port: int) -> str:
    """One end of a TCP connection."""
    return f"{address}:{port}"


def noise(rng: Random, size: int) -> bytes:
    """Bytes that nobody can guess; at most MOST."""
    start = rng.randrange(len(_NOISE) - size)
    return _NOISE[start : start + size]


def hello_for(name: str, *alpn: str) -> bytes:
    """A ClientHello as OpenSSL makes it."""
    context = SSLContext(PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if alpn:
        context.set_alpn_protocols(alpn)
    outgoing = MemoryBIO()
    with suppress(SSLWantReadError):
        context.wrap_bio(MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


class Duplex(Protocol):
    """What carries frames: TLS, or a connection as it is."""

    async def send_all(self, data: bytes) -> None: ...

    async def receive_some(self, max_bytes: int | None = None) -> bytes: ...

    async def send_eof(self) -> None: ...


class PlainStream:
    """A connection as it is, behind its hello.

    With `urgent` an urgent byte lies somewhere among those of one write. It is beside the stream, so whoever reads that
    may drop it, and must get all others. A second one would make an ordinary byte of the first (tcp(7)).
    """

    def __init__(self, transport: trio.SocketStream, *, urgent: Random | None = None) -> None:
        self._transport = transport
        self._urgent = urgent
        self._begun = False

    async def send_all(self, data: bytes) -> None:
        """Sends all of `data`."""
        if self._urgent is not None and self._urgent.random() < 0.3:
            at = self._urgent.randrange(len(data))
            self._urgent = None
            await self._transport.send_all(data[:at])
            await self._transport.socket.send(b"!", MSG_OOB)
            data = data[at:]
        await self._transport.send_all(data)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What is there; empty at the end.

        Raises:
            RefusedError: a gateway has answered with an alert.
        """
        data = bytes(await self._transport.receive_some(max_bytes or MOST))
        if not self._begun and data[:1] == bytes((_ALERT,)):
            raise RefusedError("handshake", _ALERTS.get(data[-1], str(data[-1])), "an alert")
        self._begun = True
        return data

    async def send_eof(self) -> None:
        """Ends the sending direction."""
        await self._transport.send_eof()


class Sender:
    """One direction, where it begins."""

    def __init__(self, stream: Duplex, service: str) -> None:
        self.sent = 0
        self._stream = stream
        self._service = service.encode()
        self._hash = hashlib.blake2b(self._service, digest_size=_DIGEST)

    async def send(self, payload: bytes) -> None:
        """One frame; an empty payload is the last one."""
        self._hash.update(payload)
        head = _HEAD.pack(len(payload), self.sent, len(self._service)) + self._service
        await self._stream.send_all(head + payload + self._hash.digest())
        self.sent += len(payload)

    @property
    def digest(self) -> str:
        """The hash so far."""
        return self._hash.hexdigest()


class Receiver:
    """One direction, where it ends."""

    def __init__(self, stream: Duplex, service: str) -> None:
        self.received = 0
        self._stream = stream
        self._service = service.encode()
        self._hash = hashlib.blake2b(self._service, digest_size=_DIGEST)
        self._early = bytearray()

    @property
    def digest(self) -> str:
        """The hash so far."""
        return self._hash.hexdigest()

    async def receive(self) -> bytes:
        """The payload of the next frame; empty after the last.

        Raises:
            DamagedError: this is not the stream that the other side sent.
            OverError: the direction ended before its last frame.
            RefusedError: the connection broke.
        """
        length, offset, width = _HEAD.unpack(await self._exactly(_HEAD.size))
        if width != len(self._service) or offset != self.received or length > MOST:
            raise DamagedError(f"a frame of {length} bytes at {offset}, expected at {self.received}")
        name = await self._exactly(width)
        if name != self._service:
            raise DamagedError(f"a frame of {name!r} on a stream of {self._service!r}")
        payload = await self._exactly(length)
        self._hash.update(payload)
        if await self._exactly(_DIGEST) != self._hash.digest():
            raise DamagedError(f"another hash at {self.received}")
        self.received += length
        return payload

    async def expect_end(self) -> None:
        """Nothing may follow the last frame.

        Raises:
            DamagedError: something did.
        """
        if self._early or await self._stream.receive_some():
            raise DamagedError("bytes behind the last frame")

    async def _exactly(self, count: int) -> bytes:
        while len(self._early) < count:
            data = await self._stream.receive_some()
            if not data:
                raise OverError(f"after {self.received} bytes")
            self._early += data
        taken = bytes(self._early[:count])
        del self._early[:count]
        return taken
