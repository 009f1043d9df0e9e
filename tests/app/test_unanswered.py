"""What the watches of Enterprise and peering have not answered yet, of what the state file has."""

from dataclasses import replace

import pytest

from meshgate.adapters.consul import WatchState
from meshgate.app.gateway.unanswered import unanswered_of
from meshgate.core.catalog import (
    Export,
    ImportedService,
    Instance,
    PeerServers,
    RemotePartition,
    Service,
    Snapshot,
)
from meshgate.core.planner import plan
from meshgate.core.warm_start import PendingSources, merge_last_known
from tests.adapters.consul.fake_consul import row
from tests.adapters.consul.mesh_double import chain, mesh_double, peering
from tests.adapters.consul.mesh_watched import following

ROW = Instance("n1", "dc1", "web-1", "web", "10.0.0.1", 21000, "10.0.0.1")
LAST = Snapshot(
    "dc1",
    "td.consul",
    services=(Service("web", (ROW,)), Service("api", (ROW,), namespace="team")),
    partitions=(RemotePartition("p1", (ROW,)), RemotePartition("p2", ())),
    exports=(Export("web", peers=("us",)),),
    imports=(ImportedService("db", "us", (ROW,)),),
    peer_servers=(PeerServers("us", "server.us.peering.x", (("192.0.2.9", 1),)),),
    peer_through=True,
)


def state(kind: str, name: str, *, answered: bool = True) -> WatchState:
    return WatchState(kind, name, 0.0, last_success=1.0 if answered else None, status="" if answered else "500")


ALL = [
    state("namespaces", "namespaces"),
    state("services", "team/service names"),
    state("partitions", "partitions"),
    state("gateways", "mesh-gateway in partition p1"),
    state("peerings", "peerings"),
    state("mesh-entry", "mesh entry"),
    state("imports", "db of peer us"),
    state("exports", "exported services"),
    state("servers", "local servers"),
]


def but(kind: str) -> list[WatchState]:
    """All is answered but this."""
    return [replace(it, last_success=None, status="500") if it.kind == kind else it for it in ALL]


def without(kind: str) -> list[WatchState]:
    """All is answered, and this is not asked for."""
    return [it for it in ALL if it.kind != kind]


def test_when_all_is_answered_nothing_is_carried() -> None:
    assert unanswered_of(LAST, ALL, early=False) == PendingSources()
    # Of imports the leader itself may know too little yet.
    assert unanswered_of(LAST, ALL, early=True) == PendingSources(imports=frozenset({"db of peer us"}))


def test_where_there_is_nothing_to_carry_nothing_is_waited_for() -> None:
    assert unanswered_of(Snapshot("dc1", "td.consul"), [], early=True) == PendingSources()


@pytest.mark.parametrize(
    ("states", "fields"),
    [
        (but("namespaces"), {"namespaces": frozenset({"team"})}),
        (without("namespaces"), {"namespaces": frozenset({"team"})}),
        (but("services"), {"namespaces": frozenset({"team"})}),
        (but("gateways"), {"partitions": frozenset({"p1"})}),
        ([*but("partitions"), state("x", "y")], {}),
        ([it for it in but("partitions") if it.kind != "gateways"], {"partitions": frozenset({"p1"})}),
        (without("gateways"), {}),
        (but("imports"), {"imports": frozenset({"db of peer us"})}),
        (but("exports"), {"exports": True}),
        # Which groups are silent, the exports say.
        ([*ALL, state("exports", "sameness group all", answered=False)], {}),
        (but("servers"), {"servers": True}),
        ([*ALL, state("chain", "web", answered=False)], {"chains": frozenset({"web"})}),
        (without("peerings"), {}),
    ],
)
def test_what_is_silent_is_carried(states: list[WatchState], fields: dict[str, frozenset[str] | bool]) -> None:
    assert unanswered_of(LAST, states, early=False) == PendingSources(**fields)  # type: ignore[arg-type]


def test_before_peerings_are_looked_for_all_of_them_is_carried() -> None:
    found = unanswered_of(LAST, [state("namespaces", "namespaces")], early=True)
    assert (found.imports, found.exports, found.peers, found.servers) == (
        frozenset({"db of peer us"}),
        True,
        True,
        True,
    )
    assert unanswered_of(LAST, but("mesh-entry"), early=True).peers


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
            carried = merge_last_known(after.last, last, unanswered_of(last, after.registry.states(), early=False))
            names = {route.sni.partition(".external.")[0] for route in plan(carried) if "external" in route.sni}
            assert names == {"web.default.default.east", "web.default.default.west"}
            double.sameness_group("all", {"Peer": "west"})
            await after.until(lambda seen: seen.groups)
            assert (
                merge_last_known(after.last, last, unanswered_of(last, after.registry.states(), early=False))
                is after.last
            )
