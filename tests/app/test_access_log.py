import json
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from meshgate.adapters.relay.counters import StreamRecord
from meshgate.app.errors import ConfigError
from meshgate.app.logs import access_log, log_writer, logs
from meshgate.app.logs.access_log import AccessLog, line_of

from .stream_records import RECORD, REFUSED

ROOT = Path(__file__).parents[2]
CHILD = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
CONTRACT = [
    "start_time",
    "duration_ms",
    "client",
    "listener",
    "sni",
    "alpn",
    "route",
    "kind",
    "endpoint",
    "attempts",
    "bytes_received",
    "bytes_sent",
    "reason",
    "end",
    "flags",
    "worker",
]


def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def opened(path: Path) -> AccessLog:
    return AccessLog(str(path))


def workers_of(path: Path) -> list[int]:
    """The workers in the lines of a file: what the tests number their records with."""
    return [json.loads(line)["worker"] for line in path.read_text().splitlines()]


def umask() -> int:
    return next(
        int(line.split()[1], 8)
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("Umask:")
    )


@pytest.fixture
def told() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What the process's own log says."""
    reading, writing = os.pipe()
    logs.configure(json=True, fd=writing)
    os.set_blocking(reading, False)
    said = bytearray()

    def lines() -> list[dict[str, Any]]:
        with suppress(BlockingIOError):
            said.extend(os.read(reading, 1 << 20))
        return [json.loads(line) for line in said.splitlines()]

    yield lines
    logs.shutdown()
    os.close(reading)
    os.close(writing)


def test_a_line_has_the_contracts_fields_and_no_others() -> None:
    record = replace(RECORD, started=1_700_000_000.0625, duration=1.2344, alpn=("h2", "http/1.1"))
    entry = json.loads(line_of(record))
    assert list(entry) == CONTRACT
    assert entry["start_time"] == "2023-11-14T22:13:20.062Z"
    assert datetime.fromisoformat(entry["start_time"]).astimezone(UTC).timestamp() == 1_700_000_000.062
    assert entry["duration_ms"] == 1234
    assert entry["alpn"] == ["h2", "http/1.1"]
    same = {each.name for each in fields(StreamRecord)} & set(entry) - {"alpn"}
    assert len(same) == 13
    assert all(entry[name] == getattr(record, name) for name in same)


def test_what_a_refused_stream_never_had_is_null() -> None:
    entry = json.loads(line_of(REFUSED))
    assert [entry[name] for name in ("sni", "route", "kind", "endpoint")] == [None] * 4
    assert (entry["alpn"], entry["attempts"], entry["reason"]) == ([], 0, "no_sni")


@pytest.mark.parametrize("name", ['a"b\\c', "a\nb\r{}", "\x1b[2J\x7f\x9b", "\x7f", "\u202eevil", "ü😀", ""])
def test_a_strangers_name_stays_as_sent_on_one_printable_line(name: str) -> None:
    line = line_of(replace(RECORD, sni=name))
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["sni"] == name


def test_a_file_is_made_with_mode_0640_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    for number in (1, 2):
        log = opened(path)
        log.write(replace(RECORD, worker=number))
        log.close()
        assert log.dropped == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o640 & ~umask()
    assert workers_of(path) == [1, 2]


def test_closing_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    log = opened(tmp_path / "access.log")
    log.write(RECORD)
    log.reopen()
    log.close()
    assert len(os.listdir("/proc/self/fd")) == before
    log.write(RECORD)
    assert log.dropped == 1


def test_what_waits_is_written_at_exit(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from meshgate.app.logs.access_log import AccessLog\n"
        "from tests.app.stream_records import RECORD\n"
        "log = AccessLog(sys.argv[1])\n"
        "for _ in range(3000):\n"
        "    log.write(RECORD)\n"
    )
    path = tmp_path / "access.log"
    subprocess.run([sys.executable, str(script), str(path)], env=CHILD, timeout=30, check=True)
    assert workers_of(path) == [RECORD.worker] * 3000


@pytest.mark.parametrize("place", ["none/access.log", "", "fifo"])
def test_a_target_that_cannot_be_opened_is_a_wrong_setting(tmp_path: Path, place: str) -> None:
    os.mkfifo(tmp_path / "fifo")  # nobody reads it
    with pytest.raises(ConfigError, match=r"^MESHGATE_ACCESS_LOG=/.*: cannot be opened: ") as caught:
        AccessLog(str(tmp_path / place))
    assert caught.value.exit_code == 2


def test_reopen_leaves_the_rotated_file_whole_and_goes_on_in_a_new_one(tmp_path: Path) -> None:
    path, rotated = tmp_path / "access.log", tmp_path / "access.log.1"
    log = opened(path)
    for number in range(500):
        log.write(replace(RECORD, worker=number))
    until(lambda: path.stat().st_size)
    path.rename(rotated)
    log.reopen()
    for number in range(500, 1000):
        log.write(replace(RECORD, worker=number))
    log.close()
    assert workers_of(rotated) == list(range(500))
    assert workers_of(path) == list(range(500, 1000))


def test_a_file_that_cannot_be_opened_again_stays_in_use_until_it_can(
    tmp_path: Path, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "RETRY_SECONDS", 0.0)
    folder = tmp_path / "logs"
    folder.mkdir()
    log = opened(folder / "access.log")
    folder.rename(tmp_path / "moved")
    log.reopen()
    log.reopen()
    log.write(replace(RECORD, worker=1))
    until(lambda: (tmp_path / "moved/access.log").stat().st_size)
    until(lambda: len(told()) == 1)
    assert told()[0]["@message"] == "access log cannot be opened again, the old file stays in use"
    folder.mkdir()
    log.write(replace(RECORD, worker=2))
    log.write(replace(RECORD, worker=3))
    log.close()
    until(lambda: len(told()) == 2)
    assert told()[1]["@message"] == "access log is open again"
    assert workers_of(tmp_path / "moved/access.log") == [1]
    assert workers_of(folder / "access.log") == [2, 3]
    assert log.dropped == 0


def test_a_full_disk_is_said_once_counted_and_tried_again(tmp_path: Path, told: Any) -> None:
    path = tmp_path / "access.log"
    script = tmp_path / "script.py"
    script.write_text(_ON_A_SMALL_DISK)
    ended = subprocess.run(
        [sys.executable, str(script), str(path)], env=CHILD, capture_output=True, text=True, timeout=30, check=True
    )
    dropped = int(ended.stdout)
    assert dropped > 0
    # Not one line is torn, and what came after is there.
    seen = workers_of(path)
    assert seen[-1] == 99
    assert len(seen) == 31 - dropped
    messages = [json.loads(line) for line in ended.stderr.splitlines()]
    assert [each["@message"] for each in messages] == [
        "access log cannot be written, lines are lost",
        "access log lines were lost",
    ]
    assert messages[0]["error"] == "File too large"
    assert messages[1]["count"] == dropped


# The limit of a file's size stands in for the end of the disk: the kernel cuts the write that reaches it, too.
_ON_A_SMALL_DISK = """
import resource, signal, sys, time
from dataclasses import replace
from meshgate.app.logs import logs
from meshgate.app.logs.access_log import AccessLog
from tests.app.stream_records import RECORD

logs.configure(json=True)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
log = AccessLog(sys.argv[1])
for number in range(30):
    log.write(replace(RECORD, worker=number))
    time.sleep(0.005)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.write(replace(RECORD, worker=99))
log.close()
print(log.dropped)
"""


def test_a_reader_that_stands_still_blocks_no_stream_and_the_loss_is_told(
    tmp_path: Path, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    monkeypatch.setattr(log_writer, "QUEUE_LINES", 100)
    log = opened(path)
    for _ in range(20_000):  # Nobody reads: whoever waited here would wait for ever.
        log.write(RECORD)
    assert log.dropped > 10_000
    got = bytearray()

    def drained() -> bool:
        try:
            got.extend(os.read(reading, 1 << 20))
        except BlockingIOError:
            return bool(sum(each["count"] for each in told()) == log.dropped)
        return False

    # It is told in parts where some lines still found room between others that did not.
    until(drained)
    assert {each["@message"] for each in told()} == {"access log lines were lost"}
    log.close()
    os.close(reading)
    lines = got.splitlines()
    assert len(lines) == 20_000 - log.dropped
    assert {line.decode() for line in lines} == {line_of(RECORD)}


@pytest.mark.parametrize("target", ["stdout", "stderr"])
def test_standard_streams_share_with_the_log_and_no_line_is_torn(target: str, tmp_path: Path) -> None:
    """Both end in one pipe, as in a container, and its reader is slow: writes are cut all the time."""
    script = tmp_path / "script.py"
    script.write_text(_TWO_WRITERS)
    with subprocess.Popen(
        [sys.executable, str(script), target], env=CHILD, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        got = b""
        while data := os.read(process.stdout.fileno(), 3000):
            got += data
            time.sleep(0.0002)
    assert process.returncode == 0
    entries = [json.loads(line) for line in got.splitlines()]
    assert sum("worker" in entry for entry in entries) == 2000
    assert sum("@message" in entry for entry in entries) == 2000


_TWO_WRITERS = """
import sys, structlog
from meshgate.app.logs import logs
from meshgate.app.logs.access_log import AccessLog
from tests.app.stream_records import RECORD

logs.configure(json=True)
own = structlog.get_logger(module="meshgate")
log = AccessLog(sys.argv[1])
for number in range(2000):
    log.write(RECORD)
    own.info("x" * (number % 500))
log.close(20)
logs.shutdown(20)
"""


def test_records_may_come_from_many_threads(tmp_path: Path) -> None:
    log = opened(tmp_path / "access.log")

    def write() -> None:
        for _ in range(200):
            log.write(RECORD)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert len(workers_of(tmp_path / "access.log")) == 1600
