"""Addresses that are added and taken back while workers run, and no stream that notices."""

import contextlib
import errno
import itertools
import os
import resource
import signal
import socket
from pathlib import Path

import pytest
import structlog.testing
import trio

from meshgate.adapters.relay import Limits
from meshgate.adapters.relay.messages import TO_WORKER, FdMessage, RemoveListener
from meshgate.adapters.relay.pool import RelayPool
from meshgate.adapters.relay.worker_process import drop_unsent

from .streams import WEB, Watcher, backend, echo, endpoint, hello_for, open_descriptors, receive_exactly
from .test_pool import Pool, pool_of

HELLO = hello_for(WEB)


async def call(port: int) -> trio.SocketStream:
    """An open stream by the listener at `port`, through to the echoing endpoint."""
    client = await trio.open_tcp_stream("127.0.0.1", port)
    await client.send_all(HELLO)
    assert await receive_exactly(client, len(HELLO)) == HELLO
    return client


def holders(pool: Pool) -> list[bool]:
    """Whether each worker has the socket of the pool's newest listener."""
    inode = os.fstat(pool.relay._sockets[-1][1].fileno()).st_ino
    return [f"socket:[{inode}]" in sockets_of(pid) for pid in pool.relay.workers]


def sockets_of(pid: int) -> set[str]:
    found = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # It was closed meanwhile.
            found.add(os.readlink(each))
    return found


async def until_all_hold(pool: Pool) -> None:
    with trio.fail_after(20):
        while holders(pool) != [True, True]:
            await trio.sleep(0.02)


async def test_address_that_is_added_is_served_by_every_worker_and_by_their_successors() -> None:
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}) as pool:
        _, late = pool.relay.bind("late", "127.0.0.1", 0)
        await until_all_hold(pool)
        await (await call(late)).aclose()
        for slot in pool.relay._workers:
            pid = slot.pid
            os.kill(pid, signal.SIGKILL)
            with trio.fail_after(20):
                while slot.pid in (0, pid):
                    await trio.sleep(0.02)
            await pool.until_workers(2)
            await until_all_hold(pool)
        await (await call(late)).aclose()
        await (await call(pool.port)).aclose()


async def test_address_that_is_taken_back_refuses_new_clients_and_keeps_its_streams() -> None:
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}) as pool:
        _, late = pool.relay.bind("late", "127.0.0.1", 0)
        client = await call(late)
        pool.relay.unbind("127.0.0.1", late)
        with trio.fail_after(20):
            while await connects(late):
                await trio.sleep(0.02)
        await client.send_all(b"still here")
        assert await receive_exactly(client, 10) == b"still here"
        await client.aclose()
        await (await call(pool.port)).aclose()
        # It is free for others now, and for this gateway again.
        with trio.fail_after(20):
            while not free(late):
                await trio.sleep(0.02)
        assert pool.relay.bind("late", "127.0.0.1", late) == ("127.0.0.1", late)
        await (await call(late)).aclose()


async def connects(port: int) -> bool:
    try:
        await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
    except OSError:
        return False
    return True


def free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError:
            return False
    return True


async def test_addresses_that_come_and_go_leave_no_descriptor_behind() -> None:
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}) as pool:
        await pool.until_workers(2)
        before, workers_before = open_descriptors(), worker_descriptors(pool)
        for _ in range(20):
            _, late = pool.relay.bind("late", "127.0.0.1", 0)
            pool.relay.unbind("127.0.0.1", late)
        with trio.fail_after(20):
            while (open_descriptors(), worker_descriptors(pool)) != (before, workers_before):
                await trio.sleep(0.02)


async def test_descriptor_that_its_worker_never_got_is_closed() -> None:
    before = open_descriptors()
    outbox, inbox = trio.open_memory_channel[bytes | FdMessage](10)
    with socket.socket() as sock:
        outbox.send_nowait(b"a message")
        outbox.send_nowait(FdMessage(b"an address", sock.fileno()))
    drop_unsent(inbox)
    assert open_descriptors() == before


async def test_address_of_which_a_worker_cannot_be_told_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_descriptor(_: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    before = open_descriptors()
    relay = RelayPool(1, Limits(), Watcher(), 5.0)
    relay._workers[0]._outbox, inbox = trio.open_memory_channel[bytes | FdMessage](10)
    with monkeypatch.context() as short, pytest.raises(OSError, match="Too many open files"):
        short.setattr(os, "dup", no_descriptor)
        relay.bind("late", "127.0.0.1", 0)
    assert relay.addresses == []
    told = inbox.receive_nowait()
    assert isinstance(told, bytes)
    assert isinstance(TO_WORKER.decode(told[4:]), RemoveListener)
    relay._counts.close()
    assert open_descriptors() == before


@pytest.mark.parametrize("left", [0, 1])
async def test_worker_without_a_descriptor_for_an_address_keeps_its_streams(left: int) -> None:
    """It may get lost on its way to the worker (0), or be more than it can hold ready to serve (1)."""
    with structlog.testing.capture_logs() as told:
        async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, workers=1) as pool:
            client = await call(pool.port)
            (pid,) = pool.relay.workers
            used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
            free = next(number for number in itertools.count() if number not in used)
            soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (free + left, hard))
            pool.relay.bind("late", "127.0.0.1", 0)
            with trio.fail_after(20):
                while not any("listener=late" in entry["event"] for entry in told):
                    await trio.sleep(0.02)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
            await client.send_all(b"still here")
            assert await receive_exactly(client, 10) == b"still here"
            assert pool.relay.workers == [pid]

            _, later = pool.relay.bind("later", "127.0.0.1", 0)  # Descriptors are not mixed up by that.
            await (await call(later)).aclose()
            await client.aclose()


def worker_descriptors(pool: Pool) -> list[int]:
    return [len(os.listdir(f"/proc/{pid}/fd")) for pid in pool.relay.workers]


async def test_address_in_use_is_an_error_and_harms_nothing() -> None:
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}) as pool:
        with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
            pool.relay.bind("late", "127.0.0.1", pool.port)
        await (await call(pool.port)).aclose()


async def test_address_that_is_added_before_clients_may_come_in_waits_with_the_others() -> None:
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}) as pool:
        pool.relay.stop_listening()
        _, late = pool.relay.bind("late", "127.0.0.1", 0)
        assert not await connects(late)
        pool.relay.listen()
        await (await call(late)).aclose()
