"""Clients whose streams wait until their name is learned."""

from typing import TYPE_CHECKING

import trio

from meshgate.adapters.relay import Relay
from meshgate.adapters.relay import learning as learning_module
from meshgate.adapters.relay import opening as opening_module

from .streams import WEB, Running, hello_for, receive_all, receive_exactly

if TYPE_CHECKING:
    import pytest

HELLO = hello_for(WEB)


def wait_for(seconds: float, monkeypatch: "pytest.MonkeyPatch") -> None:
    for module in (learning_module, opening_module):
        monkeypatch.setattr(module, "LEARN_SECONDS", seconds)


def wait_until_told(monkeypatch: "pytest.MonkeyPatch") -> None:
    """Nothing ends a wait but what a test does."""
    wait_for(60.0, monkeypatch)
    monkeypatch.setattr(learning_module, "AGAIN_SECONDS", 60.0)


def waiting(relay: Relay) -> int:
    return sum(len(question.waiting) for question in relay._engine.learning._questions.values())


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
    await it.until(lambda: it.relay.active == 0)
    assert waiting(it.relay) == 0
    assert it.relay._engine.placing.pending == 0
    assert it.relay._engine.connections() == []
    assert it.relay.counters().internal_errors == 0
