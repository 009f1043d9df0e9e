"""Child processes that never outlive their parent.

Each has a process group of its own, so that a terminal's Ctrl-C reaches only the parent, which then stops its children
in order. On Linux the kernel kills them should the parent die without doing so. Output goes to a log file.
"""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

# Runs in the child before the real program. PR_SET_PDEATHSIG (1) survives exec; a parent that is gone already sends
# no signal.
_LEASH = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


def child_environment(**extra: str) -> dict[str, str]:
    """This process's environment without the variables that Consul's tools and the gateway read, plus `extra`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CONSUL_", "MESHGATE_"))}
    return kept | extra


class Child:
    """A running program. `name` is for messages, `log` holds what it printed.

    Start it on a thread that lives as long as the program is wanted: to the kernel the end of that thread is the
    parent's.
    """

    @trio.lowlevel.enable_ki_protection
    def __init__(self, argv: Sequence[str], *, name: str, log: Path, env: Mapping[str, str] | None = None) -> None:
        """Starts `argv` in the folder of `log`, with `env` (default: `child_environment()`).

        Raises:
            OSError: the program cannot be started.
        """
        self.name = name
        self.log = log
        leash = [sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid())] if sys.platform == "linux" else []
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*leash, *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                env=child_environment() if env is None else env,
                process_group=0,
            )

    @property
    def pid(self) -> int:
        """The process id; the program's own, also after it ended."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """How it ended as `subprocess` says it (negative: the signal), None while it runs."""
        return self._process.poll()

    @property
    def running(self) -> bool:
        """Whether it has not ended; a paused one runs."""
        return self.returncode is None

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal; nothing happens when it has ended."""
        self._process.send_signal(number)

    def pause(self) -> None:
        """SIGSTOP: it keeps its sockets and answers nothing."""
        self.signal(signal.SIGSTOP)
        # The signal is only sent by then: a thread on another core may still answer.
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    async def wait(self) -> int:
        """Waits for its end and returns the return code. Cancelling leaves it running."""
        while (code := self.returncode) is None:
            await trio.sleep(0.01)
        return code

    async def kill(self) -> None:
        """SIGKILL for it and what it started, and waits for its end."""
        if self.running:
            self._kill_group()
            await self.wait()

    @trio.lowlevel.enable_ki_protection
    async def stop(self, grace: float = 3.0) -> None:
        """SIGTERM, and SIGKILL when it has not ended after `grace` seconds. Cancellation does not interrupt it."""
        with trio.CancelScope(shield=True):
            if self.running:
                self.signal(signal.SIGTERM)
                self.resume()
                with trio.move_on_after(grace):
                    await self.wait()
                # Also when it has ended: what it started may be left.
                self._kill_group()
                await self.wait()

    def _kill_group(self) -> None:
        # Only called while it runs or at the moment of its end, so that its number is nobody else's yet.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def last_lines(self, count: int = 10) -> str:
        """The end of what it printed, for error messages."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-count:]) or "(it printed nothing)"


@asynccontextmanager
async def child_process(
    argv: Sequence[str], *, name: str, log: Path, env: Mapping[str, str] | None = None
) -> AsyncIterator[Child]:
    """A `Child` that is stopped at the end of the block, however it ends."""
    child = Child(argv, name=name, log=log, env=env)
    try:
        yield child
    finally:
        await child.stop()
