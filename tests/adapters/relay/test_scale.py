"""Thousands of clients at once, held by a process of their own: those that drip, and those that read nothing."""

import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from meshgate.adapters.relay.pump import HEAVY_READ_BYTES

from .gateway_process import GatewayProcess, gateway_process
from .streams import WEB, backend, echo, hello_for, receive_exactly

HELLO = hello_for(WEB)
DRIPPING = 2000
STALLED = 5000

pytestmark = [
    pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2 * STALLED + 1000, reason="few descriptors"),
]

_RAISE = """
import resource, socket, sys, time
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
"""

DRIP = (
    _RAISE
    + """
port, count, hello = int(sys.argv[1]), int(sys.argv[2]), bytes.fromhex(sys.argv[3])
clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
print("there", flush=True)
for position in range(len(hello) - 1):
    for client in clients:
        client.send(hello[position : position + 1])
    time.sleep(1)
"""
)

# Both ends of the streams: what the clients send is never read by the endpoint.
STALL = (
    _RAISE
    + """
count, hello = int(sys.argv[1]), bytes.fromhex(sys.argv[2])
endpoint = socket.socket()
endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
endpoint.bind(("127.0.0.1", 0))
endpoint.listen(4096)
print(endpoint.getsockname()[1], flush=True)
port = int(sys.stdin.readline())
clients, accepted = [], []
for number in range(count):
    client = socket.create_connection(("127.0.0.1", port))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    client.sendall(hello)
    accepted.append(endpoint.accept()[0])
    clients.append(client)
print("there", flush=True)
block, left, idle = bytes(65536), set(clients), 0
for client in clients:
    client.setblocking(False)
while idle < 8:
    moved = 0
    for client in clients:
        try:
            moved += client.send(block)
        except BlockingIOError:
            pass
    idle = 0 if moved else idle + 1
    time.sleep(0.05)
print("full", flush=True)
sys.stdin.readline()
"""
)


class Attacker:
    """The process that holds the clients."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    async def line(self) -> str:
        assert self._process.stdout is not None
        return (await trio.to_thread.run_sync(self._process.stdout.readline)).strip()

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()


@asynccontextmanager
async def attacker(script: str, *arguments: object) -> AsyncIterator[Attacker]:
    def start() -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", script, *map(str, arguments)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    process = await trio.to_thread.run_sync(start)
    try:
        yield Attacker(process)
    finally:
        process.kill()
        process.communicate()


async def serve_some(gateway: GatewayProcess, count: int) -> None:
    for _ in range(count):
        async with await gateway.dial() as client:
            await client.send_all(HELLO)
            assert await receive_exactly(client, len(HELLO)) == HELLO


async def test_two_thousand_clients_that_send_a_byte_a_second_leave_the_others_unaffected() -> None:
    async with backend(echo) as port, gateway_process(port) as gateway:
        async with attacker(DRIP, gateway.port, DRIPPING, HELLO.hex()) as dripping:
            with trio.fail_after(120):
                assert await dripping.line() == "there"
                while (await gateway.state()).active < DRIPPING:
                    await trio.sleep(0.05)
                for _ in range(5):
                    before = await gateway.state()
                    await serve_some(gateway, 40)
                    await trio.sleep(1)
                    # They do drip meanwhile; none of them is a stream.
                    assert (await gateway.state()).received > before.received
            state = await gateway.state()
            assert (state.active, state.errors) == (DRIPPING, 0)


async def test_memory_is_bounded_under_five_thousand_stalled_readers() -> None:
    bound = 16 << 20
    async with attacker(STALL, STALLED, HELLO.hex()) as stalled:
        async with gateway_process(int(await stalled.line()), held_bytes=bound) as gateway:
            stalled.tell(str(gateway.port))
            with trio.fail_after(300):
                assert await stalled.line() == "there"
                idle = await gateway.state()
                assert await stalled.line() == "full"
            state = await gateway.state()
            assert state.active == STALLED
            # All of them are held back, which without a bound takes 64 KiB for each: 312 MiB.
            assert 0 < state.held <= bound + HEAVY_READ_BYTES
            assert state.resident - idle.resident < 2 * bound
            assert state.errors == 0
