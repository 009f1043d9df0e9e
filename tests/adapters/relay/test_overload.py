"""Out of descriptors: streams that are open live on, clients that wait are shed, nothing spins."""

import json
import subprocess
import sys
import time

import trio

from .streams import WEB, backend, echo, hello_for, receive_exactly

HELLO = hello_for(WEB)

# A relay with few descriptors, in a process of its own. A line on its standard input asks for its counters.
GATEWAY = """
import json, resource, sys, time, trio
from tests.adapters.relay.streams import WEB, endpoint, open_descriptors, running

async def main():
    async with running({WEB: [endpoint(int(sys.argv[1]))]}) as gateway:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_descriptors() + 12, 4096))
        print(gateway.port, flush=True)
        while await trio.to_thread.run_sync(sys.stdin.readline):
            counters = gateway.relay.counters()
            shed = counters.refused.get("max_connections", 0)
            print(json.dumps([counters.active, shed, counters.internal_errors, time.process_time()]), flush=True)

trio.run(main)
"""


async def test_running_out_of_descriptors_sheds_and_recovers() -> None:
    async with backend(echo) as port:
        process = await trio.to_thread.run_sync(
            lambda: subprocess.Popen(
                [sys.executable, "-c", GATEWAY, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        )
        try:
            await check_gateway(process)
        finally:
            process.kill()
            process.communicate()


async def check_gateway(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    to_gateway, from_gateway = process.stdin, process.stdout

    async def counters() -> tuple[int, int, int, float]:
        to_gateway.write("\n")
        to_gateway.flush()
        active, shed, errors, cpu = json.loads(await trio.to_thread.run_sync(from_gateway.readline))
        return active, shed, errors, cpu

    port = int(await trio.to_thread.run_sync(from_gateway.readline))
    async with await trio.open_tcp_stream("127.0.0.1", port) as first:
        await first.send_all(HELLO)
        assert await receive_exactly(first, len(HELLO)) == HELLO

        crowd = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(60)]
        with trio.fail_after(5):
            while (await counters())[1] < 20:
                await trio.sleep(0.02)
        cpu = (await counters())[3]
        started = time.monotonic()
        await trio.sleep(0.5)
        assert ((await counters())[3] - cpu) / (time.monotonic() - started) < 0.5, "a busy loop"
        await first.send_all(b"alive")
        assert await receive_exactly(first, 5) == b"alive"

        for client in crowd:
            await client.aclose()
        with trio.fail_after(5):
            while (await counters())[0] > 1:
                await trio.sleep(0.02)
        async with await trio.open_tcp_stream("127.0.0.1", port) as later:
            await later.send_all(HELLO)
            assert await receive_exactly(later, len(HELLO)) == HELLO
    assert (await counters())[2] == 0
