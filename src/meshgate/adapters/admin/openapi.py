"""The description of the admin address for tools: OpenAPI 3.1, package data beside this module."""

from importlib.resources import files
from typing import Final

from .messages import JSON, Request, Response

PATH: Final = "/openapi.json"


def openapi_document() -> bytes:
    """The document as it is served."""
    return (files(__package__) / "openapi.json").read_bytes()


class OpenApiPage:
    """Answers with the document, which is read once."""

    def __init__(self) -> None:
        self._response = Response(200, openapi_document(), JSON)

    def answer(self, _request: Request) -> Response:
        """The document."""
        return self._response
