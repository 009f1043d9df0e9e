"""Open streams go from one worker process to another: nobody at their ends notices."""

import trio

from .streams import WEB, backend, echo, endpoint, receive_exactly
from .test_pool import pool_of


async def test_replaced_worker_hands_its_streams_over_and_ends() -> None:
    async with backend(echo) as port, pool_of({WEB: [endpoint(port)]}, workers=1) as pool:
        clients = [await pool.call() for _ in range(100)]
        (old,) = pool.relay.workers
        moved = await pool.relay.replace(0)
        assert (moved.streams, moved.left, moved.why) == (100, 0, "")
        with trio.fail_after(20):
            while old in pool.relay.workers:
                await trio.sleep(0.01)
        for number, client in enumerate(clients):
            said = str(number).encode() * 100
            await client.send_all(said)
            assert await receive_exactly(client, len(said)) == said
        counters = await pool.relay.counters()
        assert (counters.active, counters.accepted) == (100, 100)
        for client in clients:
            await client.aclose()
        with trio.fail_after(20):
            while (await pool.relay.counters()).active:
                await trio.sleep(0.02)
        assert len(pool.watcher.ended) == 100
