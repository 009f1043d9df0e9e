import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import pytest

from meshgate.adapters.admin.http_server import json_response
from meshgate.adapters.relay import OpenStream
from meshgate.adapters.relay.pool import OpenStreams, WorkerLoss
from meshgate.adapters.relay.worker_process import WorkerEnd
from meshgate.app.cli import output
from meshgate.app.cli.gateway_commands import RatedStream
from meshgate.app.cli.main import execute
from meshgate.core.reasons import Reason, StreamEnd

from .gateway_double import TRUST_DOMAIN, GatewayDouble, refused
from .stream_records import RECORD
from .test_admin_commands import serving

WEB = f"web.default.dc1.internal.{TRUST_DOMAIN}"
ADMIN = f"web-admin.default.dc1.internal.{TRUST_DOMAIN}"
AWAY = f"api.default.default.cloud.external.{TRUST_DOMAIN}"
# What each of them carries by one look and by the next: web-admin most per second, web the most in all.
FIRST = [
    OpenStream(1, "10.0.0.1:4000", WEB, WEB, "10.0.9.1:21000", "relaying", 5000.0, 4_000_000, 5_000_000, 0),
    OpenStream(2, "10.0.0.12:4000", ADMIN, ADMIN, "10.0.9.2:21000", "relaying", 10.0, 1_000, 0, 0),
    OpenStream(1, "[2001:db8::1]:4000", AWAY, AWAY, "10.0.9.3:21000", "relaying", 20.0, 10_000, 0, 1),
]
SECOND = [
    replace(FIRST[0], age=5002.0, bytes_received=4_000_200),
    replace(FIRST[1], age=12.0, bytes_received=21_000, bytes_sent=2_000_000),
    replace(FIRST[2], age=22.0, bytes_received=12_000),
    OpenStream(4, "192.0.2.7:9", "Cold.example", None, None, "hello", 0.5, 300, 0, 0),
]


class Moving(GatewayDouble):
    """Its streams are FIRST for the first look and SECOND for the next; then they only grow older."""

    async def connections(self) -> OpenStreams:
        if self.listed == 0:
            self.streams = FIRST
        else:
            self.streams = [replace(each, age=each.age + 2 * (self.listed - 1)) for each in SECOND]
        return await super().connections()


pytestmark = pytest.mark.usefixtures("clean_place")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)


def listed(*arguments: str) -> int:
    with Moving().serving() as address:
        return execute(["connections", *arguments, f"--admin-bind={address}"])


def clients(*arguments: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert listed(*arguments) == 0
    return [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]


def test_who_talks_to_whom_how_much_and_since_when(capsys: pytest.CaptureFixture[str]) -> None:
    assert listed() == 0
    out, err = capsys.readouterr()
    assert [line.split() for line in out.splitlines()] == [
        ["CLIENT", "DESTINATION", "IN", "OUT", "RATE", "AGE"],
        ["10.0.0.12:4000", "web-admin.default.dc1", "21.0kB", "2.0MB", "1.0MB/s", "12s"],
        ["[2001:db8::1]:4000", "api.default.default.cloud", "12.0kB", "0B", "1.0kB/s", "22s"],
        ["192.0.2.7:9", "(hello)", "300B", "0B", "300B/s", "0s"],
        ["10.0.0.1:4000", "web.default.dc1", "4.0MB", "5.0MB", "100B/s", "1h23m"],
    ]
    assert max(map(len, out.splitlines())) <= 80
    assert err == ""


@pytest.mark.parametrize(
    ("order", "first", "last"),
    [("rate", "10.0.0.12", "10.0.0.1"), ("bytes", "10.0.0.1", "192.0.2.7"), ("age", "10.0.0.1", "192.0.2.7")],
)
def test_the_most_comes_first(order: str, first: str, last: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = clients("-sort", order, capsys=capsys)
    assert (found[0].partition(":")[0], found[-1].partition(":")[0]) == (first, last)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--destination=web"], {"10.0.0.1:4000"}),
        (["--destination=WEB.default"], {"10.0.0.1:4000"}),
        (["--destination=web-admin"], {"10.0.0.12:4000"}),
        (["--destination=cloud"], {"[2001:db8::1]:4000"}),
        ([f"--destination={WEB}"], {"10.0.0.1:4000"}),
        (["--client=10.0.0.1"], {"10.0.0.1:4000"}),
        (["--client=10.0.0.5/24"], {"10.0.0.1:4000", "10.0.0.12:4000"}),
        (["--client=2001:db8::/32"], {"[2001:db8::1]:4000"}),
        (["--sni=cold"], {"192.0.2.7:9"}),
        (["--sni=web", "--client=10.0.0.12"], {"10.0.0.12:4000"}),
    ],
)
def test_only_what_is_asked_for(arguments: list[str], found: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(clients(*arguments, capsys=capsys)) == found


def test_json_has_the_rows_of_the_admin_address_with_rates(capsys: pytest.CaptureFixture[str]) -> None:
    assert listed("-json", "--limit=1") == 0
    assert json.loads(capsys.readouterr().out) == [
        {
            "id": 2,
            "client": "10.0.0.12:4000",
            "caller": None,
            "sni": ADMIN,
            "route": ADMIN,
            "endpoint": "10.0.9.2:21000",
            "state": "relaying",
            "age_seconds": 12.0,
            "bytes_received": 21_000,
            "bytes_sent": 2_000_000,
            "worker": 0,
            "received_rate": 10_000.0,
            "sent_rate": 1_000_000.0,
        }
    ]


NAMES = {"10.0.0.12": "api or web on vm1", "2001:db8::1": "mesh gateway of dc2 on gw2", "192.0.2.9": "web on n9"}


def test_callers_have_the_names_that_consul_knows(capsys: pytest.CaptureFixture[str]) -> None:
    with Moving(names=NAMES).serving() as address:
        assert execute(["connections", f"--admin-bind={address}"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[6:] for line in lines] == [
            ["CALLER"],
            ["api", "or", "web", "on", "vm1"],
            ["mesh", "gateway", "of", "dc2", "on", "gw2"],
            ["-"],
            ["-"],
        ]
        assert execute(["connections", "--caller=WEB", f"--admin-bind={address}"]) == 0
        (_, found) = capsys.readouterr().out.splitlines()
        assert found.startswith("10.0.0.12:4000 ")
    double = ended_gateway()
    double.names = NAMES
    with double.serving() as address:
        assert execute(["connections", "--ended", f"--admin-bind={address}"]) == 0
        assert [line.split()[7:] for line in capsys.readouterr().out.splitlines()] == [
            ["CALLER"],
            ["web", "on", "n9"],
            ["-"],
            ["-"],
        ]


def test_a_limit_says_what_it_leaves_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert listed("--limit=2") == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3
    assert err == "4 open streams, the first 2 of them:\n"
    assert len(clients("--limit=0", capsys=capsys)) == 4


@pytest.mark.parametrize("form", [[], ["--json"]], ids=repr)
def test_workers_that_do_not_tell_their_streams_are_named(form: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with Moving(silent=[1, 3]).serving() as address:
        assert execute(["connections", *form, f"--admin-bind={address}"]) == 0
    assert capsys.readouterr().err == "not listed, as they do not tell: the streams of relay worker 1, 3\n"


def test_no_stream_is_said_on_the_side(capsys: pytest.CaptureFixture[str]) -> None:
    assert listed("--destination=nosuch") == 0
    assert tuple(capsys.readouterr()) == ("", "no of 4 open streams\n")
    with GatewayDouble().serving() as address:
        assert execute(["connections", f"--admin-bind={address}"]) == 0
        assert tuple(capsys.readouterr()) == ("", "no open streams\n")
        assert execute(["connections", "--json", f"--admin-bind={address}"]) == 0
    assert json.loads(capsys.readouterr().out) == []


LOST = replace(RECORD, started=time.time() - 70, duration=65.0, end=StreamEnd.WORKER_LOST, flags="", alpn=())
CUT = replace(
    LOST, started=1_700_000_000.5, duration=10.0, client="10.0.0.1:4000", end=StreamEnd.DRAIN, route=WEB, sni=WEB
)


def ended_gateway() -> GatewayDouble:
    double = GatewayDouble(ended=[LOST, CUT], recent=[(time.time() - 1, refused("Web.example"))])
    double.losses = [WorkerLoss(time.time() - 5, 1, WorkerEnd.KILLED, 3, 1)]
    double.numbers.ends = {StreamEnd.CLOSED: 12, StreamEnd.WORKER_LOST: 3, StreamEnd.DRAIN: 1}
    double.numbers.refused = {Reason.UNKNOWN_SNI: 7}
    return double


def test_why_a_stream_was_cut_is_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    with ended_gateway().serving() as address:
        assert execute(["connections", "--ended", f"--admin-bind={address}"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[1:] for line in out.splitlines()] == [
        ["HOW", "CLIENT", "DESTINATION", "LIVED", "IN", "OUT"],
        ["unknown_sni", "192.0.2.9", "Web.example", "-", "-", "-"],
        ["worker_lost", "192.0.2.1:4000", "*.dc2", "1m05s", "10B", "20B"],
        ["drain", "10.0.0.1:4000", "web.default.dc1", "10s", "10B", "20B"],
    ]
    assert out.splitlines()[3].startswith("11-14_22:13:30Z ")
    first, second, *meanings = err.splitlines()
    assert first.endswith("when this process started: 12 closed, 1 drain, 3 worker_lost, 7 refused")
    assert second.endswith(
        "relay process 1 ended (killed) with 3 streams, 2 of them not listed: young, or no access log was on"
    )
    assert meanings == [
        "drain: the gateway was told to stop, or to drain",
        "worker_lost: its relay process ended; sizes are of its first seconds",
        "refused streams have the reason: `meshgate explain NAME` says more",
    ]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--destination=web"], ["10.0.0.1:4000", "192.0.2.9"]),
        (["--destination=dc2"], ["192.0.2.1:4000"]),
        (["--client=192.0.2.0/24"], ["192.0.2.1:4000", "192.0.2.9"]),
        (["--limit=1"], ["192.0.2.9"]),
        (["--sni=nosuch"], []),
    ],
)
def test_ended_streams_are_chosen_as_open_ones_are(
    arguments: list[str], found: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with ended_gateway().serving() as address:
        assert execute(["connections", "--ended", "--json", *arguments, f"--admin-bind={address}"]) == 0
    assert sorted(each["client"] for each in json.loads(capsys.readouterr().out)["streams"]) == found


def test_a_gateway_of_which_nothing_ended_badly_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with GatewayDouble().serving() as address:
        assert execute(["connections", "--ended", f"--admin-bind={address}"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0].endswith("when this process started: none")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--ended", "--watch"],
        ["--ended", "--sort=age"],
        ["--client=web"],
        ["--sort=name"],
        ["--limit=-1"],
        ["--interval=0"],
        ["web"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["connections", *arguments]) == 2
    assert capsys.readouterr().err.startswith("meshgate connections: ")


def test_a_gateway_of_another_version_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(("127.0.0.1", 0), {("GET", "/connections"): lambda _: json_response([{"client": 1}])}) as address:
        assert execute(["connections", f"--admin-bind={address}"]) == 1
    assert "not this version of meshgate" in capsys.readouterr().err


def test_a_stream_with_the_id_of_one_that_ended_has_a_rate_of_its_own() -> None:
    def stream(client: str, age: float, received: int) -> RatedStream:
        return RatedStream(1, client, None, None, None, None, "", age, received, 0, 0)

    before = stream("a:1", 9.0, 9_000)
    for client, age, received, rate in (("a:1", 10.0, 9_500, 500.0), ("b:2", 10.0, 50, 5.0), ("a:1", 0.1, 50, 50.0)):
        now = stream(client, age, received)
        now.measure(before)
        assert now.received_rate == rate


def test_on_a_terminal_each_look_has_a_screen_and_each_stream_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output.Printer, "is_terminal", True)
    monkeypatch.setenv("COLUMNS", "72")
    monkeypatch.setenv("LINES", "7")
    gateway, looks = Moving(), 0

    def sleep(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    with gateway.serving() as address:
        assert execute(["connections", "--watch", f"--admin-bind={address}"]) == 0
    head, blank, *table = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", capsys.readouterr().out).splitlines()[:6]
    assert (head, blank) == ("4 open streams, the first 3 of them:", "")
    assert [line.split()[:2] for line in table[1:]] == [
        ["10.0.0.12:4000", "web-admin.default.dc1"],
        ["[2001:db8::1]:4000", "api.default.default.…"],
        ["192.0.2.7:9", "(hello)"],
    ]
    assert max(map(len, table)) <= 72


def test_watching_as_json_is_a_line_for_each_look_until_interrupted() -> None:
    with Moving().serving() as address:
        command = ["-m", "meshgate", "connections", "--watch", "--json", "--interval=0.5", f"--admin-bind={address}"]
        with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            looks = [json.loads(child.stdout.readline()) for _ in range(2)]
            child.send_signal(signal.SIGINT)
            assert child.wait(30) == 0
    assert [len(look) for look in looks] == [4, 4]
    assert [max(each["sent_rate"] for each in look) for look in looks] == [1_000_000.0, 0.0]


def test_who_reads_a_watch_from_a_pipe_gets_each_look_at_once() -> None:
    gateway = Moving()
    with gateway.serving() as address:
        command = ["-m", "meshgate", "connections", "--watch", "--interval=0.5", f"--admin-bind={address}"]
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, env=environ) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(5)]
            # A buffer of 8 kB would hold some twenty looks back.
            assert gateway.listed < 10
            child.send_signal(signal.SIGINT)
            assert child.wait(30) == 0
    assert lines[0].startswith("CLIENT")
