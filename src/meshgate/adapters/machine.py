"""What this machine's network interfaces are called: their numeric addresses, as the kernel lists them."""

import re
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final

_FOLDER: Final = Path("/proc/self/net")
_LOCAL: Final = re.compile(r"\|-- ([0-9.]+)\n\s+/32 host LOCAL$", re.MULTILINE)


def machine_addresses(folder: Path = _FOLDER) -> frozenset[str]:
    """The addresses of all interfaces; those that the kernel does not tell are missing.

    Args:
        folder: where the kernel's tables `fib_trie` and `if_inet6` are.
    """
    four = _LOCAL.findall(_read(folder / "fib_trie"))
    six = [str(IPv6Address(int(line.split()[0], 16))) for line in _read(folder / "if_inet6").splitlines()]
    return frozenset((*four, *six))


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii")
    except OSError:  # another system, or IPv6 is switched off
        return ""
