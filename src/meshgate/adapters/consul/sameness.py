"""The sameness groups that an exported-services entry names, for where this gateway resolves that entry itself.

A consumer `{SamenessGroup: name}` stands for the members of the config entry `sameness-group/<name>` of the same
partition: other partitions of the datacenter, and peers. The own partition is commonly the first member, for failover,
and is no consumer of its own services. Only Enterprise has groups, since 1.16; nothing is asked for that no entry
names. A group that cannot be read stays named as one whose members are not known, or keeps those that it had; in a
Consul that knows no groups it has none.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import trio

from meshgate.core.catalog import SamenessGroup

from .api import BadRequestError, ConsulError, Cursor, Exported, Page
from .blocking_query_pool import BlockingQueryPool
from .initial_sync import InitialSync, KeyedTasks
from .watch import Watch
from .watch_registry import WatchRegistry


class SamenessGroups:
    """Follows the groups that are named.

    Args:
        registry: shared by all watches.
        pool: connections for all queries.
        partition: the gateway's own.
        sync: told of each group that is to be waited for at the start.
        changed: called whenever what `resolved` says may have changed.
    """

    def __init__(
        self,
        registry: WatchRegistry,
        pool: BlockingQueryPool,
        *,
        partition: str,
        sync: InitialSync,
        changed: Callable[[], None],
    ) -> None:
        self._registry = registry
        self._pool = pool
        self._partition = partition
        self._sync = sync
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
            self._sync.mark(_source(name))
        for name in named - self._named:
            self._sync.add(_source(name))
        self._named = named
        if self._tasks is not None:
            self._tasks.keep(named, self._follow)

    def known(self) -> tuple[SamenessGroup, ...]:
        """The groups whose members are known, without the own partition."""
        return tuple(group for _, group in sorted(self._groups.items()))

    def resolved(self, row: Exported) -> Exported:
        """An export to members instead of groups, as far as those are known; `groups` are the others."""
        if not row.groups:
            return row
        known = [self._groups[name] for name in row.groups if name in self._groups]
        return replace(
            row,
            peers=tuple(sorted({*row.peers, *(name for group in known for name in group.peers)})),
            partitions=tuple(sorted({*row.partitions, *(name for group in known for name in group.partitions)})),
            groups=tuple(name for name in row.groups if name not in self._groups),
        )

    async def _follow(self, name: str) -> None:
        source = _source(name)

        async def ask(cursor: Cursor) -> Page[SamenessGroup]:
            async with self._pool.slot(cursor) as (reader, turn):
                return await reader.sameness_group(name, turn)

        def failed(error: ConsulError) -> None:
            if isinstance(error, BadRequestError) and name not in self._groups:
                self._answered(name, SamenessGroup(name))
            self._sync.mark(source)

        with self._pool.registered():
            await Watch(self._registry, "exports", source, ask, partial(self._answered, name), on_error=failed).run()

    def _answered(self, name: str, group: SamenessGroup) -> None:
        others = tuple(partition for partition in group.partitions if partition != self._partition)
        self._groups[name] = replace(group, name=name, partitions=others)
        self._sync.mark(_source(name))
        self._changed()


def _source(name: str) -> str:
    return f"sameness group {name}"
