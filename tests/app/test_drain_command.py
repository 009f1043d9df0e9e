import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from meshgate.adapters.admin.http_server import Response, error_response, json_response
from meshgate.adapters.relay import OpenStream
from meshgate.app.admin import dashboard
from meshgate.app.admin_client import SlowGatewayError, ask
from meshgate.app.cli import gateway_commands
from meshgate.app.cli.main import execute
from meshgate.app.settings.settings import Settings

from .gateway_double import TRUST_DOMAIN, GatewayDouble
from .test_admin_commands import serving

pytestmark = pytest.mark.usefixtures("clean_place")


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_commands, "_INTERVAL", 0.0)
    monkeypatch.setattr(gateway_commands, "_LOOK", 0.005)
    monkeypatch.setattr(dashboard, "FRESH", 0.0)


def gateway_that_runs_out(streams: int) -> GatewayDouble:
    """After each look at it while it drains one stream fewer is open, and after the last it is gone."""
    gateway = GatewayDouble()
    gateway.numbers.active = streams

    def look() -> None:
        if not gateway.draining:
            return
        if gateway.numbers.active == 0:
            gateway.stop()
        else:
            gateway.numbers.active -= 1

    gateway.on_look = look
    return gateway


def place(tmp_path: Path, kind: str) -> Any:
    return ("127.0.0.1", 0) if kind == "tcp" else tmp_path / "admin.sock"


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_drain_follows_the_streams_until_the_gateway_is_gone(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway = gateway_that_runs_out(3)
    with gateway.serving(place(tmp_path, kind)) as address:
        assert execute(["drain", f"--admin-bind={address}"]) == 0
    assert gateway.drains == 1
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[:4] == ["draining: 3 streams", "2 streams left", "1 stream left", "0 streams left"]
    assert lines[-1].startswith("the gateway is gone, after ")
    assert err == ""


def test_drain_as_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with gateway_that_runs_out(1).serving() as address:
        assert execute(["drain", "--json", f"--admin-bind={address}"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == [{"state": "draining", "streams": each, "oldest": []} for each in (1, 0)]
    assert lines[-1]["state"] == "gone"
    assert lines[-1]["seconds"] >= 0


WEB = f"web.default.dc1.internal.{TRUST_DOMAIN}"


def stream(number: int, age: float, route: str | None = WEB) -> OpenStream:
    return OpenStream(number, f"192.0.2.{number}:4000", route, route, None, "relaying", age, 0, 0, 0)


def test_whom_it_waits_for_is_named_and_what_was_cut(capsys: pytest.CaptureFixture[str]) -> None:
    gateway = gateway_that_runs_out(2)
    gateway.streams = [stream(1, 5.0), stream(2, 60.0), stream(3, 1.0), stream(4, 7.0, None)]
    gateway.settings = Settings.load({"MESHGATE_DRAIN_TIMEOUT": "0s"}, environ={})
    with gateway.serving() as address:
        assert execute(["drain", f"--admin-bind={address}"]) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    oldest = "192.0.2.2:4000 to web.default.dc1, 192.0.2.4:4000 to relaying, 192.0.2.1:4000 to web.default.dc1"
    assert first == f"draining: 2 streams: {oldest}"
    assert last.endswith(f"; at its drain timeout it cut 4 streams: {oldest} and 1 more")


def test_what_ended_before_the_timeout_was_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    gateway = gateway_that_runs_out(1)
    gateway.streams = [stream(1, 5.0)]
    with gateway.serving() as address:
        assert execute(["drain", "--json", f"--admin-bind={address}"]) == 0
    first, *_, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["client"] for each in first["oldest"]] == ["192.0.2.1:4000"]
    assert last["cut"] == []


def test_streams_that_are_too_many_for_a_list_are_counted_where_they_were_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_commands, "_MOST_LISTED", 1)
    gateway = GatewayDouble()
    gateway.numbers.active, gateway.settings = 2, Settings.load({"MESHGATE_DRAIN_TIMEOUT": "0s"}, environ={})
    looks = iter((False, True))
    gateway.on_look = lambda: gateway.stop() if gateway.draining and next(looks, False) else None
    with gateway.serving() as address:
        assert execute(["drain", f"--admin-bind={address}"]) == 0
    assert capsys.readouterr().out.endswith(" s; at its drain timeout it cut 2 streams\n")


def test_a_gateway_that_is_slow_to_answer_is_not_gone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = {"/dashboard/state": 1, "/connections": 2}

    def asked(bind: Any, path: str, shape: Any, **more: Any) -> Any:
        if gateway.draining and slow.get(path):
            slow[path] -= 1
            raise SlowGatewayError("no answer in time")
        return ask(bind, path, shape, **more)

    monkeypatch.setattr(gateway_commands, "ask", asked)
    gateway = gateway_that_runs_out(1)
    with gateway.serving() as address:
        assert execute(["drain", f"--admin-bind={address}"]) == 0
    assert "the gateway is gone" in capsys.readouterr().out
    assert slow == {"/dashboard/state": 0, "/connections": 0}


def test_progress_is_printed_once_a_second(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_commands, "_INTERVAL", 3600.0)
    with gateway_that_runs_out(20).serving() as address:
        assert execute(["drain", f"--admin-bind={address}"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_gateway_that_takes_its_place_is_another_one(capsys: pytest.CaptureFixture[str]) -> None:
    """A supervisor may start the next gateway at the same address before anybody looks."""
    gateway = GatewayDouble()

    def restart() -> None:
        if gateway.draining:
            gateway.started += 5.0

    gateway.on_look = restart
    with gateway.serving() as address:
        assert execute(["drain", f"--admin-bind={address}"]) == 0
    assert gateway.drains == 1
    assert "the gateway is gone" in capsys.readouterr().out


def test_ctrl_c_ends_the_waiting_and_not_the_drain() -> None:
    gateway = GatewayDouble()
    waited = threading.Event()
    gateway.on_look = lambda: waited.set() if gateway.draining else None
    with gateway.serving() as address:
        command = [sys.executable, "-m", "meshgate", "drain", f"--admin-bind={address}"]
        # A process of its own: a signal that comes a moment late must not end the tests.
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as waiting:
            try:
                assert waited.wait(60)
                waiting.send_signal(signal.SIGINT)
                assert waiting.wait(60) == 130
                assert waiting.stderr is not None
                assert b"Traceback" not in waiting.stderr.read()
            finally:
                waiting.kill()
    assert gateway.draining


def test_without_a_gateway_there_is_nothing_to_drain(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert execute(["drain", f"--admin-bind=unix://{tmp_path}/none"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("meshgate: no gateway answers at ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("response", [Response(body=b"<html>\n"), json_response({"other": 1}), error_response(404)])
def test_something_else_at_the_address_is_not_told_to_drain(response: Any, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[object] = []
    routes = {("GET", "/dashboard/state"): lambda _: response, ("POST", "/drain"): told.append}
    with serving(("127.0.0.1", 0), routes) as address:
        assert execute(["drain", f"--admin-bind={address}"]) == 1
    assert told == []
    assert capsys.readouterr().err.count("\n") == 1
