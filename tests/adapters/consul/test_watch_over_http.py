"""A watch with the real client, against a double of Consul that misbehaves."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from meshgate.adapters.consul import WatchKey, WatchRegistry
from meshgate.adapters.consul.api import ConsulAddress, ConsulClient, Cursor, Instances, Page
from meshgate.adapters.consul.watch import Watch

from .fake_consul import FakeConsul, fake_consul, row

WEB = "/v1/health/connect/web"


class HealthQuery:
    """What a watch of the service `web` saw."""

    def __init__(self, double: FakeConsul, registry: WatchRegistry) -> None:
        self.double = double
        self.registry = registry
        self.values: list[list[int]] = []

    def take(self, instances: Instances) -> None:
        self.values.append([instance.port for instance in instances])

    async def until(self, *ports: int, seconds: float = 5.0) -> None:
        with trio.fail_after(seconds):
            while not self.values or self.values[-1] != list(ports):
                await trio.sleep(0.01)

    async def held(self) -> None:
        with trio.fail_after(5):
            while not self.double.held:
                await trio.sleep(0.01)

    async def failed(self, status: str) -> None:
        with trio.fail_after(5):
            while status not in {state.status for state in self.registry.states()}:
                await trio.sleep(0.005)


@asynccontextmanager
async def following() -> AsyncIterator[HealthQuery]:
    async with fake_consul() as double:
        double.set(WEB, [row("web", port=1)], index=50)
        address = ConsulAddress.from_settings({"CONSUL_HTTP_ADDR": f"127.0.0.1:{double.port}"})
        async with ConsulClient(address) as client, client.dedicated() as reader, trio.open_nursery() as nursery:
            registry = WatchRegistry()
            followed = HealthQuery(double, registry)

            async def ask(cursor: Cursor) -> Page[Instances]:
                return await reader.connect_instances("web", cursor)

            nursery.start_soon(Watch(registry, WatchKey("health", "web"), ask, followed.take).run)
            await followed.until(1)
            yield followed
            nursery.cancel_scope.cancel()


async def test_changes_arrive_over_one_connection() -> None:
    async with following() as it:
        for port in (2, 3):
            await it.held()
            it.double.set(WEB, [row("web", port=port)])
            await it.until(port)
        assert it.values == [[1], [2], [3]]
        assert len({seen.connection for seen in it.double.seen}) == 1


async def test_an_index_that_goes_backwards_is_followed_by_a_read_that_does_not_block() -> None:
    async with following() as it:
        await it.held()
        it.double.set(WEB, [row("web", port=2)], index=7)
        await it.until(2)
        await it.held()
        asked = [seen.query.get("index") for seen in it.double.seen]
        assert asked == [None, "50", None, "7"]


async def test_bodies_that_are_cut_or_garbage_take_nothing_back() -> None:
    async with following() as it:
        await it.held()
        it.double.set(WEB, [row("web", port=2)], cut=True)
        await it.failed("unreachable")
        it.double.set(WEB, b'[{"Node"')
        await it.failed("invalid")
        assert it.values == [[1]]
        it.double.set(WEB, [row("web", port=3)])
        await it.until(3)


async def test_connections_that_break_are_made_again() -> None:
    async with following() as it:
        await it.held()
        it.double.drop_connections()
        await it.failed("unreachable")
        it.double.set(WEB, [row("web", port=2)])
        await it.until(2)
        assert it.values == [[1], [2]]


async def test_a_consul_that_never_holds_a_query_is_asked_twice_a_second() -> None:
    async with following() as it:
        await it.held()
        it.double.set(WEB, [row("web", port=2)], holds=False)
        await it.until(2)
        before = len(it.double.seen)
        await trio.sleep(1.6)
        assert len(it.double.seen) - before <= 5
