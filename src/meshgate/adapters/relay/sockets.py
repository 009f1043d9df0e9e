"""Sockets as the relay wants them: non-blocking, without Nagle's delay, kept alive, reset on demand.

No function here blocks, and none resolves a name: addresses are numeric.
"""

import contextlib
import errno
import socket
import struct
from functools import lru_cache
from ipaddress import ip_address
from os import strerror

BACKLOG = 65535  # The kernel cuts it to net.core.somaxconn.
UNDER_WAY = (0, errno.EINPROGRESS)
_KEEPALIVE_PROBES = 4
_RESET = struct.pack("ii", 1, 0)


def bind(host: str, port: int, keepalive: float) -> socket.socket:
    """Take a numeric address, not listening yet; an empty host is every IPv4 address.

    Sockets accepted from it inherit its options (Linux), which saves four system calls a stream.

    Raises:
        OSError: the address is taken, not ours, or not numeric.
    """
    host = host or "0.0.0.0"  # noqa: S104  (a gateway's port is meant to be reached)
    sock = socket.socket(_family(host), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _tune(sock, keepalive)
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def dial(address: str, port: int, keepalive: float) -> tuple[socket.socket, int]:
    """Start to connect to a numeric address.

    Returns:
        The socket, and 0 or EINPROGRESS when the connection stands or is under way, else the error it failed with.

    Raises:
        OSError: no socket could be had (descriptors or memory used up), or the address is not numeric.
    """
    sock = socket.socket(_family(address), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _tune(sock, keepalive)
        return sock, sock.connect_ex((address, port))
    except BaseException:
        sock.close()
        raise


def reset(sock: socket.socket) -> None:
    """Close with RST in place of FIN, so that a reset on one leg is a reset on the other."""
    # An error means that the peer is gone for good; closing is all that is left to do.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()


def describe(error: int) -> str:
    """An errno in words."""
    return strerror(error).lower()


def host_port(host: str, port: int) -> str:
    """An address as users write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def client_key(host: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 network of an IPv6 one."""
    if ":" not in host:
        return host
    return ip_address(host.partition("%")[0]).packed[:8].hex()


def _tune(sock: socket.socket, keepalive: float) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if keepalive > 0:
        interval = max(1, round(keepalive / _KEEPALIVE_PROBES))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, round(keepalive)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)


@lru_cache(maxsize=4096)
def _family(host: str) -> socket.AddressFamily:
    """The family of a numeric address. A name is refused: connect() would look it up and block every stream."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return family
    raise OSError(errno.EINVAL, f"not a numeric address: {host!a}")
