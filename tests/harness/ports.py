"""Free ports on 127.0.0.1 that stay free for a process which is about to start, or to start again."""

import os
import random
import re
import socket
from pathlib import Path

_SETTING = Path("/proc/sys/net/ipv4/ip_local_port_range")
# Seeded by the system: test runners seed the module's generator alike in parallel processes.
_random = random.SystemRandom()
_SHARES = 8
# What was given here and may not be in use yet.
_given: set[int] = set()


def _outside_ephemeral() -> range:
    """Ports the kernel does not hand out by itself, so that no outgoing connection takes one while it waits for use."""
    try:
        low, high = (int(word) for word in _SETTING.read_text().split())
    except (OSError, ValueError):
        low, high = 49152, 65535
    return max(range(20000, low), range(high + 1, 65536), range(20000, 30000), key=len)


def _is_free(port: int) -> bool:
    """Whether TCP and UDP can both be bound; Consul's gossip needs the two under one number."""
    try:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(socket.AF_INET, kind) as probe:
                probe.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


def _own_share(ports: range) -> range:
    """Every eighth port: test runners that work in parallel pick from shares that do not overlap."""
    worker = re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", ""))
    return ports[int(worker or os.getpid()) % _SHARES :: _SHARES]


def free_ports(count: int) -> list[int]:
    """`count` different ports, free for TCP and UDP on 127.0.0.1 at this moment, none of which was given before.

    They are not held: a program that loses one to another must be started again with new ones.
    """
    found: list[int] = []
    candidates = _own_share(_outside_ephemeral())
    if len(_given) > len(candidates) // 2:
        _given.clear()
    while len(found) < count:
        port = _random.choice(candidates)
        if port not in _given and _is_free(port):
            _given.add(port)
            found.append(port)
    return found
