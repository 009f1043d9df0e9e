"""What the engine calls: who has a socket, and who wants to know."""

import socket
from typing import Protocol

from .counters import Refused, StreamRecord


class Watched(Protocol):
    """Something with a socket that epoll reports on."""

    @property
    def sock(self) -> socket.SocketType:
        """The socket."""

    def on_event(self, events: int) -> None:
        """Something has happened on the socket; a hint, not a promise."""


class Observer(Protocol):
    """Who is told what happens to streams. Nothing of it may block."""

    @property
    def wants_records(self) -> bool:
        """Whether `on_ended` is to be called."""

    def on_refused(self, refused: Refused) -> None:
        """A stream was not carried."""

    def on_ended(self, record: StreamRecord) -> None:
        """A stream has ended, a refused one too; only called with `wants_records`."""
