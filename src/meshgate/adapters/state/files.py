"""The state file on disk: replaced as a whole or not at all, and believed only where nobody else could have written it.

The functions block; call them in a thread.
"""

import errno
import os
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from .encoding import Kept, StateFileError, decode, encode

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
