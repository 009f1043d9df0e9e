import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from meshgate.adapters.sd_notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def systemd(request: Any, tmp_path: Path) -> Any:
    """A notify socket as systemd has it, and its address for the environment."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@meshgate-test-{os.getpid()}-{id(request)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name[1:]}" if name.startswith("@") else name)
        sock.settimeout(5)
        yield sock, name


def test_every_state_arrives(systemd: Any) -> None:
    sock, address = systemd
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    assert notifier.ready()
    assert sock.recv(1000) == b"READY=1"
    assert notifier.status("draining, 3 streams")
    assert sock.recv(1000) == b"STATUS=draining, 3 streams"
    assert notifier.watchdog()
    assert sock.recv(1000) == b"WATCHDOG=1"
    assert notifier.reloading()
    first, second = sock.recv(1000).decode().splitlines()
    assert first == "RELOADING=1"
    assert abs(int(second.removeprefix("MONOTONIC_USEC=")) / 1e6 - time.monotonic()) < 60
    assert notifier.stopping()
    assert sock.recv(1000) == b"STOPPING=1"


def test_a_status_is_one_line_and_cannot_smuggle_a_state(systemd: Any) -> None:
    sock, address = systemd
    Notifier(address).status("one\nSTOPPING=1\r\x00\ud800")
    assert sock.recv(1000) == b"STATUS=one STOPPING=1 \x00?"


def test_without_systemd_nothing_is_sent() -> None:
    notifier = Notifier.from_environment({})
    assert not notifier.ready()
    assert notifier.watchdog_seconds is None


def test_a_socket_that_has_gone_is_no_error(tmp_path: Path) -> None:
    for address in (str(tmp_path / "none"), "x" * 300, "\0"):
        assert not Notifier(address).ready()


def test_a_supervisor_that_does_not_read_holds_nobody_up(systemd: Any) -> None:
    _, address = systemd
    notifier = Notifier(address)
    taken = [notifier.watchdog() for _ in range(5000)]
    assert taken[0]
    assert not taken[-1]


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "often"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_asked(environ: dict[str, str], seconds: Any) -> None:
    assert Notifier.from_environment(environ).watchdog_seconds == seconds
