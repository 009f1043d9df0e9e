import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import structlog

from meshgate.adapters.consul.api import ConsulAddress, ConsulClient
from meshgate.adapters.sd_notify import Notifier
from meshgate.app.gateway.gateway import Gateway
from meshgate.app.logs import log_writer, logs
from meshgate.app.settings.settings import Settings

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
log = structlog.get_logger(module="meshgate.consul")


@pytest.fixture
def output() -> Any:
    """Configures logs into a file; calling the result gives the lines so far and ends the configuration."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    with tempfile.TemporaryFile() as file:

        def configure(level: str = "info", **options: Any) -> Any:
            logs.configure(level, fd=file.fileno(), **options)

            def lines() -> Any:
                logs.shutdown()
                file.seek(0)
                return file.read().decode().splitlines()

            return lines

        yield configure
        logs.shutdown()
    logging.captureWarnings(False)
    root.handlers[:], _ = before
    root.setLevel(before[1])
    structlog.reset_defaults()


def test_a_line_is_as_hashicorp_writes_it(output: Any) -> None:
    lines = output()
    log.info("watch is back", watch="services", index=7, fresh=True)
    (line,) = lines()
    assert re.fullmatch(rf"{STAMP} \[INFO\]  meshgate\.consul: watch is back: watch=services index=7 fresh=true", line)


@pytest.mark.parametrize(
    ("method", "tag"),
    [("trace", "[TRACE]"), ("debug", "[DEBUG]"), ("info", "[INFO] "), ("warning", "[WARN] "), ("error", "[ERROR]")],
)
def test_tags_are_padded_to_one_width(output: Any, method: Any, tag: Any) -> None:
    lines = output("trace")
    getattr(log, method)("message")
    (line,) = lines()
    assert line[25:] == f"{tag} meshgate.consul: message"


def test_times_are_utc_to_the_millisecond() -> None:
    assert logs.rfc3339(1_700_000_000.1239) == "2023-11-14T22:13:20.123Z"
    assert logs.rfc3339(1_700_000_000) == "2023-11-14T22:13:20.000Z"
    assert logs.rfc3339(1_700_000_000.5, "seconds") == "2023-11-14T22:13:20Z"


def test_values_are_quoted_when_they_must_be(output: Any) -> None:
    lines = output()
    log.info("m", a="two words", b="", c='say "x"', d="k=v", e="back\\slash", f=None, g=1.5, h="plain-1.2/3:4")
    (line,) = lines()
    pairs = r'a="two words" b="" c="say \"x\"" d="k=v" e="back\\slash" f=- g=1.5 h=plain-1.2/3:4'
    assert line.endswith(f": m: {pairs}")


def test_a_hostile_server_name_stays_in_its_line(output: Any) -> None:
    lines = output()
    hostile = 'a\r\n2026-01-01T00:00:00.000Z [ERROR] fake\x1b[2J\x00\u202e" x=y'
    log.info(hostile, sni=hostile, **{"ke\ny": hostile})
    (line,) = lines()
    assert line.isprintable()
    escaped = r"a\r\n2026-01-01T00:00:00.000Z [ERROR] fake\x1b[2J\x00\u202e"
    assert f'sni="{escaped}\\" x=y"' in line


def test_json_lines_have_hashicorps_keys(output: Any) -> None:
    lines = output(json=True)
    log.warning("watch\nfailed", watch="a b", count=3, sni="\x1b\u202e\ud800", **{"@level": "fake"})
    (line,) = lines()
    assert line.isascii()
    assert line.isprintable()
    entry = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", entry.pop("@timestamp"))
    assert entry == {
        "@level": "warn",
        "@message": "watch\nfailed",
        "@module": "meshgate.consul",
        "watch": "a b",
        "count": 3,
        "sni": "\x1b\u202e\ud800",
    }


def test_the_level_can_change_while_running(output: Any) -> None:
    lines = output("warn")
    bound = log.bind(watch="services")
    bound.info("one")
    logs.set_level("debug")
    bound.debug("two")
    bound.trace("three")
    logs.set_level("error")
    bound.warning("four")
    assert logs.level() == "error"
    assert [line.partition("consul: ")[2] for line in lines()] == ["two: watch=services"]


def test_the_form_can_change_while_running(output: Any) -> None:
    lines = output()
    log.info("text")
    logs.set_json(json=True)
    log.info("json")
    logging.getLogger("library").warning("json, too")
    text, *rest = lines()
    assert text.endswith("meshgate.consul: text")
    assert [json.loads(line)["@message"] for line in rest] == ["json", "json, too"]


def test_an_unknown_level_is_refused(output: Any) -> None:
    output()
    with pytest.raises(ValueError, match="trace, debug, info, warn, error"):
        logs.set_level("loud")
    assert logs.level() == "info"


def fail(text: str) -> None:
    raise ValueError(text)


def test_an_exception_is_written_with_its_traceback_indented(output: Any) -> None:
    lines = output()
    try:
        fail("bad\nvalue\x1b")
    except ValueError as error:
        log.error("failed", exc_info=error, n=1)  # noqa: TRY400 - the other way to say it
        log.exception("again")
    first, *rest = lines()
    assert first.endswith("meshgate.consul: failed: n=1")
    assert rest[0] == "    Traceback (most recent call last):"
    again = next(number for number, line in enumerate(rest) if line.endswith("again"))
    # The second line of the exception's text is escaped and indented as well: it cannot pass for an entry.
    assert rest[again - 2 : again] == ["    ValueError: bad", r"    value\x1b"]
    assert rest[-2:] == ["    ValueError: bad", r"    value\x1b"]


def test_an_exception_is_one_value_in_json(output: Any) -> None:
    lines = output(json=True)
    try:
        fail("bad")
    except ValueError:
        log.error("failed", exc_info=True)  # noqa: G201 - the other way to say it
    (line,) = lines()
    assert json.loads(line)["exception"].endswith("ValueError: bad")


def test_a_json_line_has_no_character_that_a_terminal_obeys(output: Any) -> None:
    lines = output(json=True)
    log.info("seen \x9b2J", name="\x7f\u202e")
    (line,) = lines()
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["name"] == "\x7f\u202e"


def test_libraries_log_through_the_same_output_from_warnings_upwards(output: Any) -> None:
    lines = output("trace")
    logging.getLogger("httpx").info("HTTP Request: GET http://consul/")
    logging.getLogger("httpx").warning("odd %s", "an\nswer")
    logging.getLogger("trio").critical("lost")
    logging.getLogger("meshgate.x").debug("ours")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("this is old", DeprecationWarning, stacklevel=1)
    got = [line[25:] for line in lines()]
    assert got[:3] == [r"[WARN]  httpx: odd an\nswer", "[ERROR] trio: lost", "[DEBUG] meshgate.x: ours"]
    assert "this is old" in got[3]
    assert len(got) == 4


def test_a_record_that_cannot_be_formatted_is_written_as_it_is(output: Any, capsys: pytest.CaptureFixture[str]) -> None:
    lines = output()
    logging.getLogger("lib").warning("%d apples", "no number")
    (line,) = lines()
    assert "[WARN]  lib: %d apples: error=" in line
    assert capsys.readouterr().err == ""


def test_a_module_may_log_before_logs_are_configured(output: Any, capsys: pytest.CaptureFixture[str]) -> None:
    structlog.get_logger(module="meshgate.early").warning("early")
    lines = output()
    log.info("late")
    assert len(lines()) == 1


def read_until(reading: int, told: bytes) -> None:
    """Read the log from a pipe until it tells of the loss, then end it and close the pipe's reading end."""
    data = b""
    while told not in data:
        data += os.read(reading, 1 << 20)
    logs.shutdown()
    os.close(reading)


def test_the_loss_of_lines_is_logged(output: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "QUEUE_LINES", 1)
    reading, writing = os.pipe()
    output()
    logs.configure(fd=writing)
    for _ in range(3):
        log.info("x" * (1 << 17))
    assert logs.dropped() >= 1
    read_until(reading, b"[WARN]  meshgate.log: log lines were dropped: count=")
    os.close(writing)


async def test_the_count_of_lost_lines_never_goes_back(
    output: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prometheus takes a counter that goes back for one that began anew, and counts what it lost twice."""
    monkeypatch.setattr(log_writer, "QUEUE_LINES", 1)
    file = tmp_path / "env"
    file.write_text("")
    settings = Settings.load({}, environ={"MESHGATE_ENV_FILE": str(file), "MESHGATE_WORKERS": "1"})
    reading, writing = os.pipe()
    output()
    async with ConsulClient(ConsulAddress.from_settings({})) as client:
        gateway = Gateway(settings, client, Notifier())
        logs.configure(fd=writing)
        for _ in range(5):
            log.info("x" * (1 << 17))
        lost = logs.dropped()
        file.write_text("MESHGATE_LOG_LEVEL=debug\nMESHGATE_LOG_JSON=true\n")
        gateway._reload()
    assert 0 < lost <= logs.dropped()
    assert logs.level() == "debug"
    read_until(reading, b'"@message":"log lines were dropped"')
    os.close(writing)


def test_lines_are_written_at_exit() -> None:
    code = (
        "import structlog; from meshgate.app.logs import logs; logs.configure();"
        "[structlog.get_logger(module='meshgate').info('line', n=n) for n in range(2000)]"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=20)
    lines = result.stderr.decode().splitlines()
    assert (len(lines), result.stdout) == (2000, b"")
    assert lines[-1].endswith("meshgate: line: n=1999")


def test_a_blocked_stderr_holds_an_exit_up_for_two_seconds_at_most() -> None:
    code = (
        "import structlog; from meshgate.app.logs import logs; logs.configure();"
        "structlog.get_logger(module='meshgate').info('x' * (1 << 20))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as process:
        assert process.wait(10) == 0
