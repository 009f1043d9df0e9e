"""One of the two sockets of a stream."""

import socket
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP
from typing import TYPE_CHECKING, Final

from . import sockets
from .pump import DRY

if TYPE_CHECKING:
    from .connection import Connection
    from .pipes import Pipe

READABLE: Final = EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR
HUNG_UP: Final = EPOLLRDHUP | EPOLLHUP | EPOLLERR
BROKEN: Final = EPOLLHUP | EPOLLERR


class Leg:
    """One socket of a stream, and what is kept for it.

    `held` and `pipe` are bytes that wait to be written to this leg. `readable` says the kernel may have bytes of it,
    `hung_up` that its end of stream (or a reset) is among them, `eof` that all of them were read; `large_reads` counts
    those in a row. `reports_writable` says that epoll tells when the leg takes bytes.
    """

    __slots__ = (
        "connection",
        "descriptor",
        "eof",
        "held",
        "hung_up",
        "large_reads",
        "other",
        "pipe",
        "readable",
        "received",
        "reports_writable",
        "sock",
    )

    other: "Leg"

    def __init__(self, connection: "Connection", sock: socket.SocketType) -> None:
        self.connection = connection
        self.sock = sock
        self.descriptor = sock.fileno()
        self.held: bytes | None = None
        self.pipe: Pipe | None = None
        self.readable = True
        self.hung_up = False
        self.eof = False
        self.large_reads = 0
        self.received = 0
        self.reports_writable = False

    def on_event(self, events: int) -> None:
        """What epoll says about this leg's socket."""
        connection = self.connection
        if events == EPOLLIN and connection.relaying:
            # Nearly all events: straight to the pump, past all that follows (11 % of a round trip's instructions).
            engine, destination = connection.engine, self.other
            connection.touched = engine.now
            if destination.held is None and destination.pipe is None and not self.eof:
                moved = engine.pump.move(self, destination)
                if moved is not DRY:
                    self.readable = True
                    connection.on_moved(self, moved)
            else:
                self.readable = True
            return
        if events & HUNG_UP:
            self.hung_up = True
        if not connection.relaying:
            connection.on_early_event(self, events)
            return
        connection.touched = connection.engine.now
        if events & EPOLLOUT and (self.held is not None or self.pipe is not None):
            connection.resume(self)
        if events & READABLE:
            self.readable = True
            connection.forward(self)

    def close(self) -> None:
        """Close the socket. Its number may soon be another stream's, so nothing may use it any more."""
        self.descriptor = -1
        self.sock.close()

    def reset(self) -> None:
        """Close the socket with a reset."""
        self.descriptor = -1
        sockets.reset(self.sock)

    def on_turn(self) -> None:
        """The turn that was promised when the last one used up its budget."""
        self.connection.forward(self)
