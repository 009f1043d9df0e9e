"""How a gateway stops: whoever sends it streams is told first, then no more are taken, then the last ones may end."""

from collections.abc import Callable
from typing import Final

import structlog
import trio

from meshgate.adapters.relay.pool import RelayPool
from meshgate.core.durations import format_duration

log = structlog.get_logger(module="meshgate")

# Deregistering reaches sidecars and gateways through their own blocking queries. Whoever has not heard within this
# time is served all the same. A tenth of the drain timeout, but not longer than this.
PROPAGATION_SECONDS: Final = 3.0
_PROGRESS_SECONDS: Final = 5.0
_SHOWN: Final = 3
_MOST_LISTED: Final = 1000


async def drain_relay(relay: RelayPool, give_back: Callable[[], bool], timeout: float) -> None:
    """Take streams for a moment longer, then no more, end them at quiet moments, and wait for the last one.

    Streams of Consul's servers never end by themselves: they are left alone as long as there are others, and not waited
    for.

    Args:
        relay: whose streams these are. What is open at the end is for its own end to cut.
        give_back: begins to deregister the gateway; whether there are clients that have to hear of it.
        timeout: seconds that all of it may take.
    """
    ends = trio.current_time() + timeout
    log.info("draining", streams=(await relay.counters()).active, timeout=format_duration(timeout))
    with trio.move_on_at(ends):
        if give_back():
            await trio.sleep(min(PROPAGATION_SECONDS, timeout / 10))
        relay.stop_listening()
        relay.drain(ends - trio.current_time())
        await _last_stream(relay)
    relay.stop_listening()
    counters = await relay.counters()
    left = counters.active - counters.of_servers
    if left:
        whom = await _whom(relay)
        log.warning("drain timeout: open streams are cut", streams=left, of_servers=counters.of_servers, oldest=whom)
    elif counters.of_servers:
        log.info("drained; streams of Consul's servers are cut", of_servers=counters.of_servers)
    else:
        log.info("drained")


async def _last_stream(relay: RelayPool) -> None:
    told = trio.current_time()
    while (counters := await relay.counters()).active > counters.of_servers:
        await trio.sleep(0.05)
        if trio.current_time() - told >= _PROGRESS_SECONDS:
            told = trio.current_time()
            log.info("draining", streams=relay.active, oldest=await _whom(relay))


async def _whom(relay: RelayPool) -> str:
    """Whom a drain waits for: the oldest streams. Nobody where there are too many for a list."""
    if relay.active > _MOST_LISTED:
        return ""
    streams = sorted((await relay.connections()).listed, key=lambda stream: -stream.age)
    return ", ".join(f"{each.client} to {each.route or each.state}" for each in streams[:_SHOWN])
