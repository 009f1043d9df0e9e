"""When snapshots are published: once for changes that come close together, at once where a stream waits for one.

What always holds: a snapshot is published only if it differs from the last one.
"""

from collections.abc import Callable
from typing import Final

import trio

from meshgate.core.catalog import Snapshot

# Seconds from the first change to the snapshot, in which further changes are gathered. Not prolonged by them.
COALESCE: Final = 0.1
# Seconds between two snapshots that nobody gathers changes for: where services are many, each costs milliseconds.
APART: Final = 0.05


class Publisher:
    """Publishes what `make` makes. `snapshot` is the last one that was published.

    Args:
        make: the catalog as it is known now.
        publish: gets each new snapshot, in trio's thread; it must not block.
    """

    def __init__(self, make: Callable[[], Snapshot], publish: Callable[[Snapshot], None]) -> None:
        self.snapshot: Snapshot | None = None
        self._make = make
        self._publish = publish
        self._change = trio.Event()
        self._unpublished = False
        self._published = float("-inf")

    def changed(self) -> None:
        """What `make` makes may be another one."""
        self._unpublished = True
        self._change.set()

    async def change(self) -> None:
        """Wait for a change."""
        self._change = trio.Event()
        await self._change.wait()

    async def run(self, prepare: Callable[[], None]) -> None:
        """Publish now and after changes until cancelled; `prepare` is called each time before."""
        while True:
            self._change = trio.Event()
            prepare()
            self._publish_if_new()
            await self._change.wait()
            await trio.sleep(COALESCE)

    async def hurry(self) -> None:
        """Publish what has changed, without gathering more. Who does so at the same time shares a snapshot.

        Nothing happens before the first snapshot.
        """
        if self.snapshot is not None and self._unpublished:
            await trio.sleep_until(self._published + APART)
            if self._unpublished:
                self._publish_if_new()

    def _publish_if_new(self) -> None:
        self._unpublished, self._published = False, trio.current_time()
        snapshot = self._make()
        if snapshot != self.snapshot:
            self.snapshot = snapshot
            self._publish(snapshot)
