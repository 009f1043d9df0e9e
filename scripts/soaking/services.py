"""Services of the mesh in this process: they prove their name by a certificate and say it on every stream.

An instance can be made critical, leave the catalog, move to another port, and die with its open streams.
"""

import json
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Final

import trio

from meshgate.adapters.mesh_tls import RefusedError, TlsStream
from meshgate.app.demo.agent import Consul
from meshgate.app.demo.identity import mesh_context
from meshgate.app.demo.instance import HOST, Instance

from .ledger import Ledger
from .messages import DamagedError, OverError, Receiver, Sender, noise

_RESET: Final = b"\x01\0\0\0\0\0\0\0"
_BACKLOG: Final = 256
# Whatever a broken connection may raise.
BROKEN: Final = (RefusedError, OverError, trio.BrokenResourceError, trio.ClosedResourceError, OSError)


def shut_hard(transport: trio.SocketStream) -> None:
    """Close with a reset, as the kernel does for a process that died with unread bytes."""
    with suppress(OSError, trio.ClosedResourceError):
        transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.socket.close()


class SoakInstance(Instance):
    """One instance. `incarnation` changes when it dies."""

    def __init__(
        self, consul: Consul, service: str, number: int, context: ssl.SSLContext, ledger: Ledger, nursery: trio.Nursery
    ) -> None:
        name = f"{service}-{number}"
        super().__init__(consul, service, name, listed_as=name)
        self.listed = False
        self._context = context
        self._ledger = ledger
        self._nursery = nursery
        self._lives = 0
        self._listener: trio.SocketListener | None = None
        self._open: dict[int, tuple[trio.SocketStream, trio.CancelScope]] = {}

    @property
    def incarnation(self) -> str:
        """The name of this life of it."""
        return f"{self.instance}/{self._lives}"

    async def listen(self, port: int = 0) -> None:
        """Takes connections on `port`, 0 for a free one."""
        sock = trio.socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        await sock.bind((HOST, port))
        sock.listen(_BACKLOG)
        self.port = sock.getsockname()[1]
        self._listener = trio.SocketListener(sock)
        self._nursery.start_soon(self._accept, self._listener)

    def stop_listening(self) -> None:
        """Takes no more connections; those that are open live on."""
        if self._listener is not None:
            self._listener.socket.close()
            self._listener = None

    def die(self) -> None:
        """The end of a process: no listener, all connections reset."""
        self._ledger.death("endpoint killed", incarnation=self.incarnation)
        self._lives += 1
        self.stop_listening()
        for transport, scope in list(self._open.values()):
            shut_hard(transport)
            scope.cancel()

    async def register(self) -> None:
        """Puts it into the catalog at its present address and waits until it is there."""
        await self.consul.register(
            {
                "ID": self.instance,
                "Name": self.service,
                "Address": HOST,
                "Port": self.port,
                "Connect": {"Native": True},
                "Checks": [self.check],
            }
        )
        await self.set_health("passing")
        self.listed = True

    async def _accept(self, listener: trio.SocketListener) -> None:
        with suppress(trio.ClosedResourceError):
            while True:
                self._nursery.start_soon(self._serve, await listener.accept())

    async def _serve(self, transport: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            self._open[id(transport)] = transport, scope
            try:
                # A peer that broke off is the caller's business: it judges all its streams.
                with suppress(*BROKEN):
                    await self._converse(transport)
            except DamagedError as error:
                self._ledger.violation(f"{self.instance} received damage: {error}")
            finally:
                self._open.pop(id(transport), None)
                transport.socket.close()

    async def _converse(self, transport: trio.SocketStream) -> None:
        incarnation = self.incarnation
        leg = [transport.socket.getpeername()[1], transport.socket.getsockname()[1]]
        stream = TlsStream(transport, self._context, server=True)
        with trio.move_on_after(30) as scope:
            await stream.do_handshake()
            receiver, sender = Receiver(stream, self.service), Sender(stream, self.service)
            plan = json.loads(await receiver.receive())
        if scope.cancelled_caught:
            return
        who = {"instance": self.instance, "incarnation": incarnation, "leg": leg}
        await sender.send(json.dumps(who).encode())
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


async def service_context(consul: Consul, service: str, folder: Path) -> ssl.SSLContext:
    """The TLS context of a service, from its leaf."""
    leaf = await consul.get(f"/v1/agent/connect/ca/leaf/{service}")
    roots = await consul.get("/v1/agent/connect/ca/roots")
    return mesh_context(leaf, roots, folder, server=True)
