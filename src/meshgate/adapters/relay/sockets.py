"""Sockets as the relay wants them: non-blocking, without Nagle's delay, kept alive, reset on demand.

No function here blocks, and none resolves a name: addresses are numeric. The sockets of streams are SocketType, the
class under Python's socket.socket, which spends its time on enums and files (13 % of a connection's instructions).
"""

import contextlib
import errno
import fcntl
import socket
import struct
import sys
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from os import strerror
from socket import SocketType

from meshgate.core.proxy_config import KEEPALIVE_UNSET, Keepalive

BACKLOG = 65535  # The kernel cuts it to net.core.somaxconn.
UNDER_WAY = (0, errno.EINPROGRESS)
NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
# What is short of is ours, and no other address would fare better.
OWN_FAULTS = (*NO_DESCRIPTOR, errno.ENOBUFS, errno.ENOMEM)
_KEEPALIVE_PROBES = 4
_TCP = int(socket.IPPROTO_TCP)
_NO_DELAY = int(socket.TCP_NODELAY)
_RESET = struct.pack("ii", 1, 0)
_SIOCGIFINDEX = 0x8933  # netdevice(7)
_STREAM = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK)


def bind(host: str, port: int, keepalive: float, user_timeout: float = 0.0) -> socket.socket:
    """Take a numeric address, not listening yet; an empty host is every IPv4 address.

    Sockets accepted from it inherit its options (Linux), which saves five system calls a stream.

    Raises:
        OSError: the address is taken, not ours, or not numeric.
    """
    host = host or "0.0.0.0"  # noqa: S104  (a gateway's port is meant to be reached)
    sock = socket.socket(_family(host), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(_TCP, _NO_DELAY, 1)
        keep_alive(sock, keepalive, user_timeout)
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def dial(address: str, port: int) -> tuple[SocketType, int]:
    """Start to connect to a numeric address, with or without a zone. See `keep_alive` for what is left out here.

    Returns:
        The socket, and 0 or EINPROGRESS when the connection stands or is under way, else the error it failed with.

    Raises:
        OSError: no socket could be had (`OWN_FAULTS`), or the address is not numeric or its zone not an interface.
    """
    host, zoned, zone = address.partition("%")
    sock = SocketType(_family(host), _STREAM)
    try:
        sock.setsockopt(_TCP, _NO_DELAY, 1)
        return sock, sock.connect_ex((host, port, 0, _index(sock, zone)) if zoned else (host, port))
    except BaseException:
        sock.close()
        raise


def keep_alive(sock: SocketType, keepalive: float, user_timeout: float, chosen: Keepalive = KEEPALIVE_UNSET) -> None:
    """Have the kernel look whether the peer is still there; what `chosen` says counts before `keepalive` (seconds).

    A peer that is silent is asked by keepalive. One that owes acknowledgments, or takes nothing, has `user_timeout`
    seconds (RFC 5482); 0: as the system has it. Linux goes by it for the silent peer too, in place of the number of
    probes (tcp(7)), and ends a peer that is there with its window closed.
    Four or five system calls, so it is not done for streams that do not live long.
    """
    for level, option, value in _options(keepalive, user_timeout, chosen):
        sock.setsockopt(level, option, value)


def accept(listener: socket.socket, family: int) -> tuple[SocketType, str, int]:
    """Accept a client: its socket, its address and its port.

    Raises:
        OSError: as accept(2).
    """
    descriptor, address = listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001
    sock = SocketType(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, descriptor)
    sock.setblocking(False)
    return sock, address[0], address[1]


def adopt(descriptor: int) -> SocketType:
    """A TCP connection that another process has made.

    Raises:
        OSError: it is none.
    """
    sock = SocketType(fileno=descriptor)
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        sock.detach()
        raise OSError("a descriptor that is no TCP connection")
    sock.setblocking(False)
    return sock


def reset(sock: SocketType) -> None:
    """Close with RST in place of FIN, so that a reset on one leg is a reset on the other."""
    # An error means that the peer is gone for good; closing is all that is left to do.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()


def describe(error: int) -> str:
    """An errno in words."""
    return strerror(error).lower()


@lru_cache(maxsize=4096)
def client_key(host: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 network of an IPv6 one."""
    if ":" not in host:
        return host
    address = ip_address(host.partition("%")[0])
    # What a listener on all IPv6 addresses calls an IPv4 client.
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped) if mapped is not None else address.packed[:8].hex()


def in_networks(host: str, networks: tuple[str, ...]) -> bool:
    """Whether a numeric address is in one of some networks (CIDR). An IPv4 client of an IPv6 listener is its own."""
    if not networks:
        return False
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in _networks(networks))


@lru_cache(maxsize=4)
def _networks(networks: tuple[str, ...]) -> list[IPv4Network | IPv6Network]:
    return [ip_network(each) for each in networks]


@lru_cache(maxsize=64)
def _options(keepalive: float, user_timeout: float, chosen: Keepalive) -> tuple[tuple[int, int, int], ...]:
    idle = chosen.time or keepalive
    options: list[tuple[int, int, int]] = []
    if idle > 0:
        idle, probes = max(1, round(idle)), chosen.probes or _KEEPALIVE_PROBES
        interval = chosen.interval or max(1, round(idle / _KEEPALIVE_PROBES))
        options += [
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes),
        ]
    if user_timeout and sys.platform == "linux":
        options.append((socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(user_timeout * 1000)))
    return tuple(options)


@lru_cache(maxsize=4096)
def _family(host: str) -> int:
    """The family of a numeric address. A name is refused: connect() would look it up and block every stream."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return int(family)
    raise OSError(errno.EINVAL, f"not a numeric address: {host!a}")


def _index(sock: SocketType, zone: str) -> int:
    """The interface that is the zone of an IPv6 address (RFC 4007 section 11), as connect() takes it."""
    if zone.isdecimal():
        return int(zone)
    if sys.platform != "linux":
        return socket.if_nametoindex(zone)
    # The C library would ask by a socket of its own, which workers may not have.
    named = struct.pack("16s24x", zone.encode()[:16])
    return int(struct.unpack_from("16xi", fcntl.ioctl(sock.fileno(), _SIOCGIFINDEX, named))[0])


def cork(sock: socket.SocketType, *, on: bool) -> None:
    """Hold small packets back until it is off again or the socket is closed, for 200 ms at most (Linux; tcp(7))."""
    if sys.platform == "linux":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, on)


def push(sock: socket.SocketType) -> None:
    """Send at once what was kept back for more to come (tcp(7): whoever turns Nagle's algorithm off flushes)."""
    # Where it fails the peer is gone, which the next step finds out.
    with contextlib.suppress(OSError):
        sock.setsockopt(_TCP, _NO_DELAY, 1)
