"""A worker that somebody took over says what it likes. The parent lives on, and grows by no more than it says.

Each message is sent by a process of its own, as a worker's; another worker, an honest one, is not touched by it.
"""

import math
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, cast, get_args, get_origin, get_type_hints

import msgspec
import pytest
import structlog
import trio
from hypothesis import HealthCheck, given, settings, strategies as st

from meshgate.adapters.relay import counters as counted, messages, worker_process
from meshgate.adapters.relay.counters import Counters, OpenStream, Refused, StreamRecord
from meshgate.adapters.relay.messages import TO_PARENT, EndpointNews, LogLine, Lookup, StatsReport, encode
from meshgate.adapters.relay.shared_counts import CountRows
from meshgate.core.reasons import Reason, StreamEnd
from meshgate.core.routes import RouteKind

from .streams import WEB, backend, echo, endpoint, receive_exactly
from .test_pool import HELLO, Pool, pool_of

# Sends what is in a file, so many times, and then says nothing more. It reads what it is told, or does not.
ROGUE = """
import socket, sys, threading
path, times, reads, descriptor = sys.argv[1:5]
parent = socket.socket(fileno=int(descriptor))
def read():
    while parent.recv(1 << 20):
        pass
if reads == "reads":
    threading.Thread(target=read, daemon=True).start()
data = open(path, "rb").read()
for _ in range(int(times)):
    parent.sendall(data)
threading.Event().wait()
"""


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4) + body


def packed(message: object) -> bytes:
    return framed(msgspec.msgpack.encode(message))


def report(**changes: Any) -> dict[str, Any]:
    """A report as plain data, with changes that its types forbid."""
    numbers = {key: changes.pop(key) for key in list(changes) if key in {each.name for each in fields(Counters)}}
    plain = msgspec.to_builtins(StatsReport(Counters(), [], [], 0), str_keys=False)
    plain["counters"] |= numbers
    return dict(plain | changes)


class OneRow(CountRows):
    """Of a worker that counts nothing."""

    def take(self) -> int:
        return 0


COUNTS = OneRow()
RECORD = msgspec.to_builtins(
    StreamRecord(started=0.0, client="", listener="", reason=None, end=StreamEnd.CLOSED, flags="", worker=0)
)
REFUSED = msgspec.to_builtins(Refused("192.0.2.1", None, Reason.NOT_TLS, ""))
OPEN = msgspec.to_builtins(OpenStream(1, "", None, None, None, "hello", 0.0, 0, 0, 0))
DEEP = b"\x91" * 200_000 + b"\xc0"  # Arrays within arrays.
NOT_NUMBERS = (math.nan, math.inf, -math.inf, -1.0, 1e300)

NONSENSE = {
    "no msgpack": framed(b"\xc1" * 4),
    "nested deeply": framed(b"\x84\xa4type\xa7LogLine\xa5level\xa4info\xa4text\xa0\xa4more" + DEEP),
    "nested deeply, itself": framed(DEEP),
    "too long": b"\xff" * 4 + bytes(100_000),
    "of no type": packed({"type": "Quit"}),
    "a level of its own": packed({"type": "LogLine", "level": "exception", "text": ""}),
    "a long line": packed({"type": "LogLine", "level": "info", "text": "x" * 100_000}),
    "a long name": packed({"type": "Lookup", "name": "x" * 20_000}),
    "too many records": packed(report(ended=[RECORD] * 5000)),
    "too many refusals": packed(report(refused=[REFUSED] * 5000)),
    "too many streams": packed(report(streams=[OPEN] * 5000)),
    "a long client": packed(report(refused=[REFUSED | {"client": "x" * 100_000}])),
    "no reason": packed(report(refused=[REFUSED | {"reason": "because"}])),
    "many protocols": packed(report(ended=[RECORD | {"alpn": ["h2"] * 10_000}])),
    "an invented destination": packed(report(connections={("service", "invented"): 1})),
    "invented failures": packed(report(failed={("service", "invented", "connect_failed"): 1})),
    "invented bytes": packed(report(carried={("service", "invented"): (1, 1)})),
    "invented open streams": packed(report(open={("service", "invented"): 1})),
    "an invented kind": packed(report(connections={("invented", "web"): 1})),
    "invented ends": packed(report(ends={f"end {number}": 1 for number in range(1000)})),
    "fewer buckets": packed(report(connect_counts=[0])),
    "more buckets": packed(report(stream_counts=[0] * 1000)),
    "a negative bucket": packed(report(stream_counts=[-1] * len(Counters().stream_counts))),
    "negative bytes": packed(report(carried={("service", "web"): (-1, 1)})),
    "less dropped": packed(report(dropped=-1)),
    **{f"record started {number}": packed(report(ended=[RECORD | {"started": number}])) for number in NOT_NUMBERS},
    **{f"record lasted {number}": packed(report(ended=[RECORD | {"duration": number}])) for number in NOT_NUMBERS},
    **{f"stream of age {number}": packed(report(streams=[OPEN | {"age": number}])) for number in NOT_NUMBERS},
    **{f"seconds {number}": packed(report(connect_sum=number)) for number in NOT_NUMBERS},
    **{f"active {number}": packed(report(active=number)) for number in (-1_000_000, -(1 << 62), (1 << 64) - 1)},
    **{f"accepted {number}": packed(report(accepted=number)) for number in (-1, -(1 << 62), (1 << 64) - 1)},
}


@asynccontextmanager
async def with_rogue(
    folder: Path, data: bytes, *, times: int = 1, reads: bool = True, **lookups: Any
) -> AsyncIterator[tuple[Pool, list[Any]]]:
    """A pool whose first worker says this, and what is logged from then on."""
    (folder / "said").write_bytes(data)
    async with with_program(ROGUE, str(folder / "said"), str(times), "reads" if reads else "", **lookups) as it:
        yield it


@asynccontextmanager
async def with_program(program: str, *arguments: str, **lookups: Any) -> AsyncIterator[tuple[Pool, list[Any]]]:
    """A pool of two whose first worker has just been replaced by a program, and what is logged from then on."""
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, **lookups) as pool:
        await pool.until_workers(2)
        _, other = pool.relay.workers
        pool.policy.command = (sys.executable, "-c", program, *arguments)
        with structlog.testing.capture_logs() as logs:
            os.kill(pool.relay.workers[0], signal.SIGKILL)
            yield pool, logs
            assert other in pool.relay.workers
        await (await pool.call()).aclose()


async def until_ended(logs: list[Any], why: str = "made no sense") -> str:
    """The reason for which the rogue one was ended."""
    with trio.fail_after(30):
        while True:
            reasons = [entry["reason"] for entry in logs if "worker ended" in entry["event"]]
            if found := [reason for reason in reasons if why in reason]:
                return str(found[0])
            await trio.sleep(0.01)


@pytest.mark.parametrize("case", NONSENSE)
async def test_message_that_no_honest_worker_sends_is_refused(case: str) -> None:
    ours, theirs = trio.socket.socketpair()
    with ours, theirs:
        receiver = messages.Receiver(trio.SocketStream(ours), TO_PARENT, largest=messages.LARGEST)
        theirs.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_SNDBUF, 1 << 22)
        await theirs.send(NONSENSE[case])
        theirs.shutdown(trio.socket.SHUT_WR)
        process = process_of(Owner())
        with pytest.raises((ValueError, RecursionError)):
            while (message := await receiver.next()) is not None:
                process._take(message, receiver.size, 1.0)
        assert process.active == 0


@pytest.mark.parametrize(
    "case", ["nested deeply", "too long", "record started nan", "record started 1e+300", "an invented destination"]
)
async def test_message_that_no_honest_worker_sends_ends_that_worker_and_nothing_else(case: str, tmp_path: Path) -> None:
    async with with_rogue(tmp_path, NONSENSE[case]) as (pool, logs):
        reason = await until_ended(logs)
        assert len(reason) < 400
        assert not [entry for entry in logs if "please report" in entry["event"]]
        totals = pool.relay.totals
        assert set(totals.connections) <= {(RouteKind.SERVICE, "web")}
        assert pool.relay.active >= 0
        assert math.isfinite(totals.connect_sum)


async def test_other_workers_are_heard_and_told_during_a_flood(tmp_path: Path) -> None:
    """One that is too slow to be ended for it: the parent takes turns, and keeps nothing of it."""
    news = encode(EndpointNews("x", "192.0.2.1", 1, failed=True)) * 1000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with with_rogue(tmp_path, news, times=1_000_000) as (pool, _):
        _, later = pool.relay.bind("later", "127.0.0.1", 0)  # Of which only the honest one lets clients in.
        for _ in range(5):
            client = await trio.open_tcp_stream("127.0.0.1", later)
            await client.send_all(HELLO)
            assert await receive_exactly(client, len(HELLO)) == HELLO
            await client.aclose()
        assert pool.relay.ejected == {}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_flood_of_messages_is_no_honest_workers() -> None:
    """So many at once, and so many a second after that; records and kilobytes count like messages."""
    process = process_of(Owner())
    news = EndpointNews("x", "192.0.2.1", 1, failed=True)
    large = StatsReport(Counters(), [], [StreamRecord(**RECORD)] * 999, 0)
    for _ in range(100):
        process._take(large, 100 * 1024, 1.0)  # 1100 each.
    for second in range(1, 3):
        for _ in range(90_000 if second == 1 else worker_process.MESSAGES_PER_SECOND):
            process._take(news, 50, float(second))
        with pytest.raises(ValueError, match="flood"):
            process._take(news, 50, float(second))


async def test_streams_that_were_asked_for_are_no_flood_up_to_what_a_worker_may_have() -> None:
    """However often they are asked for: a list of all of them has more than a worker may say by itself in a second."""
    process = process_of(Owner())
    process._outbox, _ = trio.open_memory_channel(100)
    part = StatsReport(Counters(), [], [], 0, streams=[OpenStream(**OPEN)] * messages.TOLD_AT_ONCE, more=True)
    size = messages.TOLD_AT_ONCE * 300
    for question in range(1, 6):
        part = msgspec.structs.replace(part, question=question)
        with process.question(streams=True) as answer:
            for _ in range(messages.MOST_STREAMS // messages.TOLD_AT_ONCE):
                process._take(part, size, 1.0)
            process._take(StatsReport(Counters(), [], [], 0, question), 100, 1.0)
            assert answer.complete.is_set()
            assert sum(len(told.streams) for told in answer.reports) == messages.MOST_STREAMS
    part = msgspec.structs.replace(part, question=6)
    with process.question(streams=True), pytest.raises(ValueError, match="flood"):
        for _ in range(10 * messages.MOST_STREAMS // messages.TOLD_AT_ONCE):
            process._take(part, size, 1.0)


async def test_flood_of_lines_leaves_few_in_the_log(tmp_path: Path) -> None:
    async with with_rogue(tmp_path, encode(LogLine("error", "x" * 8000)) * 100, times=1000) as (_, logs):
        await until_ended(logs)
        lines = [entry for entry in logs if entry["event"].startswith("xxx")]
        assert worker_process.LINES_AT_ONCE <= len(lines) <= worker_process.LINES_AT_ONCE + 60


async def test_what_it_writes_to_its_standard_error_is_not_the_log() -> None:
    """Nor to its standard output. A crash is told with what Python said of it, and no more than that is kept."""
    rogue = "import sys\nprint('out')\nsys.stderr.write('in the end\\n' + 'x' * 500_000)\nsys.exit(3)"
    async with with_program(rogue) as (_, logs):
        reason = await until_ended(logs, "exit code 3")
        assert reason.startswith("exit code 3: in the end\nxxx")
        assert len(reason) < 9000


async def test_flood_of_words_ends_the_worker() -> None:
    rogue = "import os\nwhile True:\n    os.write(2, bytes(1 << 16))"
    async with with_program(rogue) as (_, logs):
        assert "a flood of words" in await until_ended(logs)


async def test_flood_of_questions_whose_answers_nobody_reads_ends_the_worker(tmp_path: Path) -> None:
    """It is not read either what the parent has to say of the table, so nothing of that may pile up for long."""
    asked = b"".join(encode(Lookup(f"n{number}." + "x" * 240, "192.0.2.1")) for number in range(20_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with with_rogue(tmp_path, asked, times=100, reads=False) as (_, logs):
        await until_ended(logs, "it ")  # Hung, or made no sense.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000


async def test_worker_that_talks_and_reads_nothing_is_replaced(tmp_path: Path) -> None:
    said = packed(report())
    async with with_rogue(tmp_path, said, reads=False) as (pool, logs):
        pool.policy.silent = 1.0
        with trio.fail_after(30):
            while "it hung" not in str(logs):
                pool.relay.want_records(True)  # Noted for the worker again and again.
                await trio.sleep(0.01)


async def test_largest_message_is_all_that_is_kept(tmp_path: Path) -> None:
    """A length at the limit and no end: it is waited for as long as for any word, and no more than it is kept."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with with_rogue(tmp_path, messages.LARGEST.to_bytes(4) + bytes(messages.LARGEST - 1)) as (pool, logs):
        pool.policy.silent = pool.policy.starting = 1.0
        await until_ended(logs, "hung")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


# --- what is honest ---------------------------------------------------------------------------------------------------


def test_largest_honest_report_goes_in_pieces_that_are_taken_and_lose_nothing() -> None:
    """All that a worker keeps, each as large as strangers can make it, and every destination of a large mesh."""
    text = "x" * counted.LONGEST_TEXT
    record = StreamRecord(
        started=1e9,
        duration=1.0,
        client=text[:60],
        listener=text,
        sni=text[:255],
        alpn=(text,) * 8,
        route=text[:257],
        kind="service",
        endpoint=text,
        attempts=3,
        bytes_received=1,
        bytes_sent=1,
        reason=None,
        end=StreamEnd.CLOSED,
        flags="",
        worker=0,
    )
    names = [(RouteKind.SERVICE, f"{number:0255}") for number in range(20_000)]
    numbers = Counters(
        accepted=7,
        active=5,
        of_servers=2,
        connections=dict.fromkeys(names, 3),
        carried=dict.fromkeys(names, (1, 2)),
        failed={(*name, Reason.CONNECT_FAILED): 1 for name in names},
        connect_failures=dict.fromkeys(names, 6),
        open=dict.fromkeys(names, 1),
    )
    refused = [Refused(text[:60], text[:255], Reason.UNKNOWN_SNI, text)] * 10_000
    streams = [OpenStream(1 << 48, text[:60], text[:255], text[:257], text, "relaying", 1.0, 1, 1, 0)] * 20_000
    whole = StatsReport(numbers, refused, [record] * 10_000, 4, 9, streams)
    whole = msgspec.structs.replace(whole, settled=[record] * 3_000)
    pieces = []
    for piece in whole.pieces():
        data = encode(piece)
        assert len(data) <= messages.LARGEST
        back = TO_PARENT.decode(data[4:])
        assert isinstance(back, StatsReport)
        back.counters.check(set(names))
        pieces.append(back)
    assert [piece.more for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    assert {piece.question for piece in pieces} == {9}
    assert {(piece.counters.active, piece.counters.of_servers) for piece in pieces} == {(5, 2)}
    total = Counters(active=5, of_servers=2)
    for piece in pieces:
        total.add(piece.counters)
        total.open |= piece.counters.open
    assert total == numbers
    assert [each for piece in pieces for each in piece.refused] == refused
    assert sum(len(piece.ended) for piece in pieces) == 10_000
    assert sum(len(piece.settled) for piece in pieces) == 3_000
    told = [bool(piece.settled) - bool(piece.ended) for piece in pieces if piece.settled or piece.ended]
    assert told == sorted(told, reverse=True)  # A stream may have settled and ended since the last report.
    assert [each for piece in pieces for each in piece.streams] == streams
    assert sum(piece.dropped for piece in pieces) == 4


async def test_all_open_streams_are_told_however_many() -> None:
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, workers=1) as pool:
        few = messages.TOLD_AT_ONCE + 200
        clients = [await pool.call() for _ in range(few)]
        assert len((await pool.relay.connections()).listed) == few
        for client in clients:
            await client.aclose()


# --- any bytes at all -------------------------------------------------------------------------------------------------


def bounds(kind: Any, where: str) -> Iterator[str]:
    """The numbers and texts within a type that may be of any size."""
    if get_origin(kind) is Annotated:
        inner, meta = get_args(kind)[:2]
        bounded = meta.max_length if inner is str or get_origin(inner) in (list, tuple) else meta.le or meta.lt
        if bounded is None:
            yield where
        kind = inner
        if kind in (int, float, str):
            return
    if kind in (int, float, str, list, dict):
        yield where
    elif get_args(kind):
        for each in get_args(kind):
            yield from bounds(each, where)
    elif isinstance(kind, type) and (hasattr(kind, "__struct_fields__") or hasattr(kind, "__dataclass_fields__")):
        for name, each in get_type_hints(kind, include_extras=True).items():
            if not name.startswith("__"):
                yield from bounds(each, f"{where}.{name}")


def test_every_number_and_text_of_a_worker_has_its_bounds() -> None:
    for message in get_args(messages.ToParent):
        assert list(bounds(message, message.__name__)) == []


def any_value() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
    return st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)


def spoiled() -> st.SearchStrategy[dict[str, Any]]:
    """Messages of the right shape with anything in one of their places."""
    shapes = [
        msgspec.to_builtins(each, str_keys=False)
        for each in (LogLine("info", ""), Lookup("x", "192.0.2.1"), EndpointNews("x", "192.0.2.1", 1, failed=True))
    ]
    shapes += [report(), report(ended=[RECORD], refused=[REFUSED], streams=[OPEN])]
    shapes += [report(**{each.name: None}) for each in fields(Counters)]

    def spoil(shape: dict[str, Any], value: Any, choice: int) -> dict[str, Any]:
        places: list[tuple[dict[str, Any], str]] = []

        def walk(node: Any) -> None:
            if isinstance(node, dict):
                places.extend((node, key) for key in node if key != "type")
                for each in node.values():
                    walk(each)
            elif isinstance(node, list):
                for each in node:
                    walk(each)

        fresh = msgspec.msgpack.decode(msgspec.msgpack.encode(shape), strict=False)
        walk(fresh)
        holder, key = places[choice % len(places)]
        holder[key] = value
        return dict(fresh)

    return st.builds(spoil, st.sampled_from(shapes), any_value(), st.integers(0, 1 << 16))


class Owner:
    """Takes what a worker's process object hands on, as the pool does with totals."""

    def __init__(self) -> None:
        self.totals = Counters()

    def heard(self, told: StatsReport) -> None:
        told.counters.check({(RouteKind.SERVICE, "web")})
        self.totals.add(told.counters)

    def asked(self, _worker: object, name: str, _client: str) -> None:
        assert len(name) <= 255

    def endpoint_news(self, news: EndpointNews) -> None:
        assert len(news.address) <= counted.LONGEST_TEXT

    def lost(self, _worker: object, _cause: object, streams: int, records: list[bytes]) -> None:
        assert streams >= 0
        assert len(records) <= worker_process.MOST_KEPT
        assert all(len(each) <= worker_process.LARGEST_KEPT for each in records)

    def hand_over_news(self, _worker: object, _news: object) -> None:
        raise ValueError

    def has_settled(self, _worker: object, stream: int) -> None:
        assert 0 <= stream < 1 << 63

    async def ended(self, _worker: object) -> None: ...

    def first_words(self, _worker: object) -> list[Any]:
        return []

    def inherited(self, _worker: object) -> list[int]:
        return []


def process_of(owner: Owner) -> worker_process.WorkerProcess:
    return worker_process.WorkerProcess(cast("Any", owner), 0, COUNTS, worker_process.WorkerPolicy(), 0)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary() | spoiled().map(msgspec.msgpack.encode) | any_value().map(msgspec.msgpack.encode))
def test_no_bytes_raise_what_is_not_expected_or_spoil_the_totals(body: bytes) -> None:
    owner = Owner()
    process = process_of(owner)
    with structlog.testing.capture_logs():
        try:
            process._take(TO_PARENT.decode(body), len(body), 1.0)
        except (ValueError, RecursionError):
            return
    totals = owner.totals
    assert math.isfinite(totals.connect_sum)
    assert totals.connect_sum >= 0
    assert math.isfinite(totals.stream_sum)
    assert process.active >= 0
    assert set(totals.connections) <= {(RouteKind.SERVICE, "web")}
    assert len(totals.connect_counts) == len(Counters().connect_counts)
