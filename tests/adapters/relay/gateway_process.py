"""A relay in a process of its own, for tests that measure a process or take something from it.

Each line on its standard input is answered with what it is like: streams, bytes, CPU time.
"""

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

GATEWAY = """
import json, resource, sys, time, trio
from meshgate.adapters.relay import Limits, pump
from meshgate.adapters.machine import raise_descriptor_limit
from tests.adapters.relay.streams import WEB, endpoint, open_descriptors, resident_bytes, running

async def main():
    port, descriptors, held = map(int, sys.argv[1:])
    raise_descriptor_limit()
    pump.HELD_BYTES = held or pump.HELD_BYTES
    async with running({WEB: [endpoint(port)]}, Limits(max_connections=9000, hello_timeout=600.0)) as gateway:
        if descriptors:
            resource.setrlimit(resource.RLIMIT_NOFILE, (open_descriptors() + descriptors, 4096))
        print(gateway.port, flush=True)
        while await trio.to_thread.run_sync(sys.stdin.readline):
            counters = gateway.counters()
            print(json.dumps({
                "active": counters.active, "shed": sum(counters.refused.values()),
                "errors": counters.internal_errors, "received": counters.bytes_received,
                "cpu": time.process_time(), "held": gateway.relay.context.pump.held,
                "resident": 0 if descriptors else resident_bytes(),
            }), flush=True)

trio.run(main)
"""


@dataclass(frozen=True)
class State:
    """What the process says of itself: streams, seconds, bytes."""

    active: int
    shed: int
    errors: int
    received: int
    cpu: float
    held: int
    resident: int


class GatewayProcess:
    """The running process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.port = 0

    async def dial(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def state(self) -> State:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return State(**json.loads(await self.line()))

    async def line(self) -> str:
        assert self._process.stdout is not None
        return await trio.to_thread.run_sync(self._process.stdout.readline)


@asynccontextmanager
async def gateway_process(
    backend_port: int, descriptors: int = 0, held_bytes: int = 0
) -> AsyncIterator[GatewayProcess]:
    """A relay whose one route leads to `backend_port`.

    With `descriptors` it has so many to spare, with `held_bytes` that bound of what it may hold for stalled readers.
    """

    def start() -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", GATEWAY, str(backend_port), str(descriptors), str(held_bytes)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    process = await trio.to_thread.run_sync(start)
    try:
        gateway = GatewayProcess(process)
        gateway.port = int(await gateway.line())
        yield gateway
    finally:
        process.kill()
        process.communicate()
