"""Accepts clients: in batches, within the limits, and also when descriptors have run out."""

import contextlib
import errno
import logging
import os
import socket
import time
from select import EPOLLEXCLUSIVE, EPOLLIN, POLLIN, poll
from typing import Final

from meshgate.core.addresses import host_port
from meshgate.core.reasons import Reason, StreamEnd, envoy_flags

from . import sockets
from .circuit_breakers import Ticket
from .context import Context
from .counters import Refused, StreamRecord
from .reactor import run_guarded
from .stream import Stream

log = logging.getLogger("meshgate.relay")

_BATCH: Final = 8  # Streams that exist get their turn between batches of new ones.
_SINGLE_ACCEPTS: Final = 7  # In a row, after a client that came alone; then a second one is looked for again.
_NO_MEMORY: Final = (errno.ENOMEM, errno.ENOBUFS)
_PAUSE_SECONDS: Final = 0.2
_TELL_SECONDS: Final = 30.0
_USED_UP: Final = "descriptors are used up, clients are cut: silent ones first, then new ones"
CLOSING_SECONDS: Final = 0.5  # For the clients that wait when a listener closes; others are reset by the kernel.


class Listener:
    """One listening socket, registered level-triggered: what a batch leaves behind raises the next event."""

    __slots__ = ("_context", "_family", "_single_accepts", "_spare", "_tells_at", "descriptor", "name", "sock", "tick")

    def __init__(self, context: Context[Stream], name: str, sock: socket.socket) -> None:
        self._context = context
        self._spare = os.eventfd(0)
        self.name = name
        self.sock = sock
        self.descriptor = sock.fileno()
        self._family = int(sock.family)
        self.tick = 0
        self._single_accepts = 0
        self._tells_at = float("-inf")

    def watch(self) -> None:
        """Let clients in. Where the system has no memory for that, it is tried again in a moment."""
        try:
            # Of the processes that listen on a socket the kernel wakes one for a client, not all.
            self._context.reactor.watch(self, EPOLLIN | EPOLLEXCLUSIVE)
        except OSError:
            self._pause()

    def on_event(self, _events: int) -> None:
        """Clients wait: accept a batch of them, or one where they come one by one."""
        if self._single_accepts:
            self._single_accepts -= 1
            self._accept()
            return
        for accepted in range(_BATCH):
            if not self._accept():
                # An accept in vain costs as much as the relaying of a message.
                self._single_accepts = _SINGLE_ACCEPTS if accepted == 1 else 0
                return

    def on_deadline(self) -> None:
        """A pause for lack of memory is over."""
        self.watch()

    def on_defect(self) -> None:
        """An error in accepting a client: the next ones are accepted all the same."""
        self._context.on_defect()

    def close(self, seconds: float = CLOSING_SECONDS) -> None:
        """Give the address back. Clients that wait already are accepted first, for so long: closing would reset them.

        Or nobody else would know of them: of those who listen on a socket the kernel has woken this one.
        """
        reactor = self._context.reactor
        reactor.unwatch(self)
        reactor.now = reactor.clock()  # It may be old, and the deadlines of these clients count from it.
        until = reactor.now + seconds
        while self._accept() and reactor.clock() < until:
            pass
        self.drop()

    def drop(self) -> None:
        """Give the address back and leave the clients that wait to the other processes, or to the kernel's reset."""
        self._context.reactor.disarm(self)
        # Others may have the socket, too: closing it here would not take it out of the epoll instance.
        self._context.reactor.unwatch(self)
        self.sock.close()
        if self._spare >= 0:
            os.close(self._spare)

    def _accept(self) -> bool:
        """Accept one client; False when none is left, or none can be had now."""
        try:
            client = sockets.accept(self.sock, self._family)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in sockets.NO_DESCRIPTOR:
                # The kernel looks for a descriptor before it looks for a client: without one nobody has to go.
                if not self._somebody_waits():
                    return False
                if self._context.overload.free_descriptors():
                    self._tell(_USED_UP)
                    return True
                self._shed_with_spare()
            elif error.errno in _NO_MEMORY:
                self._pause()
            # Anything else concerns the one client that gave up while it waited (accept(2), "Error handling").
            return False
        self._admit(*client)
        return True

    def _somebody_waits(self) -> bool:
        waiting = poll()
        waiting.register(self.sock, POLLIN)
        return bool(waiting.poll(0))

    def _admit(self, sock: socket.SocketType, host: str, port: int) -> None:
        context = self._context
        ticket = context.breakers.admit(host, context.limits, context.overload.makes_room, context.reactor.now)
        if not isinstance(ticket, Ticket):
            sock.close()
            self._refuse(host, port, *ticket)
            return
        context.counters.accepted += 1
        context.counters.active += 1
        stream = Stream(context, ticket, sock, (host, port), self.name)
        run_guarded(stream, stream.start)

    def _refuse(self, host: str, port: int, reason: Reason, detail: str) -> None:
        """Tell of a client that was closed as soon as it was accepted."""
        self._context.on_refused(Refused(host, None, reason, detail))
        if self._context.observer.wants_records:
            self._context.observer.on_ended(
                StreamRecord(
                    started=time.time(),
                    client=host_port(host, port),
                    listener=self.name,
                    reason=reason.value,
                    end=StreamEnd.REFUSED,
                    flags=envoy_flags(reason, StreamEnd.REFUSED),
                    worker=self._context.worker,
                )
            )

    def _shed_with_spare(self) -> None:
        """No descriptor is left: give one up to accept a client with and close it, so that it does not hang."""
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
        try:
            sock, address = self.sock.accept()
        except OSError as error:
            helpless = error.errno in sockets.NO_DESCRIPTOR  # Others were faster to take what was given up.
        else:
            helpless = False
            sock.close()
            self._tell(_USED_UP)
            self._refuse(str(address[0]), int(address[1]), Reason.MAX_CONNECTIONS, "descriptors are used up")
        with contextlib.suppress(OSError):
            self._spare = os.eventfd(0)
        if helpless or self._spare < 0:
            self._pause()

    def _pause(self) -> None:
        self._tell("no descriptor or memory for new clients, they wait")
        self._context.reactor.unwatch(self)
        self._context.reactor.arm(self, _PAUSE_SECONDS)

    def _tell(self, what: str) -> None:
        now = self._context.reactor.clock()
        if now >= self._tells_at:
            self._tells_at = now + _TELL_SECONDS
            log.warning("%s: listener=%s", what, self.name)
