"""One of the two sockets of a stream."""

import socket
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .connection import Connection
    from .pipes import Pipe

READABLE: Final = EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR
HUNG_UP: Final = EPOLLRDHUP | EPOLLHUP | EPOLLERR
BROKEN: Final = EPOLLHUP | EPOLLERR


class Leg:
    """One socket of a stream, and what is kept for it.

    `held` and `pipe` are bytes that wait to be written to this leg. `readable` says the kernel may have bytes of it,
    `hung_up` that its end of stream (or a reset) is among them, `eof` that all of them were read.
    """

    __slots__ = ("connection", "eof", "full_reads", "held", "hung_up", "other", "pipe", "readable", "received", "sock")

    other: "Leg"

    def __init__(self, connection: "Connection", sock: socket.socket) -> None:
        self.connection = connection
        self.sock = sock
        self.held: bytes | None = None
        self.pipe: Pipe | None = None
        self.readable = True
        self.hung_up = False
        self.eof = False
        self.full_reads = 0
        self.received = 0

    def on_event(self, events: int) -> None:
        """What epoll says about this leg's socket."""
        if events & HUNG_UP:
            self.hung_up = True
        connection = self.connection
        if not connection.relaying:
            connection.on_early_event(self, events)
            return
        connection.touched = connection.engine.now
        if events & EPOLLOUT and (self.held is not None or self.pipe is not None):
            connection.resume(self)
        if events & READABLE:
            self.readable = True
            connection.forward(self)

    def on_turn(self) -> None:
        """The turn that was promised when the last one used up its budget."""
        self.connection.forward(self)
