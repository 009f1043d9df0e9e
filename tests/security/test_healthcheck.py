"""The image's health check, run as the container would: healthy means ready."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from .test_deploy import instructions


@contextmanager
def admin(status: int) -> Iterator[str]:
    """Something that answers /readyz with a status and all else with 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def health_of(address: str) -> int:
    (check,) = [value for name, value in instructions() if name == "HEALTHCHECK"]
    program, *arguments = json.loads(check[check.index("CMD ") + 4 :])
    assert program == "python"
    # A proxy in the environment must not be asked.
    environ = os.environ | {"MESHGATE_ADMIN_BIND": address, "http_proxy": "http://127.0.0.1:1"}
    return subprocess.run(
        [sys.executable, *arguments], env=environ, capture_output=True, timeout=30, check=False
    ).returncode


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (404, False)])
def test_image_is_healthy_when_the_gateway_is_ready(status: int, healthy: bool) -> None:
    with admin(status) as address:
        assert (health_of(address) == 0) is healthy


def test_image_is_not_healthy_when_nobody_answers() -> None:
    assert health_of("127.0.0.1:1") == 1
