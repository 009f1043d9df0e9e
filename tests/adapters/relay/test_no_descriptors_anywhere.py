"""The system itself is out of descriptors (ENFILE), or memory: nothing can be accepted, nor shed, for a while."""

import errno
import logging
import socket
from typing import Any

import pytest
import trio

from meshgate.adapters.relay import sockets
from meshgate.adapters.relay.listener import Listener
from meshgate.adapters.relay.reactor import Reactor
from meshgate.core.reasons import Reason

from .streams import WEB, backend, echo, endpoint, hello_for, receive_exactly, running

HELLO = hello_for(WEB)


class Shortage:
    """Stands before every accept of the relay."""

    def __init__(self) -> None:
        self.lasts = False
        self.begins_behind_one = False
        self.calls = 0

    def __enter__(self) -> None:
        self.lasts = True

    def __exit__(self, *_error: object) -> None:
        self.lasts = False

    def before(self) -> None:
        self.calls += 1
        if self.lasts:
            raise OSError(errno.ENFILE, "Too many open files in system")


@pytest.fixture
def shortage(monkeypatch: pytest.MonkeyPatch) -> Shortage:
    shortage = Shortage()
    accept, accept_and_shed = sockets.accept, socket.socket.accept

    def accepting(*arguments: object) -> object:
        shortage.before()
        accepted = accept(*arguments)  # type: ignore[arg-type]
        shortage.lasts |= shortage.begins_behind_one
        return accepted

    def shedding(sock: socket.socket) -> object:
        shortage.before()
        return accept_and_shed(sock)

    monkeypatch.setattr(sockets, "accept", accepting)
    monkeypatch.setattr(socket.socket, "accept", shedding)
    return shortage


async def test_clients_wait_without_a_busy_loop_or_a_storm_of_lines_and_are_served_afterwards(
    shortage: Shortage, caplog: pytest.LogCaptureFixture
) -> None:
    async with backend(echo) as port, running({WEB: [endpoint(port)]}) as gateway:
        open_stream = await gateway.dial()
        await open_stream.send_all(HELLO)
        assert await receive_exactly(open_stream, len(HELLO)) == HELLO
        await open_stream.send_all(b"more")  # Who says nothing behind its hello goes when descriptors are short.
        assert await receive_exactly(open_stream, 4) == b"more"
        with shortage, caplog.at_level(logging.WARNING, "meshgate.relay"):
            before = shortage.calls
            waiting = [await gateway.dial() for _ in range(5)]
            for client in waiting:
                await client.send_all(HELLO)
            await trio.sleep(1.5)
            assert 0 < shortage.calls - before < 50
            assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
                "no descriptor or memory for new clients, they wait"
            ]
            await open_stream.send_all(b"alive")
            assert await receive_exactly(open_stream, 5) == b"alive"
        with trio.fail_after(20):
            for client in waiting:
                assert await receive_exactly(client, len(HELLO)) == HELLO
        assert gateway.refused == []
        for client in (open_stream, *waiting):
            await client.aclose()


async def test_nobody_is_cut_for_a_client_that_does_not_come(shortage: Shortage) -> None:
    """Without a descriptor the kernel does not look whether somebody waits: accept(2) fails all the same."""
    shortage.begins_behind_one = True
    async with backend(echo) as port, running({WEB: [endpoint(port)]}) as gateway, await gateway.dial() as client:
        await gateway.until(lambda: shortage.lasts and shortage.calls > 1)
        await client.send_all(HELLO)
        with trio.fail_after(20):
            assert await receive_exactly(client, len(HELLO)) == HELLO
        assert gateway.refused == []


async def test_a_line_says_why_clients_are_cut(shortage: Shortage, caplog: pytest.LogCaptureFixture) -> None:
    async with backend(echo) as port, running({WEB: [endpoint(port)]}) as gateway, await gateway.dial():
        await gateway.until(lambda: gateway.relay.context.counters.active == 1)
        with shortage, caplog.at_level(logging.WARNING, "meshgate.relay"):
            async with await gateway.dial():
                await gateway.until(lambda: bool(gateway.refused))
        assert [refused.reason for refused in gateway.refused][:1] == [Reason.HELLO_TIMEOUT]
        assert "descriptors are used up, clients are cut" in caplog.records[0].getMessage()


async def test_clients_are_let_in_as_soon_as_there_is_memory_to_wait_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [OSError(errno.ENOMEM, "Cannot allocate memory")] * 2
    watch = Reactor.watch

    def watching(reactor: Reactor, watched: Any, events: int) -> None:
        if isinstance(watched, Listener) and failures:
            raise failures.pop()
        watch(reactor, watched, events)

    monkeypatch.setattr(Reactor, "watch", watching)
    async with backend(echo) as port, running({WEB: [endpoint(port)]}) as gateway, await gateway.dial() as client:
        await client.send_all(HELLO)
        with trio.fail_after(20):
            assert await receive_exactly(client, len(HELLO)) == HELLO
        assert gateway.counters().internal_errors == 0
    assert not failures
