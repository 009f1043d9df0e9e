"""This machine: the addresses of its network interfaces, its descriptors, its cores."""

import os
import re
import resource
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface
from pathlib import Path
from typing import Final

from meshgate.core.sockaddr import Interface

RESERVED: Final = 200
"""Descriptors kept back from streams: for listeners, Consul's connections, the admin address and splice pipes."""

# Containers often have a hard limit of a thousand million. More than this is never needed, and some libraries walk all
# numbers up to the soft limit.
_ENOUGH: Final = 1 << 20
_NET: Final = Path("/proc/self/net")
# What IPVS hands to other machines. kube-proxy's IPVS mode gives every cluster address to an interface of each node.
_HANDED_ON: Final = re.compile(r"^[A-Z]+ +(?:([0-9A-F]{8})|\[([0-9a-f:]+)\]):", re.MULTILINE)
_LOCAL: Final = re.compile(r"\|-- ([0-9.]+)\n\s+/32 host LOCAL$", re.MULTILINE)


def interfaces() -> list[Interface]:
    """All addresses of all interfaces, in their order; OSError as in a sandbox without netlink sockets."""
    import psutil  # noqa: PLC0415 - a megabyte that a gateway without templates in its addresses does without

    default, stats = default_interface(), psutil.net_if_stats()
    found = []
    for name, addresses in psutil.net_if_addrs().items():
        flags = stats[name].flags.split(",") if name in stats else []
        for address in addresses:
            if address.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            bits = int(ip_address(address.netmask)).bit_count() if address.netmask else 0
            found.append(
                Interface(
                    name,
                    ip_interface((address.address.partition("%")[0], bits)),
                    up="up" in flags,
                    loopback="loopback" in flags,
                    broadcast="broadcast" in flags,
                    multicast="multicast" in flags,
                    point_to_point="pointopoint" in flags,
                    default=name == default,
                )
            )
    return found


def default_interface(routes: Path = _NET / "route") -> str:
    """The interface of the default route (IPv4); "" where there is none."""
    try:
        lines = routes.read_text().splitlines()[1:]
    except OSError:
        return ""
    fields = [line.split() for line in lines]
    # Interface, destination, gateway, flags, ..., metric, mask; the lowest metric counts.
    found = [(int(each[6]), each[0]) for each in fields if len(each) > 7 and each[1] == each[7] == "00000000"]
    return min(found)[1] if found else ""


def machine_addresses(folder: Path = _NET) -> frozenset[str]:
    """The addresses of all interfaces; those that the kernel does not tell, or hands to others, are missing."""
    four = _LOCAL.findall(_read(folder / "fib_trie"))
    six = [str(IPv6Address(int(line.split()[0], 16))) for line in _read(folder / "if_inet6").splitlines()]
    handed_on = _HANDED_ON.findall(_read(folder / "ip_vs"))
    others = {str(IPv4Address(int(four_hex, 16)) if four_hex else IPv6Address(long)) for four_hex, long in handed_on}
    return frozenset((*four, *six)) - others


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii")
    except OSError:  # another system, or IPv6 is switched off
        return ""


def reachable_descriptors() -> int:
    """The soft limit as `raise_descriptor_limit` will leave it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _ENOUGH
    ceiling = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    return max(soft, ceiling)


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files towards the hard one, where the system lets us; the limit that holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = reachable_descriptors()
    if soft in (wanted, resource.RLIM_INFINITY):
        return wanted
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):
        return soft
    return wanted


def streams_for(descriptors: int) -> int:
    """How many streams fit into that many descriptors; at least one."""
    return max(1, (descriptors - RESERVED) // 2)


def usable_cores() -> int:
    return len(os.sched_getaffinity(0))
