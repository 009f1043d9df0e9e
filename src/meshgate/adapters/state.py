"""The state file: the last known good catalog on disk, for a start without Consul.

It holds lines of JSON that an operator can read and a damaged disk cannot fake. The first line names the format and
says to whom the catalog belongs; then follow one line for each service and each remote datacenter, and a last line with
the SHA-256 of all lines before it. One record a line also means that other threads get their turn while a large catalog
is encoded.

A record is what `core.catalog` says it is. A new field with a default needs no new version; a field that goes or
changes its meaning does. On disk the file is replaced as a whole or not at all, and believed only where nobody else
could have written it or put another one in its place. Nothing of it is parsed before its checksum is found right, and
whatever it holds then, a catalog or a `StateFileError` comes of it.

`read`, `write` and `sweep` block; call them in a thread. `StateKeeper` writes while the gateway runs, and what always
holds: trio's thread never waits for the disk, there is one write at a time and at most one a second, fewer where a
write takes long, and whatever the disk does, the gateway goes on. A failure is said when it begins, when it changes and
when it ends.
"""

import errno
import gc
import hashlib
import io
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import structlog
import trio

from meshgate.adapters.error_words import words_of
from meshgate.core.addresses import is_numeric
from meshgate.core.catalog import Remote, Service, Snapshot

log = structlog.get_logger(module="meshgate.state")

FORMAT: Final = "meshgate-state"
VERSION: Final = 1

T = TypeVar("T")


class StateFileError(Exception):
    """A state file that is not to be used. One line that says why."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The content of a state file.

    `gateway_service` is the service name of the gateway that wrote it, `saved` the Unix time at which the catalog was
    last known to be Consul's, and `addresses` what its host names stood for then.
    """

    snapshot: Snapshot
    gateway_service: str
    saved: float
    addresses: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


# How a file begins, and how it ends.
_HEAD: Final = re.compile(rb'\{\s*"format"\s*:\s*"meshgate-state"\s*,\s*"version"\s*:\s*(\d{1,9})\s*[,}]')
_SEAL: Final = re.compile(rb'\{\s*"sha256"\s*:\s*"([0-9a-f]{64})"\s*\}\n')
# The years 1970 to 9999, and what a resolver may ask for (`records`).
_TIMES: Final = 253_402_300_799.0
_MOST_CHOICES: Final = 100


class _Header(msgspec.Struct):
    format: str
    version: int
    saved: float
    gateway_service: str
    addresses: dict[str, tuple[str, ...]]
    services: int
    remotes: int
    # Without its services and remote datacenters.
    catalog: Snapshot


def encode(kept: Kept) -> Iterator[bytes]:
    """The lines of the file, each with its end of line."""
    snapshot = kept.snapshot
    header = _Header(
        FORMAT,
        VERSION,
        kept.saved,
        kept.gateway_service,
        dict(kept.addresses),
        len(snapshot.services),
        len(snapshot.remotes),
        replace(snapshot, services=(), remotes=()),
    )
    digest = hashlib.sha256()
    for record in (header, *snapshot.services, *snapshot.remotes):
        line = msgspec.json.encode(record) + b"\n"
        digest.update(line)
        yield line
    yield msgspec.json.encode({"sha256": digest.hexdigest()}) + b"\n"


def decode(content: bytes) -> Kept:
    """The content of a file; StateFileError where it is empty, foreign, of another version or damaged."""
    if not content:
        raise StateFileError("it is empty")
    head = _HEAD.match(content)
    if head is None:
        raise StateFileError("it is no state file of meshgate")
    if int(head[1]) != VERSION:
        raise StateFileError(f"it has format version {int(head[1])}, and this meshgate reads version {VERSION}")
    end = content.rfind(b"\n", 0, len(content) - 1) + 1
    seal = _SEAL.fullmatch(content, end)
    if seal is None or seal[1].decode() != hashlib.sha256(memoryview(content)[:end]).hexdigest():
        raise StateFileError("it is damaged or cut off: its checksum is wrong")
    try:
        return _kept(content, end)
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError) as error:
        raise StateFileError(f"it does not hold a catalog: {words_of(error)}") from None


def _kept(content: bytes, end: int) -> Kept:
    """What stands in front of `end`. Many lines are never many objects at once."""
    lines = io.BytesIO(content)
    header = msgspec.json.decode(next(lines), type=_Header)
    if content.count(b"\n", 0, end) != 1 + header.services + header.remotes:
        raise StateFileError("it does not hold what its first line says")
    services = _each(islice(lines, header.services), Service)
    remotes = _each(islice(lines, header.remotes), Remote)
    if not 0 <= header.saved <= _TIMES:
        raise StateFileError("it does not hold a catalog: its time is none")
    for service in services:
        if not 1 <= service.choices <= _MOST_CHOICES or not 0 <= (service.connect_timeout or 0) <= _TIMES:
            raise StateFileError("it does not hold a catalog: a resolver is none")
    addresses = {name: tuple(filter(is_numeric, known)) for name, known in header.addresses.items()}
    snapshot = replace(header.catalog, services=services, remotes=remotes)
    return Kept(snapshot, header.gateway_service, header.saved, addresses)


def _each(lines: Iterable[bytes], shape: type[T]) -> tuple[T, ...]:
    decoder = msgspec.json.Decoder(shape)
    collects = gc.isenabled()
    # Of a large catalog everything stays, and looking through it again and again takes most of the time.
    gc.disable()
    try:
        return tuple(decoder.decode(line) for line in lines)
    finally:
        if collects:
            gc.enable()


NAME: Final = "catalog.state"
# Bytes: some 100,000 instances.
LARGEST: Final = 64 << 20
# Seconds after which a temporary file belongs to a process that died while it wrote.
_ABANDONED: Final = 60.0
_BUFFER: Final = 1 << 18


def read(folder: Path) -> Kept | None:
    """The catalog that a folder holds, None where there is none; StateFileError names a file that is not to be used."""
    path = folder / NAME
    try:
        content = _content(path)
        return None if content is None else decode(content)
    except StateFileError as error:
        raise StateFileError(f"the state file {path} is not used: {error}") from None
    except OSError as error:
        raise StateFileError(f"the state file {path} is not used: {words_of(error)}") from None


def write(folder: Path, kept: Kept) -> None:
    """Replace the catalog that a folder holds. After a crash at any moment it holds the old one or the new one.

    The folder is made, for its owner alone, where it is missing; the file is readable for its owner alone.

    Raises:
        StateFileError: others could put another file in its place.
        OSError: it cannot be written; the old one is untouched.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_owner(folder.stat(), "the folder")
    handle, temporary = tempfile.mkstemp(prefix=f"{NAME}.", suffix=".tmp", dir=folder)
    try:
        # Else each line is a system call of its own, which is half of the time for a large catalog.
        with os.fdopen(handle, "wb", buffering=_BUFFER) as out:
            for line in _bounded(encode(kept)):
                out.write(line)
            out.flush()
            os.fsync(out.fileno())
        Path(temporary).replace(folder / NAME)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise
    _sync(folder)


def _bounded(lines: Iterable[bytes]) -> Iterator[bytes]:
    left = LARGEST
    for line in lines:
        left -= len(line)
        if left < 0:
            raise OSError(errno.EFBIG, f"it would be larger than {LARGEST} bytes")
        yield line


def sweep(folder: Path) -> None:
    """Remove what processes left that were killed while they wrote. Never fails."""
    with suppress(OSError):
        for path in folder.glob(f"{NAME}.*.tmp"):
            if time.time() - path.lstat().st_mtime > _ABANDONED:
                path.unlink()


def _content(path: Path) -> bytes | None:
    # Not blocking, should it be a pipe; the check that it is a file comes after.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with ExitStack() as opened:
        try:
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.callback(os.close, folder)
            _check_owner(os.fstat(folder), "its folder")
            handle = os.open(path.name, flags, dir_fd=folder)
            opened.callback(os.close, handle)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EMLINK):
                raise StateFileError("it is a symbolic link") from None
            raise
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise StateFileError("it is no regular file")
        _check_owner(found, "it")
        if found.st_size > LARGEST:
            raise StateFileError(f"it is larger than {LARGEST} bytes")
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read(found.st_size)


def _check_owner(found: os.stat_result, what: str) -> None:
    if found.st_uid not in (os.geteuid(), 0):
        raise StateFileError(f"{what} belongs to another user")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        hint = "; name a folder inside it, which is made for its owner alone" if "folder" in what else ""
        raise StateFileError(f"others than its owner may write to {what}{hint}")


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems know no such thing.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(handle)


# Seconds between two writes, and how many times the processor time of the last one beyond what a small catalog takes:
# one of 5,000 services that changes each second must not keep a core busy with its file.
PACE: Final = 1.0
REST: Final = 1000
SMALL: Final = 0.01
# After failures the next try comes later and later, up to this many seconds.
LONGEST_PAUSE: Final = 60.0
# An unchanged catalog is written again that often, in seconds, so that the file tells how old it really is.
CONFIRM: Final = 300.0
# Seconds that the end waits for a last write.
FAREWELL: Final = 1.0


class StateKeeper:
    """Writes the catalog to a folder. `problem` says why that fails, in one line, and is empty while it works.

    While the catalog is not known to be Consul's `current` one, the file is left alone.
    """

    def __init__(self, folder: Path, gateway_service: str, current: Callable[[], bool]) -> None:
        self.problem = ""
        self._folder = folder
        self._service = gateway_service
        self._current = current
        self._latest: tuple[Snapshot, Mapping[str, tuple[str, ...]]] | None = None
        self._due = False
        self._news = trio.Event()
        self._failures = 0
        self._cost = 0.0
        # A write that was given up may still hang in its thread: the next one must not overtake it.
        self._one = trio.CapacityLimiter(1)

    def keep(self, snapshot: Snapshot, addresses: Mapping[str, tuple[str, ...]]) -> None:
        """Write this soon; what was to be written before it is dropped. Returns at once."""
        if self._latest is not None and self._latest[0] is snapshot and self._latest[1] == addresses:
            return
        self._latest = (snapshot, dict(addresses))
        self._due = True
        self._news.set()

    async def run(self) -> None:
        """Write until cancelled; then write what is left, for at most `FAREWELL` seconds."""
        try:
            await trio.to_thread.run_sync(sweep, self._folder, abandon_on_cancel=True, limiter=self._one)
            while True:
                with trio.move_on_after(CONFIRM):
                    await self._news.wait()
                if self._due or self._current():
                    await self._write()
                pause = max(PACE * 2**self._failures, REST * (self._cost - SMALL))
                await trio.sleep(min(LONGEST_PAUSE, pause))
        finally:
            if self._due:
                with trio.move_on_after(FAREWELL, shield=True):
                    await self._write()

    async def _write(self) -> None:
        if self._latest is None:
            return
        self._news = trio.Event()
        snapshot, addresses = self._latest
        self._due = True
        kept = Kept(snapshot, self._service, time.time(), addresses)
        try:
            # Given up rather than waited for: a disk that hangs must not hold up the end of the gateway.
            self._cost = await trio.to_thread.run_sync(
                _timed_write, self._folder, kept, abandon_on_cancel=True, limiter=self._one
            )
        except Exception as error:  # noqa: BLE001 (whatever fails here, streams matter more)
            self._news.set()
            self._failures = min(self._failures + 1, 10)
            self._report(words_of(error))
            return
        self._due = self._latest[0] is not snapshot or self._latest[1] is not addresses
        self._failures = 0
        self._report("")

    def _report(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.warning("the catalog cannot be kept on disk", folder=str(self._folder), error=problem)
        elif self.problem and not problem:
            log.info("the catalog is kept on disk again", folder=str(self._folder))
        self.problem = problem


def _timed_write(folder: Path, kept: Kept) -> float:
    """Write; the seconds of processor time that it took."""
    before = time.thread_time()
    write(folder, kept)
    return time.thread_time() - before
