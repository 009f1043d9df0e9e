"""Open streams go from one worker process to another: nobody at their ends notices, and whoever dies, one has each."""

import os
import random
import re
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
import trio
from hypothesis import given, settings, strategies as st

from meshgate.adapters.relay import Limits, hand_over
from meshgate.adapters.relay.hand_over import (
    BATCH_STREAMS,
    TO_NEW,
    TO_OLD,
    Batch,
    Declined,
    HandedLeg,
    HandedRoute,
    HandedStream,
    HandsOver,
    Over,
    Prepared,
    TakesOver,
    Yours,
)
from meshgate.adapters.relay.messages import (
    HAND_OVER_FORMAT,
    HandOver,
    Receiver,
    StopListening,
    encode,
    send_with_descriptors,
)
from meshgate.adapters.relay.pool import RelayPool
from meshgate.adapters.relay.sandbox import Mode
from meshgate.adapters.relay.worker_process import Gauges, WorkerEnd, WorkerPolicy
from meshgate.core.reasons import StreamEnd
from meshgate.core.routes import RouteKind

from .streams import WEB, Watcher, backend, echo, endpoint, open_descriptors, receive_all, receive_exactly, table_of
from .test_pool import HELLO, KEY, Pool, pool_of

RECORDED = Path(__file__).parents[2] / "data" / "handed-streams"

# --- both sides, without a stream -------------------------------------------------------------------------------------


class Half:
    """A stream as one side has it: `state` is `runs`, `frozen` or `gone`."""

    def __init__(self, number: int, descriptor: int, state: str) -> None:
        self.number = number
        self.descriptor = descriptor
        self.state = state
        self.was_frozen = False

    def freeze(self) -> tuple[HandedStream, list[int]]:
        assert self.state == "runs"
        self.state, self.was_frozen = "frozen", True
        leg = HandedLeg(received=0, touched=0.0)
        record = HandedStream(id=self.number, client=("192.0.2.1", 1), listener="", started=0.0, from_client=leg)
        return record, [self.descriptor]

    def thaw(self) -> None:
        assert self.state == "frozen"
        self.state = "runs"

    def let_go(self) -> None:
        assert self.state == "frozen"
        self.state = "gone"

    def take_over(self) -> None:
        self.thaw()

    def drop(self) -> None:
        self.let_go()
        os.close(self.descriptor)

    def on_defect(self) -> None:
        raise AssertionError from sys.exc_info()[1]


class Sides:
    """An old and a new worker, and the socket pair between them. `die` ends one of them as the kernel would."""

    def __init__(self, streams: int) -> None:
        self.spare = os.open("/dev/null", os.O_RDONLY)
        self.old = [Half(number, self.spare, "runs") for number in range(streams)]
        self.new: dict[int, Half] = {}
        self.accused: list[str] = []
        one, other = socket.socketpair()
        self.channels = [trio.SocketStream(trio.socket.from_stdlib_socket(each)) for each in (one, other)]
        self.hands_over = HandsOver(self.channels[0], self.accuse)
        self.takes_over = TakesOver(self.channels[1], self.rebuild, self.accuse)

    async def accuse(self, why: str) -> None:
        self.accused.append(why)

    def rebuild(self, was: HandedStream, descriptors: Sequence[int]) -> Half:
        (descriptor,) = descriptors
        half = self.new[was.id] = Half(was.id, descriptor, "frozen")
        return half

    def running(self) -> tuple[list[int], list[int]]:
        old = [half.number for half in self.old if half.state == "runs"]
        new = [half.number for half in self.new.values() if half.state == "runs"]
        assert not set(old) & set(new), "two workers move the bytes of one stream"
        return old, new

    def close(self) -> None:
        for channel in self.channels:
            channel.socket.close()
        for half in self.new.values():
            if half.state != "gone":
                os.close(half.descriptor)
        os.close(self.spare)


@contextmanager
def sides(streams: int) -> Iterator[Sides]:
    before = open_descriptors()
    both = Sides(streams)
    try:
        yield both
    finally:
        both.close()
    assert open_descriptors() == before


async def test_all_streams_go_in_batches() -> None:
    with sides(3 * BATCH_STREAMS + 1) as both:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(both.hands_over.run, both.old, 1000)
            nursery.start_soon(both.takes_over.run)
        assert both.running() == ([], [*range(3 * BATCH_STREAMS + 1)])
        assert both.hands_over.handed == 193
        assert (both.hands_over.why, both.takes_over.why, both.accused) == ("", "", [])


async def test_no_more_streams_go_than_are_wanted() -> None:
    with sides(100) as both:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(both.hands_over.run, both.old, 70)
            nursery.start_soon(both.takes_over.run)
        old, new = both.running()
        assert (len(old), len(new)) == (30, 70)


class Mortal:
    """Runs one side until it has sent or got so many messages, and then lets it die in the midst of that."""

    def __init__(self, both: Sides, which: int, steps: int) -> None:
        self.both, self.which, self.left = both, which, steps
        self.scope = trio.CancelScope()

    async def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            self.scope.cancel()
            await trio.sleep_forever()

    async def run(self, side: HandsOver | TakesOver, work: Callable[..., Awaitable[None]], *args: Any) -> None:
        receiver, send = side._receiver, side._channel.send_all
        next_ = receiver.next

        async def getting() -> object:
            await self._step()
            message = await next_()
            await self._step()
            return message

        async def sending(data: bytes) -> None:
            await self._step()
            await send(data)
            await self._step()

        setattr(receiver, "next", getting)  # noqa: B010 (its type says that nobody does)
        setattr(side._channel, "send_all", sending)  # noqa: B010
        with self.scope:
            await work(*args)
        if self.scope.cancelled_caught:
            self._die()

    def _die(self) -> None:
        both = self.both
        both.channels[self.which].socket.close()
        mine = both.old if self.which == 0 else [*both.new.values()]
        for half in mine:
            if half.state != "gone" and self.which:
                os.close(half.descriptor)
            half.state = "gone"


@pytest.mark.parametrize("which", [0, 1], ids=["old", "new"])
async def test_whoever_dies_when_the_other_one_has_what_it_should(which: int) -> None:
    survived: set[int] = set()
    for steps in range(100):
        with sides(2 * BATCH_STREAMS) as both:
            mortal = Mortal(both, which, steps)
            async with trio.open_nursery() as nursery:
                if which:
                    nursery.start_soon(both.hands_over.run, both.old, 1000)
                    nursery.start_soon(mortal.run, both.takes_over, both.takes_over.run)
                else:
                    nursery.start_soon(both.takes_over.run)
                    nursery.start_soon(mortal.run, both.hands_over, both.hands_over.run, both.old, 1000)
            old, new = both.running()
            assert not any(half.state == "frozen" for half in (*both.old, *both.new.values()))
            if which:
                # What it had not been told to be its own stays with the old one.
                assert len(old) == 2 * BATCH_STREAMS - both.hands_over.handed
            survived.add(len(old) + len(new))
        if not mortal.scope.cancelled_caught:
            break
    else:
        pytest.fail("it never came to its end")
    assert len(survived) >= 2
    assert survived <= {0, BATCH_STREAMS, 2 * BATCH_STREAMS}


async def until_accused(both: Sides) -> None:
    with trio.fail_after(10):
        while not both.accused:
            await trio.sleep(0.01)


@pytest.mark.parametrize(
    "said", [b"\x00\x00\x00\x01\xc1", b"\xff\xff\xff\xff", encode(Prepared(7)), encode(Yours(1))], ids=str
)
async def test_old_worker_that_hears_nonsense_keeps_its_streams_when_the_new_one_has_ended(said: bytes) -> None:
    with sides(3) as both:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(both.hands_over.run, both.old, 1000)
            await both.channels[1].receive_some()
            await both.channels[1].send_all(said)
            await until_accused(both)
            # It may have prepared them, and believe whatever it likes.
            assert both.running() == ([], [])
            both.channels[1].socket.close()
        assert both.running() == ([0, 1, 2], [])
        assert "no sense" in both.hands_over.why


async def test_who_hangs_is_accused_and_what_it_had_not_got_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hand_over, "PATIENCE", 0.05)
    with sides(3) as both:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(both.hands_over.run, both.old, 1000)
            await until_accused(both)
            assert both.running() == ([], [])
            both.channels[1].socket.close()
        assert both.running() == ([0, 1, 2], [])


async def test_old_worker_that_hangs_is_accused_and_its_prepared_streams_start_with_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hand_over, "PATIENCE", 0.05)
    with sides(3) as both:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(both.takes_over.run)
            await offer(both)
            await until_accused(both)
            assert both.running()[1] == []
            both.channels[0].socket.close()
        assert both.running()[1] == [0, 1, 2]


async def offer(both: Sides, descriptors: int = 3) -> None:
    records = [half.freeze()[0] for half in both.old]
    data = encode(Batch(HAND_OVER_FORMAT, 1, records))
    await send_with_descriptors(both.channels[0], data, [both.spare] * descriptors)


@pytest.mark.parametrize(
    "said",
    [b"\x00\x00\x00\x01\xc1", encode(Yours(2)), encode(Over()), encode(Prepared(1)), b"\xff\xff\xff\xff"],
    ids=str,
)
async def test_new_worker_that_hears_nonsense_lets_go_of_what_it_has_prepared(said: bytes) -> None:
    with sides(3) as both:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(both.takes_over.run)
            await offer(both)
            await both.channels[0].receive_some()
            await both.channels[0].send_all(said)
        assert [half.state for half in both.new.values()] == ["gone"] * 3
        assert await both.channels[0].receive_some() == b""


@pytest.mark.parametrize("descriptors", [1, 2, 4])
async def test_batch_whose_descriptors_do_not_fit_is_declined(descriptors: int) -> None:
    with sides(3) as both:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(both.takes_over.run)
            await offer(both, descriptors)
            answer = await Receiver(both.channels[0], TO_OLD).next()
            assert isinstance(answer, Declined)
            await both.channels[0].send_all(encode(Over()))
        assert both.running()[1] == []


async def test_batch_of_which_one_stream_cannot_be_rebuilt_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    with sides(BATCH_STREAMS + 5) as both:
        rebuild = both.rebuild

        def failing(was: HandedStream, descriptors: Sequence[int]) -> Half:
            if was.id == 7:
                raise MemoryError
            return rebuild(was, descriptors)

        monkeypatch.setattr(both.takes_over, "_rebuild", failing)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(both.hands_over.run, both.old, 1000)
            nursery.start_soon(both.takes_over.run)
        old, new = both.running()
        assert (old, new) == ([*range(BATCH_STREAMS)], [*range(BATCH_STREAMS, BATCH_STREAMS + 5)])
        assert both.hands_over.handed == 5
        assert "out of memory" in both.hands_over.why


async def test_where_nothing_is_taken_not_all_streams_are_stopped_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_was: HandedStream, _descriptors: Sequence[int]) -> Half:
        raise OSError("no descriptors")

    with sides(10 * BATCH_STREAMS) as both:
        monkeypatch.setattr(both.takes_over, "_rebuild", failing)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(both.hands_over.run, both.old, 1000)
            nursery.start_soon(both.takes_over.run)
        assert both.running() == ([*range(10 * BATCH_STREAMS)], [])
        assert sum(half.was_frozen for half in both.old) == 3 * BATCH_STREAMS


# --- the format -------------------------------------------------------------------------------------------------------

numbers = st.integers(0, 1 << 53)
texts = st.text(max_size=100)
times = st.floats(0, 1e10)
legs = st.builds(
    HandedLeg,
    received=numbers,
    touched=times,
    eof=st.booleans(),
    until_eagain=st.booleans(),
    flows=st.booleans(),
    large_reads=numbers,
    held=st.none() | st.binary(max_size=1000),
    piped=st.integers(0, 1 << 20),
)
addresses = st.tuples(texts, st.integers(0, 65535))
handed = st.builds(
    HandedStream,
    id=st.integers(0, (1 << 63) - 1),
    client=addresses,
    listener=texts,
    started=times,
    from_client=legs,
    per_client=st.booleans(),
    charged=texts,
    attempts=numbers,
    hello=st.binary(max_size=1000),
    looked_up=st.booleans(),
    route=st.none() | st.builds(HandedRoute, texts, st.sampled_from(RouteKind), texts, addresses),
    from_endpoint=st.none() | legs,
    server_name=st.none() | texts,
    alpn=st.lists(texts, max_size=5).map(tuple),
    departed=times,
    opening=numbers,
    asked_at=numbers,
    settled=st.booleans(),
)


@given(st.builds(Batch, st.just(HAND_OVER_FORMAT), numbers, st.lists(handed, min_size=1, max_size=4)))
def test_streams_are_read_as_they_were_written(batch: Batch) -> None:
    assert TO_NEW.decode(encode(batch)[4:]) == batch


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_garbage_is_refused_by_the_decoder_or_is_a_message(data: bytes) -> None:
    for decoder in (TO_NEW, TO_OLD):
        try:
            message = decoder.decode(data)
        except (ValueError, RecursionError):
            continue
        assert isinstance(message, Batch | Yours | Over | Prepared | Declined)


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": -1}, {"client": ["192.0.2.1", 70_000]}, {"started": -1.0}, {"started": float("nan")}, {"attempts": -1},
        {"hello": bytes(1 << 22)}, {"alpn": ["h2"] * 65}, {"listener": "x" * 2000}, {"opening": 1 << 60},
        {"from_client": {"received": -1, "touched": 0.0}},
        {"from_client": {"received": 0, "touched": 0.0, "piped": -1}},
        {"from_client": {"received": 0, "touched": 0.0, "held": bytes(1 << 22)}},
        {"route": {"sni": "", "kind": "invented", "destination": "", "endpoint": ["", 1]}},
    ],
    ids=lambda wrong: next(iter(wrong)),
)  # fmt: skip
def test_what_is_out_of_bounds_is_refused(wrong: dict[str, object]) -> None:
    leg = {"received": 0, "touched": 0.0}
    stream = {"id": 1, "client": ["192.0.2.1", 1], "listener": "", "started": 0.0, "from_client": leg}
    batch = {"type": "Batch", "format": 1, "number": 1}
    TO_NEW.decode(msgspec.msgpack.encode(batch | {"streams": [stream]}))
    with pytest.raises(msgspec.ValidationError):
        TO_NEW.decode(msgspec.msgpack.encode(batch | {"streams": [stream | wrong]}))


@pytest.mark.parametrize("format_", [0, HAND_OVER_FORMAT + 1])
def test_another_format_is_refused(format_: int) -> None:
    leg = {"received": 0, "touched": 0.0}
    stream = {"id": 1, "client": ["192.0.2.1", 1], "listener": "", "started": 0.0, "from_client": leg}
    with pytest.raises(msgspec.ValidationError):
        TO_NEW.decode(msgspec.msgpack.encode({"type": "Batch", "format": format_, "number": 1, "streams": [stream]}))


# --- worker processes -------------------------------------------------------------------------------------------------


async def test_replaced_worker_hands_its_streams_over_and_ends() -> None:
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, workers=1) as pool:
        clients = [await pool.call() for _ in range(100)]
        (old,) = pool.relay.workers
        ids = {stream.id for stream in (await pool.relay.connections()).listed}
        before = (await pool.relay.counters()).bytes_received
        assert before == 100 * len(HELLO)
        moved = await pool.relay.replace(0)
        assert (moved.streams, moved.left, moved.why) == (100, 0, "")
        await until_gone(pool, old)
        assert {stream.id for stream in (await pool.relay.connections()).listed} == ids
        # Each of the two has counted what it has moved.
        counters = await pool.relay.counters()
        assert (counters.bytes_received, counters.carried) == (before, {KEY: (before, before)})
        assert await broken(clients) == 0
        counters = await pool.relay.counters()
        assert (counters.active, counters.accepted, counters.open) == (100, 100, {KEY: 100})
        assert counters.bytes_received == counters.bytes_sent > before
        assert counters.carried == {KEY: (counters.bytes_received, counters.bytes_sent)}
        for client in clients:
            await client.aclose()
        await until_none(pool)
        assert len(pool.watcher.ended) == 100
        totals = pool.relay.totals
        assert (totals.ends, totals.carried) == ({StreamEnd.CLOSED: 100}, counters.carried)
        assert sum(pool.relay.restarts.values()) == 0


# What a worker does, as another user; all is imported before, as that user may read nothing here.
AS_NOBODY = """
import os, signal, sys
from meshgate.adapters.relay import worker
from meshgate.adapters.relay.sandbox import Mode
worker._import_all()
os.setgroups([]), os.setgid(65534), os.setuid(65534)
for number in worker.SIGNALS:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, worker.SIGNALS)
worker.main(int(sys.argv[1]), Mode(sys.argv[2]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root, to become somebody else")
async def test_workers_without_privileges_hand_over_as_well() -> None:
    policy = WorkerPolicy(command=(sys.executable, "-P", "-c", AS_NOBODY))
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, workers=1, policy=policy) as pool:
        clients = [await pool.call() for _ in range(200)]
        moved = await pool.relay.replace(0)
        assert (moved.streams, moved.left, moved.why) == (200, 0, "")
        assert await broken(clients) == 0
        for client in clients:
            await client.aclose()
        await until_none(pool)


async def broken(clients: list[trio.SocketStream]) -> int:
    """How many of these streams do not echo any more."""
    count = 0
    for number, client in enumerate(clients):
        said = str(number).encode() * 100
        try:
            with trio.fail_after(20):
                await client.send_all(said)
                assert await receive_exactly(client, len(said)) == said
        except (trio.BrokenResourceError, EOFError, AssertionError):
            count += 1
    return count


async def until_gone(pool: Pool, pid: int) -> None:
    with trio.fail_after(20):
        while pid in pool.relay.workers:
            await trio.sleep(0.01)


async def until_none(pool: Pool) -> None:
    with trio.fail_after(20):
        while (await pool.relay.counters()).active:
            await trio.sleep(0.02)


async def test_bytes_that_wait_an_urgent_mark_among_them_and_the_end_behind_them_go_along() -> None:
    """The endpoint reads nothing until another worker has the stream: what is held, in a pipe or in a socket waits."""
    reads, seen = trio.Event(), []

    async def late(stream: trio.SocketStream) -> None:
        await stream.send_all(b"answer")
        await stream.send_eof()
        await reads.wait()
        seen.append(await receive_all(stream))

    said, sent = random.Random(14).randbytes(1 << 20), bytearray(HELLO)
    async with backend(late) as port, pool_of({WEB: [endpoint(port)]}, workers=1) as pool:
        async with await pool.dial() as client:
            await client.send_all(HELLO)
            assert await receive_all(client) == b"answer"
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
            while True:  # Until nobody takes any more.
                with trio.move_on_after(0.5) as waited:
                    sent += said[: await client.socket.send(said)]
                if waited.cancelled_caught:
                    break
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 17)
            with trio.move_on_after(2):  # Mostly there is room for one more by now.
                await client.socket.send(b"!", socket.MSG_OOB)
            for _ in range(2):
                moved = await pool.relay.replace(0)
                assert (moved.streams, moved.left) == (1, 0)
            reads.set()
            await client.send_all(b"behind it")
            await client.send_eof()
            with trio.fail_after(20):
                while not seen:
                    await trio.sleep(0.01)
        assert seen == [bytes(sent + b"behind it")]
        await until_none(pool)
        (record,) = pool.watcher.ended
        assert (record.end, record.bytes_received, record.bytes_sent) == (StreamEnd.CLOSED, len(seen[0]), 6)


async def test_limits_hold_for_streams_that_were_handed_over() -> None:
    limits = Limits(max_connections_per_client=3, max_connections_per_destination=5)
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, workers=2, limits=limits) as pool:
        clients = [await pool.call() for _ in range(3)]
        for number in (0, 1, 0):
            await pool.relay.replace(number)
            await until_gone_all(pool, 2)
            async with await pool.dial() as refused:
                assert await receive_all(refused) == b""
        for client in clients:
            await client.aclose()
        await until_none(pool)
        # All is given back, in whichever worker's row it was.
        clients = [await pool.call() for _ in range(3)]
        for client in clients:
            await client.aclose()
        await until_none(pool)


async def until_gone_all(pool: Pool, workers: int) -> None:
    with trio.fail_after(20):
        while len(pool.relay.workers) > workers:
            await trio.sleep(0.01)


async def test_stream_keeps_a_route_that_is_gone() -> None:
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, workers=1) as pool:
        async with await pool.call() as client:
            pool.relay.install(table_of({}))
            await pool.relay.replace(0)
            assert await broken([client]) == 0
            (stream,) = (await pool.relay.connections()).listed
            assert (stream.route, stream.endpoint) == (WEB, f"127.0.0.1:{port}")
            assert (await pool.relay.counters()).open == {(RouteKind.SERVICE, "web"): 1}
        await until_none(pool)
        assert pool.watcher.ended[0].route == WEB


async def test_long_streams_that_were_handed_over_are_known_once_should_their_worker_be_lost() -> None:
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, workers=1) as pool:
        clients = [await pool.call() for _ in range(5)]
        with trio.fail_after(30):
            while pool.settled < 5:
                await trio.sleep(0.05)
            (old,) = pool.relay.workers
            await pool.relay.replace(0)
            await until_gone(pool, old)
            assert pool.settled == 5
            assert pool.watcher.ended == []
            os.kill(pool.relay.workers[0], signal.SIGKILL)
            while len(pool.watcher.ended) < 5:
                await trio.sleep(0.05)
        assert [record.end for record in pool.watcher.ended] == [StreamEnd.WORKER_LOST] * 5
        assert min(record.duration for record in pool.watcher.ended) > 2
        assert pool.relay.totals.ends == {StreamEnd.WORKER_LOST: 5}
        for client in clients:
            client.socket.close()


async def test_worker_that_cannot_be_started_takes_nobodys_place() -> None:
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, workers=1) as pool:
        clients = [await pool.call() for _ in range(5)]
        before = pool.relay.workers
        pool.policy.command = ("/bin/false",)
        with pytest.raises(Exception, match="exit code 1"):
            await pool.relay.replace(0)
        with trio.fail_after(20):
            while pool.relay.workers != before:
                await trio.sleep(0.01)
        assert await broken(clients) == 0
        for client in clients:
            await client.aclose()


async def test_pool_grows_and_shrinks_and_no_stream_notices() -> None:
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, workers=1) as pool:
        clients = [await pool.call() for _ in range(20)]
        await pool.relay.resize(3)
        assert len(pool.relay.loads) == 3
        clients += [await pool.call() for _ in range(40)]
        await pool.relay.resize(2)
        await pool.relay.resize(1)
        await until_gone_all(pool, 1)
        assert {stream.worker for stream in (await pool.relay.connections()).listed} == {0}
        assert await broken(clients) == 0
        counters = await pool.relay.counters()
        assert (counters.active, counters.accepted, counters.ends) == (60, 60, {})
        for client in clients:
            await client.aclose()


async def test_worker_with_most_of_the_streams_shares_them_and_goes_on() -> None:
    policy = WorkerPolicy()
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, workers=1, policy=policy) as pool:
        clients = [await pool.call() for _ in range(60)]
        ids = {stream.id for stream in (await pool.relay.connections()).listed}
        await pool.relay.resize(3)
        before = pool.relay.workers
        policy.look = 0.05
        pool.relay.reshape(3, policy.sandbox)  # From here on it looks so often.
        with structlog.testing.capture_logs() as logs, trio.fail_after(30):
            while [active for _, active in pool.relay.loads] != [20, 20, 20] or not logs:  # It is told behind that.
                await trio.sleep(0.02)
        assert [(entry["worker"], entry["streams"]) for entry in logs] == [(0, 40)]
        assert pool.relay.workers == before
        assert {stream.id for stream in (await pool.relay.connections()).listed} == ids
        assert await broken(clients) == 0
        for worker in pool.relay._workers[1:]:
            worker.send(encode(StopListening()))
        await pool.until_workers(3)
        clients += [await pool.call() for _ in range(5)]  # It takes clients as before.
        assert await broken(clients) == 0
        counters = await pool.relay.counters()
        assert (counters.active, counters.accepted, counters.ends) == (65, 65, {})
        for client in clients:
            await client.aclose()


async def test_streams_that_may_be_over_soon_stay_where_they_are() -> None:
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, workers=1) as pool:
        clients = [await pool.call() for _ in range(30)]
        await pool.relay.resize(2)
        one, other = pool.relay._workers
        assert (await pool.relay._move(one, other, HandOver(15, stays=True, seconds=3600.0))).streams == 0
        assert (await pool.relay._move(one, other, HandOver(15, stays=True))).streams == 15
        assert await broken(clients) == 0
        for client in clients:
            await client.aclose()


@pytest.mark.parametrize(
    ("active", "crowded"),
    [([0], None), ([500], None), ([20, 0], None), ([21, 0], 0), ([10, 10, 40], 2), ([200, 100], None), ([100, 201], 1)],
)
def test_worker_has_most_of_the_streams(active: list[int], crowded: int | None) -> None:
    pool = RelayPool(len(active), Limits(), Watcher(), 5.0)
    for worker, streams in zip(pool._workers, active, strict=True):
        worker._gauges = Gauges(streams)
    assert pool._most_crowded() is (None if crowded is None else pool._workers[crowded])
    pool._counts.close()


# A worker that has much more memory, some time after its start: the first one that there is.
GROWS = """
import os, signal, sys
from meshgate.adapters.relay import worker
from meshgate.adapters.relay.sandbox import Mode
held = []
original = worker.Worker._tell
async def tell(self, question=None):
    if self._relay.context.streams and not held:
        try:
            os.close(os.open(sys.argv[1], os.O_CREAT | os.O_EXCL))
            held.append(b"x" * (200 << 20))
        except FileExistsError:
            held.append(b"")
    await original(self, question)
worker.Worker._tell = tell
for number in worker.SIGNALS:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, worker.SIGNALS)
worker.main(int(sys.argv[2]), Mode(sys.argv[3]))
"""


async def test_worker_whose_memory_has_grown_is_replaced_once_and_no_stream_notices(tmp_path: Path) -> None:
    program = (sys.executable, "-P", "-c", GROWS, str(tmp_path / "grown"))
    policy = WorkerPolicy(command=program, sandbox=Mode.OFF, memory=150 << 20, look=0.1)
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, workers=1, policy=policy) as pool:
        (old,) = pool.relay.workers
        with trio.fail_after(30):
            while not pool.relay._workers[0].memory.lasting:
                await trio.sleep(0.02)
        with structlog.testing.capture_logs() as logs:
            clients = [await pool.call() for _ in range(20)]
            await until_gone(pool, old)
            with trio.fail_after(30):
                while not pool.relay._workers[0].memory.lasting:
                    await trio.sleep(0.02)
        grown = [entry["bytes"] for entry in logs if "has grown" in entry["event"]]
        assert len(grown) == 1
        assert grown[0] > policy.memory
        assert {cause: number for cause, number in pool.relay.restarts.items() if number} == {WorkerEnd.MEMORY: 1}
        assert pool.relay.problems() == []
        assert await broken(clients) == 0
        counters = await pool.relay.counters()
        assert (counters.active, counters.accepted, counters.ends) == (20, 20, {})
        for client in clients:
            await client.aclose()


async def test_worker_that_needs_its_memory_is_not_replaced_and_that_is_told() -> None:
    policy = WorkerPolicy(memory=1 << 20)
    async with pool_of({}, workers=1, policy=policy) as pool:
        before = pool.relay.workers
        assert pool.relay.problems() == []
        for _ in range(10):
            await pool.relay._replace_grown()
        (problem,) = pool.relay.problems()
        assert re.fullmatch(
            r"relay worker 0 has \d+ MiB of memory, and may have 1 MiB: its streams need as much", problem
        )
        assert pool.relay.workers == before
        policy.memory = 0
        assert pool.relay.problems() == []


async def test_pool_takes_another_shape_when_it_is_told_to() -> None:
    policy = WorkerPolicy(sandbox=Mode.OFF)
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, workers=1, policy=policy) as pool:
        clients = [await pool.call() for _ in range(10)]
        before = set(pool.relay.workers)
        pool.relay.reshape(2, Mode.AUTO)
        with trio.fail_after(30):
            while len(pool.relay.workers) != 2 or before & set(pool.relay.workers):
                await trio.sleep(0.02)
        assert policy.sandbox is Mode.AUTO
        policy.command = ("/bin/false",)
        pool.relay.reshape(3, Mode.OFF)
        with trio.fail_after(30):
            while not pool.relay.misshapen:
                await trio.sleep(0.02)
        assert "exit code 1" in pool.relay.misshapen
        assert (len(pool.relay.loads), policy.sandbox) == (2, Mode.AUTO)
        policy.command = WorkerPolicy().command
        pool.relay.reshape(1, Mode.AUTO)
        with trio.fail_after(30):
            while pool.relay.misshapen or len(pool.relay.workers) != 1:
                await trio.sleep(0.02)
        assert await broken(clients) == 0
        for client in clients:
            await client.aclose()


def test_recorded_batches_are_read_for_ever() -> None:
    recorded = sorted(RECORDED.glob("streams-*.msgpack"))
    assert len(recorded) == HAND_OVER_FORMAT
    for path in recorded:
        batch = TO_NEW.decode(path.read_bytes())
        assert isinstance(batch, Batch)
        assert path.name == f"streams-{batch.format}.msgpack"
        assert [stream.descriptors for stream in batch.streams] == [1, 1, 2, 6]
        assert batch.streams[1].hello.startswith(HELLO[:3])
        assert len(batch.streams[1].hello) == batch.streams[1].from_client.received == 100
        assert batch.streams[3].route is not None
        assert batch.streams[3].route.kind is RouteKind.DATACENTER
        assert batch.streams[3].from_client.piped == 65536
