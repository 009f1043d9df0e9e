"""When the catalog on disk is believed, and what of Consul's silence it may fill."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from meshgate.adapters.consul import CatalogWatcher, Home, WatchRegistry
from meshgate.adapters.consul.api import Resolver, ServerError, SubsetRule
from meshgate.adapters.names import NameKeeper
from meshgate.adapters.state import Kept, read, write
from meshgate.app.gateway.last_known import REMOTES_PATIENCE, LastKnown
from meshgate.core.catalog import Export, Instance, Remote, Service, Snapshot
from meshgate.core.warm_start import PendingSources
from tests.adapters.consul.model import Model

ROW = Instance("n1", "dc1", "web-1", "web", "10.0.0.1", 21000, "10.0.0.1")
WEB = Service("web", (ROW,))
DC2 = Remote("dc2", (ROW,))
CATALOG = Snapshot("dc1", "td.consul", services=(WEB,), remotes=(DC2,))
EMPTY = Snapshot("dc1", "td.consul")


@pytest.fixture
def patient_clock() -> MockClock:
    """A clock that jumps once the file is read (`load`), and only when threads have had their time too."""
    return MockClock()


async def load(it: LastKnown) -> None:
    """Load it. A clock that jumps would not wait for the thread that reads."""
    await it.load()
    clock = trio.lowlevel.current_clock()
    if isinstance(clock, MockClock):
        clock.autojump_threshold = 0.02


def of(folder: Path | None, *, service: str = "mesh-gateway", partition: str = "") -> LastKnown:
    return LastKnown(folder, service, partition, lambda: False)


async def loaded(folder: Path, **options: str) -> LastKnown:
    write(folder, Kept(CATALOG, "mesh-gateway", 0.0))
    it = of(folder, **options)
    await load(it)
    return it


async def test_without_a_folder_there_is_nothing_and_nothing_is_kept() -> None:
    it = of(None)
    await it.load()
    it.keep(CATALOG, {})
    assert (it.kept, it.stand_in(), it.from_disk, it.problems()) == (None, None, False, [])
    assert not it.from_disk
    assert it.completed(CATALOG, PendingSources()) is CATALOG


async def test_age_goes_on_from_what_the_file_says_and_is_never_negative(
    tmp_path: Path, patient_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for now, age in ((500.0, 400.0), (50.0, 0.0)):
        write(tmp_path, Kept(CATALOG, "mesh-gateway", 100.0))
        it = of(tmp_path)
        monkeypatch.setattr("time.time", lambda now=now: now)
        patient_clock.autojump_threshold = math.inf
        await load(it)
        assert it.stand_in() is not None
        await trio.sleep(7)
        assert it.from_disk
        assert it.age == pytest.approx(age + 7, abs=0.5)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"service": "other"}, "it is of the gateway service mesh-gateway, this is other"),
        ({"partition": "p"}, "partition"),
    ],
)
async def test_file_of_another_service_or_partition_is_refused(
    tmp_path: Path, options: dict[str, str], why: str
) -> None:
    with capture_logs() as logs:
        assert (await loaded(tmp_path, **options)).kept is None
    assert [entry["log_level"] for entry in logs] == ["error"]
    assert why in logs[0]["event"]


@pytest.mark.parametrize("place", [("dc9", "default"), ("dc1", "other"), ("dc9", "other")])
async def test_file_of_another_place_is_given_up_when_the_agent_tells(tmp_path: Path, place: tuple[str, str]) -> None:
    it = await loaded(tmp_path)
    it.stand_in()
    it.accept("dc1", "default")
    assert it.from_disk
    it.accept(*place)
    assert (it.from_disk, it.kept) == (False, None)


async def test_a_catalog_from_disk_is_not_written_back_and_consuls_is(tmp_path: Path) -> None:
    it = await loaded(tmp_path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(it.run)
        it.stand_in()
        it.keep(CATALOG, {})
        fresh = it.completed(EMPTY, PendingSources())
        it.keep(fresh, {})
        with trio.fail_after(5):
            while (kept := read(tmp_path)) is None or kept.snapshot != EMPTY:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert (it.from_disk, it.kept) == (False, None)


@asynccontextmanager
async def watching(model: Model) -> AsyncIterator[CatalogWatcher]:
    """A watcher that has heard all that the model has to say."""
    watcher = CatalogWatcher(model, WatchRegistry(), lambda _: None, Home("dc1"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        await trio.sleep(1)
        yield watcher
        nursery.cancel_scope.cancel()


async def test_silence_of_consul_is_told_from_its_answers(tmp_path: Path, patient_clock: MockClock) -> None:
    it = await loaded(tmp_path)
    failing = ServerError("Consul failed: 500", "500")
    model = Model(connect={"web": (ROW,), "api": (ROW,)}, broken={"connect_instances:web": failing})
    async with watching(model) as watcher:
        found = it.pending(watcher)
        assert (found.services, found.subsets, found.resolvers) == (frozenset({"web"}), frozenset(), False)
        # A subset whose filter does not compile is answered for, one that cannot be asked for is not.
        model.filters["api", "odd"] = None
        model.entries = (Resolver("api", (SubsetRule("v1", "odd"),)),)
        model.change()
        await trio.sleep(1)
        assert it.pending(watcher).subsets == frozenset()
        model.broken["connect_instances:api"] = failing
        model.entries = (Resolver("api", (SubsetRule("v2", "fine"),)),)
        model.change()
        await trio.sleep(1)
        assert it.pending(watcher).subsets == {"v2.api"}


async def test_datacenter_that_consul_does_not_know_yet_is_given_a_minute(
    tmp_path: Path, patient_clock: MockClock
) -> None:
    it = await loaded(tmp_path)
    async with watching(Model()) as watcher:
        assert it.completed(EMPTY, it.pending(watcher)).remotes == (DC2,)
        await trio.sleep(REMOTES_PATIENCE - 1)
        assert it.pending(watcher).remotes == {"dc2"}
        await trio.sleep(2)
        assert it.pending(watcher).remotes == frozenset()
        assert it.completed(EMPTY, it.pending(watcher)) is EMPTY
    assert it.kept is None


async def test_datacenter_of_which_consul_cannot_say_whether_it_is_there_is_waited_for(
    tmp_path: Path, patient_clock: MockClock
) -> None:
    it = await loaded(tmp_path)
    async with watching(Model(broken={"datacenters": ServerError("Consul failed: 500", "500")})) as watcher:
        it.completed(EMPTY, it.pending(watcher))
        await trio.sleep(REMOTES_PATIENCE + 2)
        assert it.pending(watcher).remotes == {"dc2"}


async def test_datacenter_that_answers_for_its_gateways_is_believed_at_once(
    tmp_path: Path, patient_clock: MockClock
) -> None:
    it = await loaded(tmp_path)
    async with watching(Model(wan=("dc1", "dc2"), remote={"dc2": {}})) as watcher:
        assert it.pending(watcher).remotes == frozenset()


async def test_what_is_carried_is_told_until_it_is_not(tmp_path: Path) -> None:
    it = await loaded(tmp_path)
    assert it.completed(EMPTY, PendingSources(services=frozenset({"web"}))).services == (WEB,)
    assert it.problems() == ["1 service or datacenter is served from disk: Consul has not answered yet"]
    # What Consul says itself is not counted, though it is looked through for what groups add to it.
    exporting = replace(EMPTY, exports=(Export("api", peers=("eu", "us")),))
    it.completed(exporting, PendingSources(services=frozenset({"web"})))
    assert it.problems() == ["1 service or datacenter is served from disk: Consul has not answered yet"]
    it.completed(EMPTY, PendingSources())
    assert it.problems() == []


async def test_real_watches_that_fail_are_told_from_those_that_answer(tmp_path: Path, patient_clock: MockClock) -> None:
    it = await loaded(tmp_path)
    failing = ServerError("Consul failed: 500", "500")
    model = Model(connect={"web": (ROW,), "api": (ROW,)}, wan=("dc1", "dc2"), remote={"dc2": {}})
    model.broken = {"connect_instances:web": failing, "instances:mesh-gateway in dc2": failing, "resolvers": failing}
    registry = WatchRegistry()
    watcher = CatalogWatcher(model, registry, lambda _: None, Home("dc1"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher.run)
        await trio.sleep(REMOTES_PATIENCE)
        found = it.pending(watcher)
        assert found == PendingSources(frozenset({"web"}), frozenset(), True, frozenset({"dc2"}))
        model.broken = {}
        await trio.sleep(REMOTES_PATIENCE)
        assert watcher.snapshot is not None
        it.completed(watcher.snapshot, it.pending(watcher))
        await trio.sleep(REMOTES_PATIENCE)
        assert it.pending(watcher) == PendingSources()
        nursery.cancel_scope.cancel()


async def test_addresses_from_an_earlier_life_serve_until_dns_answers() -> None:
    names = NameKeeper(lambda: None)
    names.addresses = {"two.example": ("192.0.2.2",)}
    names.remember({"one.example": ("192.0.2.1",), "two.example": ("192.0.2.9",), "gone.example": ("192.0.2.3",)})
    names.want({"one.example", "two.example"})
    assert names.addresses == {"one.example": ("192.0.2.1",), "two.example": ("192.0.2.2",)}
