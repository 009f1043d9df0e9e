"""Endpoints that accept and then reset: a stream may be tried elsewhere until its hello is sent, and never after."""

import trio

from .streams import WEB, backend, echo, endpoint, hello_for, receive_exactly, reset, running

HELLO = hello_for(WEB)
STREAMS = 20


async def outcome(client: trio.SocketStream) -> bool:
    """Whether the stream was carried; False when it was reset or ended without an answer."""
    async with client:
        try:
            await client.send_all(HELLO)
            return await receive_exactly(client, len(HELLO)) == HELLO
        except trio.BrokenResourceError:
            return False


async def test_stream_whose_hello_was_taken_is_never_tried_elsewhere() -> None:
    taken, served = 0, 0

    async def takes_and_resets(stream: trio.SocketStream) -> None:
        nonlocal taken
        assert await receive_exactly(stream, len(HELLO)) == HELLO
        taken += 1
        reset(stream)

    async def serves(stream: trio.SocketStream) -> None:
        nonlocal served
        served += 1
        await echo(stream)

    async with backend(takes_and_resets) as bad, backend(serves) as good:
        async with running({WEB: [endpoint(bad), endpoint(good)]}) as gateway:
            with trio.fail_after(30):
                carried = [await outcome(await gateway.dial()) for _ in range(STREAMS)]
            await gateway.until(lambda: len(gateway.ended) == STREAMS, 20)
    assert (carried.count(True), carried.count(False)) == (served, taken)
    assert taken > 0
    assert served + taken == STREAMS
    assert {record.attempts for record in gateway.ended} == {1}


async def test_endpoint_that_resets_right_after_accept_costs_no_stream_that_was_not_sent_to_it() -> None:
    """Whether the reset or the hello is first is the kernel's choice; a stream never comes to two endpoints."""
    hellos = 0

    async def resets(stream: trio.SocketStream) -> None:
        reset(stream)

    async def serves(stream: trio.SocketStream) -> None:
        nonlocal hellos
        hellos += 1
        await echo(stream)

    async with backend(resets) as bad, backend(serves) as good:
        async with running({WEB: [endpoint(bad), endpoint(good)]}) as gateway:
            with trio.fail_after(30):
                carried = [await outcome(await gateway.dial()) for _ in range(STREAMS)]
            await gateway.until(lambda: len(gateway.ended) == STREAMS, 20)
            assert gateway.counters().internal_errors == 0
    assert carried.count(True) == hellos >= STREAMS // 2
    assert [record for record in gateway.ended if record.attempts == 2 and record.bytes_sent == 0] == []
