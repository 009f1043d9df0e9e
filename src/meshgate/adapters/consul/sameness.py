"""The sameness groups that an exported-services entry names, for where this gateway resolves that entry itself.

A consumer `{SamenessGroup: name}` stands for the members of the config entry `sameness-group/<name>` of the same
partition: other partitions of the datacenter, and peers. The own partition is commonly the first member, for failover,
and is no consumer of its own services. Only Enterprise has groups, since 1.16; nothing is asked for that no entry
names. A group that cannot be read has no members until it can, or keeps those that it had.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import cast

import trio

from .hub import WatchHub
from .mesh_records import Exported, MeshReader, SamenessGroup
from .pool import ReaderPool
from .records import Cursor, Page
from .tasks import KeyedTasks, Progress
from .watch import Watch


class SamenessGroups:
    """Follows the groups that are named.

    Args:
        hub: shared by all watches.
        pool: connections for all queries.
        partition: the gateway's own.
        progress: told of each group that is to be waited for at the start.
        changed: called whenever what `resolved` says may have changed.
    """

    def __init__(
        self, hub: WatchHub, pool: ReaderPool, *, partition: str, progress: Progress, changed: Callable[[], None]
    ) -> None:
        self._hub = hub
        self._pool = pool
        self._partition = partition
        self._progress = progress
        self._changed = changed
        self._groups: dict[str, SamenessGroup] = {}
        self._named: frozenset[str] = frozenset()
        self._tasks: KeyedTasks[str] | None = None

    def begin(self, nursery: trio.Nursery) -> None:
        """From now on groups are followed by tasks in this nursery, until it ends."""
        self._tasks = KeyedTasks(nursery)

    def end(self) -> None:
        """No group is known or followed any more."""
        self.keep(())
        self._tasks = None

    def keep(self, exports: Iterable[Exported]) -> None:
        """Follow the groups that these exports name, and no others."""
        named = frozenset(name for row in exports for name in row.groups)
        for name in self._named - named:
            self._groups.pop(name, None)
            self._progress.done(_source(name))
        for name in named - self._named:
            self._progress.expect(_source(name))
        self._named = named
        if self._tasks is not None:
            self._tasks.keep(named, self._follow)

    def resolved(self, row: Exported) -> Exported:
        """An export to members instead of groups, as far as those are known."""
        if not row.groups:
            return row
        known = [self._groups[name] for name in row.groups if name in self._groups]
        partitions = {name for group in known for name in group.partitions} - {self._partition}
        return replace(
            row,
            peers=tuple(sorted({*row.peers, *(name for group in known for name in group.peers)})),
            partitions=tuple(sorted({*row.partitions, *partitions})),
            groups=(),
        )

    async def _follow(self, name: str) -> None:
        source = _source(name)

        async def ask(cursor: Cursor) -> Page[SamenessGroup]:
            async with self._pool.turn(cursor) as (reader, turn):
                return await cast("MeshReader", reader).sameness_group(name, turn)

        done = partial(self._progress.done, source)
        with self._pool.watching():
            # Of the same kind as the exports: what is not answered yet is for both that the consumers are not known.
            watch = Watch(self._hub, "exports", source, ask, partial(self._answered, name), on_error=lambda _: done())
            await watch.run()

    def _answered(self, name: str, group: SamenessGroup) -> None:
        self._groups[name] = group
        self._progress.done(_source(name))
        self._changed()


def _source(name: str) -> str:
    return f"sameness group {name}"
