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
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec.structs import replace
from rich.console import Console

from meshgate.adapters.consul import WatchKey, WatchState
from meshgate.adapters.relay import Counters, OpenStream
from meshgate.app.admin import answers
from meshgate.app.admin.answers import Consul, DashboardState, Destination, DestinationFacts, Destinations, Met, Stream
from meshgate.app.cli.main import execute
from meshgate.app.cli.output import duration, rate, size
from meshgate.app.cli.top_view import PAGES, Seen, View, screen
from meshgate.core.reasons import Reason, StreamEnd
from meshgate.core.routes import Endpoint, Route, RouteKind

from .gateway_double import TRUST_DOMAIN, GatewayDouble

WEB = Route(
    f"web.default.dc1.internal.{TRUST_DOMAIN}",
    RouteKind.SERVICE,
    "Web",
    (
        Endpoint("10.0.0.7", 21000, True, 1, "n1", "web-1"),
        BAD := Endpoint("2001:db8::8", 21000, False, 1, "n2", "web-2", "check x is critical"),
    ),
)
ROUTES = (
    WEB,
    Route(f"api.default.dc1.internal.{TRUST_DOMAIN}", RouteKind.SERVICE, "api", (BAD,)),
    Route(f"dc2.internal.{TRUST_DOMAIN}", RouteKind.DATACENTER, "dc2", WEB.endpoints[:1], suffix=True),
)
STREAMS = [
    OpenStream(1, "192.0.2.1:1", WEB.sni, WEB.sni, "10.0.0.7:21000", "relaying", 9.0, 1000, 2000, 0),
    OpenStream(3, "192.0.2.3:1", None, None, None, "hello", 0.1, 10, 0, 1),
]
NUMBERS = Counters(
    active=3,
    bytes_received=1_000_000,
    connections={(RouteKind.SERVICE, "Web"): 100, (RouteKind.DATACENTER, "dc2"): 10},
    refused={Reason.UNKNOWN_SNI: 40},
    open={(RouteKind.SERVICE, "Web"): 1},
)


def down(address: str, port: int, node: str) -> Met:
    return Met(address, port, healthy=False, cause=None, weight=1, node=node, instance="")


def row(
    name: str,
    kind: str,
    health: tuple[int, int],
    open_: int,
    rates: tuple[float | None, float | None, float | None],
    *listed: Met,
    answered: int = 0,
    unanswered: int = 0,
) -> Destination:
    facts = DestinationFacts(
        streams=0,
        open=0,
        refused=0,
        connect_failures=0,
        answered=answered,
        unanswered=unanswered,
        first_byte_p50=0.005 if answered else None,
        first_byte_p99=None,
    )
    return Destination("", RouteKind(kind), name, *health, bool(health[0]), open_, *rates, facts, [], [*listed])


def consul(*watches: tuple[str, float, str | None], root: float | None = None) -> Consul:
    kinds = [answers.WatchesOfKind(kind, 1, int(bool(error)), age, error) for kind, age, error in watches]
    return Consul(known=True, watches=kinds, errors={}, ca_root_expiry=root, ca_intermediate_expiry=None)


NOBODY = answers.Callers(0, [])
NOTHING_ENDED = answers.EndedStreams("", 1, {}, [], [])
STATE = DashboardState(
    answers.Identity(
        service="gw",
        id="gw",
        datacenter="dc1",
        partition="default",
        trust_domain="td",
        version="0.1.0",
        now=1_800_000_000.0,
        started=1e9,
        uptime_seconds=3700.0,
        state="ready",
        listening=True,
        catalog_known=True,
        stale=False,
        catalog_seconds=0.0,
        from_disk_seconds=None,
        limit=100,
        listeners=[],
        workers=[],
    ),
    [],
    answers.Totals(3, 0, 0, 0, 0, 10.0, 5.5, 200_000.0, 0.0, []),
    [],
    NOBODY,
    answers.Refusals(
        [answers.Refused(Reason.UNKNOWN_SNI, 50, 5.0), answers.Refused(Reason.NO_SNI, 1, 0.5)],
        [],
    ),
    NOTHING_ENDED,
    consul(("resolvers", 100.0, None), ("services", 12.0, None), root=1_900_000_000.0),
    answers.Places([], 0),
    Destinations(
        4,
        4,
        [
            row(
                "Web",
                "service",
                (1, 2),
                2,
                (10.0, 2100.0, 4000.0),
                down("2001:db8::8", 21000, "n2"),
                answered=10,
                unanswered=1,
            ),
            row("dc2", "datacenter", (1, 1), 1, (0.0, 0.0, 0.0)),
            row("api", "service", (0, 1), 0, (0.0, 0.0, 0.0), down("2001:db8::8", 21000, "n2")),
            row("canary.Web", "subset", (1, 1), 0, (None, None, None)),
        ],
    ),
)


pytestmark = pytest.mark.usefixtures("clean_place")


def busy_gateway() -> GatewayDouble:
    now = 0.0
    states = [WatchState(WatchKey("services", "services"), now)]
    return GatewayDouble(*ROUTES, numbers=NUMBERS.copy(), streams=STREAMS, states=states)


def changed(part: str, **values: object) -> DashboardState:
    return replace(STATE, **{part: replace(getattr(STATE, part), **values)})


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (changed("gateway", stale=True), "the catalog is stale"),
        (changed("gateway", state="starting"), "not ready"),
        (changed("gateway", state="draining"), "the gateway drains"),
        (changed("consul", ca_root_expiry=1_800_000_000.0 + 86400 * 3), "the CA root expires in 3.0 days"),
        (changed("consul", ca_root_expiry=1_800_000_000.0 - 1), "the CA root has expired"),
        (changed("consul", ca_intermediate_expiry=1_800_000_000.0 - 1), "the CA intermediate has expired"),
    ],
)
def test_what_needs_somebody_is_an_alert(state: DashboardState, words: str) -> None:
    assert [line[: len(words) + 2] for line in drawn(state) if line.startswith("! ")] == [f"! {words}"]


def test_problems_are_alerts_the_first_of_many() -> None:
    state = replace(STATE, problems=[f"problem {number}" for number in range(5)])
    assert [line for line in drawn(state) if line.startswith("! ")] == [
        "! problem 0",
        "! problem 1",
        "! problem 2",
        "! there are more problems: key 5, or /readyz",
    ]


def test_long_lists_go_on_in_a_second_line() -> None:
    watches = [(f"watch-{number}", 100.0 * number, None) for number in range(9)]
    lines = drawn(replace(STATE, consul=consul(*watches)))
    start = next(number for number, line in enumerate(lines) if line.startswith("last news"))
    assert lines[start:-2] == [
        "last news from Consul: watch-0 0s, watch-1 1m40s, watch-2 3m20s, watch-3 5m00s,",
        "  watch-4 6m40s, watch-5 8m20s, watch-6 10m00s, watch-7 11m40s, watch-8 13m20s",
    ]


def drawn(
    state: DashboardState,
    trouble: str = "",
    width: int = 80,
    height: int = 24,
    view: View | None = None,
    streams: list[Stream] | None = None,
) -> list[str]:
    with open(os.devnull, "w") as nowhere:
        console = Console(force_terminal=True, width=width, height=height, record=True, file=nowhere)
        console.print(screen(Seen(state, streams), view or View(), trouble, width, height))
        return [line.rstrip() for line in console.export_text().splitlines()]


PAGES_LINE = "1 destinations  2 endpoints  3 callers  4 workers  5 problems"


def test_the_screen_is_readable_at_80_columns() -> None:
    lines = drawn(STATE)
    assert max(map(len, lines)) <= 80
    assert lines == [
        "meshgate 0.1.0  dc1/default  ready  up 1h01m",
        "3 open  10.0 new/s  5.5 refused/s  in 200 kB/s  out 0 B/s",
        "",
        "DESTINATION KIND       OPEN NEW/S   IN/S  OUT/S HEALTHY 1ST BYTE",
        "Web         service       2  10.0 2.1 kB 4.0 kB     1/2    <5 ms",
        "dc2         datacenter    1   0.0    0 B    0 B     1/1        -",
        "api         service       0   0.0    0 B    0 B     0/1        -",
        "canary.Web  subset        0     -      -      -     1/1        -",
        "",
        "refused: unknown_sni 50 (5.0/s), no_sni 1 (0.5/s)",
        "unhealthy: Web [2001:db8::8]:21000 on n2, api [2001:db8::8]:21000 on n2",
        "last news from Consul: resolvers 1m40s, services 12s",
        PAGES_LINE,
        "q quits  arrows scroll  s sorts: busy",
    ]


BIG = replace(
    changed("gateway", workers=[answers.Worker(4711, 3), answers.Worker(None, 0)]),
    problems=["the token lacks a rule"],
    refused=answers.Refusals(
        [],
        [
            answers.EndedStream(
                "2026-01-02T03:04:05.000Z",
                StreamEnd.REFUSED,
                Reason.UNKNOWN_SNI,
                "no route",
                "192.0.2.9:1",
                None,
                "no.such",
                *(None,) * 6,
            )
        ],
    ),
    consul=consul(("services", 61.0, "connection refused")),
    destinations=Destinations(
        300,
        300,
        [
            row(f"s{number}", "service", (1, 2), number, (1.0, float(number), 0.0), down("10.0.0.1", number, "n1"))
            for number in range(100)
        ],
    ),
)
STREAMS_SEEN = [
    Stream(1, "192.0.2.1:1", "web on n1", WEB.sni, WEB.sni, "10.0.0.7:21000", "relaying", 9.0, 1000, 2000, 0),
    Stream(2, "192.0.2.1:2", None, WEB.sni, WEB.sni, "10.0.0.7:21000", "relaying", 90.0, 1000, 0, 0),
    Stream(3, "[2001:db8::9]:1", None, None, None, None, "hello", 1.0, 5000, 0, 0),
]


def test_keys_scroll_as_far_as_there_are_rows_and_sort() -> None:
    view = View()

    def rows() -> list[str]:
        return [line.split()[0] for line in drawn(BIG, view=view) if re.match(r"s\d", line)]

    first = rows()
    assert first[:2] == ["s0", "s1"]
    room = len(first)
    for key, top in (("DOWN", 1), ("UP", 0), ("UP", 0), ("PAGE DOWN", room), ("END", 100 - room), ("DOWN", 100 - room)):
        view.press(key)
        assert rows()[0] == f"s{top}", key
    view.press("HOME")
    assert rows() == first
    view.press("s")
    assert (view.order, rows()[:2]) == ("open", ["s99", "s98"])
    view.press("x")
    assert rows()[:2] == ["s99", "s98"]


@pytest.mark.parametrize(
    ("key", "head", "first", "order"),
    [
        ("2", "ENDPOINT DESTINATION NODE STATE OPEN FAILED 1ST BYTE", "10.0.0.1:0 s0 n1 unhealthy 0 0 -", "health"),
        ("3", "CLIENT CALLER OPEN IN OUT OLDEST", "192.0.2.1 web on n1 2 2.0 kB 2.0 kB 1m30s", "open"),
        ("4", "WORKER PID OPEN", "0 4711 3", ""),
        ("5", "SINCE WHAT DETAIL", "now problem the token lacks a rule", ""),
    ],
)
def test_each_page_has_its_rows(key: str, head: str, first: str, order: str) -> None:
    view = View()
    view.press(key)
    lines = [" ".join(line.split()) for line in drawn(BIG, view=view, streams=STREAMS_SEEN)]
    at = lines.index(head)
    assert (lines[at + 1], view.order) == (first, order)
    assert len(lines) <= 24


def test_problems_are_all_on_their_page() -> None:
    view = View("problems")
    few = replace(BIG, destinations=STATE.destinations)
    lines = [" ".join(line.split()) for line in drawn(few, view=view, width=120)]
    assert "1m01s watch services connection refused" in lines
    assert "now Web unhealthy [2001:db8::8]:21000 on n2:" in lines
    assert any(line.endswith("unknown_sni no.such from 192.0.2.9:1: no route") for line in lines)


def test_streams_that_were_cut_are_problems_the_newest_first() -> None:
    at, end, client, endpoint = "2026-01-02T03:04:05.000Z", StreamEnd.DRAIN, "10.0.0.1:4000", "10.0.9.1:21000"
    ended = answers.EndedStream(at, end, None, "", client, None, "web.td", "web.td", endpoint, 9, 1, 2, 0)
    lost = answers.WorkerLost("2026-01-02T03:04:06.000Z", 1, "killed", 3, 1)
    told = replace(STATE, ended=replace(NOTHING_ENDED, streams=[ended], workers_lost=[lost]))
    lines = [" ".join(line.split()[1:]) for line in drawn(told, view=View("problems"), width=120)]
    first = lines.index("worker_lost relay process 1 ended (killed), and 3 streams with it")
    assert lines[first + 1] == "drain web.td from 10.0.0.1:4000 to 10.0.9.1:21000"


def upgraded(result: str, reason: str = "") -> DashboardState:
    upgrade = answers.Upgrade(
        number=2,
        started="2026-01-02T03:04:05.000Z",
        python="/python",
        version_before="0.1.0",
        version_after="0.2.0",
        result=result,  # type: ignore[arg-type]
        reason=reason,
        seconds=1.5,
        streams=12,
        handed_over=10,
        kept=2,
        lost=0,
    )
    return changed("gateway", last_upgrade=upgrade)


def test_the_last_upgrade_is_told_with_what_came_of_it() -> None:
    done = next(line for line in drawn(upgraded("done"), width=120) if line.startswith("last upgrade"))
    assert done.endswith("from 0.1.0 to 0.2.0, done, 10 of 12 streams handed over, 2 kept, 0 lost")
    assert not any("upgrade" in line for line in drawn(upgraded("done"), view=View("problems"), width=120))
    refused = upgraded("refused", "it does not start")
    assert any("refused: it does not start" in line for line in drawn(refused))
    told = [" ".join(line.split()) for line in drawn(refused, view=View("problems"), width=120)]
    assert any("upgrade refused" in line and line.endswith("to 0.2.0, refused: it does not start") for line in told)


def test_wide_screen_has_the_share_of_streams_without_a_first_byte() -> None:
    lines = [line.split() for line in drawn(STATE, width=100)]
    assert lines[3][-4:] == ["HEALTHY", "1ST", "BYTE", "UNANSWERED"]
    assert lines[4][-4:] == ["1/2", "<5", "ms", "9.09%"]


def test_endpoints_that_are_ejected_are_told_apart_with_what_was_met_of_them() -> None:
    out = answers.Ejection(3, 1_800_000_000.0 - 90, "timed out")
    facts = answers.EndpointFacts(
        streams=9, unanswered=1, failures=3, first_byte_seconds=0.01234, ejected=out, last_success=1_800_000_000.0 - 95
    )
    met = Met("10.0.0.8", 1, healthy=True, cause=None, weight=1, node="n8", instance="", met=facts)
    well = replace(facts, failures=0, first_byte_seconds=2.5, ejected=None, unanswered=0)
    slow = replace(met, address="10.0.0.9", met=well)
    found = row("web", "service", (2, 2), 0, (None, None, None), slow, met)
    state, view = replace(STATE, destinations=Destinations(1, 1, [found])), View("endpoints")
    lines = [" ".join(line.split()) for line in drawn(state, view=view, width=120, streams=[])]
    at = lines.index("ENDPOINT DESTINATION NODE STATE OPEN STREAMS FAILED 1ST BYTE UNANSWERED LAST OK")
    assert lines[at + 1 : at + 3] == [
        "10.0.0.8:1 web n8 ejected 1m30s: timed out 0 10 3 12.3 ms 1 1m35s ago",
        "10.0.0.9:1 web n8 healthy 0 9 0 2.5 s 0 1m35s ago",
    ]
    for _ in range(3):
        view.press("s")
    lines = drawn(state, view=view, streams=[])
    assert view.order == "slow"
    assert [line.split()[0] for line in lines if line.startswith("10.")] == ["10.0.0.9:1", "10.0.0.8:1"]


def test_callers_can_be_sorted_by_what_they_send() -> None:
    view = View("callers")
    view.press("s")
    lines = drawn(BIG, view=view, streams=STREAMS_SEEN)
    assert view.order == "in"
    assert [line.split()[0] for line in lines if re.match(r"(192|2001)", line)] == ["2001:db8::9", "192.0.2.1"]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 10), (200, 50)])
def test_each_page_fits_and_says_where_there_is_nothing(page: str, width: int, height: int) -> None:
    empty = replace(STATE, destinations=Destinations(0, 0, []))
    for state, streams in ((BIG, STREAMS_SEEN * 50), (empty, []), (changed("totals", open=10**6), None)):
        lines = drawn(state, "", width, height, View(page), streams)
        assert max(map(len, lines)) <= width
        assert len(lines) <= height
        assert lines[-1].startswith("q quits")


def test_tab_goes_round_the_pages() -> None:
    view = View()
    seen = []
    for _ in PAGES:
        seen.append(view.page)
        view.press("\t")
    assert (tuple(seen), view.page) == (PAGES, PAGES[0])


def test_a_narrow_terminal_does_without_the_columns_that_matter_less() -> None:
    heads = [drawn(STATE, width=width)[3].split() for width in (66, 50, 40)]
    assert heads == [
        ["DESTINATION", "KIND", "OPEN", "NEW/S", "IN/S", "OUT/S", "HEALTHY"],
        ["DESTINATION", "KIND", "OPEN", "NEW/S", "HEALTHY"],
        ["DESTINATION", "OPEN", "NEW/S", "HEALTHY"],
    ]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 12), (40, 10), (200, 50)])
def test_a_screen_of_many_long_things_fits_the_terminal(width: int, height: int) -> None:
    wide = replace(
        STATE.destinations.rows[0],
        name="a-service-with-an-endless-name-" * 8,
        listed=[down("10.0.0.1", 1, "n" * 60)] * 20,
    )
    full = replace(
        STATE,
        problems=["an alert of many words " * 8] * 3,
        refused=answers.Refusals([answers.Refused(reason, 10**9, 9e9) for reason in Reason], []),
        destinations=Destinations(500, 500, [wide] * 200),
    )
    lines = drawn(full, "trouble " * 30, width, height)
    assert max(map(len, lines)) <= width
    assert len(lines) <= height
    assert lines[-1].startswith("q quits")
    assert any(re.fullmatch(r"rows 1 to \d+ of 200", line) for line in lines)


def test_no_name_from_consul_moves_the_cursor() -> None:
    evil = "\x1b[2J[bold]\u202e"
    wide = replace(STATE.destinations.rows[0], name=evil, listed=[down("a", 1, evil)])
    hostile = replace(changed("gateway", datacenter=evil), destinations=Destinations(1, 1, [wide]))
    text = "\n".join(drawn(hostile, evil, width=150))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.count("\\x1b[2J[bold]\\u202e") == 5


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
        assert execute(["top", "--once", "--interval=0.5", f"--admin-bind={address}"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("meshgate 0.1.0  dc1/default  ready  up ")
    assert lines[1] == "3 open  0.0 new/s  0.0 refused/s  in 0 B/s  out 0 B/s"
    assert lines[3].split() == ["DESTINATION", "KIND", "OPEN", "NEW/S", "IN/S", "OUT/S", "HEALTHY"]
    assert lines[4].split() == ["Web", "service", "1", "0.0", "0", "B", "0", "B", "1/2"]
    assert "unhealthy: Web [2001:db8::8]:21000 on n2, api [2001:db8::8]:21000 on n2" in lines
    assert max(map(len, lines)) <= 80
    assert err == ""


def test_once_prints_the_page_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with busy_gateway().serving() as address:
        for page, head in (
            ("endpoints", "ENDPOINT"),
            ("callers", "CLIENT"),
            ("workers", "WORKER"),
            ("problems", "SINCE"),
        ):
            assert execute(["top", "--once", "--page", page, "--interval=0.5", f"--admin-bind={address}"]) == 0
            lines = capsys.readouterr().out.splitlines()
            assert lines[3].split()[0] == head
            assert not any(line.startswith("last news") for line in lines)
        assert execute(["top", "--once", "--page=endpoints", "--interval=0.5", f"--admin-bind={address}"]) == 0
    # The bad ones come first.
    assert capsys.readouterr().out.splitlines()[4].split()[:4] == ["[2001:db8::8]:21000", "Web", "n2", "check"]


def test_where_the_output_is_no_terminal_one_picture_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with busy_gateway().serving() as address:
        assert execute(["top", "--interval=0.5", f"--admin-bind={address}"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_json_is_the_whole_picture(capsys: pytest.CaptureFixture[str]) -> None:
    with busy_gateway().serving() as address:
        assert execute(["top", "--json", "--interval=0.5", f"--admin-bind={address}"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["destinations"]["rows"][0]["name"] == "Web"
    assert answer["totals"]["open"] == 3
    assert (answer["totals"]["streams_rate"], answer["gateway"]["state"]) == (0.0, "ready")


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
        deadline, code = time.monotonic() + 10, None
        while code is None:
            assert time.monotonic() < deadline
            code = self.process.poll()
            # The other end stays open here, so what it printed last is there once it has ended.
            while select.select([self.fd], [], [], 0 if code is not None else 0.05)[0]:
                self.seen += os.read(self.fd, 1 << 16).decode()
        return code


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
    with gateway.serving() as address, in_terminal("--interval=0.5", f"--admin-bind={address}") as terminal:
        terminal.until(r"3 open")
        gateway.numbers.active = 77
        terminal.until(r"77 open")
        terminal.type("3")
        terminal.until(r"192\.0\.2\.1 [^\n]*2\.0 kB")
        terminal.type("\x1b[B\x1b[5~4")
        terminal.until(r"4711")
        terminal.type(how)
        assert terminal.end() == 0
    assert "\x1b[?1049l" in terminal.seen  # the screen that was there before is back
    assert "\x1b[?25h" in terminal.seen  # and so is the cursor


def test_the_live_view_outlives_the_gateway(tmp_path: Path) -> None:
    bind = tmp_path / "admin.sock"
    with in_terminal_after(bind) as terminal:
        terminal.until(r"no gateway answers at unix://")
        with busy_gateway().serving(bind):
            terminal.until(r"ready[^!]*q quits")
            terminal.type("q")
            assert terminal.end() == 0


@contextmanager
def in_terminal_after(bind: Path) -> Iterator[Terminal]:
    """The live view of a gateway that has gone away."""
    gateway = busy_gateway()
    with gateway.serving(bind):
        context = in_terminal("--interval=0.5", f"--admin-bind=unix://{bind}")
        terminal = context.__enter__()
        terminal.until(r"3 open")
    try:
        yield terminal
    finally:
        context.__exit__(None, None, None)
