"""The gateway's numbers for statsd and dogstatsd: the metrics page, sent in datagrams at an interval.

Each family of the page goes out under its name with a dot behind the prefix: counters as what came since the last
time, gauges as they are, histograms of times as timings, to the precision of their buckets. dogstatsd gets labels as
tags, statsd gets their values as parts of the name. Sending never waits: what the socket does not take is dropped and
counted. A datagram holds whole lines and fits one packet.
"""

import errno
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from prometheus_client.core import Metric

from .http_server import Bind

INTERVAL: Final = 5.0
"""Envoy's own, in seconds."""

_PREFIX: Final = "meshgate_"
_DATAGRAM_BYTES: Final = 1432
_UNFIT: Final = re.compile(r"[^A-Za-z0-9_-]")
_UNFIT_IN_TAG: Final = re.compile(r"[^A-Za-z0-9_./-]")
# Every so many times all gauges are sent, else those that changed.
_REFRESH: Final = 12
_HOST_IP: Final = re.compile(r"\$\{HOST_IP\}|\$HOST_IP\b")
_FULL: Final = frozenset((errno.EAGAIN, errno.ENOBUFS))


@dataclass(frozen=True, slots=True)
class Target:
    """Where to, and in which of the two dialects. `address` is a host name or an IP address with a port, or a path."""

    address: Bind
    dog: bool = False
    tags: tuple[tuple[str, str], ...] = ()


def target_of(url: str, environ: Mapping[str, str], *, dog: bool, tags: Iterable[str] = ()) -> Target:
    """The target that `envoy_statsd_url`, or, for a `dog`, `envoy_dogstatsd_url` names.

    It is `udp://host:port`, for dogstatsd `unix:///path` too; or `$NAME` for the variable of `environ` that holds it;
    `HOST_IP` may stand anywhere in it (Consul's `generateStatsSinkJSON`). `tags` are `name=value`, or a name alone for
    the value 1 (Consul's `envoy_stats_tags`); only dogstatsd has tags.

    Raises:
        ValueError: it is none of these. The message does not show what a variable holds.
    """
    if url.startswith("$") and len(url) > 2:
        expanded = environ.get(url[1:], "")
        if not expanded and not _HOST_IP.match(url):
            raise ValueError(f"the variable {url[1:]} is not set")
    else:
        expanded = ""
    expanded = expanded or _HOST_IP.sub(lambda _: environ.get("HOST_IP", ""), url)
    try:
        parts = urlsplit(expanded)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"{url!r} is no URL") from None
    pairs = tuple((name, value if equals else "1") for name, equals, value in (tag.partition("=") for tag in tags))
    if parts.scheme == "udp" and host and port:
        return Target((host, port), dog, pairs)
    if parts.scheme == "unix" and dog and parts.path.startswith("/"):
        return Target(Path(parts.path), dog, pairs)
    raise ValueError(f"{url!r} is none of udp://host:port{' and unix:///path' if dog else ''}")


class Exporter:
    """Makes lines of the families of a metrics page; remembers what it has said, by name and labels.

    Not by what is in front of the numbers: two names of Consul's may look alike there.
    """

    def __init__(self, target: Target) -> None:
        self._dog = target.dog
        self._tags = target.tags
        self.said: dict[str, float] = {}
        self._times = 0

    def begin(self, families: Iterable[Metric]) -> None:
        """Count from here: what came before is no increment of ours."""
        self.lines(families)
        self._times = 0

    def lines(self, families: Iterable[Metric]) -> list[bytes]:
        refresh = not self._times % _REFRESH
        self._times += 1
        return [line.encode("ascii") for family in families for line in self._family(family, refresh=refresh)]

    def _family(self, family: Metric, *, refresh: bool) -> Iterator[str]:
        name = family.name.removeprefix(_PREFIX)
        if family.type == "histogram":
            yield from self._timings(name.removesuffix("_seconds"), family)
            return
        for sample in family.samples:
            line, key = self._named(name, sample.labels), _key(name, sample.labels)
            if family.type == "counter":
                if grown := self._grown(key, sample.value):
                    yield line(_number(grown), "c")
            elif refresh or self.said.get(key) != sample.value:
                self.said[key] = sample.value
                yield line(_number(sample.value), "g")

    def _timings(self, name: str, family: Metric) -> Iterator[str]:
        """For each bucket that grew one line of its middle, with the rate that makes it count so often."""
        below, lower = 0.0, 0.0
        for sample in family.samples:
            if not sample.name.endswith("_bucket"):
                continue
            upper = float(sample.labels["le"])
            line = self._named(name, {key: value for key, value in sample.labels.items() if key != "le"})
            count, below = sample.value - below, sample.value
            if grown := self._grown(_key(name, sample.labels), count):
                middle = lower if upper == float("inf") else (lower + upper) / 2
                yield line(_number(middle * 1000), "ms" if grown == 1 else f"ms|@{1 / grown:.9g}")
            lower = upper

    def _grown(self, key: str, count: float) -> float:
        """By how much since it was last said; a counter that went back began anew, with its process."""
        before, self.said[key] = self.said.get(key, 0.0), count
        return count - before if count >= before else count

    def _named(self, name: str, labels: Mapping[str, str]) -> Callable[[str, str], str]:
        if self._dog:
            pairs = [*self._tags, *labels.items()]
            tags = ",".join(f"{_UNFIT_IN_TAG.sub('_', key)}:{_UNFIT_IN_TAG.sub('_', value)}" for key, value in pairs)
            shown = f"|#{tags}" if tags else ""
            return lambda value, kind: f"meshgate.{name}:{value}|{kind}{shown}"
        whole = ".".join(["meshgate", name, *(_UNFIT.sub("_", value) or "_" for value in labels.values())])
        return lambda value, kind: f"{whole}:{value}|{kind}"


def _key(name: str, labels: Mapping[str, str]) -> str:
    return str((name, *labels.values()))


def datagrams(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Lines put together as far as they fit one packet."""
    held = b""
    for line in lines:
        if held and len(held) + 1 + len(line) > _DATAGRAM_BYTES:
            yield held
            held = line
        else:
            held = held + b"\n" + line if held else line
    if held:
        yield held


class Sender:
    """A datagram socket that never waits. `dropped` counts the datagrams that it did not take."""

    def __init__(self, address: Bind) -> None:
        """Make it for a numeric address, or a path; OSError where there is no socket to be had."""
        self.dropped = 0
        self._to: str | tuple[str, int]
        if isinstance(address, Path):
            self._to, family = str(address), socket.AF_UNIX
        else:
            self._to, family = address, socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)

    def send(self, datagram: bytes) -> bool:
        """Send it, or drop it; says whether the socket has room for more at this moment."""
        try:
            self._socket.sendto(datagram, self._to)
        except OSError as error:
            self.dropped += 1
            return error.errno not in _FULL
        return True

    def close(self) -> None:
        self._socket.close()


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.6g}"
