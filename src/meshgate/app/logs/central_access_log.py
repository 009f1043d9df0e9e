"""The access log that Consul asks for centrally, where nothing was set for this gateway itself.

`proxy-defaults` has `AccessLogs` (Consul 1.15 and later), which the agent merges into the gateway's registration and
which may change while the gateway runs. What cannot be used is said in the log, and then there is no access log.
"""

from collections.abc import Callable, Mapping
from typing import Any

import structlog

from meshgate.adapters.relay import StreamRecord
from meshgate.app.errors import ConfigError
from meshgate.app.gateway.stream_observer import StreamObserver
from meshgate.app.logs.access_format import DEFAULT_JSON, Formatter
from meshgate.app.logs.access_log import AccessLog
from meshgate.app.settings.settings import Origin, Settings
from meshgate.core.weak_decode import boolean

log = structlog.get_logger(module="meshgate.access")


class CentralAccessLog:
    """Follows `AccessLogs` of the registration.

    Args:
        settings: of this process; an access log that they set, `off` too, counts before Consul's.
        observer: gets the log.
        want_records: tells the relay whether anybody reads records.
    """

    def __init__(self, settings: Settings, observer: StreamObserver, want_records: Callable[[bool], None]) -> None:
        self._ours = settings.origin("MESHGATE_ACCESS_LOG") is not Origin.DEFAULT
        self._observer = observer
        self._want_records = want_records
        self._followed: Mapping[str, Any] = {}

    def follow(self, asked: Mapping[str, Any]) -> None:
        """Take what the registration says now."""
        if self._ours or asked == self._followed:
            return
        self._followed = asked
        access = _opened(asked) if boolean(asked.get("Enabled")) else None
        self._observer.use(access)
        self._want_records(access is not None)


def _opened(asked: Mapping[str, Any]) -> AccessLog | None:
    formatter = Formatter()
    try:
        line = _line(asked, formatter)
        access = AccessLog.open(_target(asked), line=line)
    except (ValueError, ConfigError) as error:  # a FormatError, or what no path can be
        why = str(error).removeprefix("MESHGATE_ACCESS_LOG=")
        log.warning("AccessLogs of proxy-defaults cannot be followed, there is no access log", error=why)
        return None
    log.info("access log as proxy-defaults asks for it", target=_target(asked))
    if formatter.unsupported:
        unknown = ", ".join(sorted(formatter.unsupported))
        log.warning("operators of the access log's format are not known here and stay empty", operators=unknown)
    return access


def _target(asked: Mapping[str, Any]) -> str:
    kind, path = asked.get("Type") or "stdout", asked.get("Path")
    if kind in ("stdout", "stderr"):
        return str(kind)
    if kind != "file":
        raise ConfigError(f"Type {kind!r} is none of stdout, stderr and file")
    if not isinstance(path, str) or not path.startswith("/"):
        raise ConfigError("Type file needs an absolute Path")
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
