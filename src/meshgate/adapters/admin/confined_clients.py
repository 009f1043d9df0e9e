"""Finds, among the clients of an admin address on TCP, a relay worker that an attacker has taken over.

Who may connect to 127.0.0.1 may ask the admin address, and connecting is a worker's job: no filter can see where to. So
the other end of each connection is looked up. The kernel says which user's it is, and its number; of this user's
processes that have not given up their rights, one must have the socket of that number among its descriptors. A socket
that nobody has any more, or that only is on its way, is refused: nobody who asks for an answer closes before it comes.

What always holds: clients on other machines, and of other users on this one, are not looked at any further.
Not told apart: a process of the gateway's own user in another pid namespace (a second container beside it), which is
refused; and, where processes of that user have more capabilities than the gateway (root's, beside a gateway of root's
without any), a worker that keeps a socket without a descriptor. On a kernel without `inet_diag` nobody is refused.

Sources: sock_diag(7), proc(5).
"""

import contextlib
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Final, NamedTuple

from meshgate.core.addresses import plain

_SOCK_DIAG: Final = 4
_BY_FAMILY: Final = 20
_REQUEST: Final = 1
# struct nlmsghdr, the head of inet_diag_req_v2, and its inet_diag_sockid; the cookie says that any will do.
_QUESTION: Final = struct.Struct("=IHHII BBBxI 2s2s16s16sIII")
_ANSWER: Final = struct.Struct("=IHHII 4x 2s2s16s16s12x 12xII")
_ANY_STATE, _ANY_COOKIE = 0xFFFFFFFF, 0xFFFFFFFF

Address = tuple[str, int]


def is_confined(sock: socket.socket) -> bool:
    """Whether the other end of a TCP connection may be a relay worker's. Reads /proc, so it may take milliseconds."""
    try:
        own, peer = _address(sock.getsockname()), _address(sock.getpeername())
    except OSError:
        return True  # It is gone already, and may have left a request behind.
    found = _found(sock.family, peer, own)
    if found is None or found.peer != own[1]:
        # Of another machine; or of this one and gone. Then our end may be gone too, but the listener is there.
        is_local = plain(peer[0]).is_loopback or peer[0] == own[0]
        return is_local and _found(sock.family, own, peer) is not None
    return found.user == os.getuid() and not _is_held(found.inode)


def _address(name: tuple[str, int] | tuple[str, int, int, int]) -> Address:
    return name[0].partition("%")[0], name[1]


class _Socket(NamedTuple):
    """A socket's user, its inode, and the port of its peer; 0 where it listens."""

    user: int
    inode: int
    peer: int


def _found(family: int, own: Address, peer: Address) -> _Socket | None:
    """The socket that is the `own` end of a connection, else one that listens there; None where there is none here."""
    ends = [port.to_bytes(2) for _, port in (own, peer)] + [
        socket.inet_pton(family, host).ljust(16, b"\0") for host, _ in (own, peer)
    ]
    head = (_QUESTION.size, _BY_FAMILY, _REQUEST, 1, 0)
    asked = _QUESTION.pack(*head, family, socket.IPPROTO_TCP, 0, _ANY_STATE, *ends, 0, _ANY_COOKIE, _ANY_COOKIE)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
            kernel.sendto(asked, (0, 0))
            answer = kernel.recv(4096)
    except OSError:
        return None
    if len(answer) < _ANSWER.size:
        return None
    _, kind, _, _, _, _, port, _, _, user, inode = _ANSWER.unpack_from(answer)
    return _Socket(user, inode, int.from_bytes(port)) if kind == _BY_FAMILY else None


def _is_held(inode: int) -> bool:
    """Whether a process that has not given up its rights has the socket."""
    if not inode:
        return False
    own, workers, hidden = Path("/proc/self").resolve(), [], False
    # The youngest first: a command that asks has just been started.
    for process in sorted((each for each in own.parent.iterdir() if each.name.isdigit()), key=lambda it: -int(it.name)):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            try:
                if process != own and _is_worker(process, own):
                    workers.append(process)
                elif process != own and _has(process, inode):
                    return True
            except PermissionError:
                # It has capabilities that this one has not. So it is no worker, and may have the socket.
                hidden |= _status(process).get("Uid", "").split()[1:2] == [str(os.getuid())]
    return hidden and not any(_has(worker, inode) for worker in workers)


def _has(process: Path, inode: int) -> bool:
    with os.scandir(process / "fd") as descriptors:
        return any(_is(each, inode) for each in descriptors)


def _is_worker(process: Path, own: Path) -> bool:
    """A child of this process, or of one that died and ran the same program. It may have thousands of descriptors."""
    status = _status(process)
    if status.get("PPid") == own.name:
        return True
    more_filters = int(status.get("Seccomp_filters", "0")) > int(_status(own).get("Seccomp_filters", "0"))
    return more_filters and (process / "exe").readlink() == (own / "exe").readlink()


def _is(descriptor: os.DirEntry[str], inode: int) -> bool:
    with contextlib.suppress(OSError):
        found = descriptor.stat()
        return found.st_ino == inode and stat.S_ISSOCK(found.st_mode)
    return False


def _status(process: Path) -> dict[str, str]:
    lines = (process / "status").read_text(encoding="utf-8", errors="replace").splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)
