"""What the kernel tells of a process: what it listens on, what it holds, what others can read of it."""

import contextlib
import ipaddress
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_LISTEN: Final = "0A"
_ACCEPTING: Final = 0x10000  # SO_ACCEPTCON, in the flags of /proc/net/unix
# What workers keep for later: empty pipes of two descriptors each, and rows of counts for workers to come.
_KEPT_PIPES: Final = 64
COUNTS: Final = "/memfd:meshgate-counts (deleted)"


@dataclass(frozen=True, slots=True)
class Socket:
    """A TCP socket of a process."""

    address: str
    port: int
    listens: bool

    @property
    def is_loopback(self) -> bool:
        address = ipaddress.ip_address(self.address)
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return (mapped or address).is_loopback


def descriptors(pid: int) -> dict[int, str]:
    """The open descriptors and what each is: `socket:[inode]`, `anon_inode:[eventpoll]`, a path."""
    found: dict[int, str] = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue  # closed meanwhile
    return found


def held(pid: int) -> Counter[str]:
    """What its descriptors stand for, and how many of each there are."""
    return Counter(
        target.partition(":")[0] if target.startswith(("socket:", "pipe:")) else target
        for target in descriptors(pid).values()
    )


def left_over(pid: int, normal: Counter[str], workers: int) -> Counter[str]:
    """What one of so many workers holds beyond what one without streams does, and beyond what is kept for later."""
    return held(pid) - normal - Counter({COUNTS: 2 * workers, "pipe": _KEPT_PIPES})


def may_look(pid: int) -> bool:
    """Whether its descriptors can be seen: those of a process that is not dumpable only by who may trace anything."""
    try:
        return bool(descriptors(pid))
    except PermissionError:
        return False


def tcp_sockets(pid: int) -> list[Socket]:
    inodes = _inodes(pid)
    return [
        Socket(_address(row[1]), int(row[1].rpartition(":")[2], 16), row[3] == _LISTEN)
        for table in ("tcp", "tcp6")
        for row in _rows(pid, table)
        if row[9] in inodes
    ]


def udp_sockets(pid: int) -> list[str]:
    inodes = _inodes(pid)
    return [row[1] for table in ("udp", "udp6", "raw", "raw6") for row in _rows(pid, table) if row[9] in inodes]


def unix_sockets(pid: int) -> list[tuple[bool, str]]:
    """Whether each accepts connections, and its name ("" for those that nobody can connect to)."""
    inodes = _inodes(pid)
    rows = [row for row in _rows(pid, "unix") if row[6] in inodes]
    return [(bool(int(row[3], 16) & _ACCEPTING), row[7] if len(row) > 7 else "") for row in rows]


def of(pid: int, name: str) -> bytes:
    """What /proc has under a name for a process."""
    return (Path("/proc") / str(pid) / name).read_bytes()


def shown_to_others(pid: int) -> bytes:
    """The command line, the environment and the title of a process and its threads."""
    try:
        environ = of(pid, "environ")
    except PermissionError:  # not dumpable, and we may not trace: nobody like us is shown it
        environ = b""
    titles = [(thread / "comm").read_bytes() for thread in (Path("/proc") / str(pid) / "task").iterdir()]
    return b"\0".join([of(pid, "cmdline"), environ, *titles])


def children(pid: int) -> list[int]:
    threads = (Path("/proc") / str(pid) / "task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


def workers(pid: int) -> list[int]:
    """The relay workers of a gateway. A child that loading a library starts for a moment (`ldconfig`) is none."""
    found = []
    for child in children(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if b"meshgate.adapters.relay.worker" in of(child, "cmdline"):
                found.append(child)
    return found


def _inodes(pid: int) -> set[str]:
    return {link[8:-1] for link in descriptors(pid).values() if link.startswith("socket:[")}


def _rows(pid: int, table: str) -> list[list[str]]:
    path = Path("/proc") / str(pid) / "net" / table
    return [line.split() for line in path.read_text().splitlines()[1:]] if path.exists() else []


def _address(text: str) -> str:
    # Words of four bytes, each in the machine's byte order.
    packed = bytes.fromhex(text.rpartition(":")[0])
    if sys.byteorder == "little":
        packed = b"".join(packed[at : at + 4][::-1] for at in range(0, len(packed), 4))
    return str(ipaddress.ip_address(packed))
