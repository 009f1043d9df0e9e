"""What the streams carry, so that a byte lost, doubled, moved or of another stream is noticed at once.

Each direction is a row of frames. A frame names the service and says at which byte it begins, and ends with the hash of
everything in this direction so far. The last frame is empty.
"""

import hashlib
import os
import struct
from random import Random
from typing import Final

import trio
from tests.harness.tls import TlsStream

from meshgate.adapters.mesh_tls import RefusedError

_HEAD: Final = struct.Struct(">IQB")
_DIGEST: Final = 16
_NOISE: Final = os.urandom(1 << 20)
MOST: Final = 64 << 10


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


class Sender:
    """One direction, where it begins."""

    def __init__(self, stream: TlsStream, service: str) -> None:
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

    def __init__(self, stream: TlsStream, service: str) -> None:
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
