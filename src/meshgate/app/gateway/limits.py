"""How many descriptors this process may have, and how many streams that carries.

A relayed stream takes two descriptors. Some are kept back for listeners, Consul's connections, the admin address and
splice pipes.
"""

import os
import resource
from typing import Final

RESERVED: Final = 200
# Containers often have a hard limit of a thousand million. More than this is never needed, and some libraries walk all
# numbers up to the soft limit.
_ENOUGH: Final = 1 << 20


def reachable_descriptors() -> int:
    """The soft limit as `raise_descriptor_limit` will leave it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _ENOUGH
    ceiling = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    return max(soft, ceiling)


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files towards the hard one and give the limit that holds now.

    Where the system refuses, the limit stays as it was.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = reachable_descriptors()
    if soft in (wanted, resource.RLIM_INFINITY):
        return wanted
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):
        return soft
    return wanted


def connections_for(descriptors: int) -> int:
    """How many streams fit into that many descriptors; at least one."""
    return max(1, (descriptors - RESERVED) // 2)


def usable_cores() -> int:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
