import socket
from pathlib import Path

import pytest

from meshgate.adapters.admin.metrics import families
from meshgate.adapters.admin.stats import Destination, GatewayStats, Histogram, Worker
from meshgate.adapters.admin.statsd import Exporter, Sender, Target, datagrams, target_of
from meshgate.core.reasons import Reason
from meshgate.core.routes import RouteKind

PLAIN = Target(("127.0.0.1", 8125))
DOG = Target(("127.0.0.1", 8125), dog=True, tags=(("env", "prod"), ("canary", "1")))
WEB = Destination(RouteKind.SERVICE, "v1.web|x:y")


def stats(count: int = 0, active: int = 3, connects: tuple[int, ...] = (0, 0, 0)) -> GatewayStats:
    return GatewayStats(
        "1",
        connections={WEB: count},
        connections_active=active,
        refused={Reason.UNKNOWN_SNI: count},
        connect_seconds=Histogram((0.01, 0.03), connects, 1.0),
        workers=(Worker(0, 0),),
    )


def said(exporter: Exporter, numbers: GatewayStats) -> set[str]:
    return {line.decode() for line in exporter.lines(families(numbers))}


@pytest.mark.parametrize(
    ("url", "dog", "address"),
    [
        ("udp://127.0.0.1:8125", False, ("127.0.0.1", 8125)),
        ("udp://[::1]:8125", False, ("::1", 8125)),
        ("udp://statsd.service.consul:1", True, ("statsd.service.consul", 1)),
        ("unix:///run/dd.sock", True, Path("/run/dd.sock")),
        ("$STATSD", False, ("192.0.2.7", 8126)),
        ("udp://$HOST_IP:8125", True, ("192.0.2.9", 8125)),
        ("udp://${HOST_IP}:8125", True, ("192.0.2.9", 8125)),
    ],
)
def test_urls_are_read_as_consul_reads_them(url: str, dog: bool, address: object) -> None:
    environ = {"STATSD": "udp://192.0.2.7:8126", "HOST_IP": "192.0.2.9"}
    assert target_of(url, environ, dog=dog).address == address


@pytest.mark.parametrize(
    "url",
    [
        "",
        "udp://",
        "udp://host",
        "udp://host:0",
        "udp://host:70000",
        "tcp://host:1",
        "unix://",
        "unix:///a",
        "udp://[::1",
    ],
)
def test_what_is_no_target_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"is no"):
        target_of(url, {}, dog=False)


def test_what_a_variable_holds_is_never_told() -> None:
    for url, environ in (("$TOKEN", {"TOKEN": "s3cret"}), ("$MISSING", {})):
        with pytest.raises(ValueError, match=r"TOKEN|MISSING") as caught:
            target_of(url, environ, dog=True)
        assert "s3cret" not in str(caught.value)
    with pytest.raises(ValueError, match="none of"):
        target_of("udp://$TOKEN", {"TOKEN": "s3cret"}, dog=True)


def test_tags_are_those_of_the_registration() -> None:
    target = target_of("udp://h:1", {}, dog=True, tags=["env=prod", "canary", "a=b=c"])
    assert target.tags == (("env", "prod"), ("canary", "1"), ("a", "b=c"))


def test_counters_are_sent_as_what_came_since_the_last_time() -> None:
    exporter = Exporter(PLAIN)
    name = "meshgate.connections.service.v1_web_x_y"
    assert f"{name}:5|c" in said(exporter, stats(5))
    assert not any(line.startswith(name) for line in said(exporter, stats(5)))
    assert f"{name}:2|c" in said(exporter, stats(7))
    # The process began anew.
    assert f"{name}:1|c" in said(exporter, stats(1))
    assert "meshgate.refused.unknown_sni:1|c" in said(exporter, stats(2))


def test_what_was_counted_before_the_beginning_is_not_sent_but_gauges_are() -> None:
    exporter = Exporter(PLAIN)
    exporter.begin(families(stats(5)))
    lines = said(exporter, stats(6))
    assert "meshgate.connections.service.v1_web_x_y:1|c" in lines
    assert "meshgate.connections_active:3|g" in lines


def test_gauges_are_sent_when_they_change_and_all_now_and_then() -> None:
    exporter = Exporter(PLAIN)
    line = "meshgate.connections_active:3|g"
    assert [line in said(exporter, stats()) for _ in range(13)] == [True, *[False] * 11, True]
    assert "meshgate.connections_active:4|g" in said(exporter, stats(active=4))


def test_times_are_sent_once_for_each_bucket_that_grew_with_their_number_as_rate() -> None:
    exporter = Exporter(PLAIN)
    assert {line for line in said(exporter, stats(connects=(1, 4, 2))) if ".connect:" in line} == {
        "meshgate.connect:5|ms",
        "meshgate.connect:20|ms|@0.25",
        "meshgate.connect:30|ms|@0.5",
    }
    assert not any(".connect:" in line for line in said(exporter, stats(connects=(1, 4, 2))))
    assert "meshgate.connect:20|ms" in said(exporter, stats(connects=(1, 5, 2)))


def test_dogstatsd_gets_labels_and_fixed_tags() -> None:
    lines = said(Exporter(DOG), stats(5))
    assert "meshgate.connections:5|c|#env:prod,canary:1,kind:service,destination:v1.web_x_y" in lines
    assert "meshgate.connections_active:3|g|#env:prod,canary:1" in lines


def test_every_line_is_one_that_statsd_can_read() -> None:
    hostile = Destination(RouteKind.SERVICE, "a\nb:1|c\u202e")
    numbers = GatewayStats("1", connections={hostile: 1}, endpoints={("", "healthy"): 1})
    for target in (PLAIN, DOG):
        for line in said(Exporter(target), numbers):
            name, _, rest = line.partition(":")
            value, kind = rest.split("|")[:2]
            assert name.isascii()
            assert name.isprintable()
            float(value)
            assert kind in ("c", "g", "ms")


def test_datagrams_hold_whole_lines_and_fit_a_packet() -> None:
    lines = [b"x" * size for size in (700, 700, 40, 1432, 5, 2000)]
    packets = list(datagrams(lines))
    assert b"\n".join(packets) == b"\n".join(lines)
    assert [len(packet) for packet in packets] == [1401, 40, 1432, 5, 2000]
    assert list(datagrams([])) == []


def test_a_socket_that_nobody_reads_drops_and_never_waits(tmp_path: Path) -> None:
    path = tmp_path / "dd.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reader:
        reader.bind(str(path))
        sender = Sender(path)
        sent = 0
        while sender.send(b"x" * 1000):
            sent += 1
        assert sender.dropped == 1
        assert sent > 0
        reader.recv(2000)
        assert sender.send(b"again")
        sender.close()
    gone = Sender(tmp_path / "none")
    assert gone.send(b"x")
    assert gone.dropped == 1
    gone.close()
