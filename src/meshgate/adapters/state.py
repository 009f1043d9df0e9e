"""The state file: the last known good catalog on disk, for a start without Consul.

It holds lines of JSON that an operator can read and a damaged disk cannot fake. The first line names the format and
says to whom the catalog belongs; then follow one line for each service and each remote datacenter, and a last line with
the SHA-256 of all lines before it. One record a line also means that other threads get their turn while a large catalog
is encoded.

A record is what `core.catalog` says it is. A new field with a default needs no new version; a field that goes or
changes its meaning does. On disk the file is replaced as a whole or not at all, and believed only where nobody else
could have written it.

`read`, `write` and `sweep` block; call them in a thread. `StateKeeper` writes while the gateway runs, and what always
holds: trio's thread never waits for the disk, there is one write at a time and at most one a second, fewer where a
write takes long, and whatever the disk does, the gateway goes on. A failure is said when it begins, when it changes and
when it ends.
"""

import errno
import gc
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import structlog
import trio

from meshgate.core.catalog import RemoteDatacenter, Service, Snapshot

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


class _Head(msgspec.Struct):
    """The first line. Of another version only these two fields are read."""

    format: str
    version: int


class _Header(_Head):
    saved: float
    gateway_service: str
    addresses: dict[str, tuple[str, ...]]
    services: int
    remotes: int
    # Without its services and remote datacenters.
    catalog: Snapshot


class _Seal(msgspec.Struct):
    sha256: str


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
    yield msgspec.json.encode(_Seal(digest.hexdigest())) + b"\n"


def decode(content: bytes) -> Kept:
    """The content of a file.

    Raises:
        StateFileError: it is empty, foreign, of another version or damaged.
    """
    if not content:
        raise StateFileError("it is empty")
    first = content.partition(b"\n")[0]
    try:
        head = msgspec.json.decode(first, type=_Head)
    except (msgspec.DecodeError, UnicodeDecodeError):
        head = None
    if head is None or head.format != FORMAT:
        raise StateFileError("it is no state file of meshgate")
    if head.version != VERSION:
        raise StateFileError(f"it has format version {head.version}, and this meshgate reads version {VERSION}")
    *lines, sealed = content.splitlines(keepends=True)
    if not sealed.endswith(b"\n") or _seal(sealed) != hashlib.sha256(b"".join(lines)).hexdigest():
        raise StateFileError("it is damaged or cut off: its checksum is wrong")
    try:
        return _kept(lines)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StateFileError(f"it does not hold a catalog: {error}") from None


def _seal(line: bytes) -> str:
    try:
        return msgspec.json.decode(line, type=_Seal).sha256
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def _kept(lines: list[bytes]) -> Kept:
    header = msgspec.json.decode(lines[0], type=_Header)
    services, remotes = lines[1 : header.services + 1], lines[header.services + 1 :]
    if len(services) != header.services or len(remotes) != header.remotes:
        raise StateFileError("it does not hold what its first line says")
    snapshot = replace(header.catalog, services=_each(services, Service), remotes=_each(remotes, RemoteDatacenter))
    return Kept(snapshot, header.gateway_service, header.saved, header.addresses)


def _each(lines: list[bytes], shape: type[T]) -> tuple[T, ...]:
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
# No catalog is that large; whatever is would not fit in memory either.
LARGEST: Final = 1 << 30
# Seconds after which a temporary file belongs to a process that died while it wrote.
_ABANDONED: Final = 60.0


def read(folder: Path) -> Kept | None:
    """The catalog that a folder holds; None where there is none.

    Raises:
        StateFileError: there is one that is not to be used. The line names the file and says why.
    """
    path = folder / NAME
    try:
        content = _content(path)
        return None if content is None else decode(content)
    except StateFileError as error:
        raise StateFileError(f"the state file {path} is not used: {error}") from None
    except OSError as error:
        raise StateFileError(f"the state file {path} is not used: {error.strerror}") from None


def write(folder: Path, kept: Kept) -> None:
    """Replace the catalog that a folder holds. After a crash at any moment it holds the old one or the new one.

    The folder is made, for its owner alone, where it is missing; the file is readable for its owner alone.

    Raises:
        OSError: it cannot be written; the old one is untouched.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f"{NAME}.", suffix=".tmp", dir=folder)
    try:
        with os.fdopen(handle, "wb") as out:
            for line in encode(kept):
                out.write(line)
            out.flush()
            os.fsync(out.fileno())
        Path(temporary).replace(folder / NAME)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise
    _sync(folder)


def sweep(folder: Path) -> None:
    """Remove what processes left that were killed while they wrote. Never fails."""
    with suppress(OSError):
        for path in folder.glob(f"{NAME}.*.tmp"):
            if time.time() - path.lstat().st_mtime > _ABANDONED:
                path.unlink()


def _content(path: Path) -> bytes | None:
    try:
        # Not blocking, should it be a pipe; the check that it is a file comes after.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise StateFileError("it is a symbolic link") from None
        raise
    try:
        _check(os.fstat(handle))
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(handle)


def _check(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise StateFileError("it is no regular file")
    if found.st_uid not in (os.geteuid(), 0):
        raise StateFileError("it belongs to another user")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StateFileError("others than its owner may write to it")
    if found.st_size > LARGEST:
        raise StateFileError(f"it is larger than {LARGEST} bytes")


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

    Args:
        folder: where; made when it is missing.
        gateway_service: whose catalog it is.
        current: whether the catalog is known to be Consul's present one. While it is not, the file is left alone.
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
            self._report((isinstance(error, OSError) and error.strerror) or f"{type(error).__name__}: {error}")
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
