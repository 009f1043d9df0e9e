"""Clients whose streams wait for the lookup of their name."""

import trio

from meshgate.adapters.relay.relay import Relay

from .streams import WEB, Running, hello_for, receive_all, receive_exactly

HELLO = hello_for(WEB)


def waiting(relay: Relay) -> int:
    return sum(len(question.waiting) for question in relay.context.on_demand._questions.values())


async def waiter(it: Running, hello: bytes = HELLO) -> trio.SocketStream:
    """A client whose stream waits."""
    before, client = waiting(it.relay), await it.dial()
    await client.send_all(hello)
    await it.until(lambda: waiting(it.relay) == before + 1)
    return client


async def answer(client: trio.SocketStream, count: int) -> bytes:
    with trio.fail_after(20):
        return await receive_exactly(client, count)


async def refusal(client: trio.SocketStream) -> bytes:
    with trio.fail_after(20):
        return await receive_all(client)


async def until_over(it: Running) -> None:
    """Wait until no stream is left, and see that none left anything behind."""
    await it.until(lambda: it.active == 0)
    assert waiting(it.relay) == 0
    assert it.relay.context.breakers.pending == 0
    assert it.relay.context.streams == set()
    assert it.counters().internal_errors == 0
