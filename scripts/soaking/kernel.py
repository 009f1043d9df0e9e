"""What Linux says about processes: who belongs to whom, what they hold, which connections are theirs."""

import ctypes
import os
import signal
import socket
import struct
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from .ledger import Leg
from .messages import spot

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_LISTEN: Final = "0A"
# The same on each architecture. Python has no function for it.
_PIDFD_GETFD: Final = 438
_libc: Final = ctypes.CDLL(None, use_errno=True)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name: state first, then the parent; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def alive(pid: int) -> bool:
    """Whether the process runs, or is stopped."""
    fields = _stat(pid)
    return bool(fields) and fields[0] not in "ZX"


def workers_of(pid: int) -> list[int]:
    """The relay workers that a gateway process has started."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            children += map(int, task.read_text().split())
    return [child for child in children if alive(child) and "relay.worker" in _command(child)]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def descriptors(pid: int) -> int:
    """How many descriptors it has open; 0 when it is gone."""
    return len(_targets(pid))


def _targets(pid: int) -> list[str]:
    """What its descriptors stand for: `socket:[inode]`, `pipe:[inode]`, a path; empty when it is gone."""
    targets = []
    with suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                targets.append(str(descriptor.readlink()))
    return targets


def resident(pid: int) -> int:
    """Bytes of memory; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def legs_of(pids: Collection[int]) -> frozenset[Leg]:
    """The TCP connections that these processes hold. They share a network namespace.

    The kernel's table has tens of thousands of rows, is read in pages and changes meanwhile: one may be passed over.
    """
    targets = (target for pid in pids for target in _targets(pid))
    inodes = {target[8:-1] for target in targets if target.startswith("socket:[")}
    legs: set[Leg] = set()
    for pid in [pid for pid in pids if alive(pid)][:1]:
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
                words = line.split()
                if words[9] in inodes and words[3] != _LISTEN:
                    legs.add(frozenset(map(_spot, words[1:3])))
    return frozenset(legs)


def legs_of_stopped(pids: Collection[int]) -> frozenset[Leg]:
    """All TCP connections that stopped processes hold: their sockets are asked themselves, too, which root may do.

    Of one that both ends have closed the kernel knows this end only, and its process may still have bytes to read: it
    stands for itself, as a leg of one end. A process that runs would find what it closes still open for a moment.
    """
    legs, closed, listening = set(legs_of(pids)), set[str](), set[str]()
    for pid in pids:
        for held in _copies(pid):
            if held.family != socket.AF_INET:
                continue
            own = spot(*held.getsockname())
            try:
                legs.add(frozenset((own, spot(*held.getpeername()))))
            except OSError:
                (listening if held.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) else closed).add(own)
    # Those that it accepted have the address of its listener, all of them.
    return frozenset(legs | {frozenset((own,)) for own in closed - listening})


def relays(pid: int) -> bool:
    """Whether a worker is set up: it has a poll for its streams, beside the one that each has from the start.

    That it holds a socket that listens says nothing, because it inherits those.
    """
    return _targets(pid).count("anon_inode:[eventpoll]") > 1


def _spot(words: str) -> str:
    """One end as /proc/net/tcp has it: the address in the machine's byte order, the port in hexadecimal."""
    address, _, port = words.partition(":")
    return spot(socket.inet_ntoa(struct.pack("=I", int(address, 16))), int(port, 16))


async def stop(pid: int) -> bool:
    """SIGSTOP, and waits until it has stopped; False when it is gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        for _ in range(200):
            fields = _stat(pid)
            if not fields or fields[0] in "ZX":
                return False
            if fields[0] == "T":
                return True
            await trio.sleep(0.005)
    return False


def channel_of(pid: int, parent: int) -> socket.socket | None:
    """A copy of the socket by which a worker speaks to its parent, as whoever took it over has it; None: it is gone.

    A worker has a pair of its own, too, in which the credentials are its own.
    """
    ours = (held.dup() for held in _copies(pid) if held.family == socket.AF_UNIX and _creator(held) == parent)
    return next(ours, None)


def _copies(pid: int) -> Iterator[socket.socket]:
    """Copies of its sockets, one after another; none when it is gone. Each is closed when the next one comes."""
    with suppress(OSError):
        handle = os.pidfd_open(pid)
        try:
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                if str(descriptor.readlink()).startswith("socket:"):
                    copy = _libc.syscall(_PIDFD_GETFD, handle, int(descriptor.name), 0)
                    if copy >= 0:
                        with socket.socket(fileno=copy) as held:
                            yield held
        finally:
            os.close(handle)


def _creator(held: socket.socket) -> int:
    credentials = held.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])


def send(pid: int, number: signal.Signals) -> None:
    """A signal, to a process that may be gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


@dataclass(frozen=True)
class Usage:
    """What a gateway's processes hold: the parent, and of each kind the most of a worker.

    A worker keeps empty pipes for streams to come, so they are counted apart.
    """

    parent_descriptors: int
    parent_bytes: int
    worker_descriptors: int
    worker_pipes: int
    worker_bytes: int

    @classmethod
    def of(cls, pid: int) -> "Usage":
        """Now."""
        workers = workers_of(pid) or [0]
        held = [_targets(worker) for worker in workers]
        pipes = [sum(target.startswith("pipe:") for target in targets) for targets in held]
        others = max(len(targets) - count for targets, count in zip(held, pipes, strict=True))
        return cls(descriptors(pid), resident(pid), others, max(pipes), max(map(resident, workers)))
