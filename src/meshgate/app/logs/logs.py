"""Logs as HashiCorp's tools write them, from structlog and from the standard library alike.

    2006-01-02T15:04:05.000Z [INFO]  meshgate.consul: message: key=value

or, as JSON, with the keys `@level @message @module @timestamp`. Whatever a value holds, an entry is one line of
printable text, except for the indented lines of a traceback. Writing never blocks the caller (`log_writer`).

Everyone logs by `structlog.get_logger(module="meshgate.x")` and needs nothing from here.
"""

import atexit
import json
import logging
import time
import traceback
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from meshgate.app.logs.log_writer import LogWriter
from meshgate.app.settings.setting_types import LOG_LEVELS
from meshgate.core.text import ascii_json, printable

_LEVELS: Final = dict(zip(LOG_LEVELS, (5, 10, 20, 30, 40), strict=True))
# The methods of a logger that are not named like their level.
_SYNONYMS: Final = {"warning": "warn", "exception": "error", "critical": "error"}
_DEFAULT_MODULE: Final = "meshgate"


class _State:
    """What all loggers of the process share."""

    dropped_before: int = 0
    threshold: int = _LEVELS["info"]
    json: bool = False
    writer: LogWriter | None = None


_state = _State()


def configure(level: str = "info", *, json: bool = False, fd: int = 2) -> None:
    """Send all logs of the process to the descriptor `fd`. `set_level` and `set_json` change the rest later.

    Args:
        level: one of LOG_LEVELS; libraries' own records and Python's warnings come from `warn` upwards regardless.
        json: JSON lines instead of text.
        fd: where to; it stays open.
    """
    shutdown()
    set_json(json=json)
    _state.writer = writer = LogWriter(fd, _lost)
    output = _Output(writer)
    structlog.configure(
        processors=[_judge, structlog.processors.format_exc_info, _render],
        wrapper_class=structlog.BoundLogger,
        context_class=dict,
        logger_factory=lambda *_: output,
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_StandardHandler(writer)], level=logging.WARNING, force=True)
    logging.captureWarnings(capture=True)
    set_level(level)


def set_json(*, json: bool) -> None:
    """Write JSON lines, or text, from now on."""
    _state.json = json


def set_level(level: str) -> None:
    """Change the level of all loggers from now on; ValueError where it is none of LOG_LEVELS."""
    if level not in _LEVELS:
        raise ValueError(f"must be one of {', '.join(LOG_LEVELS)}")
    _state.threshold = _LEVELS[level]
    logging.getLogger(_DEFAULT_MODULE).setLevel(_state.threshold)


def level() -> str:
    return next(name for name, number in _LEVELS.items() if number == _state.threshold)


def debugging() -> bool:
    return _state.threshold <= _LEVELS["debug"]


def dropped() -> int:
    """Lines that could not be written since `configure`, and by the version before."""
    return _state.dropped_before + (_state.writer.dropped if _state.writer else 0)


def go_on(dropped: int) -> None:
    """Count the lines too that the version before could not write."""
    _state.dropped_before = dropped


def flush(timeout: float) -> bool:
    """Wait until what was said is written; blocks for at most `timeout` seconds. Whether it is written."""
    return _state.writer is None or _state.writer.flush(timeout)


def shutdown(timeout: float = 2.0) -> None:
    """Write what waits, for at most `timeout` seconds. Runs at exit by itself."""
    writer, _state.writer = _state.writer, None
    if writer:
        writer.close(timeout)


atexit.register(shutdown)


class _Output:
    """What structlog calls at the end of its chain: any level, one finished line."""

    def __init__(self, writer: LogWriter) -> None:
        for method in (*_LEVELS, *_SYNONYMS):
            setattr(self, method, writer.write)


def _judge(_: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The first processor: an event below the level of now goes no further, also from a logger made before."""
    if _LEVELS[_SYNONYMS.get(method, method)] < _state.threshold:
        raise structlog.DropEvent
    if method == "exception":
        event.setdefault("exc_info", True)
    return event


def _render(_: object, method: str, event: MutableMapping[str, Any]) -> str:
    module, message = event.pop("module", _DEFAULT_MODULE), event.pop("event", "")
    return _line(time.time(), _SYNONYMS.get(method, method), str(module), str(message), event)


def _lost(count: int) -> str:
    return _line(time.time(), "warn", "meshgate.log", "log lines were dropped", {"count": count})


class _StandardHandler(logging.Handler):
    """Records of the standard library's logging, in the same form."""

    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        values: dict[str, Any] = {}
        if record.exc_info:
            values["exception"] = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
        try:
            message = record.getMessage().rstrip()
        except Exception as error:  # noqa: BLE001 - a faulty call must not break what made it
            message, values["error"] = str(record.msg), error
        name = next((name for name, number in reversed(_LEVELS.items()) if record.levelno >= number), "trace")
        self._writer.write(_line(record.created, name, record.name, message, values))


def _line(when: float, level: str, module: str, message: str, values: Mapping[str, Any]) -> str:
    form = _json_line if _state.json else _text_line
    return form(when, level, module, message, values)


def rfc3339(unix_time: float, precision: str = "milliseconds") -> str:
    """A Unix time in UTC, `2006-01-02T15:04:05.000Z`; `precision` as `datetime.isoformat` has it."""
    return datetime.fromtimestamp(unix_time, UTC).isoformat(timespec=precision).removesuffix("+00:00") + "Z"


def _text_line(when: float, level: str, module: str, message: str, values: Mapping[str, Any]) -> str:
    pairs = " ".join(f"{_key(key)}={_value(value)}" for key, value in values.items() if key != "exception")
    head = f"{rfc3339(when)} {f'[{level.upper()}]':7} {printable(module)}: {printable(message)}"
    trace = [f"    {printable(text)}" for text in str(values.get("exception", "")).splitlines()]
    return "\n".join([f"{head}: {pairs}" if pairs else head, *trace])


def _key(key: str) -> str:
    return printable(key).replace(" ", "_")


def _value(value: object) -> str:
    if value is None:
        return "-"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    plain = text and text.isprintable() and not any(char in ' "=\\' for char in text)
    if plain:
        return text
    escaped = printable(text.replace("\\", "\\\\"))
    return '"' + escaped.replace('"', '\\"') + '"'


def _json_line(when: float, level: str, module: str, message: str, values: Mapping[str, Any]) -> str:
    entry = {
        "@level": level,
        "@message": message,
        "@module": module,
        "@timestamp": rfc3339(when, "microseconds"),
        **{str(key): value for key, value in values.items() if not str(key).startswith("@")},
    }
    # ASCII only, so that a terminal shows no stranger's control or bidirectional characters either.
    return ascii_json(json.dumps(entry, default=str, separators=(",", ":")))
