"""What a restored snapshot of Consul does to held queries, as seen with 1.8.7 and 1.22.6, on trio's mock clock.

Consul answers what it holds by RPC at once, as it was, with the index that was asked for. What rides on a stream of
events (health queries of 1.10 and later) it does not answer before the wait is over. Asked anew with the index that
they know, both are held to the end.
"""

from dataclasses import dataclass, field, replace

import trio
from trio.testing import MockClock

from meshgate.adapters.consul import WatchKey, WatchRegistry
from meshgate.adapters.consul.api import LONGEST_WAIT, Cursor, Instances, Page
from meshgate.adapters.consul.watch import RESTORES_APART, Watch

from .model import Model, gateway, sidecar
from .watched import watching

STALE = 2.0


@dataclass
class Restorable(Model):
    """Streams health queries, and answers the list of names as a restored Consul does."""

    restored: trio.Event = field(default_factory=trio.Event)

    async def service_names(self, cursor: Cursor = Cursor()) -> Page[tuple[str, ...]]:  # noqa: B008 - frozen
        if not cursor.blocks:
            return await super().service_names(cursor)
        restored = self.restored
        page: list[Page[tuple[str, ...]]] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._until_restored, nursery.cancel_scope)
            page.append(await super().service_names(cursor))
            nursery.cancel_scope.cancel()
        if not restored.is_set():
            return page[0]
        return replace(await super().service_names(), index=cursor.index)

    async def _until_restored(self, scope: trio.CancelScope) -> None:
        await self.restored.wait()
        scope.cancel()

    def restore(self) -> None:
        """Everything is as it was, and nobody whose query rides on a stream is told."""
        self.index -= 3
        self.restored.set()
        self.restored = trio.Event()


async def test_after_a_restore_the_table_is_old_for_two_seconds_at_most(autojump_clock: MockClock) -> None:
    model = Restorable(connect={"web": (sidecar("web"),)})
    async with watching(model) as watched:
        await watched.change()
        model.connect["web"] = (sidecar("web"), sidecar("web", 2))
        await watched.change(20)
        assert len(watched.services["web"]) == 2
        model.connect["web"] = (sidecar("web", 2),)
        model.restore()
        await trio.sleep(STALE)
        assert watched.services["web"] == model.connect["web"]


@dataclass
class Consul:
    """Answers every held query after so many seconds, with its own index."""

    held: float
    asked: list[tuple[float, int]] = field(default_factory=list)

    async def ask(self, cursor: Cursor) -> Page[str]:
        self.asked.append((trio.current_time(), cursor.index))
        if cursor.blocks:
            await trio.sleep(self.held)
        return Page("a", 5)


async def follow(*worlds: Consul, seconds: float, registry: WatchRegistry | None = None) -> None:
    registry = registry or WatchRegistry(first_wait=LONGEST_WAIT)
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for number, world in enumerate(worlds):
                watch = Watch(registry, WatchKey("kind", str(number)), world.ask, lambda _: None)
                nursery.start_soon(watch.run)


async def test_an_answer_after_the_wait_is_no_sign(autojump_clock: MockClock) -> None:
    world = Consul(held=61)
    await follow(world, seconds=300)
    assert [index for _, index in world.asked] == [0, 5, 5, 5, 5, 5]


async def test_a_proxy_that_never_holds_a_query_is_no_sign_and_is_paced(autojump_clock: MockClock) -> None:
    world = Consul(held=0.05)
    registry = WatchRegistry(first_wait=LONGEST_WAIT)
    await follow(world, seconds=60, registry=registry)
    assert registry.generation == 0
    assert [index for _, index in world.asked].count(0) == 1
    assert len(world.asked) <= 123


async def test_an_agent_that_caps_the_wait_costs_few_requests(autojump_clock: MockClock) -> None:
    worlds = [Consul(held=8) for _ in range(50)]
    await follow(*worlds, seconds=300)
    anew = [at for world in worlds for at, index in world.asked if index == 0]
    assert len(anew) <= 50 * (300 / RESTORES_APART + 300 / 8 + 2)
    assert all(len(world.asked) <= 300 / 8 * 3 for world in worlds)


async def test_gateways_of_other_datacenters_are_asked_for_anew_too(autojump_clock: MockClock) -> None:
    remote: dict[str, dict[str, Instances]] = {"dc2": {"mesh-gateway": (gateway("dc2"),)}}
    model = Restorable(wan=("dc1", "dc2"), remote=remote)
    async with watching(model) as watched:
        await watched.change()
        remote["dc2"]["mesh-gateway"] = (gateway("dc2"), gateway("dc2", 2))
        await watched.change(20)
        assert len(watched.remotes["dc2"]) == 2
        remote["dc2"]["mesh-gateway"] = (gateway("dc2", 2),)
        model.restore()
        await trio.sleep(STALE)
        assert list(watched.remotes["dc2"]) == [gateway("dc2", 2)]
