"""Exports of a Consul before 1.17.3, whose entry is read as it was written: its wildcards and its sameness groups."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from meshgate.adapters.consul import catalog_watcher, watch
from meshgate.adapters.consul.retry import Policy
from meshgate.core.catalog import ChainTarget, Export, SamenessGroup
from meshgate.core.export_routes import ExportRules

from .fake_consul import row
from .mesh_double import TRUST_DOMAIN, MeshDouble, chain, exported, mesh_double, peering
from .mesh_watched import PATIENCE, following

ENTRIES = "/v1/config/exported-services"
GROUPS = "/v1/config/sameness-group"
GROUP = f"{GROUPS}/all"
TO_GROUP = {"Name": "web", "Consumers": [{"SamenessGroup": "all"}]}
ENFORCED = ExportRules(enforce=True)


def external(service: str, peer: str, partition: str = "default") -> str:
    return f"{service}.default.{partition}.{peer}.external.{TRUST_DOMAIN}"


@asynccontextmanager
async def exporting(*entry: dict[str, Any], **options: Any) -> AsyncIterator[MeshDouble]:
    """web and db, of which the entry exports what it says; east and west are peers."""
    async with mesh_double(**{"version": "1.16.3+ent"} | options) as double:
        double.peering(peering("east"), peering("west"))
        for name in ("web", "db"):
            double.serve(name, row(f"{name}-sidecar-proxy"))
            double.set_at(f"/v1/discovery-chain/{name}", chain(name))
        double.exports_as_written(*entry)
        yield double


async def release(held: trio.Event, condition: Callable[[], object]) -> None:
    with trio.fail_after(PATIENCE):
        while not condition():
            await trio.sleep(0.01)
    held.set()


def asked_again(double: MeshDouble, path: str) -> bool:
    """Whether the gateway has taken in an answer: it waits for the next one."""
    return any("index" in seen.query for seen in double.requests(path))


def export(service: str, *peers: str, partitions: tuple[str, ...] = (), groups: tuple[str, ...] = ()) -> Export:
    """As it is known when its chain is; there is one only where there are peers, or may be some in a group."""
    known: dict[str, Any] = {"protocol": "tcp", "target": ChainTarget(service)} if peers or groups else {}
    return Export(service, peers=peers, partitions=partitions, groups=groups, **known)


# --- what comes late at the start -------------------------------------------------------------------------------------


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start waits for all sources, on a busy machine too."""
    monkeypatch.setattr(catalog_watcher, "START_DEADLINE", PATIENCE)


@pytest.mark.usefixtures("patient")
async def test_a_wildcard_exports_in_the_first_snapshot_what_became_known_after_the_entry(
    nursery: trio.Nursery,
) -> None:
    everything = {"Name": "*", "Consumers": [{"Peer": "east"}]}
    async with exporting(everything, enterprise=False, version="1.14.4") as double:
        services = double.hold_back("/v1/health/connect/web")
        nursery.start_soon(release, services, lambda: asked_again(double, ENTRIES))
        async with following(double) as followed:
            assert followed.published[0].exports == (export("db", "east"), export("web", "east"))


@pytest.mark.usefixtures("patient")
async def test_the_first_snapshot_has_what_is_exported_to_a_group_however_late_that_answers(
    nursery: trio.Nursery,
) -> None:
    async with exporting(TO_GROUP) as double:
        double.sameness_group("all", {"Peer": "east"})
        group = double.hold_back(GROUPS)
        nursery.start_soon(release, group, lambda: asked_again(double, "/v1/health/connect/web"))
        async with following(double) as followed:
            assert followed.published[0].exports == (export("web", "east"),)


# --- sameness groups --------------------------------------------------------------------------------------------------


async def test_a_group_stands_for_its_members_but_the_own_partition_beside_consumers_that_are_named() -> None:
    rows = [
        {"Name": "*", "Namespace": "*", "Consumers": [{"SamenessGroup": "all"}, {"Peer": "west"}, {"Partition": "p3"}]},
        {"Name": "db", "Consumers": [{"Partition": "p2"}]},
    ]
    async with exporting(*rows) as double:
        double.sameness_group("all", {"Partition": "default"}, {"Partition": "p1"}, {"Peer": "east"})
        double.sameness_group("other", {"Peer": "north"})
        async with following(double) as followed:
            db = export("db", "east", "west", partitions=("p1", "p2", "p3"))
            await followed.until(lambda seen: seen.exports == (db, export("web", *db.peers, partitions=("p1", "p3"))))
            peered = {external(name, peer) for name in ("web", "db") for peer in ("east", "west")}
            assert {name for name in followed.routes() if ".external." in name} == peered
            assert followed.watcher.problems() == []
            assert {path for path in double.paths() if "sameness" in path} == {GROUPS}


async def test_in_a_partition_its_own_entry_of_the_group_counts() -> None:
    async with mesh_double(version="1.16.3+ent") as double:
        double.tenant("p1")
        double.serve("web", row("web-sidecar-proxy"), partition="p1")
        double.serve("db", row("db-sidecar-proxy"), partition="p1")
        double.exports_as_written(TO_GROUP, partition="p1")
        double.sameness_group("all", {"Partition": "default"}, {"Partition": "p1"}, partition="p1")
        double.sameness_group("all", {"Partition": "p7"})
        async with following(double, partition="p1", enforce_exports=True) as followed:
            await followed.until(lambda seen: seen.exports == (export("web", partitions=("default",)),))
            assert set(followed.routes(ENFORCED)) == {f"web.default.p1.dc1.internal-v1.{TRUST_DOMAIN}"}


async def test_groups_that_no_entry_names_are_not_asked_for() -> None:
    async with exporting({"Name": "web", "Consumers": [{"Peer": "east"}, {"SamenessGroup": ""}]}) as double:
        double.sameness_group("all", {"Peer": "west"})
        async with following(double) as followed:
            await followed.until(lambda seen: seen.exports == (export("web", "east"),))
            assert not [path for path in double.paths() if "sameness" in path]


async def test_members_that_come_and_go_are_followed_at_once_and_a_group_that_is_named_no_more_is_not() -> None:
    async with exporting(TO_GROUP) as double:
        async with following(double) as followed:
            await followed.until(lambda _: asked_again(double, GROUPS))
            assert followed.last.exports == ()
            double.sameness_group("all", {"Peer": "east"})
            await followed.until(lambda seen: seen.exports == (export("web", "east"),))
            double.sameness_group("all", {"Peer": "west"}, {"Partition": "p1"})
            await followed.until(lambda seen: seen.exports == (export("web", "west", partitions=("p1",)),))
            double.set_at(GROUP, b"Config entry not found", status=404)
            await followed.until(lambda seen: seen.exports == ())
            double.sameness_group("all", {"Peer": "west"})
            await followed.until(lambda seen: seen.exports == (export("web", "west"),))
            double.exports_as_written({"Name": "web", "Consumers": [{"Peer": "east"}]})
            await followed.until(lambda seen: seen.exports == (export("web", "east"),))
            assert {str(state.key) for state in followed.registry.states() if state.key.kind == "exports"} == {
                "exported services"
            }
            assert followed.watcher.problems() == []


async def test_what_was_known_of_a_group_is_forgotten_when_it_is_named_no_more() -> None:
    async with exporting(TO_GROUP) as double:
        double.sameness_group("all", {"Peer": "west"})
        async with following(double) as followed:
            await followed.until(lambda seen: seen.exports == (export("web", "west"),))
            double.exports_as_written()
            await followed.until(lambda seen: seen.exports == ())
            double.set_at(GROUP, b"Permission denied", status=403, index=None)
            double.exports_as_written(TO_GROUP, {"Name": "db", "Consumers": [{"Peer": "east"}]})
            waiting = export("db", "east"), export("web", groups=("all",))
            await followed.until(lambda seen: (seen.exports, seen.groups) == (waiting, ()))
            assert {name for name in followed.routes() if ".external." in name} == {external("db", "east")}


async def test_groups_are_left_to_consul_where_it_has_come_to_resolve_them() -> None:
    async with exporting(TO_GROUP) as double:
        double.sameness_group("all", {"Peer": "east"})
        async with following(double) as followed:
            await followed.until(lambda seen: seen.exports == (export("web", "east"),))
            double.set_at("/v1/exported-services", [exported("web", peers=("west",))])
            double.drop_connections()
            await followed.until(lambda seen: seen.exports == (export("web", "west"),))
            assert {str(state.key) for state in followed.registry.states() if state.key.kind == "exports"} == {
                "exported services"
            }


async def test_a_group_that_may_not_be_read_leaves_what_is_exported_by_names_and_says_the_rule() -> None:
    async with exporting(TO_GROUP, {"Name": "web", "Consumers": [{"Peer": "west"}]}) as double:
        double.set_at(GROUP, b"Permission denied", status=403, index=None)
        async with following(double) as followed:
            await followed.until(lambda _: any('mesh = "read"' in line for line in followed.watcher.problems()))
            await followed.until(lambda seen: seen.exports == (export("web", "west", groups=("all",)),))
            double.sameness_group("all", {"Partition": "default"}, {"Partition": "p1"}, {"Peer": "east"})
            opened = export("web", "east", "west", partitions=("p1",))
            await followed.until(lambda seen: seen.exports == (opened,))
            assert followed.last.groups == (SamenessGroup("all", ("east",), ("p1",)),)
            assert followed.watcher.problems() == []
            double.set_at(GROUP, b"Permission denied", status=403, index=None)
            await followed.until(lambda _: followed.watcher.problems())
            assert followed.last.exports == (opened,)


async def test_the_community_edition_has_no_group_of_any_name_and_nothing_is_said_of_it() -> None:
    with capture_logs() as logs:
        async with exporting(
            TO_GROUP, {"Name": "web", "Consumers": [{"Peer": "west"}]}, enterprise=False, version="1.16.3"
        ) as double:
            async with following(double) as followed:
                await followed.until(lambda seen: seen.exports == (export("web", "west"),))
                await followed.until(lambda _: asked_again(double, GROUPS))
                assert followed.watcher.problems() == []
    assert [entry for entry in logs if entry["log_level"] not in ("debug", "info")] == []


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [
        pytest.param(
            500, b"rpc error: invalid config entry kind: sameness-group", "knows no sameness groups", id="before 1.16"
        ),
        pytest.param(400, b"sameness groups are an enterprise-only feature", "enterprise-only", id="refused"),
    ],
)
@pytest.mark.usefixtures("patient")
async def test_consul_that_knows_no_groups_is_one_notice_and_the_rest_is_exported(
    monkeypatch: pytest.MonkeyPatch, status: int, text: bytes, said: str
) -> None:
    monkeypatch.setattr(watch, "WATCHES", Policy(wait=lambda: lambda _: 0.05))
    with capture_logs() as logs:
        async with exporting(TO_GROUP, {"Name": "web", "Consumers": [{"Peer": "west"}]}) as double:
            double.set_at(GROUP, text, status=status, index=None)
            async with following(double) as followed:
                assert followed.published[0].exports == (export("web", "west"),)
                await followed.until(lambda _: len(double.requests(GROUPS)) > 3)
                assert followed.last.groups == (SamenessGroup("all"),)
                (problem,) = followed.watcher.problems()
                assert problem.startswith("exports sameness group all: ")
                assert said in problem
    assert [entry["watch"] for entry in logs if entry["log_level"] == "warning"] == ["sameness group all"]


async def test_a_failure_of_consul_is_not_taken_for_one_that_knows_no_groups() -> None:
    async with exporting(TO_GROUP) as double:
        double.set_at(GROUP, b"rpc error: No cluster leader", status=500, index=None)
        async with following(double) as followed:
            await followed.until(lambda _: [it for it in followed.registry.states() if it.status == "500"])
            assert "No cluster leader" in str(followed.watcher.problems())
