"""What is done with a peer that runs. Each function makes one measurement and gives its numbers by metric."""

from collections.abc import Mapping

from .load import Measured
from .peers import Place, Subject

Numbers = Mapping[str, float]


def round_trips(place: Place, subject: Subject, *, streams: int, seconds: float) -> Numbers:
    """64 bytes there and back, one message under way on each of `streams` connections."""
    measured = _run(place, subject, "ping", streams=streams, seconds=seconds, warm=seconds / 5)
    return _per_operation(measured)


def connections(place: Place, subject: Subject, *, at_once: int, seconds: float) -> Numbers:
    """Connect, send the hello, get 64 bytes for it, close; `at_once` at a time."""
    measured = _run(place, subject, "churn", streams=at_once, seconds=seconds, warm=seconds / 5)
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


def beside_idle(place: Place, subject: Subject, *, others: int, at_once: int, seconds: float) -> Numbers:
    """Connections and round trips while many other connections are open."""
    half = seconds / 2
    opened = _run(place, subject, "churn", streams=at_once, idle=others, seconds=half, warm=half / 5)
    passed = _run(place, subject, "ping", streams=32, idle=others, seconds=half, warm=half / 5)
    return {
        "connection_us": opened.cpu / opened.operations / 1e3,
        "round_trip_us": passed.cpu / passed.operations / 1e3,
    }


def _per_operation(measured: Measured) -> Numbers:
    return {
        "cpu_us": measured.cpu / measured.operations / 1e3,
        "per_s": measured.operations / measured.seconds,
        "p50_us": measured.p50_us,
        "p99_us": measured.p99_us,
    }


def _run(place: Place, subject: Subject, mode: str, **options: float) -> Measured:
    return place.load.run(subject.running, subject.port, mode, options, own_backend=subject.own_backend)
