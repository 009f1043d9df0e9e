"""Access log lines in Envoy's formats, as `proxy-defaults.AccessLogs` of Consul asks for them.

A format is text with command operators (`%DURATION%`, `%START_TIME(%s)%`, `%REQUESTED_SERVER_NAME:20%`), or JSON whose
texts hold such operators. A text that is one operator and nothing else keeps the operator's type: numbers stay numbers,
and null stands for what is missing; everywhere else that is `-`. Operators of HTTP are always missing in a TCP stream,
as they are in Envoy's own TCP proxy. Sources: Envoy's "Access logging"; Consul's `agent/xds/accesslogs`.
"""

import json
import re
import socket
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from meshgate.adapters.error_words import words_of
from meshgate.adapters.relay import StreamRecord
from meshgate.app.logs.logs import rfc3339
from meshgate.core.addresses import host_of
from meshgate.core.text import ascii_json, printable

Value = str | int | None
Read = Callable[[StreamRecord], Value]
Line = Callable[[StreamRecord], str]

_OPERATOR: Final = re.compile(
    r"%(?:(?P<percent>%)|(?P<name>[A-Z][A-Z0-9_]*)(?:\((?P<argument>[^)]*)\))?(?::(?P<length>\d+))?%)"
)
_MISSING: Final = "-"
# One access log line is to stay one line of a sensible length, whatever a format asks for.
_LONGEST_FORMAT: Final = 16 * 1024
_DEEPEST: Final = 8

# What Consul takes where neither a text nor a JSON format is given.
DEFAULT_JSON: Final[Mapping[str, str]] = {
    "start_time": "%START_TIME%",
    "route_name": "%ROUTE_NAME%",
    "method": "%REQ(:METHOD)%",
    "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
    "protocol": "%PROTOCOL%",
    "response_code": "%RESPONSE_CODE%",
    "response_flags": "%RESPONSE_FLAGS%",
    "response_code_details": "%RESPONSE_CODE_DETAILS%",
    "connection_termination_details": "%CONNECTION_TERMINATION_DETAILS%",
    "bytes_received": "%BYTES_RECEIVED%",
    "bytes_sent": "%BYTES_SENT%",
    "duration": "%DURATION%",
    "upstream_service_time": "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
    "x_forwarded_for": "%REQ(X-FORWARDED-FOR)%",
    "user_agent": "%REQ(USER-AGENT)%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "authority": "%REQ(:AUTHORITY)%",
    "upstream_host": "%UPSTREAM_HOST%",
    "upstream_cluster": "%UPSTREAM_CLUSTER%",
    "upstream_local_address": "%UPSTREAM_LOCAL_ADDRESS%",
    "downstream_local_address": "%DOWNSTREAM_LOCAL_ADDRESS%",
    "downstream_remote_address": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "requested_server_name": "%REQUESTED_SERVER_NAME%",
    "upstream_transport_failure_reason": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
}


class FormatError(ValueError):
    """A format that cannot be used; one line that says why."""


class Formatter:
    """Compiles formats, or raises FormatError.

    `unsupported` names the operators met so far that are none of Envoy's, or not known here.
    """

    def __init__(self) -> None:
        self.unsupported: set[str] = set()

    def text(self, form: str) -> Line:
        read = self._compiled(_bounded(form).rstrip("\n"))
        return lambda record: printable(_text(read(record)))

    def json(self, form: str) -> Line:
        try:
            shape = json.loads(_bounded(form))
        except (ValueError, RecursionError) as error:
            raise FormatError(f"JSONFormat is no JSON: {words_of(error)}") from None
        if not isinstance(shape, dict):
            raise FormatError("JSONFormat is no JSON object")
        return self.fields(shape)

    def fields(self, shape: Mapping[str, Any]) -> Line:
        build = self._node(shape, _DEEPEST)
        return lambda record: ascii_json(json.dumps(build(record), separators=(",", ":")))

    def _node(self, shape: object, depth: int) -> Callable[[StreamRecord], Any]:
        if not depth:
            raise FormatError(f"JSONFormat is deeper than {_DEEPEST}")
        if isinstance(shape, Mapping):
            fields = {str(key): self._node(each, depth - 1) for key, each in shape.items()}
            return lambda record: {key: build(record) for key, build in fields.items()}
        if isinstance(shape, list):
            items = [self._node(each, depth - 1) for each in shape]
            return lambda record: [build(record) for build in items]
        if isinstance(shape, str):
            return self._compiled(shape)
        return lambda _: shape

    def _compiled(self, form: str) -> Read:
        whole = _OPERATOR.fullmatch(form)
        if whole is not None and whole["name"]:
            return self._operator(whole)
        parts: list[str | Read] = []
        end = 0
        for match in _OPERATOR.finditer(form):
            parts.append(form[end : match.start()])
            parts.append("%" if match["percent"] else self._operator(match))
            end = match.end()
        parts.append(form[end:])
        return lambda record: "".join(part if isinstance(part, str) else _text(part(record)) for part in parts)

    def _operator(self, match: re.Match[str]) -> Read:
        name, argument, length = match["name"], match["argument"], match["length"]
        read = _start_time(argument) if name == "START_TIME" and argument else _OPERATORS.get(name)
        if read is None:
            if name not in _NOT_OF_TCP:
                self.unsupported.add(name)
            return lambda _: None
        if length is None:
            return read
        most, whole = int(length), read

        def cut(record: StreamRecord) -> Value:
            value = whole(record)
            return None if value is None else str(value)[:most]

        return cut


def _bounded(form: str) -> str:
    if len(form) > _LONGEST_FORMAT:
        raise FormatError(f"the format is longer than {_LONGEST_FORMAT} characters")
    return form


def _text(value: Value) -> str:
    return _MISSING if value is None or value == "" else str(value)


def _start_time(form: str) -> Read:
    """Envoy's: strftime, and `%s` for Unix time; `%f` in nanoseconds and `%3s`, `%6f`... with so many digits."""
    parts = re.split(r"(%[1-9]?[sf]|%%)", form)

    def written(unix: float) -> str:
        when = datetime.fromtimestamp(unix, UTC)
        return "".join(_time_part(part, when, unix) for part in parts)

    try:
        written(0.0)
    except (ValueError, UnicodeError):
        return lambda _: None
    return lambda record: written(record.started)


def _time_part(part: str, when: datetime, unix: float) -> str:
    if part == "%%":
        return "%"
    if re.fullmatch(r"%[1-9]?s", part):
        return str(int(unix * 10 ** int(part[1:-1] or 0)))
    if re.fullmatch(r"%[1-9]?f", part):
        return f"{when.microsecond:06d}000"[: int(part[1:-1] or 9)]
    return when.strftime(part)


def _host(address: str | None) -> str | None:
    return None if address is None else host_of(address)


def _port(address: str | None) -> int | None:
    port = (address or "").rpartition(":")[2]
    return int(port) if port.isdigit() else None


def _cluster(record: StreamRecord) -> str | None:
    return None if record.route is None else record.route.removeprefix("*.")


_HOST_NAME: Final = socket.gethostname()
_OPERATORS: Final[Mapping[str, Read]] = {
    "START_TIME": lambda record: rfc3339(record.started),
    "DURATION": lambda record: round(record.duration * 1000),
    "BYTES_RECEIVED": lambda record: record.bytes_received,
    "BYTES_SENT": lambda record: record.bytes_sent,
    "REQUESTED_SERVER_NAME": lambda record: record.sni,
    "RESPONSE_FLAGS": lambda record: record.flags or None,
    "RESPONSE_CODE": lambda _: 0,
    "CONNECTION_TERMINATION_DETAILS": lambda record: record.reason,
    "UPSTREAM_HOST": lambda record: record.endpoint,
    "UPSTREAM_REMOTE_ADDRESS": lambda record: record.endpoint,
    "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT": lambda record: _host(record.endpoint),
    "UPSTREAM_REMOTE_PORT": lambda record: _port(record.endpoint),
    "UPSTREAM_CLUSTER": _cluster,
    "UPSTREAM_CLUSTER_RAW": _cluster,
    "UPSTREAM_REQUEST_ATTEMPT_COUNT": lambda record: record.attempts,
    "DOWNSTREAM_REMOTE_ADDRESS": lambda record: record.client,
    "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT": lambda record: _host(record.client),
    "DOWNSTREAM_REMOTE_PORT": lambda record: _port(record.client),
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS": lambda record: record.client,
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT": lambda record: _host(record.client),
    "DOWNSTREAM_DIRECT_REMOTE_PORT": lambda record: _port(record.client),
    "ACCESS_LOG_TYPE": lambda _: "TcpConnectionEnd",
    "HOSTNAME": lambda _: _HOST_NAME,
}
# Of HTTP, of TLS that is terminated, or of what a gateway does not keep for a stream: empty, and no surprise.
_NOT_OF_TCP: Final = frozenset(
    (
        "REQ", "RESP", "TRAILER", "PROTOCOL", "RESPONSE_CODE_DETAILS", "ROUTE_NAME", "VIRTUAL_CLUSTER_NAME",
        "REQUEST_DURATION", "REQUEST_TX_DURATION", "RESPONSE_DURATION", "RESPONSE_TX_DURATION", "GRPC_STATUS",
        "UPSTREAM_LOCAL_ADDRESS", "DOWNSTREAM_LOCAL_ADDRESS", "UPSTREAM_TRANSPORT_FAILURE_REASON", "TRACE_ID",
        "STREAM_ID", "REQUEST_HEADERS_BYTES", "RESPONSE_HEADERS_BYTES", "LOCAL_REPLY_BODY",
    )
)  # fmt: skip
