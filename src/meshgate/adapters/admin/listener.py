"""Where the admin server listens: a TCP address or a unix socket."""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import structlog
import trio

_log = structlog.get_logger(module="meshgate.admin")

Bind = tuple[str, int] | Path
"""An IP address (without brackets) and a port, 0 for a free one; or the path of a unix socket."""

_BACKLOG: Final = 128
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


@contextmanager
def listening(bind: Bind) -> Iterator[tuple[trio.SocketListener, Bind]]:
    """Listen for the length of the block; gives the listener and the address with the real port.

    A unix socket has mode 0600 and is removed at the end. A socket file that is there already is replaced if nobody
    answers it any more.

    Raises:
        OSError: the address cannot be bound, somebody else answers at the path, or it is not a socket.
    """
    with _unix_socket(bind) if isinstance(bind, Path) else _tcp_socket(*bind) as sock:
        bound: Bind = bind if isinstance(bind, Path) else sock.getsockname()[:2]
        sock.listen(_BACKLOG)
        yield trio.SocketListener(trio.socket.from_stdlib_socket(sock)), bound


async def accept(listener: trio.SocketListener, pause: float) -> trio.SocketStream:
    """The next connection. Tries each `pause` seconds while the machine has no descriptor or memory for one."""
    while True:
        try:
            return await listener.accept()
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            _log.warning("cannot accept a connection to the admin address", error=error.strerror)
            await trio.sleep(pause)


@contextmanager
def _tcp_socket(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((host, port))
        yield sock


@contextmanager
def _unix_socket(path: Path) -> Iterator[socket.socket]:
    _remove_stale(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(os.fspath(path))
        # Nobody can connect before listen(), so there is no moment in which the mode is wrong.
        path.chmod(0o600)
        ours = path.stat()
        try:
            yield sock
        finally:
            # Another process may have put its own socket there meanwhile.
            with suppress(OSError):
                if os.path.samestat(ours, path.lstat()):
                    path.unlink()


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "exists and is not a socket", str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(errno.EADDRINUSE, "another process answers there", str(path))
