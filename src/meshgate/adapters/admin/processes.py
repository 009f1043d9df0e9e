"""What the kernel says of another process of the gateway: memory, CPU time, descriptors (proc(5); Linux only)."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_LIMIT: Final = "Max open files"
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
# Fields of /proc/PID/stat, counted from the one after the name.
_USER_TICKS, _SYSTEM_TICKS, _RESIDENT_PAGES = 11, 12, 21


@dataclass(frozen=True, slots=True)
class Usage:
    """`open_fds` and `max_fds` are None where this process may not look, or there is no limit."""

    resident_bytes: int
    cpu_seconds: float
    open_fds: int | None
    max_fds: int | None


def usage_of(pid: int) -> Usage | None:
    """What the process uses now; None where there is none, or the system has no /proc."""
    folder = Path("/proc") / str(pid)
    try:
        # The name of the program may hold anything, a parenthesis too.
        fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
        ticks = int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS])
        resident = int(fields[_RESIDENT_PAGES]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return None
    open_fds = None
    with contextlib.suppress(OSError):
        open_fds = sum(1 for _ in (folder / "fd").iterdir())
    return Usage(resident, ticks / _TICKS, open_fds, _max_fds(folder))


def _max_fds(folder: Path) -> int | None:
    with contextlib.suppress(OSError, IndexError, ValueError):
        for line in (folder / "limits").read_text().splitlines():
            if line.startswith(_LIMIT):
                return int(line.removeprefix(_LIMIT).split()[0])
    return None
