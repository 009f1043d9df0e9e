"""What a worker that somebody took over can still do: the filter as a program, and the kernel's answers to attacks."""

import errno
import fcntl
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import structlog
import trio
from hypothesis import given, strategies as st

from meshgate.adapters.relay import sandbox
from meshgate.adapters.relay.sandbox import ALLOW, KILL, REFUSE, UNKNOWN, Instruction, Mode, filter_program
from tests.harness.ports import free_ports

from .streams import WEB, backend, echo, endpoint, receive_exactly
from .test_pool import HELLO, pool_of

MACHINES = ("x86_64", "aarch64")
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "i386": 0x40000003, "arm": 0x40000028}
PID = 4711
MAX = 0xFFFFFFFF

# Numbers from the kernel's tables, on purpose not those of the module: x86_64 (arch/x86/entry/syscalls/syscall_64.tbl)
# and the generic table that aarch64 has. None: the machine has no such call.
FORBIDDEN = {
    "open": (2, None),
    "stat": (4, None),
    "pwrite64": (18, 68),
    "access": (21, None),
    "pipe": (22, None),
    "shmget": (29, 194),
    "bind": (49, 200),
    "listen": (50, 201),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "truncate": (76, 45),
    "ftruncate": (77, 46),
    "chdir": (80, 49),
    "rename": (82, None),
    "mkdir": (83, None),
    "unlink": (87, None),
    "readlink": (89, None),
    "ptrace": (101, 117),
    "setuid": (105, 146),
    "capset": (126, 91),
    "rt_sigqueueinfo": (129, 138),
    "personality": (135, 92),
    "setpriority": (141, 140),
    "sched_setscheduler": (144, 119),
    "pivot_root": (155, 41),
    "arch_prctl": (158, None),
    "setrlimit": (160, 164),
    "chroot": (161, 51),
    "mount": (165, 40),
    "reboot": (169, 142),
    "init_module": (175, 105),
    "tkill": (200, 130),
    "sched_setaffinity": (203, 122),
    "io_setup": (206, 0),
    "kexec_load": (246, 104),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "ioprio_set": (251, 30),
    "inotify_init": (253, None),
    "openat": (257, 56),
    "newfstatat": (262, 79),
    "unlinkat": (263, 35),
    "unshare": (272, 97),
    "move_pages": (279, 239),
    "perf_event_open": (298, 241),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "sendmmsg": (307, 269),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "finit_module": (313, 273),
    "seccomp": (317, 277),
    "memfd_create": (319, 279),
    "kexec_file_load": (320, 294),
    "bpf": (321, 280),
    "execveat": (322, 281),
    "userfaultfd": (323, 282),
    "pkey_mprotect": (329, 288),
    "statx": (332, 291),
}
# For these the C library has a way that older kernels know.
WITH_FALLBACK = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428,
    "fsopen": 430, "pidfd_open": 434, "clone3": 435, "openat2": 437, "pidfd_getfd": 438, "process_madvise": 440,
    "landlock_restrict_self": 446, "memfd_secret": 447, "the next one": 500, "after that": 1000,
}  # fmt: skip
ALWAYS = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "splice": (275, 76), "sendto": (44, 206),
    "recvfrom": (45, 207), "recvmsg": (47, 212), "epoll_wait": (232, None), "epoll_pwait": (281, 22),
    "epoll_ctl": (233, 21), "accept4": (288, 242), "connect": (42, 203), "shutdown": (48, 210), "futex": (202, 98),
    "munmap": (11, 215), "brk": (12, 214), "madvise": (28, 233), "exit_group": (231, 94), "exit": (60, 93),
    "rt_sigreturn": (15, 139), "getrandom": (318, 278), "clock_gettime": (228, 113), "getsockopt": (55, 209),
    "set_robust_list": (273, 99), "rseq": (334, 293), "restart_syscall": (219, 128),
}  # fmt: skip


@dataclass(frozen=True)
class Called:
    """A system call as the filter sees it."""

    number: int
    architecture: int
    arguments: Sequence[int] = ()

    def word(self, offset: int) -> int:
        arguments = [*self.arguments, 0, 0, 0, 0, 0, 0][:6]
        words = [self.number, self.architecture, 0, 0]
        for each in arguments:
            words += [each & MAX, (each >> 32) & MAX]
        return words[offset // 4]


def run(program: Sequence[Instruction], called: Called) -> int:
    """Classic BPF, as the kernel runs it: forwards only, so it ends."""
    at, accumulator = 0, 0
    while True:
        code, if_so, if_not, value = program[at]
        at += 1
        if code == 0x20:
            assert value % 4 == 0
            accumulator = called.word(value)
        elif code == 0x54:
            accumulator &= value
        elif code == 0x05:
            at += value
        elif code == 0x15:
            at += if_so if accumulator == value else if_not
        elif code == 0x35:
            at += if_so if accumulator >= value else if_not
        else:
            assert code == 0x06
            return value


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def verdict(machine: str, number: int, *arguments: int) -> int:
    return run(filter_program(machine, PID), Called(number, AUDIT[machine], arguments))


def number_on(machine: str, pair: tuple[int | None, int | None]) -> int | None:
    return pair[MACHINES.index(machine)]


def test_kernel_would_take_the_program(machine: str) -> None:
    """What it checks of one: at most 4096 instructions, jumps within it, a return at its end, fields of their width."""
    program = filter_program(machine, PID)
    assert len(program) < 4096
    assert program[-1].code == 0x06
    for place, (code, if_so, if_not, value) in enumerate(program):
        assert 0 <= if_so <= 255
        assert 0 <= if_not <= 255
        assert 0 <= value <= MAX
        if code in (0x15, 0x35):
            assert place + 1 + max(if_so, if_not) < len(program)
        elif code == 0x05:
            assert place + 1 + value < len(program)


def test_what_harms_others_is_refused_and_kills_nobody(machine: str) -> None:
    for name, pair in FORBIDDEN.items():
        number = number_on(machine, pair)
        if number is not None:
            assert verdict(machine, number) == REFUSE, name


def test_what_is_young_is_unknown_so_that_libraries_fall_back(machine: str) -> None:
    for name, number in WITH_FALLBACK.items():
        assert verdict(machine, number) == UNKNOWN, name


def test_what_streams_need_passes_whatever_its_arguments(machine: str) -> None:
    for name, pair in ALWAYS.items():
        number = number_on(machine, pair)
        if number is not None:
            assert verdict(machine, number, *[MAX << 32 | MAX] * 6) == ALLOW, name


def test_other_architectures_end_the_process_and_x32_is_unknown() -> None:
    """Whoever may choose the architecture chooses what a number means."""
    for machine in MACHINES:
        for other in AUDIT.keys() - {machine}:
            for number in (0, 11, 59, 221, 1 << 30):
                assert run(filter_program(machine, PID), Called(number, AUDIT[other])) == KILL
    for number in (0, 59, 520, 545):
        assert verdict("x86_64", 0x40000000 | number) == UNKNOWN


CALLS = {"socket": (41, 198), "socketpair": (53, 199), "clone": (56, 220), "mmap": (9, 222), "mprotect": (10, 226)}
CALLS |= {"kill": (62, 129), "tgkill": (234, 131), "fcntl": (72, 25), "ioctl": (16, 29), "prlimit64": (302, 261)}
CALLS |= {"prctl": (157, 167), "setsockopt": (54, 208), "sendmsg": (46, 211)}
ARGUMENTS: list[tuple[str, tuple[int, ...], bool]] = [
    ("socket", (socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0), True),
    ("socket", (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP), True),
    ("sendmsg", (5, MAX, 0), True),
    ("sendmsg", (5, MAX, socket.MSG_OOB), False),
    ("sendmsg", (5, MAX, 0x20000000), False),  # MSG_FASTOPEN, which connects.
    ("socket", (socket.AF_UNIX, socket.SOCK_STREAM, 0), False),
    ("socket", (socket.AF_NETLINK, socket.SOCK_RAW, 0), False),
    ("socket", (40, socket.SOCK_STREAM, 0), False),  # AF_VSOCK
    ("socket", (38, socket.SOCK_STREAM, 0), False),  # AF_ALG
    ("socket", (socket.AF_INET, socket.SOCK_DGRAM, 0), False),
    ("socket", (socket.AF_INET, socket.SOCK_RAW, 1), False),
    ("socket", (socket.AF_INET, socket.SOCK_STREAM, 262), False),  # IPPROTO_MPTCP
    ("socket", (socket.AF_INET, socket.SOCK_STREAM, 132), False),  # IPPROTO_SCTP
    ("socketpair", (socket.AF_UNIX, socket.SOCK_STREAM, 0), True),
    ("socketpair", (socket.AF_UNIX, socket.SOCK_DGRAM, 0), False),  # It could be connected elsewhere.
    ("clone", (0x3D0F00, 1), True),  # glibc's thread
    ("clone", (0x7D0F00, 1), True),  # musl's
    ("clone", (0x1200011,), False),  # fork
    ("clone", (0x4111,), False),  # vfork
    ("clone", (0x3D0F00 | 0x20000,), False),  # CLONE_NEWNS
    ("clone", (0x10000000,), False),  # CLONE_NEWUSER
    ("clone", (0x3D0F00 & ~0x10000,), False),  # Not in the same process.
    ("clone", (0x3D0F00 & ~0x400,), False),  # With descriptors of its own.
    ("mmap", (0, 4096, 3, 0x22), True),
    ("mmap", (0, 4096, 7, 0x22), False),
    ("mmap", (0, 4096, 5, 2, 3), False),
    ("mprotect", (0, 4096, 3), True),
    ("mprotect", (0, 4096, 5), False),
    ("kill", (PID, 6), True),
    ("kill", (1, 9), False),
    ("kill", (0, 15), False),
    ("kill", (-1 & MAX, 9), False),
    ("tgkill", (PID, PID, 6), True),
    ("tgkill", (1, 1, 9), False),
    ("fcntl", (3, fcntl.F_SETFL, os.O_NONBLOCK), True),
    ("fcntl", (3, 1031, 1 << 20), True),  # F_SETPIPE_SZ
    ("fcntl", (3, fcntl.F_SETOWN, 1), False),
    ("fcntl", (3, 10, 9), False),  # F_SETSIG
    ("fcntl", (3, 15, 9), False),  # F_SETOWN_EX
    ("ioctl", (3, 0x5421), True),  # FIONBIO
    ("ioctl", (3, 0x5411), True),  # SIOCOUTQ
    ("ioctl", (3, 0x5412), False),  # TIOCSTI
    ("ioctl", (3, 0x8901), False),  # FIOSETOWN
    ("ioctl", (3, 0x8902), False),  # SIOCSPGRP
    ("prlimit64", (0, 7), True),
    ("prlimit64", (PID, 7), True),
    ("prlimit64", (1, 7), False),
    ("prctl", (15,), True),  # PR_SET_NAME
    ("prctl", (22,), False),  # PR_SET_SECCOMP
    ("prctl", (35,), False),  # PR_SET_MM
    ("setsockopt", (3, socket.SOL_SOCKET, socket.SO_LINGER), True),
    ("setsockopt", (3, socket.IPPROTO_TCP, 18), True),  # TCP_USER_TIMEOUT
    ("setsockopt", (3, socket.SOL_SOCKET, 26), False),  # SO_ATTACH_FILTER
    ("setsockopt", (3, socket.IPPROTO_TCP, 31), False),  # TCP_ULP
    ("setsockopt", (3, socket.IPPROTO_IP, 64), False),  # IPT_SO_SET_REPLACE
]


@pytest.mark.parametrize(("name", "arguments", "passes"), ARGUMENTS)
def test_some_calls_pass_with_certain_arguments(
    machine: str, name: str, arguments: tuple[int, ...], passes: bool
) -> None:
    number = CALLS[name][MACHINES.index(machine)]
    assert verdict(machine, number, *arguments) == (ALLOW if passes else REFUSE)
    # The kernel takes these arguments for 32 bits wide, so the rest of the register must not matter.
    assert verdict(machine, number, *(each | 1 << 40 for each in arguments)) == (ALLOW if passes else REFUSE)


@given(st.sampled_from(MACHINES), st.integers(0, MAX), st.lists(st.integers(0, (1 << 64) - 1), min_size=6, max_size=6))
def test_no_other_call_passes(machine: str, number: int, arguments: list[int]) -> None:
    numbers = {getattr(call, machine) for call in sandbox._CALLS.values()}
    said = verdict(machine, number, *arguments)
    assert said in (ALLOW, REFUSE, UNKNOWN)
    if number not in numbers:
        assert said == (REFUSE if number < 424 else UNKNOWN)


def test_calls_without_conditions_never_look_at_an_argument(machine: str) -> None:
    """Then the kernel knows their answer beforehand, and does not run the filter for them (Linux 5.11)."""
    program = filter_program(machine, PID)
    for name, pair in ALWAYS.items():
        number = number_on(machine, pair)
        if number is None:
            continue
        at, steps = 3, 0
        while program[at].code != 0x06:
            code, if_so, if_not, value = program[at]
            at += 1
            steps += 1
            if code == 0x20:
                assert value == 0, name
            elif code == 0x05:
                at += value
            else:
                at += if_so if number >= value else if_not
        assert steps < 14, name


# --- attacks, in a process that has given up its rights ---------------------------------------------------------------

TAKEN_OVER = """
import ctypes, fcntl, json, os, resource, runpy, signal, socket, sys, threading
from meshgate.adapters.relay import sandbox
token, state, unix_admin, user, results = sys.argv[1:6]
del sys.argv[1:6]
parent = os.getppid()
report = os.open(results, os.O_WRONLY | os.O_CREAT, 0o600)
libc = ctypes.CDLL(None, use_errno=True)
confined = sandbox.confine

def system_call(number, *arguments):
    if libc.syscall(ctypes.c_long(number), *[ctypes.c_long(each) for each in arguments]) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def opened(path, flags):
    os.close(os.open(path, flags, 0o600))

def by_unix(kind, address):
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.connect(address)

def listens():
    with socket.socket() as sock:
        sock.listen()

def binds():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))

def sends_descriptor():
    one, other = socket.socketpair()
    socket.send_fds(one, [b"x"], [0])

def sends_signal_by_socket():
    one, other = socket.socketpair()
    fcntl.fcntl(one, fcntl.F_SETOWN, parent)

ATTACKS = {
    "the token": lambda: opened(token, os.O_RDONLY),
    "the state": lambda: opened(state + "/catalog", os.O_WRONLY | os.O_CREAT),
    "its own program": lambda: opened(sys.executable, os.O_RDONLY),
    "the parent's memory": lambda: opened(f"/proc/{parent}/mem", os.O_RDWR),
    "the parent's environment": lambda: opened(f"/proc/{parent}/environ", os.O_RDONLY),
    "the parent's descriptors": lambda: os.listdir(f"/proc/{parent}/fd"),
    "its own memory": lambda: opened("/proc/self/mem", os.O_RDWR),
    "the folder": lambda: os.listdir("/"),
    "what is there": lambda: os.stat(token),
    "a program": lambda: os.execv("/bin/true", ["true"]),
    "a process": os.fork,
    "a spawned process": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "a signal": lambda: os.kill(parent, 0),
    "a signal to all": lambda: os.kill(-1, signal.SIGCONT),
    "a signal by a socket": sends_signal_by_socket,
    "the parent's limits": lambda: resource.prlimit(parent, resource.RLIMIT_NOFILE),
    "the parent's processors": lambda: os.sched_setaffinity(parent, {0}),
    "the parent's priority": lambda: os.setpriority(os.PRIO_PROCESS, parent, 5),
    "a unix socket": lambda: by_unix(socket.SOCK_STREAM, unix_admin),
    "a datagram": lambda: by_unix(socket.SOCK_DGRAM, unix_admin),
    "an abstract socket": lambda: by_unix(socket.SOCK_STREAM, "\\0" + unix_admin),
    "a listener": listens,
    "an address": binds,
    "UDP": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    "descriptors to give away at once": lambda: system_call(307, parent, 0, 0, 0),
    "a descriptor of the parent": lambda: system_call(438, parent, 0, 0),
    "a file in memory": lambda: os.memfd_create("x"),
    "memory to run": lambda: __import__("mmap").mmap(-1, 4096, prot=7),
    "a traced parent": lambda: libc.ptrace(16, parent, 0, 0) and (_ for _ in ()).throw(PermissionError(1, "")),
    "a namespace": lambda: system_call(272, 0x10000000),
    "io_uring": lambda: system_call(425, 1, 0),
    "another user": lambda: os.setuid(65534),
    "another folder": lambda: os.chdir("/tmp"),
    "another filter": lambda: system_call(317, 0, 0, 0),
}

def attack():
    if int(user) != os.getuid():
        os.setgroups([])
        os.setgid(int(user))
        os.setuid(int(user))
    failed = confined()
    said = {}
    for name, step in ATTACKS.items():
        try:
            step()
        except OSError as error:
            said[name] = error.errno
        else:
            said[name] = 0
    threads = []
    thread = threading.Thread(target=threads.append, args=(1,))
    thread.start()
    thread.join()
    os.write(report, json.dumps([failed, threads, said]).encode())
    os.close(report)
    return failed

sandbox.confine = attack
runpy.run_module("meshgate.adapters.relay.worker", run_name="__main__")
"""


async def taken_over(folder: Path, user: int) -> tuple[list[str], list[int], dict[str, int]]:
    """What a worker could do after it had given up its rights, which then served a stream."""
    token, results, admin = folder / "token", folder / "results", folder / "admin"
    token.write_text("secret")
    with (
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
    ):
        listener.bind(str(admin))
        listener.listen()
        abstract.bind(f"\0{admin}")
        abstract.listen()
        async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, workers=1) as pool:
            pool.policy.sandbox = Mode.REQUIRE
            arguments = map(str, (token, folder, admin, user, results))
            pool.policy.command = (sys.executable, "-c", TAKEN_OVER, *arguments)
            os.kill(pool.relay.workers[0], signal.SIGKILL)
            with trio.fail_after(30):
                while not (results.exists() and results.read_text()):
                    await trio.sleep(0.02)
            await (await pool.call()).aclose()
            failed, threads, said = json.loads(results.read_text())
            return failed, threads, said


def status_of(process: int) -> dict[str, str]:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


needs_kernel = pytest.mark.skipif(sandbox.support().missing != [], reason="the kernel lacks what a sandbox is made of")


@needs_kernel
@pytest.mark.parametrize("user", sorted({os.getuid(), 65534} if os.getuid() == 0 else {os.getuid()}))
async def test_worker_that_is_taken_over_gets_at_nothing_and_still_serves(tmp_path: Path, user: int) -> None:
    os.chmod(tmp_path, 0o777)
    failed, threads, said = await taken_over(tmp_path, user)
    assert failed == []
    assert threads == [1]
    assert {name for name, error in said.items() if error == 0} == set()
    assert set(said.values()) <= {errno.EPERM, errno.EACCES, errno.ENOSYS}, said
    assert len(said) == TAKEN_OVER.count('": ')


@needs_kernel
async def test_worker_has_no_capability_and_cannot_get_any(tmp_path: Path) -> None:
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, workers=1) as pool:
        await (await pool.call()).aclose()
        status = status_of(pool.relay.workers[0])
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    sets = ["CapInh", "CapPrm", "CapEff", "CapAmb"]
    if os.getuid() == 0:
        sets.append("CapBnd")
    assert [int(status[each], 16) for each in sets] == [0] * len(sets)


@needs_kernel
async def test_listener_that_comes_later_is_served_in_the_sandbox() -> None:
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, workers=1) as pool:
        await (await pool.call()).aclose()
        _, later = pool.relay.bind("later", "127.0.0.1", 0)
        client = await trio.open_tcp_stream("127.0.0.1", later)
        await client.send_all(HELLO)
        assert await receive_exactly(client, len(HELLO)) == HELLO
        await client.aclose()
        assert status_of(pool.relay.workers[0])["Seccomp"] == "2"


async def test_sandbox_can_be_off() -> None:
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, workers=1) as pool:
        pool.policy.sandbox = Mode.OFF
        (first,) = pool.relay.workers
        os.kill(first, signal.SIGKILL)
        with trio.fail_after(30):
            while pool.relay.workers in ([], [first]):
                await trio.sleep(0.02)
        await (await pool.call()).aclose()
        assert status_of(pool.relay.workers[0])["Seccomp"] == status_of(os.getpid())["Seccomp"]


# --- a kernel that has less -------------------------------------------------------------------------------------------

# Refuses one system call in this process and all that it starts, as an older kernel or a container's filter does.
WITHOUT = """
import ctypes, os, struct, sys
from meshgate.adapters.relay import sandbox
refused = int(sys.argv.pop(1))
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
code = b"".join(struct.pack("HBBI", *each) for each in [
    (0x20, 0, 0, 0), (0x15, 0, 1, refused), (0x06, 0, 0, sandbox.UNKNOWN), (0x06, 0, 0, sandbox.ALLOW)])
kept = ctypes.create_string_buffer(code, len(code))
program = struct.pack("HxxxxxxP", 4, ctypes.addressof(kept))
assert ctypes.CDLL(None).prctl(22, 2, ctypes.c_char_p(program), 0, 0) == 0
"""
RUNS = "from meshgate.app.cli.main import main\nsys.exit(main())\n"
TELLS = "print(sandbox.support(), sandbox.confine())\n"
LANDLOCK, SECCOMP = 444, sandbox._SECCOMP.get(platform.machine(), 0)


def without(call: int, then: str, *arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", WITHOUT + then, str(call), *arguments],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@needs_kernel
@pytest.mark.parametrize(("call", "word"), [(LANDLOCK, "Landlock"), (SECCOMP, "seccomp")])
def test_what_is_required_and_cannot_be_had_ends_the_start_with_one_line(call: int, word: str) -> None:
    ended = without(call, RUNS, "run", MESHGATE_SANDBOX="require", CONSUL_HTTP_ADDR="127.0.0.1:1")
    (line,) = ended.stderr.splitlines()
    assert word in line
    assert "MESHGATE_SANDBOX" in line
    assert (ended.returncode, ended.stdout) == (2, "")


@needs_kernel
@pytest.mark.parametrize(("call", "word"), [(LANDLOCK, "no Landlock"), (SECCOMP, "no seccomp filter")])
def test_what_cannot_be_had_is_told_once_at_the_start_and_then_by_its_page(
    call: int, word: str, tmp_path: Path
) -> None:
    admin, log = tmp_path / "admin", tmp_path / "log"
    (port,) = free_ports(1)
    settings = {"ADDRESS": f"127.0.0.1:{port}", "ADMIN_BIND": f"unix://{admin}", "WORKERS": "2", "SANDBOX": "auto"}
    environ = {f"MESHGATE_{name}": value for name, value in settings.items()} | {"CONSUL_HTTP_ADDR": "127.0.0.1:1"}
    command = [sys.executable, "-c", WITHOUT + RUNS, str(call), "run"]
    with log.open("w") as file:
        gateway = subprocess.Popen(command, env=os.environ | environ, stdout=file, stderr=file)
    try:
        while not admin.exists():
            assert gateway.poll() is None, log.read_text()
            time.sleep(0.05)
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(admin)), base_url="http://x") as client:
            told = client.get("/server_info").json()["sandbox"]
    finally:
        gateway.terminate()
        gateway.wait(30)
    assert told["mode"] == "auto"
    assert [line[: len(word)] for line in told["missing"]] == [word]
    lines = [line for line in log.read_text().splitlines() if word in line]
    assert ["confined as far as this system can" in line for line in lines] == [True]


@needs_kernel
@pytest.mark.parametrize(("mode", "status"), [("auto", "warning"), ("require", "failed"), ("off", "warning")])
def test_doctor_tells_what_a_sandbox_lacks(mode: str, status: str) -> None:
    ended = without(LANDLOCK, RUNS, "doctor", "--json", MESHGATE_SANDBOX=mode, CONSUL_HTTP_ADDR="127.0.0.1:1")
    (found,) = [each for each in json.loads(ended.stdout)["checks"] if each["check"] == "sandbox"]
    assert found["status"] == status
    assert ("MESHGATE_SANDBOX=auto" in found["advice"]) if mode == "off" else ("no Landlock" in found["detail"])


@needs_kernel
@pytest.mark.parametrize(
    ("call", "said"),
    [
        (LANDLOCK, "Support(seccomp=True, landlock=0) []\n"),
        (SECCOMP, f"Support(seccomp=False, landlock={sandbox.support().landlock}) []\n"),
    ],
)
def test_what_can_be_had_is_had_without_the_rest(call: int, said: str) -> None:
    ended = without(call, TELLS)
    assert (ended.stderr, ended.stdout) == ("", said)


@needs_kernel
@pytest.mark.skipif(os.getuid() != 0, reason="who is nobody else has no capabilities to lose")
def test_who_has_no_capabilities_need_not_be_allowed_to_set_any() -> None:
    """As under our systemd unit, whose filter refuses that."""
    capset = sandbox._CAPSET[platform.machine()]
    assert without(capset, "os.setuid(65534)\n" + TELLS).stdout.endswith(") []\n")
    assert without(capset, TELLS).stdout.endswith(") ['give up privileges: Function not implemented']\n")


def test_a_process_with_threads_is_not_half_confined() -> None:
    code = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    code += "from meshgate.adapters.relay.sandbox import confine\nconfine()\n"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "RuntimeError: threads were started before the sandbox" in ended.stderr


@needs_kernel
def test_a_thread_that_is_left_when_python_ends_does_not_abort_the_worker() -> None:
    code = "import ctypes, threading\nfrom meshgate.adapters.relay import sandbox, worker\n"
    code += "worker._import_all()\nsandbox.confine()\n"
    code += "left = threading.Thread(target=ctypes.CDLL(None).pthread_exit, args=(None,))\n"
    # As where the interpreter is at its end: the thread is gone, and Python does not hear of it.
    code += "left.start()\nleft.join(0.5)\nimport os\nos._exit(7)\n"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (7, "")


@needs_kernel
async def test_worker_that_cannot_be_confined_as_required_serves_nobody() -> None:
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, workers=1) as pool:
        pool.policy.sandbox = Mode.REQUIRE
        sane, pool.policy.command = pool.policy.command, (sys.executable, "-c", WITHOUT + STARTS, str(LANDLOCK))
        with structlog.testing.capture_logs() as logs:
            os.kill(pool.relay.workers[0], signal.SIGKILL)
            with trio.fail_after(30):
                while "no sandbox for a relay worker: no Landlock" not in str(logs):
                    await trio.sleep(0.02)
        pool.policy.command = sane
        await (await pool.call()).aclose()


STARTS = 'import runpy\nrunpy.run_module("meshgate.adapters.relay.worker", run_name="__main__")\n'


@needs_kernel
async def test_zone_of_an_address_is_found_in_the_sandbox() -> None:
    """The C library would ask for it by a socket that a worker may not have."""
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with listener:
        there = endpoint(listener.getsockname()[1], address="::1%lo")
        async with pool_of({WEB: [there]}, workers=1) as pool, await pool.dial() as client:
            await client.send_all(HELLO)
            accepted, _ = await trio.to_thread.run_sync(listener.accept)
            with accepted:
                assert accepted.recv(len(HELLO)) == HELLO
