"""The parent dies: its workers take no new streams, let the open ones end, and go."""

import signal
import subprocess
import sys
from pathlib import Path

import trio

from .streams import WEB, backend, echo, hello_for, receive_exactly

HELLO = hello_for(WEB)

PARENT = """
import sys, trio
from meshgate.adapters.relay import Limits
from meshgate.adapters.relay.pool import RelayPool
from tests.adapters.relay.streams import WEB, Watcher, endpoint, table_of

async def main():
    pool = RelayPool(1, Limits(), Watcher(), drain_seconds=float(sys.argv[2]))
    _, port = pool.bind("default", "127.0.0.1", 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run)
        pool.install(table_of({WEB: [endpoint(int(sys.argv[1]))]}))
        pool.listen()
        while not (await pool._ask(streams=False)).reports:
            await trio.sleep(0.02)
        print(port, pool.workers[0], flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


async def end_of(stream: trio.SocketStream) -> str:
    try:
        return "eof" if await stream.receive_some() == b"" else "data"
    except trio.BrokenResourceError:
        return "reset"


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def until_gone(pid: int, seconds: float) -> None:
    with trio.fail_after(seconds):
        while is_running(pid):
            await trio.sleep(0.02)


def orphaning(backend_port: int, drain_seconds: float) -> "subprocess.Popen[str]":
    arguments = [sys.executable, "-c", PARENT, str(backend_port), str(drain_seconds)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


async def start(backend_port: int, drain_seconds: float) -> tuple["subprocess.Popen[str]", int, int]:
    process = await trio.to_thread.run_sync(orphaning, backend_port, drain_seconds)
    assert process.stdout is not None
    port, worker = (int(word) for word in (await trio.to_thread.run_sync(process.stdout.readline)).split())
    return process, port, worker


async def test_open_streams_outlive_the_parent_and_the_worker_ends_with_them() -> None:
    async with backend(echo) as backend_port:
        process, port, worker = await start(backend_port, 30)
        with process:
            async with await trio.open_tcp_stream("127.0.0.1", port) as client:
                await client.send_all(HELLO)
                assert await receive_exactly(client, len(HELLO)) == HELLO
                process.send_signal(signal.SIGKILL)
                process.wait()
                with trio.fail_after(20):
                    while True:
                        try:
                            await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
                        except OSError:
                            break
                        await trio.sleep(0.02)
                await client.send_all(b"orphan")
                assert await receive_exactly(client, 6) == b"orphan"
                assert is_running(worker)
            await until_gone(worker, 20)


async def test_orphaned_worker_cuts_its_streams_after_the_drain_time() -> None:
    async with backend(echo) as backend_port:
        process, port, worker = await start(backend_port, 0.5)
        with process:
            async with await trio.open_tcp_stream("127.0.0.1", port) as client:
                await client.send_all(HELLO)
                assert await receive_exactly(client, len(HELLO)) == HELLO
                process.send_signal(signal.SIGKILL)
                with trio.fail_after(20):
                    assert await end_of(client) in ("eof", "reset")
            await until_gone(worker, 20)
