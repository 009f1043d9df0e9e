"""Processes under measurement: started on a core, measured by what the kernel says of them, stopped by their id."""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 60.0
STOP_SECONDS = 5.0


class BenchError(Exception):
    """The benchmark cannot go on: something did not start, or bytes were lost. The message says what."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Which core the relay has for itself, and which one load and backend share with everything else."""

    relay: int
    load: int

    @classmethod
    def pick(cls) -> "Cores":
        """The first and the last of the cores that this process may use; the same one where there is only one."""
        usable = sorted(os.sched_getaffinity(0))
        return cls(usable[0], usable[-1])


class Running:
    """A child process and its descendants. Standard error goes to `log`, which errors quote."""

    def __init__(self, child: "subprocess.Popen[str]", log: Path) -> None:
        self.child = child
        self.log = log
        self._cpu: dict[int, int] = {}

    def cpu(self) -> int:
        """User and system time so far, in ns. A process that has ended counts as last seen, so this never shrinks."""
        for pid in tree(self.child.pid):
            # A process's clock (clock_getcpuclockid(3)) keeps what its threads took that have ended.
            with contextlib.suppress(OSError):
                self._cpu[pid] = time.clock_gettime_ns(~pid << 3 | 2)
        return sum(self._cpu.values())

    def memory(self) -> int:
        """What is resident now, in bytes."""
        return memory_of(self.child.pid)

    def check(self) -> None:
        """Raise a BenchError that quotes the log if the process has ended."""
        if self.child.poll() is not None:
            raise self.failure(f"ended with code {self.child.returncode}")

    def failure(self, what: str) -> BenchError:
        """An error about this process, with the end of its log."""
        told = self.log.read_text(errors="replace").strip()[-2000:]
        return BenchError(f"{self.log.stem}: {what}\n{told}")

    def stop(self) -> None:
        """End it, and it alone: politely, then not."""
        self.child.terminate()
        try:
            self.child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        for pipe in (self.child.stdin, self.child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def tree(root: int) -> list[int]:
    """The ids of a process and its descendants."""
    found = [root]
    for pid in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                found.extend(int(child) for child in (task / "children").read_text().split())
    return found


def memory_of(root: int) -> int:
    """What is resident of a process and its descendants, in bytes; what they share is counted once.

    The kernel tells of each process how much of its memory is shared, but not with whom: the largest share among them
    is taken for what all of them have together. (Its proportional size would depend on who else uses a library.)
    """
    private, shared = 0, [0]
    for pid in tree(root):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        except OSError:
            continue  # It has ended meanwhile.
        sizes = {key: int(size.split()[0]) * 1024 for key, size in (line.split(":") for line in lines)}
        private += sizes["Private_Clean"] + sizes["Private_Dirty"]
        shared.append(sizes["Shared_Clean"] + sizes["Shared_Dirty"])
    return private + max(shared)


def start(
    command: Sequence[str | Path],
    core: int,
    folder: Path,
    name: str,
    *,
    environment: Mapping[str, str] | None = None,
    talks: bool = False,
) -> Running:
    """Start a process on a core. With `talks` its standard input and output are pipes, else they are nothing."""
    log = folder / f"{name}.log"
    pipe = subprocess.PIPE if talks else subprocess.DEVNULL
    with log.open("w") as errors, on_core(core):
        child = subprocess.Popen(
            [str(word) for word in command],
            stdin=pipe,
            stdout=pipe,
            stderr=errors,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            text=True,
            bufsize=1,
        )
    return Running(child, log)


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Run on one core meanwhile; children that are started inherit it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def wait_until(condition: Callable[[], bool], what: str, running: Running) -> None:
    """Wait until something holds; an error if the process ends first, or START_SECONDS pass."""
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        running.check()
        if time.monotonic() > deadline:
            raise running.failure(f"{what} did not happen within {START_SECONDS:g} s")
        time.sleep(0.01)


def accepts(port: int) -> bool:
    """Whether somebody listens on a port of 127.0.0.1."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
