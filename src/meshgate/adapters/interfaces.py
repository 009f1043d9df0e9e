"""The addresses of this machine's network interfaces, from the C library (Linux)."""

import ctypes
import ctypes.util
import os
import socket
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Final

from meshgate.core.interfaces import Interface

_UP, _BROADCAST, _LOOPBACK, _POINT_TO_POINT, _MULTICAST = 0x1, 0x2, 0x8, 0x10, 0x1000  # netdevice(7)
_ROUTES: Final = Path("/proc/net/route")
# Where the address begins in a sockaddr, and how long it is, by family.
_PLACES: Final = {socket.AF_INET: (4, 4), socket.AF_INET6: (8, 16)}


class _IfAddrs(ctypes.Structure):
    """`struct ifaddrs` of getifaddrs(3)."""

    _fields_ = (
        ("next", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("flags", ctypes.c_uint),
        ("address", ctypes.c_void_p),
        ("netmask", ctypes.c_void_p),
        ("destination", ctypes.c_void_p),
        ("data", ctypes.c_void_p),
    )


def interfaces() -> list[Interface]:
    """All addresses of all interfaces, in the system's order.

    Raises:
        OSError: the system does not tell, as in a sandbox without netlink sockets.
    """
    library = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
    first = ctypes.c_void_p()
    if library.getifaddrs(ctypes.byref(first)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    try:
        return list(_walked(first.value, default_interface()))
    finally:
        library.freeifaddrs(first)


def default_interface(routes: Path = _ROUTES) -> str:
    """The interface of the default route (IPv4); "" where there is none."""
    try:
        lines = routes.read_text().splitlines()[1:]
    except OSError:
        return ""
    fields = [line.split() for line in lines]
    # Interface, destination, gateway, flags, ..., metric, mask; the lowest metric counts.
    found = [(int(each[6]), each[0]) for each in fields if len(each) > 7 and each[1] == each[7] == "00000000"]
    return min(found)[1] if found else ""


def _walked(at: int | None, default: str) -> Iterator[Interface]:
    while at:
        entry = _IfAddrs.from_address(at)
        family = ctypes.c_ushort.from_address(entry.address).value if entry.address else 0
        if family in _PLACES:
            name, flags = os.fsdecode(entry.name), entry.flags
            length = int(ip_address(_bytes(entry.netmask, family))).bit_count() if entry.netmask else 0
            yield Interface(
                name,
                ip_interface((_bytes(entry.address, family), length)),
                up=bool(flags & _UP),
                loopback=bool(flags & _LOOPBACK),
                broadcast=bool(flags & _BROADCAST),
                multicast=bool(flags & _MULTICAST),
                point_to_point=bool(flags & _POINT_TO_POINT),
                default=name == default,
            )
        at = entry.next


def _bytes(place: int, family: int) -> bytes:
    offset, size = _PLACES[socket.AddressFamily(family)]
    return ctypes.string_at(place + offset, size)
