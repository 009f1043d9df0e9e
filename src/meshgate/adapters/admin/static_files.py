"""What the admin address serves as it is: the dashboard's page with its scripts and style.

They are package data beside this module and hold no value of the gateway's: all that changes comes as JSON, and the
scripts write it as text. The policies in the headers hold that up: no script or style that is not one of these files
runs, nothing else is asked, and text can never become markup (Trusted Types).
"""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Final

from .http_server import Handler, Request, Response

FOLDER: Final = "/dashboard"
"""Where the files other than the page are, and what they ask: `/dashboard/state`."""

_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS: Final = (
    ("content-security-policy", _POLICY),
    ("cross-origin-opener-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
    ("x-frame-options", "DENY"),
)


def static_routes() -> Mapping[tuple[str, str], Handler]:
    """Handlers for `/` and the files it needs, which are read now."""
    responses: dict[str, Response] = {}
    for file in (files(__package__) / "page").iterdir():
        path = "/" if file.name == "index.html" else f"{FOLDER}/{file.name}"
        kind = _TYPES.get(PurePosixPath(file.name).suffix)
        if kind is not None:
            responses[path] = Response(200, file.read_bytes(), kind, _HEADERS)

    def answer(request: Request) -> Response:
        return responses[request.path]

    return dict.fromkeys((("GET", path) for path in responses), answer)
