"""Asking the running gateway, by its admin address."""

import socket
import ssl
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec

from meshgate.adapters.error_words import words_of
from meshgate.app.errors import CommandError
from meshgate.core.addresses import HostPort
from meshgate.core.text import printable

_CONNECT_SECONDS = 3.0
_PATIENCE = 10.0
# The next version is tried before there is an answer.
_LONG_PATIENCE = {"/upgrade": 90.0}

Answer = TypeVar("Answer")


class NoGatewayError(CommandError):
    """There is nobody at the admin address."""


class SlowGatewayError(CommandError):
    """There is somebody, who does not answer in time."""


class NotDoneError(CommandError):
    """The gateway says, in these words, that it cannot do what it was asked to do."""


def ask(bind: HostPort | Path | None, path: str, shape: type[Answer], *, method: str = "GET", **query: str) -> Answer:
    """The answer to a request as a typed value; as `response_to` and `decoded`."""
    return decoded(response_to(bind, path, method=method, **query).content, shape)


def response_to(bind: HostPort | Path | None, path: str, *, method: str = "GET", **query: str) -> httpx.Response:
    """The answer to a request.

    `bind` is the gateway's `admin_bind`; of an address that stands for all, the loopback one is asked.

    Raises:
        NoGatewayError: there is no gateway.
        SlowGatewayError: it does not answer in time.
        NotDoneError: it is not in a state to do that.
        CommandError: it does not answer with success.
    """
    if bind is None:
        raise CommandError("the admin address is switched off (MESHGATE_ADMIN_BIND=off), so there is nobody to ask")
    where = f"unix://{bind}" if isinstance(bind, Path) else str(_dialed(bind))
    base = "http://localhost" if isinstance(bind, Path) else f"http://{where}"
    # Never HTTPS here; a context without CA certificates saves loading them.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    transport = httpx.HTTPTransport(verify=context, uds=str(bind) if isinstance(bind, Path) else None)
    try:
        if isinstance(bind, Path):
            # httpcore leaves a unix socket open that it could not connect.
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(_CONNECT_SECONDS)
                sock.connect(str(bind))
        timeout = httpx.Timeout(_LONG_PATIENCE.get(path, _PATIENCE), connect=_CONNECT_SECONDS)
        with httpx.Client(transport=transport, base_url=base, timeout=timeout, trust_env=False) as client:
            response = client.request(method, path, params=query)
    except (OSError, httpx.HTTPError, httpx.InvalidURL) as error:
        advice = "is meshgate running, with this MESHGATE_ADMIN_BIND?"
        # A unix socket with a full backlog does not let anybody wait.
        slow = isinstance(error, (httpx.TimeoutException, TimeoutError, BlockingIOError))
        kind, reason = (SlowGatewayError, "timeout") if slow else (NoGatewayError, printable(words_of(error)))
        raise kind(f"no gateway answers at {where} ({reason}); {advice}") from None
    said = _message(response.content)
    if response.status_code == httpx.codes.CONFLICT and said:
        raise NotDoneError(said)
    if response.status_code != httpx.codes.OK:
        raise CommandError(f"the admin address {where} answered {response.status_code}{said and f': {said}'}")
    return response


def decoded(body: bytes, shape: type[Answer]) -> Answer:
    """An answer as a typed value.

    Raises:
        CommandError: it is something else.
    """
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise CommandError("what answers at the admin address is not this version of meshgate") from None


def _dialed(bind: HostPort) -> HostPort:
    return HostPort({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bind.host, bind.host), bind.port)  # noqa: S104


def _message(body: bytes) -> str:
    try:
        answer: Any = msgspec.json.decode(body)
        return printable(answer["error"])
    except (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
        return ""
