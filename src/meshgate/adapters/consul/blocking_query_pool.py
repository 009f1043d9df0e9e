"""The budget of blocking queries: connections that the watches of services and remote gateways take in turn.

Consul's agent gives a client 200 connections and resets what goes beyond, so the number of queries that are held at
once is bounded, whatever the number of services. While there are as many connections as watches, each watch holds its
query for the full wait. With more watches than connections, queries are held only for `ROTATION_WAIT` and the watches
take turns in their order: with n watches on s connections, each looks at least every n / s * ROTATION_WAIT seconds.
(Services are watched by `watch_scheduler`, which never has more watches than that; remote gateways may.)
First reads, which Consul answers at once, use the shared connections and never wait for a turn.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Final, Self

import trio

from .api import LONGEST_WAIT, ConsulClient, Cursor

# Seconds a query is held while watches take turns: long enough that turns cost little, short enough to be followed.
ROTATION_WAIT: Final = 2.0
# Of the budget, for the three connections of the gateway's own registration, which are not from here, and for those of
# the servers and the summaries: when these come, the others may be open, and what is open stays open.
RESERVED: Final = 5


class BlockingQueryPool:
    """Connections for queries that are held; an asynchronous context manager, which closes them at its end.

    Args:
        client: makes the connections, and answers first reads.
        budget: how many queries all watches of the gateway may hold at once, those with a connection of their own
            included. At least one connection is left for the watches that take turns.
    """

    def __init__(self, client: ConsulClient, budget: int) -> None:
        self._watches = 0
        self._client = client
        self._budget = budget - RESERVED
        self._given = 0
        self._turns = trio.CapacityLimiter(self._size)
        self._idle: list[ConsulClient] = []
        self._connections = AsyncExitStack()

    @property
    def _size(self) -> int:
        return max(1, self._budget - self._given)

    async def __aenter__(self) -> Self:
        await self._connections.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connections.aclose()

    @asynccontextmanager
    async def dedicated(self) -> AsyncIterator[ConsulClient]:
        """A reader with a connection of its own, for a watch that takes no turns. It counts in the budget."""
        self._give(1)
        try:
            async with self._client.dedicated() as reader:
                yield reader
        finally:
            self._give(-1)

    def _give(self, connections: int) -> None:
        self._given += connections
        self._turns.total_tokens = self._size

    def capacity_for(self, own: int) -> int:
        """How many watches of somebody who has `own` of them can hold their queries at once; at least one."""
        return max(1, self._size - (self._watches - own))

    def wait(self, longest: float = LONGEST_WAIT) -> float:
        """Seconds for which a query may be held: `longest` where no watch waits for a connection."""
        return longest if self._watches <= self._size else ROTATION_WAIT

    @asynccontextmanager
    async def slot(self, cursor: Cursor) -> AsyncIterator[ConsulClient]:
        """A reader for one query, one's own until the end of the block."""
        if not cursor.blocks:
            yield self._client
            return
        async with self._turns:
            if not self._idle:
                self._idle.append(await self._connections.enter_async_context(self._client.dedicated()))
            reader = self._idle.pop()
            try:
                yield reader
            finally:
                self._idle.append(reader)

    @contextmanager
    def registered(self) -> Iterator[None]:
        """Count a watch that takes turns, for the time of the block."""
        self._watches += 1
        try:
            yield
        finally:
            self._watches -= 1
