"""Consul that fails: what is known stays in use, Consul is not hammered, and the end of each fault is noticed.

All but one of these run the whole adapter, from the watcher down to the socket, against a double of Consul's API. Where
waits are long, trio's clock runs a hundred times as fast as the wall's.
"""

import ast
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import meshgate
from meshgate.adapters.consul import CatalogWatcher, Home, WatchRegistry
from meshgate.adapters.consul.api import ConsulAddress, ConsulClient, ServerError
from meshgate.adapters.consul.retry import LONGEST_PAUSE
from meshgate.core.catalog import Snapshot
from tests.harness.ports import free_ports

from .fake_consul import FakeConsul, defaults, fake_consul, row
from .model import OWN, Model, gateway, sidecar, unreachable

WEB = "/v1/health/connect/web"
ESSENTIAL = {"roots", "services", "resolvers"}


@pytest.fixture
def fast_clock() -> MockClock:
    """Not one that jumps when all wait: sockets take wall time."""
    return MockClock(rate=100)


@dataclass
class Follower:
    """A catalog watcher, and what it has published."""

    watcher: CatalogWatcher
    snapshots: list[Snapshot] = field(default_factory=list)

    @property
    def ports(self) -> dict[str, set[int]]:
        """What is served now: the ports of each service."""
        return {it.name: {one.port for one in it.instances} for it in self.snapshots[-1].services}

    def failing(self) -> set[str]:
        """The statuses with which essential watches fail; empty until all of them do."""
        states = [state for state in self.watcher.states() if state.key.kind in ESSENTIAL]
        return {state.status for state in states} if all(state.error for state in states) else set()

    async def until(self, holds: Callable[[], object]) -> None:
        # 20 s of wall time on the fast clock: a busy machine is no failure.
        with trio.fail_after(2000):
            while not (self.snapshots and holds()):
                await trio.sleep(1)


@asynccontextmanager
async def following(address: str) -> AsyncIterator[Follower]:
    async with ConsulClient(ConsulAddress.from_settings({"CONSUL_HTTP_ADDR": address})) as client:
        snapshots: list[Snapshot] = []
        watcher = CatalogWatcher(client, WatchRegistry(), snapshots.append, Home("dc1"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watcher.run)
            follower = Follower(watcher, snapshots)
            await follower.until(lambda: True)
            yield follower
            nursery.cancel_scope.cancel()


def at(double: FakeConsul) -> str:
    return f"127.0.0.1:{double.port}"


def consul_with_web(double: FakeConsul, port: int = 1) -> None:
    defaults(double)
    double.set("/v1/catalog/services", {"consul": [], "web": []})
    double.set(WEB, [row("web-sidecar-proxy", port=port)])


def spoil(double: FakeConsul, **fault: Any) -> Callable[[], None]:
    """Give every path this fault, and wake all held queries with it; what is returned makes all well again."""
    good = dict(double.resources)
    for path, it in good.items():
        double.set(path, **{"body": it.body, "index": it.index} | fault)

    def heal() -> None:
        for path, it in good.items():
            double.set(path, it.body, index=None if it.index is None else it.index + 1)

    return heal


async def serve(double: FakeConsul, host: str, port: int, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    """Have the double listen at another place too, until the scope is cancelled."""
    listeners = await trio.open_tcp_listeners(port, host=host)
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await trio.serve_listeners(double.serve_stream, listeners)


# --- answers that are none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        pytest.param({"status": 500, "body": b"No cluster leader", "index": None}, "500", id="leader lost"),
        pytest.param({"status": 500, "body": b"rpc error: EOF"}, "500", id="server error"),
        pytest.param({"status": 503, "body": b""}, "503", id="proxy without an agent"),
        pytest.param({"status": 429, "body": b"too many concurrent connections"}, "429", id="rate limit"),
        pytest.param({"status": 403, "body": b"Permission denied"}, "403", id="token refused"),
        pytest.param({"status": 403, "body": b"ACL not found"}, "403", id="token unknown"),
        pytest.param({"cut": True}, "unreachable", id="cut in the middle of a body"),
        pytest.param({"body": b"<html>not Consul</html>"}, "invalid", id="garbage"),
        pytest.param({"body": b"[{]"}, "invalid", id="broken JSON"),
        pytest.param({"body": 7}, "invalid", id="JSON of another shape"),
        pytest.param({"hang": True}, "timeout", id="accepts and never answers"),
    ],
)
async def test_answer_that_is_none_takes_nothing_back_and_its_end_is_noticed(
    fast_clock: MockClock, fault: dict[str, Any], status: str
) -> None:
    async with fake_consul() as double:
        consul_with_web(double)
        async with following(at(double)) as follower:
            await follower.until(lambda: follower.ports == {"web": {1}})
            before, asked = follower.snapshots[-1], len(double.seen)
            heal = spoil(double, **fault)
            await follower.until(lambda: follower.failing() == {status})
            await trio.sleep(200)
            assert follower.snapshots[-1] is before
            assert follower.watcher.stale
            assert follower.watcher.problems()
            # Eight watches, each of which waits fifteen seconds on average once it has failed a few times.
            assert len(double.seen) - asked < 8 * 60
            heal()
            double.set(WEB, [row("web-sidecar-proxy", port=2)])
            await follower.until(lambda: follower.ports == {"web": {2}})
            await follower.until(lambda: not follower.watcher.stale and not follower.watcher.problems())


async def test_one_watch_whose_answer_is_garbage_disturbs_no_other(fast_clock: MockClock) -> None:
    async with fake_consul() as double:
        consul_with_web(double)
        double.set("/v1/catalog/services", {"consul": [], "web": [], "api": []})
        double.set("/v1/health/connect/api", [row("api-sidecar-proxy", port=5)])
        async with following(at(double)) as follower:
            await follower.until(lambda: follower.ports == {"web": {1}, "api": {5}})
            double.set(WEB, b'[{"Node": 5}]')
            double.set("/v1/health/connect/api", [row("api-sidecar-proxy", port=6)])
            await follower.until(lambda: follower.ports == {"web": {1}, "api": {6}})
            await follower.until(lambda: any("health web" in line for line in follower.watcher.problems()))
            assert not follower.watcher.stale
            double.set(WEB, [row("web-sidecar-proxy", port=2)])
            await follower.until(lambda: follower.ports == {"web": {2}, "api": {6}})


# --- Consul's index --------------------------------------------------------------------------------------------------


async def test_index_that_goes_backwards_is_followed_and_asked_anew(fast_clock: MockClock) -> None:
    async with fake_consul() as double:
        consul_with_web(double)
        for path in list(double.resources):
            double.resources[path].index = None if double.resources[path].index is None else 5000
        async with following(at(double)) as follower:
            await follower.until(lambda: double.held >= 5)
            asked = len(double.seen)
            double.set(WEB, [row("web-sidecar-proxy", port=2)], index=3)
            await follower.until(lambda: follower.ports == {"web": {2}})
            await follower.until(lambda: double.requests(WEB)[-1].query.get("index") == "3")
            indexes = [seen.query.get("index") for seen in double.requests(WEB)[-3:]]
            # Asked with the old index, then without one, then with the new one.
            assert indexes == ["5000", None, "3"]
            double.set(WEB, [row("web-sidecar-proxy", port=3)])
            await follower.until(lambda: follower.ports == {"web": {3}})
            assert len(double.seen) - asked < 40
            assert not follower.watcher.problems()


async def test_restored_snapshot_is_the_truth_with_all_that_it_lacks_and_has(fast_clock: MockClock) -> None:
    """After `consul snapshot restore` all indexes are lower, services are gone and others are back."""
    async with fake_consul() as double:
        consul_with_web(double)
        for path in list(double.resources):
            double.resources[path].index = None if double.resources[path].index is None else 5000
        async with following(at(double)) as follower:
            await follower.until(lambda: follower.ports == {"web": {1}} and double.held >= 5)
            # What shows that the token still sees, so that less in an answer means less in the catalog.
            double.set("/v1/health/service/mesh-gateway", [row("mesh-gateway", kind="mesh-gateway")], index=30)
            double.set("/v1/health/connect/old", [row("old-sidecar-proxy", port=9)], index=30)
            double.set(WEB, [], index=30)
            for path in list(double.resources):
                if double.resources[path].index == 5000:
                    double.set(path, double.resources[path].body, index=30)
            double.set("/v1/catalog/services", {"consul": [], "old": []}, index=30)
            await follower.until(lambda: follower.ports == {"old": {9}})
            assert not follower.watcher.problems()


# --- the agent's place -----------------------------------------------------------------------------------------------


async def test_agent_that_is_gone_for_an_hour_is_asked_rarely_and_followed_at_once_when_it_returns(
    autojump_clock: MockClock,
) -> None:
    model = Model(connect={f"s{number}": (sidecar(f"s{number}", number),) for number in range(20)})
    model.plain["mesh-gateway"] = (gateway(OWN),)
    snapshots: list[Snapshot] = []
    watcher = CatalogWatcher(model, WatchRegistry(), snapshots.append, Home(OWN))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        await trio.sleep(60)
        before, calls = snapshots[-1], len(model.calls)
        assert LONGEST_PAUSE <= 30
        model.fail(unreachable())
        await trio.sleep(3600)
        assert snapshots[-1] is before
        assert watcher.stale is True
        watches = len(watcher.states())
        assert watches * 3600 / LONGEST_PAUSE < len(model.calls) - calls < watches * 3600 / (LONGEST_PAUSE / 3)
        for number in range(20):
            times = model.times(f"connect_instances:s{number}")
            assert max(later - at for at, later in pairwise(times[2:])) <= LONGEST_PAUSE + 0.1
        model.connect["s0"] = (sidecar("s0", 99),)
        model.fail(None)
        returned = trio.current_time()
        while any(state.error for state in watcher.states()):
            await trio.sleep(0.01)
        # With many watches one of them asks soon, and its answer wakes the others.
        assert trio.current_time() - returned <= LONGEST_PAUSE / 3
        await trio.sleep(1)
        assert {one.id for it in snapshots[-1].services if it.name == "s0" for one in it.instances} == {
            "s0-sidecar-proxy-99"
        }
        assert watcher.problems() == []
        nursery.cancel_scope.cancel()


async def test_lost_leader_for_an_hour_is_survived_as_an_agent_that_is_gone(autojump_clock: MockClock) -> None:
    model = Model(connect={"web": (sidecar("web"),)}, plain={"mesh-gateway": (gateway(OWN),)})
    snapshots: list[Snapshot] = []
    watcher = CatalogWatcher(model, WatchRegistry(), snapshots.append, Home(OWN))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        await trio.sleep(60)
        calls = len(model.calls)
        model.fail(ServerError("Consul failed: 500 No cluster leader", "500"))
        await trio.sleep(3600)
        assert len(snapshots) == 1
        assert len(model.calls) - calls < len(watcher.states()) * 3600 / (LONGEST_PAUSE / 3)
        model.connect["web"] = (sidecar("web", 2),)
        model.fail(None)
        await trio.sleep(LONGEST_PAUSE + 1)
        assert snapshots[-1].services[0].instances == (sidecar("web", 2),)
        assert not watcher.problems()
        nursery.cancel_scope.cancel()


async def test_agent_that_is_restarted_on_its_port_is_followed_again(fast_clock: MockClock) -> None:
    async with fake_consul() as double, trio.open_nursery() as nursery:
        consul_with_web(double)
        (port,) = free_ports(1)
        scope = await nursery.start(serve, double, "127.0.0.1", port)
        async with following(f"127.0.0.1:{port}") as follower:
            await follower.until(lambda: follower.ports == {"web": {1}})
            scope.cancel()
            double.drop_connections()
            await follower.until(lambda: follower.failing() == {"unreachable"})
            await trio.sleep(120)
            assert follower.ports == {"web": {1}}
            double.set(WEB, [row("web-sidecar-proxy", port=2)])
            scope = await nursery.start(serve, double, "127.0.0.1", port)
            await follower.until(lambda: follower.ports == {"web": {2}})
        scope.cancel()


class Names(trio.abc.HostnameResolver):
    """DNS of a test: one name whose address may change."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def getaddrinfo(self, host, port, *_args, **_options):  # type: ignore[no-untyped-def]
        await trio.lowlevel.checkpoint()
        assert host == b"agent.example"
        return [(trio.socket.AF_INET, trio.socket.SOCK_STREAM, 6, "", (self.address, int(port)))]

    async def getnameinfo(self, sockaddr, flags):  # type: ignore[no-untyped-def]
        raise NotImplementedError


async def test_host_name_of_the_agent_that_moves_to_another_address_is_followed(fast_clock: MockClock) -> None:
    names = Names("127.0.0.2")
    trio.socket.set_custom_hostname_resolver(names)
    async with fake_consul() as old, fake_consul() as new, trio.open_nursery() as nursery:
        consul_with_web(old)
        consul_with_web(new, port=2)
        (port,) = free_ports(1)
        before = await nursery.start(serve, old, "127.0.0.2", port)
        async with following(f"agent.example:{port}") as follower:
            await follower.until(lambda: follower.ports == {"web": {1}})
            before.cancel()
            old.drop_connections()
            await follower.until(lambda: follower.failing() == {"unreachable"})
            assert follower.ports == {"web": {1}}
            after = await nursery.start(serve, new, "127.0.0.3", port)
            names.address = "127.0.0.3"
            await follower.until(lambda: follower.ports == {"web": {2}})
            await follower.until(lambda: not follower.watcher.problems())
        after.cancel()


async def test_unix_socket_of_the_agent_that_is_replaced_is_followed(fast_clock: MockClock, tmp_path: Path) -> None:
    path = tmp_path / "consul.sock"
    async with fake_consul(unix=path) as old:
        consul_with_web(old)
        async with following(f"unix://{path}") as follower:
            await follower.until(lambda: follower.ports == {"web": {1}})
            path.unlink()
            old.stop()
            await follower.until(lambda: follower.failing() == {"unreachable"})
            assert follower.ports == {"web": {1}}
            async with fake_consul(unix=path) as new:
                consul_with_web(new, port=2)
                await follower.until(lambda: follower.ports == {"web": {2}})
                await follower.until(lambda: not follower.watcher.problems())


# --- clocks ----------------------------------------------------------------------------------------------------------


async def test_wall_clock_that_jumps_is_not_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    wall = time.time
    async with fake_consul() as double:
        consul_with_web(double)
        async with following(at(double)) as follower:
            await follower.until(lambda: follower.ports == {"web": {1}})
            for port, days in ((2, 365), (3, -365), (4, 0)):
                monkeypatch.setattr(time, "time", lambda days=days: wall() + days * 86400)
                double.set(WEB, [row("web-sidecar-proxy", port=port)])
                await follower.until(lambda port=port: follower.ports == {"web": {port}})  # type: ignore[misc]
                assert not follower.watcher.problems()
                assert all(0 <= state.age(trio.current_time()) < 30 for state in follower.watcher.states())


def wall_clock_readers(folder: Path) -> Iterator[str]:
    """The modules that ask for the time of day, as paths below `folder`."""
    asked = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow"}
    for path in sorted(folder.rglob("*.py")):
        nodes = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute))
        if asked & {ast.unparse(node) for node in nodes if isinstance(node.value, ast.Name)}:
            yield str(path.relative_to(folder))


def test_nothing_that_follows_consul_or_relays_reads_the_time_of_day_but_to_write_it_down() -> None:
    package = Path(meshgate.__file__).parent
    inner = {path for path in wall_clock_readers(package) if path.startswith(("core/", "adapters/"))}
    # Where a file, a record that outlives the process, or what people are told needs a date.
    assert inner == {
        "adapters/relay/listener.py",
        "adapters/relay/outliers.py",
        "adapters/relay/pool.py",
        "adapters/relay/stream.py",
        "adapters/state.py",
    }
