"""What comes to pass while a stream waits for the lookup of its name, and what it leaves behind."""

import gc
import os
from collections import Counter

import pytest
import trio
import trio.testing

from meshgate.adapters.relay import Limits, reactor as reactor_module
from meshgate.adapters.relay.stream import Stream
from meshgate.adapters.relay.stream_setup import Outcome, StreamSetup
from meshgate.core.reasons import Reason
from meshgate.core.routes import Route, RouteKind

from .streams import (
    TRUST_DOMAIN,
    WEB,
    backend,
    echo,
    endpoint,
    hello_for,
    open_descriptors,
    receive_all,
    reset,
    running,
    table_of,
)
from .test_endpoints import INTERNAL_ERROR, black_hole
from .waiters import HELLO, answer, refusal, until_over, waiter, waiting

ELSEWHERE = f"web.default.dc2.internal.{TRUST_DOMAIN}"


async def test_client_that_resets_while_it_waits_leaves_nothing_behind() -> None:
    async with backend(echo) as port, running({}, ask=lambda _: None) as it:
        it.relay.install(table_of({WEB: [endpoint(port)]}, stale=[WEB]))
        gc.collect()  # What earlier tests left is not to be missed later.
        descriptors = open_descriptors()
        clients = [await waiter(it) for _ in range(20)]
        for client in clients:
            reset(client)
        await until_over(it)
        gc.collect()
        assert open_descriptors() == descriptors
        await it.relay.lookup_done(WEB)
        assert it.counters().connections == {}
        assert it.relay.context.on_demand._questions == {}


async def test_client_that_sends_its_hello_and_resets_at_once_leaves_nothing_behind() -> None:
    """Both come with one event: the reset is told before the hello is read."""
    slow = f"slow.default.dc1.internal.{TRUST_DOMAIN}"
    with black_hole() as hole:
        async with running({}, Limits(connect_timeout=60.0), ask=lambda _: None) as it:
            it.relay.install(table_of({WEB: [], slow: [endpoint(hole)]}, stale=[WEB]))
            for hello in (HELLO, hello_for(slow)):
                client = await it.dial()
                await client.send_all(hello[:100])
                await it.until(lambda: [stream.bytes_received for stream in it.relay.connections()] == [100])
                os.write(client.socket.fileno(), hello[100:])
                reset(client)
                await until_over(it)


@pytest.mark.parametrize("known", [True, False])
async def test_client_that_closes_while_it_waits_leaves_nothing_behind(*, known: bool) -> None:
    async with backend(echo) as port, running({}, ask=lambda _: None) as it:
        it.relay.install(table_of({WEB: [endpoint(port)]} if known else {}, stale=[WEB]))
        for _ in range(10):
            await (await waiter(it)).aclose()
        await it.relay.lookup_done(WEB)
        await until_over(it)


async def test_client_loses_nothing_of_what_it_sends_while_it_waits() -> None:
    behind, later = b"behind" * 1000, b"later" * 100_000
    async with backend(echo) as port, running({}, ask=lambda _: None) as it:
        it.relay.install(table_of({WEB: [endpoint(port)]}, stale=[WEB]))
        async with await waiter(it, HELLO + behind) as client, trio.open_nursery() as nursery:

            async def send() -> None:
                await client.send_all(later)
                await client.send_eof()

            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked(0.05)
            await it.relay.lookup_done(WEB)
            with trio.fail_after(30):
                assert await receive_all(client) == HELLO + behind + later
        await until_over(it)


@pytest.mark.parametrize("sent", [b"", b"a word", b"x" * 40_000])
async def test_client_that_closes_its_side_while_it_waits_gets_its_answer(sent: bytes) -> None:
    async with backend(echo) as port, running({}, ask=lambda _: None) as it:
        it.relay.install(table_of({WEB: [endpoint(port)]}, stale=[WEB]))
        async with await waiter(it) as client:
            await client.send_all(sent)
            await client.send_eof()
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert waiting(it.relay) == 1
            await it.relay.lookup_done(WEB)
            with trio.fail_after(20):
                assert await receive_all(client) == HELLO + sent
        await until_over(it)


async def test_who_waits_is_not_silent() -> None:
    """Neither the time for the hello nor a lack of slots concerns a stream whose hello is complete."""
    limits = Limits(max_connections=4, hello_timeout=0.2)
    async with backend(echo) as port, running({}, limits, ask=lambda _: None) as it:
        it.relay.install(table_of({WEB: [endpoint(port)]}, stale=[WEB]))
        clients = [await waiter(it) for _ in range(4)]
        for _ in range(5):
            async with await it.dial() as late:
                assert await refusal(late) == b""
            it.relay.relieve()
        await trio.sleep(0.5)
        assert [refused.reason for refused in it.refused] == [Reason.MAX_CONNECTIONS] * 5
        assert waiting(it.relay) == 4
        await it.relay.lookup_done(WEB)
        for client in clients:
            assert await answer(client, len(HELLO)) == HELLO
            await client.aclose()
        await until_over(it)


async def test_deadline_of_the_wait_ends_with_it() -> None:
    limits = Limits(connect_timeout=60.0, idle_timeout=0.0)
    slow = f"slow.default.dc1.internal.{TRUST_DOMAIN}"
    with black_hole() as hole:
        async with backend(echo) as port, running({}, limits, ask=lambda _: None, patience=0.5) as it:
            it.relay.install(table_of({WEB: [endpoint(port)], slow: [endpoint(hole)]}, stale=[WEB, slow]))
            async with await it.dial() as client, await it.dial() as dialling:
                await client.send_all(HELLO)
                await dialling.send_all(hello_for(slow))
                await it.until(lambda: {WEB, slow} == it.relay.context.on_demand._questions.keys())
                for name in (WEB, slow):
                    await it.relay.lookup_done(name)
                assert await answer(client, len(HELLO)) == HELLO
                await it.until(lambda: it.relay.context.breakers.pending == 1)
                await trio.sleep(1.0)
                assert Counter(stream.state for stream in it.relay.connections()) == {"relaying": 1, "connecting": 1}
                await client.send_all(b"on")
                assert await answer(client, 2) == b"on"
                assert it.refused == []
                reset(dialling)
            await until_over(it)


async def test_limits_of_a_destination_count_streams_that_waited_as_any_others() -> None:
    limits = Limits(max_connections_per_destination=2, max_connections_per_client=100)
    async with backend(echo) as port, running({}, limits, ask=lambda _: None) as it:
        it.relay.install(table_of({WEB: [endpoint(port)]}, stale=[WEB]))

        def charged() -> int:
            return it.relay.context.breakers.counts.keyed(f"to {WEB}")

        for _ in range(2):
            clients = [await waiter(it) for _ in range(5)]
            assert charged() == 0
            await it.relay.lookup_done(WEB)
            assert charged() == 2
            for client in clients:
                await client.aclose()
            await until_over(it)
            assert charged() == 0
            it.relay.context.on_demand._done.clear()
        assert it.counters().refused == {Reason.MAX_CONNECTIONS: 6}


async def test_many_streams_are_placed_in_few_rounds_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round takes long where the relay is busy, and the worker obeys nobody meanwhile."""
    rounds = 0

    async def count() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            await trio.lowlevel.checkpoint()

    async with running({}, ask=lambda _: None) as it, trio.open_nursery() as nursery:
        clients = [await waiter(it) for _ in range(50)]
        nursery.start_soon(count)
        for seconds, fewest, most in ((60.0, 0, 5), (0.0, 40, 1000)):
            monkeypatch.setattr(reactor_module, "CHECKPOINT_SECONDS", seconds)
            if waiting(it.relay) == 0:
                it.relay.context.on_demand._done.clear()
                clients += [await waiter(it) for _ in range(50)]
            before = rounds
            await it.relay.lookup_done(WEB)
            assert fewest <= rounds - before <= most
        nursery.cancel_scope.cancel()
    for client in clients:
        await client.aclose()


@pytest.mark.parametrize("leave", ["abort", "close", "on_deadline"])
async def test_stream_that_ends_or_is_placed_while_others_are_placed_is_not_placed_again(
    leave: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reactor_module, "CHECKPOINT_SECONDS", 0.0)
    on_lookup_done = Stream.on_lookup_done
    async with backend(echo) as port, running({}, ask=lambda _: None) as it:
        it.relay.install(table_of({WEB: [endpoint(port)]}, stale=[WEB]))
        clients = [await waiter(it) for _ in range(5)]
        *_, last = it.relay.context.on_demand._questions[WEB].waiting

        def first_place(stream: Stream) -> None:
            monkeypatch.setattr(Stream, "on_lookup_done", on_lookup_done)
            getattr(last, leave)()
            on_lookup_done(stream)

        monkeypatch.setattr(Stream, "on_lookup_done", first_place)
        await it.relay.lookup_done(WEB)
        placed = 5 if leave == "on_deadline" else 4
        assert it.counters().connections == {(RouteKind.SERVICE, "web"): placed}
        assert it.active == placed
        for client in clients[:placed]:
            assert await answer(client, len(HELLO)) == HELLO
        for client in clients:
            await client.aclose()
        await until_over(it)


async def test_defect_in_placing_a_stream_that_waited_ends_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    place = StreamSetup._place
    async with backend(echo) as port, running({}, ask=lambda _: None) as it:
        it.relay.install(table_of({WEB: [endpoint(port)]}, stale=[WEB]))
        clients = [await waiter(it) for _ in range(3)]

        def fail(_self: StreamSetup[Stream], _route: Route | None) -> Outcome:
            monkeypatch.setattr(StreamSetup, "_place", place)
            raise RuntimeError("a defect")

        monkeypatch.setattr(StreamSetup, "_place", fail)
        await it.relay.lookup_done(WEB)
        with pytest.raises(trio.BrokenResourceError):
            await answer(clients[0], 1)
        for client in clients[1:]:
            assert await answer(client, len(HELLO)) == HELLO
        for client in clients:
            await client.aclose()
        await it.until(lambda: it.active == 0)
        assert it.counters().internal_errors == 1


async def test_relay_that_ends_while_streams_wait_tells_them() -> None:
    async with running({}, ask=lambda _: None) as it:
        clients = [await waiter(it) for _ in range(3)]
    for client in clients:
        assert await refusal(client) == INTERNAL_ERROR
        await client.aclose()
    assert [refused.reason for refused in it.refused] == [Reason.DRAINING] * 3
    assert (it.active, waiting(it.relay)) == (0, 0)
    await it.relay.lookup_done(WEB)
