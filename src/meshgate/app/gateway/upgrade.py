"""An upgrade: the next version goes on in this very process, with every stream.

First it is tried: started as a child with the real hand-over, it imports everything, reads the settings, and says
whether it could go on. Until then nothing is given up, and where it could not nothing has happened. Then it replaces
the program of this process (execve(2)), which keeps the process id, the workers as children, and the listening sockets,
so that supervisors and clients see nothing of it.

A path of another Python is only taken where nobody but root and this user could have put it there.
"""

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
import structlog
import trio

from meshgate import __version__
from meshgate.adapters.error_words import words_of
from meshgate.adapters.sd_notify import Notifier
from meshgate.app.errors import CommandError
from meshgate.app.gateway.upgrade_record import (
    TRIAL,
    HandOver,
    ProcessLeft,
    Upgrade,
    arguments_of,
    command_of,
    environment_of,
    inheritable,
    memory_of,
)
from meshgate.app.settings.settings import Settings
from meshgate.core.text import printable

log = structlog.get_logger(module="meshgate.upgrade")

# Seconds that a trial may take: a slow disk or a busy machine is no reason to refuse.
TRIAL_SECONDS: Final = 60.0
# Seconds for what is to be written, and to be told, before the exec.
SETTLE_SECONDS: Final = 10.0
_SETTLE_LOOK: Final = 0.01
_LAST_FLUSH: Final = 1.0
_NOT_SETTLED: Final = "the relay workers do not read what they are told, or still hand streams over"
_NOT_WRITTEN: Final = "the access log does not take its lines"
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
_DEFECT: Final = "internal error in an upgrade; please report this"
_LONGEST_ANSWER: Final = 1 << 16
_MOST_QUOTED: Final = 300
_OURS: Final = "meshgate: "
_MOST_LINKS: Final = 40

# Those that cannot change without another registration, or another login.
IDENTITY: Final = (
    "MESHGATE_SERVICE",
    "MESHGATE_PROXY_ID",
    "MESHGATE_REGISTER",
    "MESHGATE_NODE_NAME",
    "MESHGATE_EXPOSE_SERVERS",
    "MESHGATE_LOGIN_AUTH_METHOD",
    "CONSUL_HTTP_ADDR",
    "CONSUL_NAMESPACE",
    "CONSUL_PARTITION",
)


def identity_of(settings: Settings) -> dict[str, str]:
    """The settings that have to be the same before and after an upgrade, as users may see them."""
    return {name: settings.shown(name) for name in IDENTITY}


class UpgradeRefusedError(CommandError):
    """The next version cannot go on; its text says why. Nothing has changed."""


class Trial(msgspec.Struct, frozen=True):
    """What a version says that could go on."""

    version: str


class Upgrader:
    """Has the next version go on.

    Args:
        process: how it was started.
        refuse: says why there can be no upgrade now; "" where there can.
        leave: makes the record of what is handed over.
        settled: whether nothing is under way that would be lost with this program.
        flush: writes, within so many seconds, what waits to be written; blocks. Whether it has.
        streams: how many are open.
        notifier: for systemd, which is told of an upgrade as of a reload.
        before: upgrades so far, by their results, and the last one.
    """

    def __init__(
        self,
        process: ProcessLeft,
        *,
        refuse: Callable[[], str],
        leave: Callable[[], HandOver],
        settled: Callable[[], bool],
        flush: Callable[[float], bool],
        streams: Callable[[], int],
        notifier: Notifier,
        before: HandOver | None = None,
    ) -> None:
        self.process = process
        self.last: Upgrade | None = None if before is None else before.upgrade
        self.results = dict.fromkeys(("done", "failed", "refused"), 0) | ({} if before is None else before.upgrades)
        self._refuse = refuse
        self._leave = leave
        self._settled = settled
        self._flush = flush
        self._streams = streams
        self._notifier = notifier
        self._number = 0 if before is None else before.upgrade.number
        self._wanted = trio.Event()

    @property
    def under_way(self) -> bool:
        return self.last is not None and self.last.result == "under_way"

    async def prepare(self, python: str = "", asked: str = "") -> Upgrade:
        """Try the next version; `go` has it go on then. UpgradeRefusedError where it could not.

        `python` is the path of the Python that has it, "" for the one of this process; `asked` says who wants it.
        """
        if self.under_way:
            log.warning("no upgrade: another one is under way", asked=asked)
            raise UpgradeRefusedError("another upgrade is under way")
        self._number += 1
        self.last = upgrade = Upgrade(
            number=self._number,
            started=time.time(),
            python=python or sys.executable,
            version_before=__version__,
            streams=self._streams(),
        )
        self._notifier.reloading()
        log.info("upgrade: the next version is tried", python=upgrade.python, version=__version__, asked=asked)
        try:
            self._check()
            if python:
                await trio.to_thread.run_sync(check_path, python)
            trial = await self._try(upgrade.python)
        except BaseException as error:
            self._over("refused", words_of(error) if isinstance(error, Exception) else "the gateway ends")
            if isinstance(error, UpgradeRefusedError) or not isinstance(error, Exception):
                raise
            # A way to get here must not be a way to end the gateway.
            log.exception(_DEFECT)
            raise UpgradeRefusedError(_DEFECT) from error
        upgrade.version_after = trial.version
        return upgrade

    def go(self) -> None:
        """Let the version that was tried go on, as soon as `run` can."""
        self._wanted.set()

    async def by_signal(self) -> None:
        """An upgrade to what this Python has now, as a signal asks for it; what comes of it is in the log."""
        with suppress(UpgradeRefusedError):
            await self.prepare(asked="SIGUSR2")
            self.go()

    async def run(self) -> None:
        """Replace this program when it is asked for; until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            try:
                await self._replace()
            except Exception as error:
                if not isinstance(error, UpgradeRefusedError):
                    log.exception(_DEFECT)
                self._over("refused", words_of(error))

    def finished(self, *, handed_over: int, kept: int, lost: int) -> None:
        """The upgrade that brought this version is over."""
        assert self.last is not None
        self.last.handed_over, self.last.kept, self.last.lost = handed_over, kept, lost
        self._over("done")

    def given_back(self, why: str) -> None:
        """This version goes on again, since the next one could not."""
        self._over("failed", why)

    def _check(self) -> None:
        if why := self._refuse():
            raise UpgradeRefusedError(why)

    def _over(self, result: str, reason: str = "") -> None:
        assert self.last is not None
        last = self.last
        last.result, last.reason, last.seconds = result, printable(reason), round(time.time() - last.started, 3)
        self.results[result] += 1
        if result == "done":
            log.info(
                "upgraded",
                before=last.version_before,
                after=__version__,
                seconds=last.seconds,
                streams=last.streams,
                handed_over=last.handed_over,
                kept=last.kept,
                lost=last.lost,
            )
        else:
            log.warning("no upgrade: this version goes on, and nothing has changed", reason=last.reason, result=result)
        self._notifier.ready()

    # --- the trial ----------------------------------------------------------------------------------------------------

    async def _try(self, python: str) -> Trial:
        _, memory = self._written()
        try:
            with trio.fail_after(TRIAL_SECONDS):
                environment = environment_of(self.process, memory)
                code, said, complained = await _run(command_of(python, [TRIAL]), environment, memory)
        except trio.TooSlowError:
            raise UpgradeRefusedError(f"the trial had no end after {TRIAL_SECONDS:g} s") from None
        except OSError as error:
            raise UpgradeRefusedError(f"{python} cannot be started: {words_of(error)}") from None
        finally:
            os.close(memory)
        if code:
            raise UpgradeRefusedError(_last_words(code, complained))
        try:
            return msgspec.json.decode(said.strip().rpartition(b"\n")[2], type=Trial)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise UpgradeRefusedError(f"{python} gave no answer that makes sense") from None

    def _written(self) -> tuple[HandOver, int]:
        """What is handed over now, and the descriptor of a memory file with it."""
        try:
            record = self._leave()
            return record, memory_of(record)
        except (OSError, ValueError) as error:
            raise UpgradeRefusedError(f"the hand-over cannot be written: {words_of(error)}") from None

    # --- the exec -----------------------------------------------------------------------------------------------------

    async def _replace(self) -> None:
        # Kept for the next version; other threads of this program would take them otherwise.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        handlers = {number: signal.signal(number, _keep) for number in SIGNALS}
        try:
            if not await trio.to_thread.run_sync(self._flush, SETTLE_SECONDS):
                raise UpgradeRefusedError(_NOT_WRITTEN)
            with trio.move_on_after(SETTLE_SECONDS) as settling:
                # What signals asked for before they were blocked is obeyed meanwhile.
                await trio.sleep(_SETTLE_LOOK)
                while not self._settled():  # noqa: ASYNC110 - a message that was sent wakes nobody
                    await trio.sleep(_SETTLE_LOOK)
            self._check()
            if settling.cancelled_caught:
                raise UpgradeRefusedError(_NOT_SETTLED)
            self._exec()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def _exec(self) -> None:
        """Become the next version. From here on nothing else happens in this program, so that nothing can be lost."""
        assert self.last is not None
        python, self.last.streams = self.last.python, self._streams()
        record, memory = self._written()
        log.info("upgrade: the next version goes on", python=python, version=self.last.version_after)
        self._notifier.watchdog()
        try:
            if not self._flush(_LAST_FLUSH):
                raise UpgradeRefusedError(_NOT_WRITTEN)
            command = command_of(python, arguments_of(self.process))
            with inheritable((memory, *record.descriptors)):
                os.execve(python, command, environment_of(self.process, memory))  # noqa: S606
        except OSError as error:
            raise UpgradeRefusedError(f"{python} cannot be started: {words_of(error)}") from None
        finally:
            os.close(memory)


def _keep(number: int, _frame: object) -> None:
    """Have the main thread, where it is blocked, keep a signal that another thread got."""
    signal.pthread_kill(threading.main_thread().ident or 0, number)


async def _run(command: list[str], environment: dict[str, str], memory: int) -> tuple[int, bytes, bytes]:
    """Run a program to its end; gives its exit code, and the last of what it wrote on its two outputs.

    It is killed where it is cancelled.
    """
    process = await trio.lowlevel.open_process(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        pass_fds=[memory],
    )
    outputs = [b"", b""]

    async def read(number: int, stream: trio.abc.ReceiveStream) -> None:
        async with stream:
            async for data in stream:
                outputs[number] = (outputs[number] + data)[-_LONGEST_ANSWER:]

    try:
        async with trio.open_nursery() as nursery:
            for number, stream in enumerate((process.stdout, process.stderr)):
                assert stream is not None
                nursery.start_soon(read, number, stream)
            await process.wait()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
    return await process.wait(), outputs[0], outputs[1]


def _last_words(code: int, complained: bytes) -> str:
    """Why a trial failed: the last line that it said."""
    if code < 0:
        with suppress(ValueError):
            return f"the trial was killed by {signal.Signals(-code).name}"
    lines = [line for line in complained.decode(errors="replace").splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith(_OURS)]
    said = printable((ours or lines)[-1].removeprefix(_OURS)[:_MOST_QUOTED]) if lines else "it said nothing"
    return f"the trial failed with exit code {code}: {said}"


# --- whose Python it is -----------------------------------------------------------------------------------------------


def check_path(python: str) -> None:
    """Let a path of a Python pass only if nobody but root and this user could have put it there; blocks.

    As sshd's StrictModes judges: each folder on the way, and each link, belongs to one of them, and none of the folders
    nor the file may be written to by others. UpgradeRefusedError has the component that is the reason.
    """
    path = Path(python)
    if not path.is_absolute() or ".." in path.parts or "\0" in python:
        raise UpgradeRefusedError(f"{python!r} is no absolute path without ..")
    if not path.name.startswith("python"):
        raise UpgradeRefusedError(f"{python!r} is not called python")
    try:
        for component in _components(path):
            _check_component(component)
        if not os.access(path, os.X_OK) or not path.is_file():
            raise UpgradeRefusedError(f"{python!r} is no program")
    except OSError as error:
        raise UpgradeRefusedError(f"{str(error.filename or python)!r}: {words_of(error)}") from None


def _components(path: Path) -> Iterator[Path]:
    """All folders, links and files that are looked up on the way to a file, in their order."""
    left, at, links = list(reversed(path.parts[1:])), Path("/"), 0
    yield at
    while left:
        step = left.pop()
        if step == "..":
            at = at.parent
            continue
        found = at / step
        yield found
        if not found.is_symlink():
            at = found
            continue
        links += 1
        if links > _MOST_LINKS:
            raise UpgradeRefusedError(f"{str(path)!r} has too many links")
        target = found.readlink()
        left += reversed(target.parts[1:] if target.is_absolute() else target.parts)
        at = Path("/") if target.is_absolute() else at


def _check_component(component: Path) -> None:
    found = component.lstat()
    if found.st_uid not in (0, os.geteuid()):
        raise UpgradeRefusedError(f"{str(component)!r} belongs to another user than root and the gateway's own")
    if not stat.S_ISLNK(found.st_mode) and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UpgradeRefusedError(f"others than its owner may write to {str(component)!r}")
