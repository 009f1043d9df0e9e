import socket
from pathlib import Path

import pytest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from meshgate.adapters.admin.statsd import Exporter, Sender, Target, datagrams, target_of

PLAIN = Target(("127.0.0.1", 8125))
DOG = Target(("127.0.0.1", 8125), dog=True, tags=(("env", "prod"), ("canary", "1")))


def page(
    count: int = 0, active: int = 3, connects: tuple[int, ...] = (0, 0, 0), name: str = "v1.web|x:y"
) -> list[Metric]:
    """What a metrics page may have of each type; the buckets of the times end at 10 and 30 ms."""
    routed = CounterMetricFamily("meshgate_connections", "", labels=("kind", "destination"))
    routed.add_metric(("service", name), count)
    refused = CounterMetricFamily("meshgate_refused", "", labels=("reason",))
    refused.add_metric(("unknown_sni",), count)
    times = HistogramMetricFamily("meshgate_connect_seconds", "")
    below = [float(sum(connects[: number + 1])) for number in range(3)]
    times.add_metric((), list(zip(("0.01", "0.03", "+Inf"), below, strict=True)), sum_value=1.0)
    return [routed, refused, GaugeMetricFamily("meshgate_connections_active", "", active), times]


def said(exporter: Exporter, families: list[Metric]) -> set[str]:
    return {line.decode() for line in exporter.lines(families)}


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
    assert f"{name}:5|c" in said(exporter, page(5))
    assert not any(line.startswith(name) for line in said(exporter, page(5)))
    assert f"{name}:2|c" in said(exporter, page(7))
    # The process began anew.
    assert f"{name}:1|c" in said(exporter, page(1))
    assert "meshgate.refused.unknown_sni:1|c" in said(exporter, page(2))


def test_what_was_counted_before_the_beginning_is_not_sent_but_gauges_are() -> None:
    exporter = Exporter(PLAIN)
    exporter.begin(page(5))
    lines = said(exporter, page(6))
    assert "meshgate.connections.service.v1_web_x_y:1|c" in lines
    assert "meshgate.connections_active:3|g" in lines


@pytest.mark.parametrize("target", [PLAIN, DOG], ids=["statsd", "dogstatsd"])
def test_names_that_look_alike_have_increments_of_their_own(target: Target) -> None:
    exporter = Exporter(target)
    for pages, increments in (((10, 4), ["10", "4"]), ((11, 4), ["1"])):
        lines = said(exporter, page(pages[0], name="a|b") + page(pages[1], name="a:b"))
        counts = [line.partition(":")[2].partition("|")[0] for line in lines if ".connections" in line and "|c" in line]
        assert sorted(counts) == increments


def test_gauges_are_sent_when_they_change_and_all_now_and_then() -> None:
    exporter = Exporter(PLAIN)
    line = "meshgate.connections_active:3|g"
    assert [line in said(exporter, page()) for _ in range(13)] == [True, *[False] * 11, True]
    assert "meshgate.connections_active:4|g" in said(exporter, page(active=4))


def test_times_are_sent_once_for_each_bucket_that_grew_with_their_number_as_rate() -> None:
    exporter = Exporter(PLAIN)
    assert {line for line in said(exporter, page(connects=(1, 4, 2))) if ".connect:" in line} == {
        "meshgate.connect:5|ms",
        "meshgate.connect:20|ms|@0.25",
        "meshgate.connect:30|ms|@0.5",
    }
    assert not any(".connect:" in line for line in said(exporter, page(connects=(1, 4, 2))))
    assert "meshgate.connect:20|ms" in said(exporter, page(connects=(1, 5, 2)))


def test_dogstatsd_gets_labels_and_fixed_tags() -> None:
    lines = said(Exporter(DOG), page(5))
    assert "meshgate.connections:5|c|#env:prod,canary:1,kind:service,destination:v1.web_x_y" in lines
    assert "meshgate.connections_active:3|g|#env:prod,canary:1" in lines


def test_every_line_is_one_that_statsd_can_read() -> None:
    numbers = page(1, name="a\nb:1|c\u202e") + page(1, name="")
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
