"""One instance of a service, as a process: it proves its name by a certificate and says it on every stream.

`python -m soaking.sidecar SERVICE INCARNATION ADDRESS PORT LEAF`. It says `listening` once it does, and a line that
begins with `DAMAGE` for each stream whose bytes are not what its caller sent. SIGUSR1: it listens no more, says `deaf`,
and ends with its last stream.
"""

import json
import signal
import ssl
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Final

import trio
from tests.harness.tls import TlsStream, mesh_context

from .messages import BROKEN, PLAIN, DamagedError, Duplex, PlainStream, Receiver, Sender, noise, spot

_BACKLOG: Final = 256
# Longer than any pause or partition, so that only callers and gateways ever give up.
_HELLO_SECONDS: Final = 300.0


class Sidecar:
    """Serves until told to end."""

    def __init__(self, service: str, incarnation: str, context: ssl.SSLContext) -> None:
        self._service = service
        self._incarnation = incarnation
        self._context = context

    async def run(self, address: str, port: int) -> None:
        """Listens, until SIGUSR1; then lets the open streams end."""
        sock = trio.socket.socket()
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
        await sock.bind((address, port))
        sock.listen(_BACKLOG)
        with trio.open_signal_receiver(signal.SIGUSR1) as signals:
            say("listening")
            async with trio.open_nursery() as streams:
                async with trio.open_nursery() as accepting:
                    accepting.start_soon(self._accept, trio.SocketListener(sock), streams)
                    async for _ in signals:
                        accepting.cancel_scope.cancel()
                        break
                sock.close()
                say("deaf")

    async def _accept(self, listener: trio.SocketListener, streams: trio.Nursery) -> None:
        while True:
            streams.start_soon(self._serve, await listener.accept())

    async def _serve(self, transport: trio.SocketStream) -> None:
        try:
            # A peer that broke off is the caller's business: it judges all its streams.
            with suppress(*BROKEN):
                await self._converse(transport)
        except DamagedError as error:
            say(f"DAMAGE {error}")
        finally:
            transport.socket.close()

    async def _begun(self, transport: trio.SocketStream) -> Duplex:
        """The stream behind its hello, or its handshake."""
        hello = b""
        while len(hello) < 5 or len(hello) < 5 + int.from_bytes(hello[3:5]):
            # Not one byte more: what follows is the stream's.
            missing = 5 - len(hello) if len(hello) < 5 else 5 + int.from_bytes(hello[3:5]) - len(hello)
            data = await transport.receive_some(missing)
            if not data:
                raise trio.BrokenResourceError("no hello")
            hello += data
        if PLAIN in hello:
            return PlainStream(transport)
        stream = TlsStream(transport, self._context, server=True, received=hello)
        await stream.do_handshake()
        return stream

    async def _converse(self, transport: trio.SocketStream) -> None:
        leg = [spot(*transport.socket.getpeername()), spot(*transport.socket.getsockname())]
        with trio.move_on_after(_HELLO_SECONDS) as scope:
            stream = await self._begun(transport)
            receiver, sender = Receiver(stream, self._service), Sender(stream, self._service)
            plan = json.loads(await receiver.receive())
        if scope.cancelled_caught:
            return
        await sender.send(json.dumps({"incarnation": self._incarnation, "leg": leg}).encode())
        done = trio.Event()

        async def receive() -> None:
            while await receiver.receive():
                pass
            done.set()

        trouble: list[BaseException] = []
        try:
            async with trio.open_nursery(strict_exception_groups=True) as nursery:
                nursery.start_soon(receive)
                rng = Random(plan["seed"])
                for size, pause in plan["down"]:
                    await sender.send(noise(rng, size))
                    await trio.sleep(pause)
                await done.wait()
        except* (*BROKEN, DamagedError) as group:
            trouble.extend(group.exceptions)
        if trouble:
            raise next((each for each in trouble if isinstance(each, DamagedError)), trouble[0])
        await sender.send(json.dumps({"received": receiver.received, "digest": receiver.digest}).encode())
        await sender.send(b"")
        await stream.send_eof()
        await receiver.expect_end()


def say(line: str) -> None:
    """A line for whoever reads the log."""
    print(line, flush=True)


def main() -> None:
    """Run one."""
    service, incarnation, address, port, leaf = sys.argv[1:]
    answers = json.loads(Path(leaf).read_text())
    with tempfile.TemporaryDirectory() as folder:
        context = mesh_context(answers["leaf"], answers["roots"], Path(folder), server=True)
    with suppress(KeyboardInterrupt):
        trio.run(Sidecar(service, incarnation, context).run, address, int(port))


if __name__ == "__main__":
    main()
