"""Accepts clients: in batches, within the limits, and also when descriptors have run out."""

import contextlib
import errno
import logging
import os
import socket
from select import EPOLLIN
from typing import TYPE_CHECKING, Final

from meshgate.core.reasons import Reason

from .connection import Connection
from .counters import Refused

if TYPE_CHECKING:
    from .engine import Engine

log = logging.getLogger("meshgate.relay")

_BATCH: Final = 8  # Streams that exist get their turn between batches of new ones.
_NO_DESCRIPTOR: Final = (errno.EMFILE, errno.ENFILE)
_NO_MEMORY: Final = (errno.ENOMEM, errno.ENOBUFS)
_PAUSE_SECONDS: Final = 0.2
_CLOSING_SECONDS: Final = 0.5  # For the clients that wait when a listener closes; others are reset by the kernel.


class Listener:
    """One listening socket, registered level-triggered: what a batch leaves behind raises the next event."""

    __slots__ = ("_engine", "_spare", "name", "sock", "tick")

    def __init__(self, engine: "Engine", name: str, sock: socket.socket) -> None:
        self._engine = engine
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self.name = name
        self.sock = sock
        self.tick = 0

    def on_event(self, _events: int) -> None:
        """Clients wait: accept a batch of them."""
        for _ in range(_BATCH):
            if not self._accept():
                return

    def on_deadline(self) -> None:
        """A pause for lack of memory is over."""
        self._engine.watch(self, EPOLLIN)

    def close(self) -> None:
        """Give the address back. Clients that wait already are accepted first: closing would reset them."""
        until = self._engine.clock() + _CLOSING_SECONDS
        while self._accept() and self._engine.clock() < until:
            pass
        self._engine.disarm(self)
        self._engine.forget(self)
        self.sock.close()
        if self._spare >= 0:
            os.close(self._spare)

    def _accept(self) -> bool:
        """Accept one client; False when none is left, or none can be had now."""
        try:
            sock, address = self.sock.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in _NO_DESCRIPTOR:
                self._shed_with_spare()
            elif error.errno in _NO_MEMORY:
                self._pause()
            # Anything else concerns the one client that gave up while it waited (accept(2), "Error handling").
            return False
        self._admit(sock, address[0], address[1])
        return True

    def _admit(self, sock: socket.socket, host: str, port: int) -> None:
        engine = self._engine
        sock.setblocking(False)
        refusal = engine.admit(host)
        if refusal is not None:
            engine.on_refused(Refused(host, None, refusal, "a limit is reached"))
            sock.close()
            return
        connection = Connection(engine, sock, (host, port), self.name)
        engine.register(connection.client)
        engine.guard(connection.client, connection.start)

    def _shed_with_spare(self) -> None:
        """No descriptor is left: give one up to accept a client with and close it, so that it does not hang."""
        if self._spare >= 0:
            os.close(self._spare)
        with contextlib.suppress(OSError):
            sock, address = self.sock.accept()
            sock.close()
            self._engine.on_refused(Refused(address[0], None, Reason.MAX_CONNECTIONS, "descriptors are used up"))
        try:
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            # Another part of the process took the descriptor. Without a spare there is nothing to do but wait.
            self._spare = -1
            self._pause()

    def _pause(self) -> None:
        log.warning("no descriptor or memory for new clients, they wait: listener=%s", self.name)
        self._engine.unwatch(self)
        self._engine.arm(self, _PAUSE_SECONDS)
