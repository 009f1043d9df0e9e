"""Takes from a relay worker, for good, every right that it does not need. It reads what strangers send.

A worker speaks TCP on sockets that it is given or that it connects, and with its parent over a socket that it has. It
resolves no name, opens no file, starts no program. So it needs some eighty system calls, and gets no others. Three
layers of the kernel's, none of which asks for a privilege, and none of which can be taken off again:

- `no_new_privs`, and no capabilities;
- Landlock: no file by any path, no TCP port to listen at, no signal and no abstract unix socket across its border;
- a seccomp filter, which lets the system calls of `_CALLS` pass, some of them with certain arguments alone.

The filter is a list of what is allowed, so what the next kernel adds is forbidden. A list of what is forbidden has to
be complete, and the dangerous ones are not the famous ones: `prlimit64` and `sched_setaffinity` of the parent,
`fcntl` with F_SETOWN (a signal), `listen` without `bind` (a free port). Its weakness is a C library that begins to
use another call. Two answers keep that harmless: what is younger than FIRST_WITH_FALLBACK fails with ENOSYS, as on a
kernel before it, where every C library falls back to what it did before (glibc's threads: from `clone3`, whose flags
no filter can see, to `clone`); all else fails with EPERM and not with death. The kernel knows the calls that pass
whatever their arguments are (Linux 5.11), so on the path of a stream's bytes the filter is not even run.

Everything has to be imported, and every thread yet to be started, before `confine` is called.

Sources: seccomp(2), landlock(7), capabilities(7), the kernel's tables of system calls.
"""

import contextlib
import ctypes
import errno
import os
import platform
import struct
import sys
import threading
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

from meshgate.adapters.error_words import words_of


class Mode(StrEnum):
    """Whether workers are confined: not without, as far as the kernel can, not at all."""

    REQUIRE = "require"
    AUTO = "auto"
    OFF = "off"


# --- what a worker may do ---------------------------------------------------------------------------------------------


class Only(NamedTuple):
    """An argument, of whose bits in `mask` only these values pass; with `but` all values but these."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    but: bool = False


class Call(NamedTuple):
    """A system call: its number on x86_64 and on aarch64 (-1: there is none), and what is asked of its arguments."""

    x86_64: int
    aarch64: int
    only: tuple[Only, ...] = ()


OWN_PROCESS: Final = -1
"""In `Only.values`: this process, whose id is not known before it runs."""

FIRST_WITH_FALLBACK: Final = 424
"""pidfd_send_signal, of Linux 5.1: from here on all architectures number alike."""

_INTERNET: Final = (2, 10)  # AF_INET, AF_INET6
_UNIX: Final = (1,)
_STREAM: Final = Only(1, (1,), mask=0xF)  # SOCK_STREAM, whatever SOCK_NONBLOCK and SOCK_CLOEXEC say.
_TCP: Final = Only(2, (0, 6))
_NOT_EXECUTABLE: Final = Only(2, (0,), mask=4)  # PROT_EXEC
_OWN: Final = Only(0, (OWN_PROCESS,))
# A thread shares all (CLONE_VM, FS, FILES, SIGHAND, THREAD, SYSVSEM); it may have its own TLS and be waited for.
_THREAD: Final = Only(0, (0x00050F00,), mask=0xFFFFFFFF & ~(0x80000 | 0x100000 | 0x200000 | 0x1000000 | 0x400000))
_SOCKET_OPTIONS: Final = (Only(1, (1, 6)), Only(2, (26, 31, 50, 51, 52), but=True))  # No BPF, no TLS in the kernel.
# FIONBIO, FIONREAD, SIOCOUTQ, SIOCATMARK, FIOCLEX, FIONCLEX; SIOCGIFINDEX for addresses with a zone.
_IOCTLS: Final = Only(1, (0x5421, 0x541B, 0x5411, 0x8905, 0x5451, 0x5450, 0x8933))
# F_DUPFD, GETFD, SETFD, GETFL, SETFL, DUPFD_CLOEXEC, SETPIPE_SZ, GETPIPE_SZ. Not F_SETOWN, which sends signals.
_FCNTLS: Final = Only(1, (0, 1, 2, 3, 4, 1030, 1031, 1032))

_CALLS: Final = {
    # Bytes, on descriptors that are there. None takes a path.
    "read": Call(0, 63),
    "write": Call(1, 64),
    "readv": Call(19, 65),
    "writev": Call(20, 66),
    "close": Call(3, 57),
    "fstat": Call(5, 80),
    "lseek": Call(8, 62),
    "dup": Call(32, 23),
    "splice": Call(275, 76),
    "pipe2": Call(293, 59),
    "eventfd2": Call(290, 19),
    "ioctl": Call(16, 29, (_IOCTLS,)),
    "fcntl": Call(72, 25, (_FCNTLS,)),
    # Sockets: streams of TCP. Neither bind nor listen. By sendmsg descriptors can leave, to another worker that takes
    # streams over; the parent takes none of a worker, and there is nobody else to send one to.
    "socket": Call(41, 198, (Only(0, _INTERNET), _STREAM, _TCP)),
    "socketpair": Call(53, 199, (Only(0, _UNIX), _STREAM)),
    "connect": Call(42, 203),
    "accept": Call(43, 202),
    "accept4": Call(288, 242),
    "sendto": Call(44, 206),
    "sendmsg": Call(46, 211, (Only(2, (0,)),)),
    "recvfrom": Call(45, 207),
    "recvmsg": Call(47, 212),
    "shutdown": Call(48, 210),
    "getsockname": Call(51, 204),
    "getpeername": Call(52, 205),
    "setsockopt": Call(54, 208, _SOCKET_OPTIONS),
    "getsockopt": Call(55, 209),
    # Waiting, and the time.
    "epoll_create1": Call(291, 20),
    "epoll_ctl": Call(233, 21),
    "epoll_wait": Call(232, -1),
    "epoll_pwait": Call(281, 22),
    "epoll_pwait2": Call(441, 441),
    "poll": Call(7, -1),
    "ppoll": Call(271, 73),
    "select": Call(23, -1),
    "pselect6": Call(270, 72),
    "nanosleep": Call(35, 101),
    "clock_nanosleep": Call(230, 115),
    "clock_gettime": Call(228, 113),
    "clock_getres": Call(229, 114),
    "gettimeofday": Call(96, 169),
    "time": Call(201, -1),
    "times": Call(100, 153),
    "restart_syscall": Call(219, 128),
    "sched_yield": Call(24, 124),
    # Memory, none of which can be run.
    "brk": Call(12, 214),
    "mmap": Call(9, 222, (_NOT_EXECUTABLE,)),
    "mprotect": Call(10, 226, (_NOT_EXECUTABLE,)),
    "munmap": Call(11, 215),
    "mremap": Call(25, 216),
    "madvise": Call(28, 233),
    # Threads of this process, and its end.
    "clone": Call(56, 220, (_THREAD,)),
    "futex": Call(202, 98),
    "set_robust_list": Call(273, 99),
    "rseq": Call(334, 293),
    "membarrier": Call(324, 283),
    "sched_getaffinity": Call(204, 123),
    "getcpu": Call(309, 168),
    "prctl": Call(157, 167, (Only(0, (15,)),)),  # PR_SET_NAME
    "exit": Call(60, 93),
    "exit_group": Call(231, 94),
    # Signals: how they are handled, and those to itself (abort).
    "rt_sigaction": Call(13, 134),
    "rt_sigprocmask": Call(14, 135),
    "rt_sigreturn": Call(15, 139),
    "sigaltstack": Call(131, 132),
    "kill": Call(62, 129, (_OWN,)),
    "tgkill": Call(234, 131, (_OWN,)),
    # Who it is, and what the machine has.
    "getpid": Call(39, 172),
    "gettid": Call(186, 178),
    "getppid": Call(110, 173),
    "getuid": Call(102, 174),
    "geteuid": Call(107, 175),
    "getgid": Call(104, 176),
    "getegid": Call(108, 177),
    "getrusage": Call(98, 165),
    "getrlimit": Call(97, 163),
    "prlimit64": Call(302, 261, (Only(0, (0, OWN_PROCESS)),)),
    "sysinfo": Call(99, 179),
    "uname": Call(63, 160),
    "getrandom": Call(318, 278),
}

# --- the filter -------------------------------------------------------------------------------------------------------

# As the kernel names architectures (linux/audit.h), and the column of `Call`.
_AUDIT: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
KILL, ALLOW, REFUSE, UNKNOWN = 0x80000000, 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
# Classic BPF (linux/filter.h), the part of it that is needed. Where in `struct seccomp_data` it looks.
LOAD, AND, JUMP, IF_EQUAL, IF_AT_LEAST, RETURN = 0x20, 0x54, 0x05, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_LONGEST_JUMP: Final = 255


class Instruction(NamedTuple):
    """As `struct sock_filter`: the code, how many instructions to skip if it is so and if not, and a value."""

    code: int
    if_so: int
    if_not: int
    value: int


def filter_program(machine: str, process: int) -> list[Instruction]:
    """The seccomp filter of a worker.

    Args:
        machine: `x86_64` or `aarch64`.
        process: its id.
    """
    allowed = {number: call for call in _CALLS.values() if (number := getattr(call, machine)) >= 0}
    bodies: list[tuple[int, list[Instruction]]] = []
    for number in sorted({0, FIRST_WITH_FALLBACK, *allowed, *(each + 1 for each in allowed)}):
        if number in allowed:
            body = _body(allowed[number], process)
        else:
            body = [_return(REFUSE if number < FIRST_WITH_FALLBACK else UNKNOWN)]
        if not bodies or bodies[-1][1] != body:
            bodies.append((number, body))
    return [
        Instruction(LOAD, 0, 0, _ARCHITECTURE),
        Instruction(IF_EQUAL, 1, 0, _AUDIT[machine]),
        _return(KILL),  # A system call of another architecture: the numbers mean something else.
        Instruction(LOAD, 0, 0, _NUMBER),
        *_choice(bodies),
    ]


def _choice(bodies: list[tuple[int, list[Instruction]]]) -> list[Instruction]:
    """The body that begins at the highest number that the system call's reaches; found by halves."""
    if len(bodies) == 1:
        return bodies[0][1]
    middle = len(bodies) // 2
    low, high = _choice(bodies[:middle]), _choice(bodies[middle:])
    if len(low) <= _LONGEST_JUMP:
        return [Instruction(IF_AT_LEAST, len(low), 0, bodies[middle][0]), *low, *high]
    return [Instruction(IF_AT_LEAST, 0, 1, bodies[middle][0]), Instruction(JUMP, 0, 0, len(low)), *low, *high]


def _body(call: Call, process: int) -> list[Instruction]:
    body: list[Instruction] = []
    for only in call.only:
        values = [process if value == OWN_PROCESS else value for value in only.values]
        # Its lower half: both machines begin with it.
        body.append(Instruction(LOAD, 0, 0, _ARGUMENTS + 8 * only.argument))
        if only.mask != 0xFFFFFFFF:
            body.append(Instruction(AND, 0, 0, only.mask))
        ends = len(values)
        body += [Instruction(IF_EQUAL, ends - place, 0, value) for place, value in enumerate(values)]
        body += [Instruction(JUMP, 0, 0, 1), _return(REFUSE)] if only.but else [_return(REFUSE)]
    return [*body, _return(ALLOW)]


def _return(action: int) -> Instruction:
    return Instruction(RETURN, 0, 0, action)


# --- the kernel -------------------------------------------------------------------------------------------------------

_PR_SET_NO_NEW_PRIVS, _PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _CLEAR_ALL = 38, 24, 47, 4
_MOST_CAPABILITIES: Final = 64
_CAPABILITY_VERSION: Final = 0x20080522
_CAPSET: Final = {"x86_64": 126, "aarch64": 91}
_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}
_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446
_SET_FILTER, _IS_AVAILABLE = 1, 2
# All threads. And no mitigation against what other code in this process might guess by speculation: there is none, and
# before Linux 5.16 each system call paid for it.
_ALL_THREADS, _NO_MITIGATION = 1, 4
_VERSION: Final = 1
# Each version of Landlock's interface knows more kinds of access to files; the rest came with a version each.
_FILE_RIGHTS: Final = (0, 13, 14, 15, 15, 16)
_BIND_TCP, _ABSTRACT_SOCKETS_AND_SIGNALS = 1, 3


@dataclass(frozen=True, slots=True)
class Support:
    """What this kernel, and what this process runs in, leaves to `confine`. `landlock` is its ABI; 0: there is none."""

    seccomp: bool
    landlock: int

    @property
    def missing(self) -> list[str]:
        """What cannot be had, a line each."""
        found = []
        if not self.seccomp:
            found.append("no seccomp filter: not on this system, or the container's own filter forbids it")
        if not self.landlock:
            found.append("no Landlock: it takes Linux 5.13 with `landlock` among its security modules (lsm=)")
        return found


def support() -> Support:
    """Find out; changes nothing."""
    if sys.platform != "linux" or platform.machine() not in _AUDIT or struct.calcsize("P") != 8:
        return Support(seccomp=False, landlock=0)
    action = ctypes.c_uint32(KILL)
    seccomp = _call(_SECCOMP[platform.machine()], _IS_AVAILABLE, 0, ctypes.byref(action)) == 0
    return Support(seccomp, max(0, _call(_LANDLOCK_CREATE, None, 0, _VERSION)))


def confine() -> list[str]:
    """Give up everything that a worker does not need, as far as `support` says that it can be done.

    Returns:
        What failed nevertheless, a line each.

    Raises:
        RuntimeError: there are other threads already, which would keep their rights.
    """
    if threading.active_count() > 1:
        raise RuntimeError("threads were started before the sandbox")
    found = support()
    steps = [(_give_up_privileges, True), (_close_files, found.landlock > 0), (_filter_calls, found.seccomp)]
    failed = []
    for step, possible in steps:
        if possible and sys.platform == "linux":
            try:
                step()
            except OSError as error:
                failed.append(f"{step.__name__.strip('_').replace('_', ' ')}: {words_of(error)}")
    return failed


def _give_up_privileges() -> None:
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise _error()
    prctl(_PR_CAP_AMBIENT, _CLEAR_ALL, 0, 0, 0)
    for capability in range(_MOST_CAPABILITIES):
        prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # Refused without CAP_SETPCAP, and then of no use to anybody.
    if platform.machine() in _CAPSET and _has_capabilities():
        head, none = struct.pack("Ii", _CAPABILITY_VERSION, 0), bytes(24)
        _must(_CAPSET[platform.machine()], head, none)


def _has_capabilities() -> bool:
    """Where there are none a supervisor may have forbidden to set any, as our systemd unit does."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
    return any(int(line.split()[1], 16) for line in lines if line.startswith(("CapInh:", "CapPrm:", "CapEff:")))


def _close_files() -> None:
    """No rule follows: what is handled is denied. What is open stays open."""
    version = _call(_LANDLOCK_CREATE, None, 0, _VERSION)
    handled = (1 << _FILE_RIGHTS[min(version, len(_FILE_RIGHTS) - 1)]) - 1
    attributes = struct.pack("QQQ", handled, _BIND_TCP, _ABSTRACT_SOCKETS_AND_SIGNALS)
    size = 24 if version >= 6 else 16 if version >= 4 else 8  # The kernel takes no fields that it does not know.
    rules = _must(_LANDLOCK_CREATE, attributes[:size], size, 0)
    try:
        _must(_LANDLOCK_RESTRICT, rules, 0)
    finally:
        os.close(rules)


def _filter_calls() -> None:
    machine = platform.machine()
    code = b"".join(struct.pack("HBBI", *each) for each in filter_program(machine, os.getpid()))
    kept = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(kept))
    for flags in (_ALL_THREADS | _NO_MITIGATION, _ALL_THREADS):  # The first came with Linux 4.17.
        with contextlib.suppress(OSError):
            if _must(_SECCOMP[machine], _SET_FILTER, flags, program) == 0:
                return
    raise _error()


def _call(number: int, *arguments: object) -> int:
    """A system call for which the C library has no name; -1 where it fails."""
    passed = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    return int(ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *passed))


def _must(number: int, *arguments: object) -> int:
    result = _call(number, *arguments)
    if result < 0:
        raise _error()
    return result


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
