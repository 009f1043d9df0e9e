"""What the watches of Enterprise and peering have not answered yet, of what the state file has."""

import pytest
import trio

from meshgate.core.catalog import (
    Export,
    ImportedService,
    Instance,
    PeerServers,
    Remote,
    Service,
    Snapshot,
)
from meshgate.core.warm_start import PendingSources, merge_last_known
from tests.core.samples import plan

from .fake_consul import row
from .mesh_double import chain, exported, mesh_double, peering
from .mesh_watched import following

ROW = Instance("n1", "dc1", "web-1", "web", "10.0.0.1", 21000, "10.0.0.1")
LAST = Snapshot(
    "dc1",
    "td.consul",
    services=(Service("web", (ROW,)), Service("api", (ROW,), namespace="team")),
    partitions=(Remote("p1", (ROW,)), Remote("p2", ())),
    exports=(Export("web", peers=("us",)),),
    imports=(ImportedService("db", "us", (ROW,)),),
    peer_servers=(PeerServers("us", "server.us.peering.x", (("192.0.2.9", 1),)),),
    peer_through=True,
)


async def unanswered(*silent: str, early: bool = False, last: Snapshot = LAST) -> PendingSources:
    """What is not answered where Consul fails at some paths, `ns:path` of a namespace or `partition:path`."""
    async with mesh_double() as double:
        double.tenant(ns="team")
        double.serve("api", row("api-sidecar-proxy"), ns="team")
        for partition in ("p1", "p2"):
            double.tenant(partition)
        double.gateway("p1", "192.0.2.7", 8443)
        double.peering(peering("us", "default/default/db"))
        double.import_from("us", "db", ("192.0.2.8", 8443), ns="default")
        double.set_at("/v1/config/mesh/mesh", {"Peering": {"PeerThroughMeshGateways": True}})
        double.set_at("/v1/exported-services", [exported("web", peers=("us",))])
        double.set_at("/v1/discovery-chain/web", chain("web"))
        for each in silent:
            at, _, path = each.rpartition(":")
            place = {"ns": at} if at == "team" else {"peer": at} if at == "us" else {"partition": at}
            fields = {"ns": "default"} if at == "us" else {}
            double.set_at(path, b"broken", status=500, index=None, **place, **fields)
        async with following(double) as followed:
            with trio.fail_after(20):
                while any(not state.failures and state.last_success is None for state in followed.registry.states()):
                    await trio.sleep(0.02)
            return followed.watcher.unanswered(last, early=early)


async def test_when_all_is_answered_nothing_is_carried() -> None:
    assert await unanswered() == PendingSources()
    # Of imports the leader itself may know too little yet.
    assert await unanswered(early=True) == PendingSources(imports=frozenset({"db of peer us"}))


async def test_where_there_is_nothing_to_carry_nothing_is_waited_for() -> None:
    assert await unanswered(early=True, last=Snapshot("dc1", "td.consul")) == PendingSources()


@pytest.mark.parametrize(
    ("silent", "fields"),
    [
        ("/v1/namespaces", {"namespaces": frozenset({"team"})}),
        ("team:/v1/catalog/services", {"namespaces": frozenset({"team"})}),
        ("p1:/v1/health/service/mesh-gateway", {"partitions": frozenset({"p1"})}),
        ("us:/v1/health/connect/db", {"imports": frozenset({"db of peer us"})}),
        ("/v1/exported-services", {"exports": True}),
        ("/v1/health/service/consul", {"servers": True}),
        ("/v1/discovery-chain/web", {"chains": frozenset({"web"})}),
    ],
)
async def test_what_is_silent_is_carried(silent: str, fields: dict[str, frozenset[str] | bool]) -> None:
    assert await unanswered(silent) == PendingSources(**fields)  # type: ignore[arg-type]


async def test_partitions_are_carried_while_consul_does_not_list_them() -> None:
    async with mesh_double() as double:
        double.set("/v1/partitions", b"broken", status=500, index=None)
        async with following(double) as followed:
            assert followed.watcher.unanswered(LAST, early=False).partitions == {"p1"}


async def test_before_peerings_are_looked_for_all_of_them_is_carried() -> None:
    found = await unanswered("/v1/peerings", early=True)
    assert (found.imports, found.exports, found.peers, found.servers) == (
        frozenset({"db of peer us"}),
        True,
        True,
        True,
    )
    assert (await unanswered("/v1/config/mesh/mesh", early=True)).peers


async def test_after_a_restart_a_group_that_does_not_answer_opens_what_it_opened_before() -> None:
    to_group = {"Consumers": [{"SamenessGroup": "all"}]}
    async with mesh_double(version="1.16.3+ent") as double:
        double.peering(peering("east"), peering("west"))
        for name in ("web", "db"):
            double.serve(name, row(f"{name}-sidecar-proxy"))
            double.set_at(f"/v1/discovery-chain/{name}", chain(name))
        double.exports_as_written({"Name": "web"} | to_group, {"Name": "db"} | to_group)
        double.sameness_group("all", {"Peer": "east"})
        async with following(double) as before:
            last = await before.until(
                lambda seen: len(seen.exports) == 2 and all(it.peers and it.protocol for it in seen.exports)
            )
        double.set_at("/v1/config/sameness-group/all", b"Permission denied", status=403, index=None)
        double.exports_as_written({"Name": "web"} | to_group, {"Name": "web", "Consumers": [{"Peer": "west"}]})
        async with following(double) as after:
            await after.until(lambda seen: [it.protocol for it in seen.exports] == ["tcp"])
            carried = merge_last_known(after.last, last, after.watcher.unanswered(last, early=False))
            names = {route.sni.partition(".external.")[0] for route in plan(carried) if "external" in route.sni}
            assert names == {"web.default.default.east", "web.default.default.west"}
            double.sameness_group("all", {"Peer": "west"})
            await after.until(lambda seen: seen.groups)
            assert merge_last_known(after.last, last, after.watcher.unanswered(last, early=False)) is after.last
