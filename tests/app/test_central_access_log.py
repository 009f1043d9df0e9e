import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio

from meshgate.adapters.relay import StreamRecord
from meshgate.app.gateway.stream_observer import StreamObserver
from meshgate.app.logs.access_log import AccessLog, CentralAccessLog
from meshgate.app.settings.settings import Settings

from .stream_records import RECORD, REFUSED


def settings_of(**environ: str) -> Settings:
    return Settings.load({}, environ=environ)


class Followed:
    """A central access log, and what it made of what it was told."""

    def __init__(self, below: Path | str = "", **environ: str) -> None:
        environ.setdefault("MESHGATE_ACCESS_LOG_DIR", str(below))
        self.wanted: list[bool] = []
        self.observer = StreamObserver(None)
        self.log = CentralAccessLog(settings_of(**environ), self.use)

    def use(self, access: AccessLog | None) -> None:
        self.wanted.append(access is not None)
        self.observer.use(access)

    def write(self, *records: StreamRecord) -> None:
        for record in records:
            self.observer.on_ended(record)


def written(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


async def lines_of(path: Path, count: int) -> list[str]:
    with trio.fail_after(20):
        while len(written(path)) < count:
            await trio.sleep(0.01)
    return written(path)


def to_file(path: Path, **more: Any) -> dict[str, Any]:
    return {"Enabled": True, "Type": "file", "Path": str(path), **more}


async def test_what_proxy_defaults_asks_for_is_written(tmp_path: Path) -> None:
    followed = Followed(tmp_path)
    followed.log.follow(to_file(tmp_path / "text", TextFormat="%REQUESTED_SERVER_NAME% %DURATION%\n"))
    followed.write(RECORD, REFUSED)
    assert await lines_of(tmp_path / "text", 2) == [f"{RECORD.sni} 1234", "- 1234"]
    followed.log.follow(to_file(tmp_path / "json", JSONFormat='{"n": "%BYTES_SENT%"}'))
    followed.write(RECORD)
    assert await lines_of(tmp_path / "json", 1) == ['{"n":20}']
    followed.log.follow(to_file(tmp_path / "default"))
    followed.write(RECORD)
    assert len(json.loads((await lines_of(tmp_path / "default", 1))[0])) == 24
    assert followed.wanted == [True, True, True]
    assert followed.observer.wants_records
    followed.log.follow({})
    followed.write(RECORD)
    assert followed.wanted[-1] is False
    assert len((tmp_path / "text").read_text().splitlines()) == 2


async def test_streams_that_found_no_route_can_be_left_out(tmp_path: Path) -> None:
    followed = Followed(tmp_path)
    followed.log.follow(to_file(tmp_path / "log", TextFormat="%RESPONSE_FLAGS%", DisableListenerLogs=True))
    followed.write(REFUSED, RECORD)
    assert await lines_of(tmp_path / "log", 1) == ["UC"]


@pytest.mark.parametrize("own", ["off", "stderr"])
async def test_what_was_set_for_this_gateway_itself_counts_before_consul(own: str, tmp_path: Path) -> None:
    followed = Followed(tmp_path, MESHGATE_ACCESS_LOG=own)
    followed.log.follow(to_file(tmp_path / "log"))
    followed.write(RECORD)
    assert followed.wanted == []
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"Type": "syslog"}, "is none of stdout, stderr and file"),
        ({"Type": "file"}, "needs an absolute Path"),
        ({"Type": "file", "Path": "relative"}, "needs an absolute Path"),
        ({"Type": "file", "Path": "/var/log/nonexistent-folder/log"}, "cannot be opened"),
        ({"Type": "file", "Path": "/var/log/a\0b"}, "needs an absolute Path"),
        ({"Type": "file", "Path": "/var/log"}, "is not below /var/log, which MESHGATE_ACCESS_LOG_DIR names"),
        ({"Type": "file", "Path": "/var/logs"}, "is not below /var/log"),
        ({"Type": "file", "Path": "/var/log/../lib/x"}, "is not below /var/log"),
        ({"Type": "file", "Path": "/var/log/x/../y"}, "is not below /var/log"),
        ({"JSONFormat": "no JSON"}, "is no JSON"),
        ({"TextFormat": "%DURATION:" + "9" * 5000 + "%"}, "digits"),
    ],
)
async def test_what_cannot_be_followed_is_said_once_and_harms_nothing(asked: dict[str, str], why: str) -> None:
    followed = Followed("/var/log")
    with structlog.testing.capture_logs() as entries:
        for _ in range(3):
            followed.log.follow({"Enabled": True, **asked})
    (entry,) = entries
    assert entry["log_level"] == "warning"
    assert why in entry["error"]
    followed.write(RECORD)
    assert not followed.observer.wants_records


async def test_operators_that_are_not_known_are_named_once(tmp_path: Path) -> None:
    followed = Followed(tmp_path)
    with structlog.testing.capture_logs() as entries:
        for _ in range(3):
            followed.log.follow(to_file(tmp_path / "log", TextFormat="%NO_SUCH% %OTHER% %NO_SUCH%"))
    assert [entry["operators"] for entry in entries if entry["log_level"] == "warning"] == ["NO_SUCH, OTHER"]
    followed.write(RECORD)
    assert await lines_of(tmp_path / "log", 1) == ["- - -"]


async def test_lines_that_were_lost_stay_counted_when_the_log_changes(tmp_path: Path) -> None:
    followed = Followed(tmp_path)
    followed.log.follow(to_file(tmp_path / "first"))
    access = followed.observer._access
    assert access is not None
    access._writer.dropped = 5
    followed.log.follow(to_file(tmp_path / "second"))
    assert followed.observer.dropped == 5


def below(folder: Path) -> dict[Path, tuple[int, ...]]:
    # All but the time of the last look, which is this one.
    facts = [(path, path.lstat()) for path in folder.rglob("*")]
    return {path: (it.st_ino, it.st_mode, it.st_nlink, it.st_size, it.st_mtime_ns) for path, it in facts}


async def test_without_a_folder_of_the_operators_no_file_is_written(tmp_path: Path) -> None:
    followed = Followed()
    with structlog.testing.capture_logs() as entries:
        for _ in range(3):
            followed.log.follow(to_file(tmp_path / "log"))
    (entry,) = entries
    assert "MESHGATE_ACCESS_LOG_DIR" in entry["error"]
    followed.write(RECORD)
    assert below(tmp_path) == {}
    assert followed.wanted == [False]


def link(at: Path) -> None:
    target = at.parent.parent / "authorized_keys"
    target.touch()
    at.symlink_to(target)


def dangling(at: Path) -> None:
    at.symlink_to(at.parent.parent / "made")


@pytest.mark.parametrize("make", [link, dangling, os.mkfifo, Path.mkdir])
async def test_only_regular_files_below_it_are_written_and_through_no_link(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    """`Path` is a link to a file of somebody's, and the format a line that this file obeys."""
    folder = tmp_path / "logs"
    folder.mkdir()
    make(folder / "log")
    before = below(tmp_path)
    reader = os.open(folder / "log", os.O_RDONLY | os.O_NONBLOCK) if make is os.mkfifo else None
    followed = Followed(folder)
    with structlog.testing.capture_logs() as entries:
        followed.log.follow(to_file(folder / "log", TextFormat="ssh-ed25519 AAAAattacker evil@host"))
    assert [entry["log_level"] for entry in entries] == ["warning"]
    followed.write(RECORD)
    assert below(tmp_path) == before
    if reader is not None:
        assert os.read(reader, 100) == b""
        os.close(reader)


async def test_a_folder_on_the_way_that_is_a_link_is_refused_and_a_real_one_is_not(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "logs", tmp_path / "elsewhere"
    (folder / "real").mkdir(parents=True)
    elsewhere.mkdir()
    (folder / "linked").symlink_to(elsewhere)
    followed = Followed(folder)
    with structlog.testing.capture_logs() as entries:
        followed.log.follow(to_file(folder / "linked" / "log"))
        assert [entry["log_level"] for entry in entries] == ["warning"]
    followed.log.follow(to_file(folder / "real" / "log", TextFormat="%BYTES_SENT%"))
    followed.write(RECORD)
    assert await lines_of(folder / "real" / "log", 1) == ["20"]
    assert below(elsewhere) == {}


async def test_the_operators_own_folder_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "logs").symlink_to(tmp_path / "disk")
    followed = Followed(tmp_path / "logs")
    followed.log.follow(to_file(tmp_path / "logs" / "log", TextFormat="%BYTES_SENT%"))
    followed.write(RECORD)
    assert await lines_of(tmp_path / "disk" / "log", 1) == ["20"]


async def test_a_link_that_appears_at_its_name_is_not_followed_at_a_rotation(tmp_path: Path) -> None:
    folder, victim = tmp_path / "logs", tmp_path / "victim"
    folder.mkdir()
    victim.touch()
    followed = Followed(folder)
    followed.log.follow(to_file(folder / "log", TextFormat="%BYTES_SENT%"))
    followed.write(RECORD)
    await lines_of(folder / "log", 1)
    (folder / "log").rename(folder / "log.1")
    (folder / "log").symlink_to(victim)
    with structlog.testing.capture_logs() as entries:
        followed.observer.reopen()
        followed.write(RECORD)
        await lines_of(folder / "log.1", 2)
    assert [entry["event"] for entry in entries] == ["access log cannot be opened again, the old file stays in use"]
    assert victim.read_text() == ""
