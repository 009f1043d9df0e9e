"""Too much of everything: descriptors used up, readers that stall, hellos that drip, storms of clients."""

import contextlib
import time

import trio

from meshgate.adapters.relay.pump import HEAVY_READ_BYTES

from .gateway_process import gateway_process
from .streams import WEB, backend, echo, hello_for, receive_exactly

HELLO = hello_for(WEB)


async def test_running_out_of_descriptors_sheds_and_recovers() -> None:
    async with backend(echo) as port, gateway_process(port, descriptors=12) as gateway:
        async with await gateway.dial() as first:
            await first.send_all(HELLO)
            assert await receive_exactly(first, len(HELLO)) == HELLO
            await first.send_all(b"x")  # Who says nothing behind its hello goes when descriptors are short.
            assert await receive_exactly(first, 1) == b"x"

            crowd = [await gateway.dial() for _ in range(60)]
            for client in crowd:  # Silent ones would be cut to make room.
                with contextlib.suppress(trio.BrokenResourceError):
                    await client.send_all(HELLO)
            with trio.fail_after(20):
                while (await gateway.state()).shed < 20:
                    await trio.sleep(0.02)
            cpu, started = (await gateway.state()).cpu, time.monotonic()
            await trio.sleep(0.5)
            assert ((await gateway.state()).cpu - cpu) / (time.monotonic() - started) < 0.5, "a busy loop"
            await first.send_all(b"alive")
            assert await receive_exactly(first, 5) == b"alive"

            for client in crowd:
                await client.aclose()
            with trio.fail_after(20):
                while (await gateway.state()).active > 1:
                    await trio.sleep(0.02)
            async with await gateway.dial() as later:
                await later.send_all(HELLO)
                assert await receive_exactly(later, len(HELLO)) == HELLO
        assert (await gateway.state()).errors == 0


async def test_what_is_held_for_stalled_readers_is_bounded() -> None:
    """Each client sends all it can to an endpoint that reads nothing: what the relay keeps stays near its bound."""
    streams, bound = 120, 1 << 20

    enough = trio.Event()

    async def stall(stream: trio.SocketStream) -> None:
        await enough.wait()

    async with backend(stall) as port, gateway_process(port, held_bytes=bound) as gateway:
        async with trio.open_nursery() as nursery:

            async def push() -> None:
                async with await gateway.dial() as client:
                    await client.send_all(HELLO)
                    while True:
                        await client.send_all(bytes(200_000))

            for _ in range(streams):
                nursery.start_soon(push)
            received = -1
            with trio.fail_after(60):
                while received != (received := (await gateway.state()).received):
                    await trio.sleep(0.5)
            state = await gateway.state()
            nursery.cancel_scope.cancel()
        assert state.active == streams
        enough.set()
        # Unbounded it would be up to 64 KiB for each stream; past the bound, but for the read that reaches it, nothing.
        assert 0 < state.held <= bound + HEAVY_READ_BYTES
        with trio.fail_after(20):
            while (state := await gateway.state()).active:
                await trio.sleep(0.05)
        assert state.held == 0


async def test_dripping_hellos_do_not_keep_others_from_being_served() -> None:
    async with backend(echo) as port, gateway_process(port) as gateway, trio.open_nursery() as nursery:

        async def drip() -> None:
            async with await gateway.dial() as client:
                for position in range(len(HELLO)):
                    await client.send_all(HELLO[position : position + 1])
                    await trio.sleep(1.0)

        for _ in range(300):
            nursery.start_soon(drip)
        with trio.fail_after(20):
            while (await gateway.state()).active < 300:
                await trio.sleep(0.05)
            for _ in range(100):
                async with await gateway.dial() as client:
                    await client.send_all(HELLO)
                    assert await receive_exactly(client, len(HELLO)) == HELLO
        nursery.cancel_scope.cancel()


async def test_storm_of_clients_is_served_to_the_last_one() -> None:
    served = 0

    async with backend(echo) as port, gateway_process(port) as gateway:

        async def call() -> None:
            nonlocal served
            async with await gateway.dial() as client:
                await client.send_all(HELLO)
                answer = await receive_exactly(client, len(HELLO))
                served += answer == HELLO

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for _ in range(400):
                    nursery.start_soon(call)
        assert served == 400
        assert (await gateway.state()).errors == 0
