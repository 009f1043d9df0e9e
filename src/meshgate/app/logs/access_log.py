"""The access log: one JSON object on a line for each stream that has ended, refused ones included.

Writing never blocks the relay (`log_writer`), and trouble with the target costs lines, never a stream: it is said once
in the log, lines that are lost are counted, and the next line tries again. A server name is a stranger's text: it is
kept as it was sent, and the line is ASCII, so that no terminal obeys it.

Where nothing was set for this gateway itself, `proxy-defaults.AccessLogs` decides (Consul 1.15 and later). The agent
merges it into the gateway's registration, and it may change while the gateway runs. What cannot be used is said in the
log, and then there is no access log.

Whoever writes `proxy-defaults` chooses what such a log says, and must not choose the file: only below the folder that
this gateway's operator names is one written, no link leads out of it, and nothing but a regular file is one.
"""

import atexit
import errno
import os
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from meshgate.adapters.error_words import words_of
from meshgate.adapters.relay import StreamRecord
from meshgate.app.errors import ConfigError
from meshgate.app.logs.access_log_format import DEFAULT_JSON, Formatter
from meshgate.app.logs.log_writer import LogWriter
from meshgate.app.logs.logs import rfc3339
from meshgate.app.settings.settings import Origin, Settings
from meshgate.core.text import ascii_json
from meshgate.core.weak_decode import boolean

log = structlog.get_logger(module="meshgate.access")

Line = Callable[[StreamRecord], str | None]

_STANDARD: Final = {"stdout": 1, "stderr": 2}
_MODE: Final = 0o640
RETRY_SECONDS: Final = 1.0  # Between two tries to open the file again.
_DIR: Final = "MESHGATE_ACCESS_LOG_DIR"


class AccessLog:
    """Writes records to a target: `stdout`, `stderr` or a file, which is appended to.

    A new file gets mode 0640, or less where the umask wants it so. `line` makes the line of a record, or None for one
    that is not to be written. With a folder to be `below`, no link is followed behind that folder, and the file has to
    be a regular one.

    Raises:
        ConfigError: the target cannot be written.
    """

    def __init__(self, target: str, *, below: Path | None = None, line: Line | None = None) -> None:
        self._target = target
        self._line = line or line_of
        self._below = below
        try:
            self._fd = _STANDARD[target] if target in _STANDARD else _open(target, below)
            os.fstat(self._fd)
        except OSError as error:
            raise ConfigError(f"MESHGATE_ACCESS_LOG={target}: cannot be opened: {words_of(error)}") from None
        self._reopen_fails = False
        self._retry_at = 0.0
        self._writer = LogWriter(self._fd, self._tell_dropped, on_error=self._tell_error)
        atexit.register(self.close)

    @property
    def dropped(self) -> int:
        """Lines that were not written, ever."""
        return self._writer.dropped

    def write(self, record: StreamRecord) -> None:
        """Take a record. Never blocks, never raises."""
        if self._reopen_fails and time.monotonic() >= self._retry_at:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self.reopen()
        line = self._line(record)
        if line is not None:
            self._writer.write(line)

    def reopen(self) -> None:
        """Open the file by its name again, after what was taken so far is written: it may have been rotated.

        Where that fails the old one stays in use, and later lines try again. Never blocks, never raises.
        """
        if self._target not in _STANDARD:
            self._writer.call(self._reopen)

    def flush(self, timeout: float) -> bool:
        """Wait until what was taken so far is written; blocks for at most `timeout` seconds. Whether it is written."""
        return self._writer.flush(timeout)

    def close(self, timeout: float = 2.0) -> None:
        """Write what waits, at most for `timeout` seconds. Later records are dropped. Runs at exit by itself."""
        atexit.unregister(self.close)
        if self._target not in _STANDARD:
            self._writer.call(self._close_file)
        self._writer.close(timeout)

    # --- in the writer's thread ----------------------------------------------------------------------------------

    def _reopen(self) -> None:
        try:
            fd = _open(self._target, self._below)
        except OSError as error:
            if not self._reopen_fails:
                what = "access log cannot be opened again, the old file stays in use"
                log.warning(what, target=self._target, error=words_of(error))
            self._reopen_fails = True
            return
        self._writer.redirect(fd)
        self._close(self._fd)
        self._fd = fd
        if self._reopen_fails:
            log.info("access log is open again", target=self._target)
        self._reopen_fails = False

    def _close_file(self) -> None:
        self._writer.redirect(-1)
        self._close(self._fd)

    def _close(self, fd: int) -> None:
        try:
            os.close(fd)
        except OSError as error:  # what was written before may be lost: a network's file system says so only now
            self._tell_error(error)

    def _tell_error(self, error: OSError) -> None:
        log.error("access log cannot be written, lines are lost", target=self._target, error=words_of(error))

    def _tell_dropped(self, count: int) -> None:
        log.warning("access log lines were lost", target=self._target, count=count)


def line_of(record: StreamRecord) -> str:
    entry = {
        "start_time": rfc3339(record.started),
        "duration_ms": round(record.duration * 1000),
        "client": record.client,
        "listener": record.listener,
        "sni": record.sni,
        "alpn": record.alpn,
        "route": record.route,
        "kind": record.kind,
        "endpoint": record.endpoint,
        "attempts": record.attempts,
        "bytes_received": record.bytes_received,
        "bytes_sent": record.bytes_sent,
        "reason": record.reason,
        "end": record.end,
        "flags": record.flags,
        "worker": record.worker,
    }
    return ascii_json(_encode(entry).decode())


_encode: Final = msgspec.json.Encoder().encode


# Without O_NONBLOCK, a named pipe that nobody reads would hold the gateway up; a device could become its terminal.
_APPEND: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def _open(path: str, below: Path | None) -> int:
    fd = os.open(path, _APPEND, _MODE) if below is None else _open_below(below, path)
    os.set_blocking(fd, True)
    return fd


def _open_below(folder: Path, path: str) -> int:
    """Open a regular file by its path below a folder; OSError, too, where a link is on the way."""
    *steps, name = Path(path).relative_to(folder).parts
    at = os.open(folder, _FOLDER)
    try:
        for step in steps:
            inner = os.open(step, _FOLDER | os.O_NOFOLLOW, dir_fd=at)
            os.close(at)
            at = inner
        fd = os.open(name, _APPEND | os.O_NOFOLLOW, _MODE, dir_fd=at)
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file")
    return fd


class CentralAccessLog:
    """Follows `AccessLogs` of the registration, unless the settings have an access log, or `off`, themselves.

    `use` gets the log to write to from now on, None for none.
    """

    def __init__(self, settings: Settings, use: Callable[[AccessLog | None], None]) -> None:
        self._ours = settings.origin("MESHGATE_ACCESS_LOG") is not Origin.DEFAULT
        self._folder = settings.access_log_dir.absolute() if settings.access_log_dir else None
        self._use = use
        self._followed: Mapping[str, Any] = {}

    def follow(self, asked: Mapping[str, Any]) -> None:
        if self._ours or asked == self._followed:
            return
        self._followed = asked
        self._use(_opened(asked, self._folder) if boolean(asked.get("Enabled")) else None)


def _opened(asked: Mapping[str, Any], folder: Path | None) -> AccessLog | None:
    formatter = Formatter()
    try:
        line = _line(asked, formatter)
        target = _target(asked, folder)
        access = AccessLog(target, below=folder, line=line)
    except (ValueError, ConfigError) as error:  # a FormatError, or what no path can be
        why = str(error).removeprefix("MESHGATE_ACCESS_LOG=")
        log.warning("AccessLogs of proxy-defaults cannot be followed, there is no access log", error=why)
        return None
    log.info("access log as proxy-defaults asks for it", target=target)
    if formatter.unsupported:
        unknown = ", ".join(sorted(formatter.unsupported))
        log.warning("operators of the access log's format are not known here and stay empty", operators=unknown)
    return access


def _target(asked: Mapping[str, Any], folder: Path | None) -> str:
    kind, path = asked.get("Type") or "stdout", asked.get("Path")
    if kind in ("stdout", "stderr"):
        return str(kind)
    if kind != "file":
        raise ConfigError(f"Type {kind!r} is none of stdout, stderr and file")
    if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
        raise ConfigError("Type file needs an absolute Path")
    if folder is None:
        raise ConfigError(f"{path!r} is a file, and {_DIR} names no folder below which Consul may ask for one")
    # As text, before anything is opened: no way leads out of the folder and back.
    if not Path(path).is_relative_to(folder) or Path(path) == folder or ".." in Path(path).parts:
        raise ConfigError(f"{path!r} is not below {folder}, which {_DIR} names")
    return path


def _line(asked: Mapping[str, Any], formatter: Formatter) -> Callable[[StreamRecord], str | None]:
    in_json, in_text = asked.get("JSONFormat"), asked.get("TextFormat")
    if isinstance(in_json, str) and in_json:
        line = formatter.json(in_json)
    elif isinstance(in_text, str) and in_text:
        line = formatter.text(in_text)
    else:
        line = formatter.fields(DEFAULT_JSON)
    if not boolean(asked.get("DisableListenerLogs")):
        return line
    # Envoy's listener speaks of the streams that found no route.
    return lambda record: None if record.route is None else line(record)
