"""Keeping Consul's token inside the process: out of `ps`, of `/proc` and of core dumps.

A token given by `--token` or by the environment stands in memory that the kernel shows to others: the command line to
every user of the machine, the environment to processes of the same user. Both are overwritten as soon as they are read.
A process that is not dumpable (prctl(2), PR_SET_DUMPABLE) leaves no core, and only root may look into it.

Nothing here ever raises: a kernel that refuses leaves things as they were. Linux only; elsewhere nothing happens.
"""

import contextlib
import ctypes
import os
import resource
from collections.abc import Collection
from pathlib import Path
from typing import Final

_PR_SET_DUMPABLE: Final = 4
# Fields of /proc/self/stat, proc(5), counted from the one after the name: where arguments and environment stand.
_RANGES: Final = ((45, 46), (47, 48))


def forbid_core_dumps() -> None:
    """Leave no core dump, neither this process nor those it starts, and let nobody but root attach to this one."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def hide_secrets(secrets: Collection[str]) -> None:
    """Overwrite each secret with `*` where it stands as an argument, or as a value, in `/proc/self`.

    To be called before `forbid_core_dumps`, which closes the way.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        memory = os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC)
        try:
            for first, last in _RANGES:
                start, end = int(fields[first]), int(fields[last])
                _overwrite(memory, start, os.pread(memory, end - start, start), [os.fsencode(each) for each in secrets])
        finally:
            os.close(memory)


def _overwrite(memory: int, start: int, block: bytes, secrets: Collection[bytes]) -> None:
    offset = start
    for entry in block.split(b"\0"):
        for secret in secrets:
            # The whole argument, or all behind the first `=`: never a part that only looks like it.
            if secret and secret in (entry, entry.partition(b"=")[2]):
                os.pwrite(memory, b"*" * len(secret), offset + len(entry) - len(secret))
        offset += len(entry) + 1
