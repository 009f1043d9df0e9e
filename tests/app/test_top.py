import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from meshgate.adapters.admin.stats import Destination, GatewayStats, endpoint_counts
from meshgate.adapters.relay.counters import OpenStream
from meshgate.app.cli.commands.top_frame import DestinationRow, Frame, Look, RefusedRow, frame
from meshgate.app.cli.commands.top_view import duration, rate, screen, size
from meshgate.app.cli.main import execute
from meshgate.app.settings.setting_types import HostPort
from meshgate.core.reasons import Reason
from meshgate.core.routes import Endpoint, Route, RouteKind, RouteTable

from .fake_gateway import FakeGateway

DOMAIN = "11111111-2222-3333-4444-555555555555.consul"
WEB = f"web.default.dc1.internal.{DOMAIN}"
CANARY = f"canary.web.default.dc1.internal.{DOMAIN}"
API = f"api.default.dc1.internal.{DOMAIN}"
DC2 = f"*.dc2.internal.{DOMAIN}"
GOOD = Endpoint("10.0.0.7", 21000, True, 1, "n1", "web-1")
BAD = Endpoint("2001:db8::8", 21000, False, 1, "n2", "web-2", "check x is critical")
TABLE = RouteTable.of(
    "dc1",
    DOMAIN,
    "default",
    iter(
        [
            Route(WEB, RouteKind.SERVICE, "Web", (GOOD, BAD)),
            Route(CANARY, RouteKind.SUBSET, "canary.Web", (GOOD,)),
            Route(API, RouteKind.SERVICE, "api", (BAD,)),
            Route(DC2.removeprefix("*."), RouteKind.DATACENTER, "dc2", (GOOD,), suffix=True),
        ]
    ),
)
STATS = GatewayStats(
    "1.2.3",
    connections={Destination(RouteKind.SERVICE, "Web"): 100, Destination(RouteKind.DATACENTER, "dc2"): 10},
    connections_active=3,
    bytes_received=1_000_000,
    bytes_sent=2_000_000,
    refused={Reason.UNKNOWN_SNI: 40},
    watch_age_seconds={"services": 12.0, "resolvers": 100.0},
    endpoints=endpoint_counts(TABLE),
    ca_root_expiry=1_900_000_000.0,
    destination_bytes={Destination(RouteKind.SERVICE, "Web"): (1000, 2000)},
)
STREAMS = [
    OpenStream(1, "192.0.2.1:1", WEB, WEB, "10.0.0.7:21000", "relaying", 9.0, 1000, 2000, 0),
    OpenStream(1, "192.0.2.2:1", WEB, DC2, "10.0.0.7:21000", "relaying", 9.0, 500, 0, 1),
    OpenStream(3, "192.0.2.3:1", None, None, None, "hello", 0.1, 10, 0, 1),
]
LATER_STREAMS = [
    replace(STREAMS[0], bytes_received=5000, bytes_sent=10_000),
    STREAMS[1],
    OpenStream(4, "192.0.2.1:2", WEB, WEB, "10.0.0.7:21000", "relaying", 1.0, 200, 0, 0),
]
LATER = replace(
    STATS,
    connections={Destination(RouteKind.SERVICE, "Web"): 120, Destination(RouteKind.DATACENTER, "dc2"): 10},
    bytes_received=1_400_000,
    refused={Reason.UNKNOWN_SNI: 50, Reason.NO_SNI: 1},
    destination_bytes={Destination(RouteKind.SERVICE, "Web"): (5200, 10_000)},
)


@pytest.fixture(autouse=True)
def clean_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("MESHGATE_", "CONSUL_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def busy_gateway() -> FakeGateway:
    return FakeGateway(routes=TABLE, stats=STATS, streams=STREAMS)


def looked(gateway: FakeGateway, at: float, address: str) -> Look:
    host, _, port = address.partition(":")
    return Look.take(HostPort(host, int(port)), at, 1_800_000_000.0)


@pytest.fixture(scope="module")
def looks() -> tuple[Look, Look]:
    """Two seconds apart."""
    gateway = busy_gateway()
    with gateway.serving() as address:
        before = looked(gateway, 10.0, address)
        gateway.stats, gateway.streams = LATER, LATER_STREAMS
        return before, looked(gateway, 12.0, address)


def test_rates_are_what_happened_between_two_looks(looks: tuple[Look, Look]) -> None:
    seen = frame(*looks)
    assert (seen.version, seen.state, seen.datacenter, seen.partition) == ("0.1.0", "LIVE", "dc1", "default")
    assert (seen.open, seen.new, seen.refused_rate) == (3, 10.0, 5.5)
    assert (seen.received, seen.sent) == (200_000.0, 0.0)
    assert seen.refused == [RefusedRow("unknown_sni", 50, 5.0), RefusedRow("no_sni", 1, 0.5)]
    assert seen.watches == {"resolvers": 100.0, "services": 12.0}
    assert seen.alerts == []


def test_destinations_are_the_routes_the_busiest_first(looks: tuple[Look, Look]) -> None:
    assert frame(*looks).destinations == [
        DestinationRow("Web", "service", 2, 10.0, 2100.0, 4000.0, 120, 1, 2),
        DestinationRow("dc2", "datacenter", 1, 0.0, 0.0, 0.0, 10, 1, 1),
        DestinationRow("api", "service", 0, 0.0, 0.0, 0.0, 0, 0, 1),
        DestinationRow("canary.web", "subset", 0, 0.0, 0.0, 0.0, 0, 1, 1),
    ]


def test_unhealthy_endpoints_are_named(looks: tuple[Look, Look]) -> None:
    assert frame(*looks).unhealthy == [
        ("api", "[2001:db8::8]:21000", "n2"),
        ("web", "[2001:db8::8]:21000", "n2"),
    ]


def test_a_first_look_has_numbers_and_no_rates(looks: tuple[Look, Look]) -> None:
    seen = frame(None, looks[0])
    assert (seen.open, seen.new, seen.received) == (3, None, None)
    web = next(row for row in seen.destinations if row.name == "Web")
    assert (web.open, web.new, web.received, web.total) == (1, None, None, 100)


def test_a_restart_between_two_looks_makes_no_negative_rates() -> None:
    gateway = busy_gateway()
    with gateway.serving() as address:
        before = looked(gateway, 10.0, address)
        gateway.stats, gateway.process_started = GatewayStats("1.2.3"), 2e9
        after = looked(gateway, 12.0, address)
    seen = frame(before, after)
    assert (seen.new, seen.received, seen.destinations[0].new) == (None, None, None)


def test_a_very_busy_gateway_is_not_asked_for_its_streams() -> None:
    gateway = busy_gateway()
    gateway.stats = replace(STATS, connections_active=20_001)
    with gateway.serving() as address:
        look = looked(gateway, 10.0, address)
    assert look.streams is None
    assert {(row.open, row.received) for row in frame(look, replace(look, at=12.0)).destinations} == {(None, 0.0)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"catalog_stale": True}, "the catalog is stale"),
        ({"ca_root_expiry": 1_800_000_000.0 + 86400 * 3}, "the CA root expires in 3.0 days"),
        ({"ca_root_expiry": 1_800_000_000.0 - 1}, "the CA root has expired"),
    ],
)
def test_what_needs_somebody_is_an_alert(change: Any, words: str) -> None:
    gateway = busy_gateway()
    gateway.stats = replace(STATS, **change)
    with gateway.serving() as address:
        alerts = frame(None, looked(gateway, 10.0, address)).alerts
    assert [alert[: len(words)] for alert in alerts] == [words]


def test_problems_are_alerts_the_first_of_many() -> None:
    gateway = replace(busy_gateway(), wrong=[f"problem {number}" for number in range(5)])
    with gateway.serving() as address:
        alerts = frame(None, looked(gateway, 10.0, address)).alerts
    assert alerts == ["problem 0", "problem 1", "problem 2", "and 2 more problems, see /readyz"]


def test_long_lists_go_on_in_a_second_line(looks: tuple[Look, Look]) -> None:
    seen = replace(frame(*looks), watches={f"watch-{number}": 100.0 * number for number in range(9)})
    lines = drawn(seen)
    start = next(number for number, line in enumerate(lines) if line.startswith("last news"))
    assert lines[start:-1] == [
        "last news from Consul: watch-0 0s, watch-1 1m40s, watch-2 3m20s, watch-3 5m00s,",
        "  watch-4 6m40s, watch-5 8m20s, watch-6 10m00s, watch-7 11m40s, watch-8 13m20s",
    ]


@pytest.mark.parametrize(("ready", "draining", "word"), [(False, False, "not ready"), (False, True, "drains")])
def test_a_gateway_that_serves_nobody_is_an_alert(ready: bool, draining: bool, word: str) -> None:
    gateway = replace(busy_gateway(), ready=ready, draining=draining)
    with gateway.serving() as address:
        (alert,) = frame(None, looked(gateway, 10.0, address)).alerts
    assert word in alert


def drawn(seen: Frame | None, trouble: str = "", width: int = 80, height: int = 24) -> list[str]:
    with open(os.devnull, "w") as nowhere:
        console = Console(force_terminal=True, width=width, height=height, record=True, file=nowhere)
        console.print(screen(seen, trouble, width, height))
        return [line.rstrip() for line in console.export_text().splitlines()]


def test_the_screen_is_readable_at_80_columns(looks: tuple[Look, Look]) -> None:
    lines = drawn(replace(frame(*looks), uptime=3700.0))
    assert max(map(len, lines)) <= 80
    assert lines == [
        "meshgate 0.1.0  dc1/default  LIVE  up 1h01m",
        "3 open  10.0 new/s  5.5 refused/s  in 200 kB/s  out 0 B/s",
        "",
        "DESTINATION KIND       OPEN NEW/S   IN/S  OUT/S HEALTHY",
        "Web         service       2  10.0 2.1 kB 4.0 kB     1/2",
        "dc2         datacenter    1   0.0    0 B    0 B     1/1",
        "api         service       0   0.0    0 B    0 B     0/1",
        "canary.web  subset        0   0.0    0 B    0 B     1/1",
        "",
        "refused: unknown_sni 50 (5.0/s), no_sni 1 (0.5/s)",
        "unhealthy: api [2001:db8::8]:21000 on n2, web [2001:db8::8]:21000 on n2",
        "last news from Consul: resolvers 1m40s, services 12s",
        "q quits",
    ]


def test_a_narrow_terminal_does_without_the_columns_that_matter_less(looks: tuple[Look, Look]) -> None:
    heads = [drawn(frame(*looks), width=width)[3].split() for width in (66, 50, 40)]
    assert heads == [
        ["DESTINATION", "KIND", "OPEN", "NEW/S", "IN/S", "OUT/S", "HEALTHY"],
        ["DESTINATION", "KIND", "OPEN", "NEW/S", "HEALTHY"],
        ["DESTINATION", "OPEN", "NEW/S", "HEALTHY"],
    ]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 12), (40, 10), (200, 50)])
def test_a_screen_of_many_long_things_fits_the_terminal(looks: tuple[Look, Look], width: int, height: int) -> None:
    seen = frame(*looks)
    row = replace(seen.destinations[0], name="a-service-with-an-endless-name-" * 8)
    full = replace(
        seen,
        destinations=[row] * 500,
        refused=[RefusedRow(reason.value, 10**9, 9e9) for reason in Reason],
        unhealthy=[("x" * 60, "10.0.0.1:1", "n" * 60)] * 500,
        alerts=["an alert of many words " * 8],
    )
    lines = drawn(full, "trouble " * 30, width, height)
    assert max(map(len, lines)) <= width
    assert len(lines) <= height
    assert lines[-1] == "q quits"
    assert any(re.fullmatch(r"and 4\d\d more", line) for line in lines)


def test_no_name_from_consul_moves_the_cursor(looks: tuple[Look, Look]) -> None:
    seen = frame(*looks)
    evil = "\x1b[2J[bold]\u202e"
    hostile = replace(
        seen, datacenter=evil, destinations=[replace(seen.destinations[0], name=evil)], unhealthy=[(evil, "a:1", evil)]
    )
    text = "\n".join(drawn(hostile, evil, width=150))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.count("\\x1b[2J[bold]\\u202e") == 5


def test_what_is_wrong_is_shown_while_there_is_no_frame() -> None:
    assert drawn(None, "no gateway answers at x") == ["no gateway answers at x"]
    assert drawn(None) == ["asking the gateway"]


def test_numbers_are_short() -> None:
    assert [rate(each) for each in (None, 0.0, 1.25, 999.9, 12_345.0)] == ["-", "0.0", "1.2", "999.9", "12k"]
    assert [size(each) for each in (None, 0, 999, 999.6, 1500, 99_940, 99_960, 999_600, 2.5e9, 1e20)] == [
        "-",
        "0 B",
        "999 B",
        "1.0 kB",
        "1.5 kB",
        "99.9 kB",
        "100 kB",
        "1.0 MB",
        "2.5 GB",
        "100000 PB",
    ]
    assert [duration(each) for each in (0.9, 61, 3600, 90_000)] == ["0s", "1m01s", "1h00m", "1d01h"]


def test_once_prints_a_picture_with_rates(capsys: pytest.CaptureFixture[str]) -> None:
    gateway = busy_gateway()
    with gateway.serving() as address:
        assert execute(["top", "--once", "--interval=0.2", f"--admin-bind={address}"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("meshgate 0.1.0  dc1/default  LIVE  up ")
    assert lines[1] == "3 open  0.0 new/s  0.0 refused/s  in 0 B/s  out 0 B/s"
    assert lines[3].split() == ["DESTINATION", "KIND", "OPEN", "NEW/S", "IN/S", "OUT/S", "HEALTHY"]
    assert lines[4].split() == ["Web", "service", "1", "0.0", "0", "B", "0", "B", "1/2"]
    assert "unhealthy: api [2001:db8::8]:21000 on n2, web [2001:db8::8]:21000 on n2" in lines
    assert max(map(len, lines)) <= 80
    assert err == ""


def test_where_the_output_is_no_terminal_one_picture_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with busy_gateway().serving() as address:
        assert execute(["top", "--interval=0.2", f"--admin-bind={address}"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_json_is_the_whole_picture(capsys: pytest.CaptureFixture[str]) -> None:
    with busy_gateway().serving() as address:
        assert execute(["top", "--json", "--interval=0.2", f"--admin-bind={address}"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["destinations"][0]["name"] == "Web"
    assert answer["unhealthy"][0] == ["api", "[2001:db8::8]:21000", "n2"]
    assert (answer["open"], answer["new"], answer["state"]) == (3, 0.0, "LIVE")


def test_without_a_gateway_it_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for options in ([], ["--json"], ["--once"]):
        assert execute(["top", *options, f"--admin-bind=unix://{tmp_path}/none"]) == 1
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)


@dataclass
class Terminal:
    """A terminal of 80 by 24 with `meshgate top` in it."""

    process: "subprocess.Popen[bytes]"
    fd: int
    seen: str = ""

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def until(self, pattern: str, seconds: float = 10.0) -> None:
        """Wait until it shows `pattern` anew."""
        deadline, self.seen = time.monotonic() + seconds, ""
        while not re.search(pattern, self.seen):
            assert time.monotonic() < deadline, self.seen
            if select.select([self.fd], [], [], 0.1)[0]:
                self.seen += os.read(self.fd, 1 << 16).decode()

    def end(self) -> int:
        """Its exit code; what it still prints is read."""
        deadline = time.monotonic() + 10
        while self.process.poll() is None:
            assert time.monotonic() < deadline
            if select.select([self.fd], [], [], 0.05)[0]:
                try:
                    self.seen += os.read(self.fd, 1 << 16).decode()
                except OSError:
                    continue  # the other end is closed
        return self.process.returncode


# It has to be the terminal of its session for Ctrl-C to be a signal.
_WITH_A_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@contextmanager
def in_terminal(*arguments: str) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(theirs)
    process = subprocess.Popen(
        [sys.executable, "-c", _WITH_A_TERMINAL, "-m", "meshgate", "top", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color"},
        start_new_session=True,
    )
    try:
        yield Terminal(process, ours)
        # Echo and line editing are as they were.
        assert termios.tcgetattr(theirs) == before
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("how", ["q", "Q", "\x03"], ids=["q", "Q", "ctrl-c"])
def test_the_live_view_moves_and_ends_by_key_or_interrupt(how: str) -> None:
    gateway = busy_gateway()
    with gateway.serving() as address, in_terminal("--interval=0.2", f"--admin-bind={address}") as terminal:
        terminal.until(r"3 open")
        gateway.stats = replace(LATER, connections_active=77)
        terminal.until(r"77 open")
        terminal.type("x")
        terminal.until(r"77 open")
        terminal.type(how)
        assert terminal.end() == 0
    assert "\x1b[?1049l" in terminal.seen  # the screen that was there before is back
    assert "\x1b[?25h" in terminal.seen  # and so is the cursor


def test_the_live_view_outlives_the_gateway(tmp_path: Path) -> None:
    bind = tmp_path / "admin.sock"
    with in_terminal_after(bind) as terminal:
        terminal.until(r"no gateway answers at unix://")
        with busy_gateway().serving(bind):
            terminal.until(r"LIVE[^!]*q quits")
            terminal.type("q")
            assert terminal.end() == 0


@contextmanager
def in_terminal_after(bind: Path) -> Iterator[Terminal]:
    """The live view of a gateway that has gone away."""
    gateway = busy_gateway()
    with gateway.serving(bind):
        context = in_terminal("--interval=0.2", f"--admin-bind=unix://{bind}")
        terminal = context.__enter__()
        terminal.until(r"3 open")
    try:
        yield terminal
    finally:
        context.__exit__(None, None, None)
