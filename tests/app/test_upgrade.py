"""An upgrade, but for the exec: how a trial may fail, whose Python is believed, what is handed over, the command."""

import fcntl
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from structlog.testing import capture_logs

from meshgate import __version__
from meshgate.adapters.consul import OwnHealth, RegistrarLeft
from meshgate.adapters.relay import Counters
from meshgate.adapters.relay.pool import PoolLeft
from meshgate.adapters.sd_notify import Notifier
from meshgate.app.cli.main import execute
from meshgate.app.errors import CommandError
from meshgate.app.gateway import upgrade, upgrade_record
from meshgate.app.gateway.upgrade import Upgrader, UpgradeRefusedError, check_path
from meshgate.app.gateway.upgrade_record import (
    FORMAT,
    CatalogLeft,
    ConsulLeft,
    HandOver,
    LogsLeft,
    OnlookersLeft,
    ProcessLeft,
    Upgrade,
)
from meshgate.core.catalog import Snapshot
from meshgate.core.proxy_config import NO_LIMITS
from meshgate.core.reasons import Reason

from .gateway_double import GatewayDouble

RECORDED = Path(__file__).parents[1] / "data" / "hand-overs"


def process_of(**changes: Any) -> ProcessLeft:
    made = ProcessLeft(
        python=sys.executable,
        arguments=["run", "-token=hidden", "-service", "edge", "hidden"],
        environment={"CONSUL_HTTP_TOKEN": "hidden", "PATH": os.environ["PATH"], "OTHER": "hidden?"},
        secrets=["hidden"],
        started=1.0,
        since=2.0,
    )
    return msgspec.structs.replace(made, **changes)


def record_of(**changes: Any) -> HandOver:
    made = HandOver(
        format=FORMAT,
        identity={},
        process=process_of(),
        relay=PoolLeft(1, [], True, Counters(), [], 0, {}, [], b"", [], [], []),
        listeners=[],
        addresses=[],
        catalog=CatalogLeft(snapshot=Snapshot("dc1", "trust.consul"), addresses={}, stale=False, age=0.0),
        consul=ConsulLeft(
            token="hidden",
            login_age=None,
            errors={},
            watches=[],
            registration=RegistrarLeft(None, False, OwnHealth(), NO_LIMITS, "", None, None),
        ),
        logs=LogsLeft(level=None, dropped=0, access_dropped=0, refusals=[]),
        onlookers=OnlookersLeft(),
        upgrade=Upgrade(number=1, started=1.0, python=sys.executable, version_before="1"),
        upgrades={},
    )
    return msgspec.structs.replace(made, **changes)


@dataclass
class Stage:
    """A gateway around an upgrader: what it says."""

    refuses: str = ""
    settled: bool = True
    flushes: bool = True

    def upgrader(self, **more: Any) -> Upgrader:
        return Upgrader(
            process_of(),
            refuse=lambda: self.refuses,
            leave=record_of,
            settled=lambda: self.settled,
            flush=lambda _: self.flushes,
            streams=lambda: 3,
            notifier=Notifier(),
            **more,
        )


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Makes a program that is taken for a Python; its place is believed in."""
    monkeypatch.setattr(upgrade, "check_path", lambda _: None)

    def make(script: str) -> str:
        path = tmp_path / "python"
        path.write_text(f"#!{sys.executable}\nimport os, sys, time\n{script}\n")
        path.chmod(0o755)
        return str(path)

    return make


def spoil(python: str) -> None:
    Path(python).write_bytes(b"\x7fELF nonsense")


async def reason_of(upgrader: Upgrader, python: str) -> str:
    with pytest.raises(UpgradeRefusedError) as caught:
        await upgrader.prepare(python, "somebody")
    return str(caught.value)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("print('nonsense')", "gave no answer that makes sense"),
        ("os.write(1, bytes(1_000_000))", "gave no answer that makes sense"),
        ("", "gave no answer that makes sense"),
        ("print('{}')", "gave no answer that makes sense"),
        ("sys.exit('meshgate: no\\x1b way\\nTry meshgate --help')", "exit code 1: no\\x1b way"),
        ("import nothing_of_that_name", "No module named 'nothing_of_that_name'"),
        ("sys.exit(3)", "exit code 3: it said nothing"),
        ("os.kill(os.getpid(), 9)", "the trial was killed by SIGKILL"),
        ("time.sleep(60)", "the trial had no end after 2 s"),
        ("while True: os.write(1, bytes(100_000)) and os.write(2, bytes(100_000))", "had no end after 2 s"),
        ("os.close(1); os.close(2); time.sleep(60)", "the trial had no end after 2 s"),
    ],
)
async def test_a_trial_that_fails_is_refused_with_the_reason_and_nothing_changes(
    stage: Stage, program: Callable[[str], str], script: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrade, "TRIAL_SECONDS", 2.0)
    upgrader = stage.upgrader()
    before = sorted(os.listdir("/proc/self/fd"))
    with trio.fail_after(30), capture_logs() as logs:
        assert said in await reason_of(upgrader, program(script))
    assert [entry["asked"] for entry in logs if "is tried" in entry["event"]] == ["somebody"]
    assert upgrader.results == {"done": 0, "failed": 0, "refused": 1}
    assert upgrader.last is not None
    assert (upgrader.last.result, upgrader.under_way) == ("refused", False)
    assert said in upgrader.last.reason
    assert len(os.listdir("/proc/self/fd")) == len(before)


async def test_a_python_that_is_not_there_or_no_program_is_refused(
    stage: Stage, tmp_path: Path, program: Callable[[str], str]
) -> None:
    assert "cannot be started: No such file" in await reason_of(stage.upgrader(), str(tmp_path / "pythonX"))
    odd = program("")
    spoil(odd)
    assert "cannot be started: Exec format error" in await reason_of(stage.upgrader(), odd)


async def test_there_is_one_upgrade_at_a_time_and_none_while_draining(
    stage: Stage, program: Callable[[str], str]
) -> None:
    upgrader = stage.upgrader()
    python = program('print(\'{"version": "9"}\')')
    tried = await upgrader.prepare(python)
    assert (tried.version_after, tried.streams, tried.result) == ("9", 3, "under_way")
    assert await reason_of(upgrader, python) == "another upgrade is under way"
    stage.refuses = "the gateway is draining"
    assert await reason_of(stage.upgrader(), python) == "the gateway is draining"


async def go(upgrader: Upgrader) -> None:
    """Let what was prepared go on, and wait until it is over."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(upgrader.run)
        upgrader.go()
        with trio.fail_after(10):
            while upgrader.under_way:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"refuses": "the gateway is draining"}, "the gateway is draining"),
        ({"settled": False}, "do not read what they are told"),
        ({"flushes": False}, "the access log does not take its lines"),
        ({}, "cannot be started: Exec format error"),
    ],
)
async def test_where_the_exec_cannot_be_all_is_as_it_was(
    stage: Stage, program: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr(upgrade, "SETTLE_SECONDS", 0.2)
    upgrader = stage.upgrader()
    python = program('print(\'{"version": "9", "more": false}\')')
    handlers = {number: signal.getsignal(number) for number in upgrade.SIGNALS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    await upgrader.prepare(python)
    spoil(python)
    for name, value in change.items():
        setattr(stage, name, value)
    await go(upgrader)
    assert upgrader.last is not None
    assert said in upgrader.last.reason
    assert {number: signal.getsignal(number) for number in upgrade.SIGNALS} == handlers
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


async def test_an_error_of_ours_is_told_and_ends_nothing(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    upgrader = stage.upgrader()

    def fails() -> HandOver:
        raise KeyError("a defect")

    monkeypatch.setattr(upgrader, "_leave", fails)
    await upgrader.by_signal()
    assert upgrader.last is not None
    assert (upgrader.last.result, upgrader.last.reason) == ("refused", "unexpected KeyError: 'a defect'")
    upgrader.last.result = "under_way"
    await go(upgrader)
    assert upgrader.results["refused"] == 2


# --- what is handed over ----------------------------------------------------------------------------------------------


def test_others_see_no_secret_of_the_next_program() -> None:
    process = process_of()
    assert list(upgrade_record.arguments_of(process)) == ["run", "-token=******", "-service", "edge", "******"]
    environment = upgrade_record.environment_of(process, 7)
    assert environment == {
        "CONSUL_HTTP_TOKEN": "******",
        "PATH": os.environ["PATH"],
        "OTHER": "hidden?",
        upgrade_record.VARIABLE: "7",
    }


def test_a_record_lies_sealed_in_memory_and_is_read_as_it_was() -> None:
    record = record_of()
    memory = upgrade_record.memory_of(record)
    try:
        assert not os.get_inheritable(memory)
        assert upgrade_record.decode(os.pread(memory, 1 << 20, 0)) == record
        seals = fcntl.fcntl(memory, fcntl.F_GET_SEALS)
        assert seals == fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        with pytest.raises(OSError, match="Operation not permitted"):
            os.pwrite(memory, b"x", 0)
        with pytest.raises(RuntimeError, match="in the block"), upgrade_record.inheritable([memory]):
            assert os.get_inheritable(memory)
            raise RuntimeError("in the block")
        assert not os.get_inheritable(memory)
    finally:
        os.close(memory)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read"),
        (b"\xc1", "cannot be read"),
        (msgspec.msgpack.encode({"format": 2}), "has format 2, and this meshgate takes format 1"),
        (msgspec.msgpack.encode({"format": 1}), "cannot be read: Object missing required field"),
        (b"\x91" * 100_000, "cannot be read"),
        (msgspec.msgpack.encode(record_of())[:-1], "cannot be read"),
    ],
)
def test_what_is_no_record_of_a_known_format_is_told(content: bytes, said: str) -> None:
    with pytest.raises(CommandError, match=said):
        upgrade_record.decode(content)


@pytest.mark.parametrize("path", sorted(RECORDED.glob("format-*.msgpack")), ids=lambda path: path.stem)
def test_what_earlier_versions_have_handed_over_is_understood_for_ever(path: Path) -> None:
    record = upgrade_record.decode(path.read_bytes())
    assert record.process.arguments == ["run"]
    assert {service.name for service in record.catalog.snapshot.services} == {"web"}
    assert [worker.number for worker in record.relay.workers] == [0, 1]
    assert record.relay.totals.refused == {Reason.NOT_TLS: 3}
    assert record.consul.registration.sent == ("127.0.0.1", 20443)


# --- whose Python it is -----------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is believed in from itself downwards, wherever temporary files are."""
    above = set(tmp_path.parents)
    check = upgrade._check_component
    monkeypatch.setattr(upgrade, "_check_component", lambda it: None if it in above else check(it))
    (tmp_path / "bin").mkdir(mode=0o755)
    (tmp_path / "bin" / "python").symlink_to("python3.99")
    (tmp_path / "bin" / "python3.99").touch(mode=0o755)
    tmp_path.chmod(0o755)
    return tmp_path


def test_a_python_that_only_root_and_the_gateway_can_change_is_believed(place: Path) -> None:
    check_path(str(place / "bin" / "python"))
    (place / "link").symlink_to(place / "bin", target_is_directory=True)
    check_path(str(place / "link" / "python"))


@pytest.mark.parametrize("component", [".", "bin", "bin/python3.99"])
@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_one_that_others_may_write_to_is_not(place: Path, component: str, mode: int) -> None:
    (place / component).chmod(mode)
    with pytest.raises(UpgradeRefusedError) as caught:
        check_path(str(place / "bin" / "python"))
    assert str(caught.value) == f"others than its owner may write to {str(place / component)!r}"


def test_what_a_link_leads_through_is_looked_at_too(place: Path) -> None:
    (place / "open").mkdir()
    (place / "open").chmod(0o777)
    (place / "open" / "python").touch(mode=0o755)
    (place / "bin" / "python").unlink()
    (place / "bin" / "python").symlink_to("../open/python")
    with pytest.raises(UpgradeRefusedError, match=r"others than its owner may write to '.*/open'"):
        check_path(str(place / "bin" / "python"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("component", [".", "bin", "bin/python", "bin/python3.99"])
def test_one_that_belongs_to_another_user_is_not(place: Path, component: str) -> None:
    os.chown(place / component, 1, -1, follow_symlinks=False)
    with pytest.raises(UpgradeRefusedError, match="belongs to another user than root and the gateway's own"):
        check_path(str(place / "bin" / "python"))


@pytest.mark.parametrize(
    ("python", "said"),
    [
        ("python", "no absolute path"),
        ("/usr/../usr/bin/python3", "no absolute path"),
        ("/usr/bin/python\0", "no absolute path"),
        ("/bin/sh", "is not called python"),
        ("/nowhere/python", "'/nowhere': No such file"),
        ("{place}/bin/pythons", "is no program"),
        ("{place}/bin/python0", "too many links"),
        ("{place}/bin/python-text", "is no program"),
    ],
)
def test_what_is_no_path_of_a_python_is_refused(place: Path, python: str, said: str) -> None:
    (place / "bin" / "pythons").mkdir()
    (place / "bin" / "python0").symlink_to("python0")
    (place / "bin" / "python-text").touch(mode=0o644)
    with pytest.raises(UpgradeRefusedError, match=said):
        check_path(python.format(place=place))


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_says_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    gateway = GatewayDouble()
    with gateway.serving() as address:
        assert execute(["upgrade", f"-admin-bind={address}", "--python", "/opt/x/bin/python"]) == 0
    assert gateway.upgraded == ["/opt/x/bin/python"]
    assert capsys.readouterr().out.splitlines() == [
        f"version {__version__} runs",
        "trial: version 2 can go on, by /opt/x/bin/python",
        f"exec: version {__version__} is in charge, 1.0 s after it was asked for",
        "streams: 0 of 0 handed over, 0 kept by the old workers, 0 lost",
        f"upgraded from version 1 to version {__version__}",
    ]


def test_the_command_says_the_one_reason_of_a_refusal(capsys: pytest.CaptureFixture[str]) -> None:
    gateway = GatewayDouble(refuses_upgrades="it is\nso")
    with gateway.serving() as address:
        assert execute(["upgrade", f"-admin-bind={address}"]) == 1
    said = capsys.readouterr()
    assert said.err == "meshgate: no upgrade, and nothing has changed: it is\\nso\n"
    assert gateway.upgraded == []
