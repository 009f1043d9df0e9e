"""Requests and responses of the admin address, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import msgspec

JSON: Final = "application/json"
TEXT: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Request:
    """A request that was read to its end.

    `path` is as sent, without the query. `query` is decoded; of a repeated name the last value counts. Header names
    are lower case.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer. `headers` are added to the server's own ones, or replace those of the same name."""

    status: int = 200
    body: bytes = b""
    content_type: str = TEXT
    headers: tuple[tuple[str, str], ...] = ()


def json_response(data: object, status: int = 200) -> Response:
    """`data` as JSON, by msgspec's rules."""
    return Response(status, msgspec.json.encode(data) + b"\n", JSON)


def text_response(text: str, status: int = 200) -> Response:
    """`text` and a newline."""
    return Response(status, f"{text}\n".encode(), TEXT)


def error_response(status: int, message: str = "", headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """`{"error": ...}` with `message`, or with the name of the status."""
    body = msgspec.json.encode({"error": message or HTTPStatus(status).phrase}) + b"\n"
    return Response(status, body, JSON, headers)
