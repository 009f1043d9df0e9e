"""What is done with a peer that runs. Each function makes one measurement and gives its numbers by metric."""

import json
from collections.abc import Mapping

from .load import Measured
from .peers import Place, Subject, sni
from .processes import start

Numbers = Mapping[str, float]


def round_trips(place: Place, subject: Subject, *, streams: int, seconds: float) -> Numbers:
    """64 bytes there and back, one message under way on each of `streams` connections."""
    measured = _run(place, subject, "ping", streams=streams, seconds=seconds, warm=seconds / 5)
    return _per_operation(measured)


def connections(place: Place, subject: Subject, *, at_once: int, seconds: float) -> Numbers:
    """Connect, send the hello, get 64 bytes for it, close; `at_once` at a time."""
    measured = _run(place, subject, "churn", streams=at_once, seconds=seconds, warm=seconds / 5)
    return _per_operation(measured)


def paced(place: Place, subject: Subject, *, at_once: int, pause: float, seconds: float) -> Numbers:
    """Connect, hello, four round trips of 64 bytes with a pause before each, close. Latencies are of round trips."""
    measured = _run(place, subject, "paced", streams=at_once, messages=4, pause=pause, seconds=max(seconds, 12 * pause))
    return _per_operation(measured)


def bulk(place: Place, subject: Subject, *, streams: int, total: int, both: bool) -> Numbers:
    """`total` bytes over `streams` connections at once, from the client alone or half of them from either side."""
    share = total // streams // (2 if both else 1)
    measured = _run(place, subject, "bulk", streams=streams, bytes=share, both=int(both))
    return {
        "cpu_s_per_gb": measured.cpu / measured.bytes,
        "gb_per_s": measured.bytes / measured.seconds / 1e9,
    }


def beside_bulk(place: Place, subject: Subject, *, streams: int, uploads: int, seconds: float) -> Numbers:
    """Round trips while `uploads` other connections send as much as they can."""
    measured = _run(place, subject, "ping", streams=streams, bulk=uploads, seconds=seconds, warm=seconds / 5)
    return {
        "p50_us": measured.p50_us,
        "p99_us": measured.p99_us,
        "gb_per_s": measured.bytes / measured.seconds / 1e9,
    }


def idle(place: Place, subject: Subject, *, streams: int) -> Numbers:
    """What connections cost that only stay open. The peer must be a fresh one: memory, once had, is used again."""
    # Buffers that grow with the first streams and stay are no cost of the later ones.
    _run(place, subject, "churn", streams=4, seconds=0.05)
    before = subject.running.memory()
    after = before

    def look() -> None:
        nonlocal after
        after = subject.running.memory()

    options = {"streams": 1, "idle": streams, "seconds": 0}
    place.load.run(subject.running, subject.port, "ping", options, own_backend=subject.own_backend, at_ready=look)
    return {
        "kb_per_stream": (after - before) / 1e3 / streams,
        "mb": after / 1e6,
    }


def beside_idle(place: Place, subject: Subject, *, few: int, many: int, at_once: int, seconds: float) -> Numbers:
    """Connections and round trips while few other connections are open, and while many are."""

    def cost(mode: str, streams: int, others: int) -> float:
        half = seconds / 2
        done = _run(place, subject, mode, streams=streams, idle=others, seconds=half, warm=half / 5)
        return done.cpu / done.operations / 1e3

    few_us, many_us = cost("churn", at_once, few), cost("churn", at_once, many)
    return {
        "ratio": many_us / few_us,
        "few_us": few_us,
        "many_us": many_us,
        "few_round_trip_us": cost("ping", 32, few),
        "many_round_trip_us": cost("ping", 32, many),
    }


def two_kinds(place: Place, subject: Subject, *, at_once: int, seconds: float) -> Numbers:
    """The CPU time of a connection, and of a round trip on 32 of them."""
    opened = _run(place, subject, "churn", streams=at_once, seconds=seconds / 2, warm=seconds / 10)
    passed = _run(place, subject, "ping", streams=32, seconds=seconds / 2, warm=seconds / 10)
    return {
        "connection_us": opened.cpu / opened.operations / 1e3,
        "round_trip_us": passed.cpu / passed.operations / 1e3,
    }


def beside_flood(place: Place, subject: Subject, *, rate: int, seconds: float) -> Numbers:
    """Connections, one at a time, while an attacker sends `hostile_hello`, `rate` a second (0: as many as it can)."""
    file = place.folder / "hostile-hello"
    file.write_bytes(hostile_hello())
    words = ["flood", "0", str(subject.port), str(file), f"seconds={3 * seconds}", f"rate={rate}"]
    attacker = start([place.load.program, *words], place.cores.load, place.folder, "flood", talks=True)
    try:
        assert attacker.child.stdin is not None
        assert attacker.child.stdout is not None
        attacker.child.stdout.readline()
        attacker.child.stdin.write("\n")
        honest = _run(place, subject, "churn", streams=1, warm=seconds / 4, seconds=2 * seconds)
        attack = json.loads(attacker.child.stdout.readline())
    finally:
        attacker.stop()
    return {
        "p50_ms": honest.p50_us / 1e3,
        "p90_ms": honest.p90_us / 1e3,
        "max_ms": honest.max_us / 1e3,
        "attacks_per_s": attack["operations"] / attack["seconds"],
    }


def hostile_hello() -> bytes:
    """16,296 bytes that take as long to read as a stranger can make them: a hello in records of one byte each."""
    name = sni("nobody").encode()
    server_name = b"\0" + len(name).to_bytes(2) + name
    extensions = b"\0\0" + (len(server_name) + 2).to_bytes(2) + len(server_name).to_bytes(2) + server_name
    extensions += b"\0\x15" + (2585).to_bytes(2) + bytes(2585)
    body = b"\3\3" + bytes(32) + b"\0" + b"\0\2\x13\x01" + b"\1\0" + len(extensions).to_bytes(2) + extensions
    message = b"\1" + len(body).to_bytes(3) + body
    return b"".join(b"\x16\3\1\0\1" + bytes((byte,)) for byte in message)


def _per_operation(measured: Measured) -> Numbers:
    return {
        "cpu_us": measured.cpu / measured.operations / 1e3,
        "per_s": measured.operations / measured.seconds,
        "p50_us": measured.p50_us,
        "p99_us": measured.p99_us,
    }


def _run(place: Place, subject: Subject, mode: str, **options: float) -> Measured:
    return place.load.run(subject.running, subject.port, mode, options, own_backend=subject.own_backend)
