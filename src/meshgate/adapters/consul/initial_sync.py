"""Tasks by key, of which each can be ended alone, and the account of what a start still waits for."""

from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Generic, TypeVar

import trio

K = TypeVar("K", bound=Hashable)


class KeyedTasks(Generic[K]):
    """At most one task for each key, in a nursery of the caller."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._scopes: dict[K, trio.CancelScope] = {}

    def keep(self, wanted: Iterable[K], run: Callable[[K], Awaitable[object]]) -> None:
        """End the tasks of all keys that are not wanted, and start `run(key)` for those that have none.

        A task that ends by itself counts as running.
        """
        keys = set(wanted)
        for key in self._scopes.keys() - keys:
            self._scopes.pop(key).cancel()
        for key in keys - self._scopes.keys():
            scope = self._scopes[key] = trio.CancelScope()
            self._nursery.start_soon(_within, scope, run, key)


async def _within(scope: trio.CancelScope, run: Callable[[K], Awaitable[object]], key: K) -> None:
    # A task that is no longer wanted when its turn comes must not begin: what it is for may be gone.
    with scope:
        if not scope.cancel_called:
            await run(key)


class InitialSync:
    """What a start still waits for: each source is expected until it has answered or failed once."""

    def __init__(self, *sources: str) -> None:
        self._expected = set(sources)
        self._open = True
        self._step = trio.Event()

    @property
    def missing(self) -> list[str]:
        """The sources that have not been tried yet."""
        return sorted(self._expected)

    def add(self, source: str) -> None:
        """Wait for this source too. Has no effect after `close`."""
        if self._open:
            self._expected.add(source)

    def mark(self, source: str) -> None:
        """This source has answered or failed, or is no longer wanted."""
        if source in self._expected:
            self._expected.remove(source)
            self._step.set()

    async def wait(self, patience: float = float("inf")) -> None:
        """Wait until nothing is expected, or until so many seconds have passed since a source was done."""
        while self._expected:
            self._step = trio.Event()
            with trio.move_on_after(patience):
                await self._step.wait()
                continue
            return

    def close(self) -> None:
        """From now on nothing is expected."""
        self._open = False
        self._expected.clear()
