"""What this machine's network interfaces are called: their numeric addresses, as the kernel lists them."""

import re
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

_FOLDER: Final = Path("/proc/self/net")
# What IPVS hands to other machines. kube-proxy's IPVS mode gives every cluster address to an interface of each node.
_HANDED_ON: Final = re.compile(r"^[A-Z]+ +(?:([0-9A-F]{8})|\[([0-9a-f:]+)\]):", re.MULTILINE)
_LOCAL: Final = re.compile(r"\|-- ([0-9.]+)\n\s+/32 host LOCAL$", re.MULTILINE)


def machine_addresses(folder: Path = _FOLDER) -> frozenset[str]:
    """The addresses of all interfaces; those that the kernel does not tell, or hands to others, are missing.

    Args:
        folder: where the kernel's tables `fib_trie`, `if_inet6` and `ip_vs` are.
    """
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
