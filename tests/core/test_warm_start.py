"""What Consul has not answered yet stays as it was last known; what it has answered counts."""

from dataclasses import replace

from meshgate.core.catalog import (
    ChainTarget,
    Export,
    ImportedService,
    Instance,
    PeerServers,
    Remote,
    SamenessGroup,
    Service,
    Snapshot,
    Subset,
)
from meshgate.core.warm_start import PendingSources, merge_last_known


def rows(*ports: int, service: str = "web") -> tuple[Instance, ...]:
    return tuple(Instance("n1", "dc1", f"{service}-{port}", service, "10.0.0.1", port, "10.0.0.1") for port in ports)


V1, V2 = Subset("v1", instances=rows(1)), Subset("v2", only_passing=True, instances=rows(2))
WEB = Service("web", rows(1, 2), subsets=(V1, V2), default_subset="v1", connect_timeout=3.0)
API = Service("api", rows(3, service="api"))
DC2, DC3 = Remote("dc2", rows(8443)), Remote("dc3", rows(8444))
LAST = Snapshot("dc1", "td.consul", services=(API, WEB), remotes=(DC2, DC3))
NOTHING = replace(LAST, services=(), remotes=())


def test_what_consul_has_answered_counts_alone() -> None:
    fresh = replace(LAST, services=(Service("web", rows(7)),), remotes=(Remote("dc2", ()),))
    assert merge_last_known(fresh, LAST, PendingSources()) is fresh


def test_listed_service_without_an_answer_stays() -> None:
    assert merge_last_known(NOTHING, LAST, PendingSources(services=frozenset({"web", "new"}))) == replace(
        NOTHING, services=(WEB,)
    )


def test_service_with_an_answer_is_taken_from_it() -> None:
    fresh = replace(NOTHING, services=(Service("web", rows(7)),))
    assert merge_last_known(fresh, LAST, PendingSources(services=frozenset({"web"}))) is fresh


def test_services_are_in_the_order_of_their_names() -> None:
    fresh = replace(NOTHING, services=(WEB,))
    carried = merge_last_known(fresh, LAST, PendingSources(services=frozenset({"api"})))
    assert [service.name for service in carried.services] == ["api", "web"]


def test_without_resolvers_the_last_subsets_default_and_timeout_stay() -> None:
    fresh = replace(NOTHING, services=(Service("new", rows(9)), Service("web", rows(7))))
    new, web = merge_last_known(fresh, LAST, PendingSources(resolvers=True)).services
    assert new == Service("new", rows(9))
    assert web == Service("web", rows(7), subsets=(V1, V2), default_subset="v1", connect_timeout=3.0)


def test_subset_without_an_answer_keeps_its_instances_and_has_its_new_rule() -> None:
    fresh = replace(NOTHING, services=(Service("web", rows(7), subsets=(Subset("v1"), Subset("v2"), Subset("v3"))),))
    carried = merge_last_known(fresh, LAST, PendingSources(subsets=frozenset({"v2.web", "v3.web", "v1.api"})))
    assert carried.services[0].subsets == (Subset("v1"), Subset("v2", instances=rows(2)), Subset("v3"))


def test_datacenter_of_which_nothing_is_proven_keeps_its_gateways() -> None:
    fresh = replace(NOTHING, remotes=(Remote("dc2", ()),))
    assert merge_last_known(fresh, LAST, PendingSources(remotes=frozenset({"dc2"}))).remotes == (DC2,)
    assert merge_last_known(NOTHING, LAST, PendingSources(remotes=frozenset({"dc3"}))).remotes == (DC3,)
    moved = replace(NOTHING, remotes=(Remote("dc2", rows(9)),))
    assert merge_last_known(moved, LAST, PendingSources(remotes=frozenset({"dc2"}))) is moved


def test_consuls_servers_stay_until_they_are_known_again() -> None:
    last = replace(LAST, servers=rows(8300))
    assert merge_last_known(NOTHING, last, PendingSources(servers=True)).servers == rows(8300)
    assert merge_last_known(NOTHING, last, PendingSources()).servers == ()
    assert merge_last_known(replace(NOTHING, servers=rows(1)), last, PendingSources(servers=True)).servers == rows(1)


def test_nothing_is_carried_from_elsewhere() -> None:
    everything = PendingSources(frozenset({"web"}), frozenset({"v1.web"}), True, frozenset({"dc2"}))
    for fresh in (
        replace(NOTHING, datacenter="dc9"),
        replace(NOTHING, partition="other"),
        replace(NOTHING, trust_domain="other.consul"),
    ):
        assert merge_last_known(fresh, LAST, everything) is fresh


# --- Enterprise and peering -------------------------------------------------------------------------------------------

TEAM_WEB = replace(WEB, namespace="team")


def test_services_of_one_name_in_two_namespaces_are_two() -> None:
    last = replace(LAST, services=(WEB, TEAM_WEB))
    assert merge_last_known(NOTHING, last, PendingSources(services=frozenset({"team/web"}))).services == (TEAM_WEB,)
    assert merge_last_known(NOTHING, last, PendingSources(services=frozenset({"web"}))).services == (WEB,)


def test_subset_of_another_namespace_has_it_in_its_account() -> None:
    fresh = replace(NOTHING, services=(replace(TEAM_WEB, subsets=(Subset("v1"),)),))
    last = replace(LAST, services=(TEAM_WEB,))
    assert merge_last_known(fresh, last, PendingSources(subsets=frozenset({"v1.web"}))) is fresh
    assert merge_last_known(fresh, last, PendingSources(subsets=frozenset({"team/v1.web"}))).services[0].subsets[
        0
    ] == Subset("v1", instances=rows(1))


def test_namespace_whose_services_are_not_listed_yet_keeps_them_all() -> None:
    last = replace(LAST, services=(API, TEAM_WEB))
    late = Service("late", rows(9), namespace="team")
    fresh = replace(NOTHING, services=(late,))
    carried = merge_last_known(fresh, last, PendingSources(namespaces=frozenset({"team"})))
    assert carried.services == (late, TEAM_WEB)


P1, P2 = Remote("p1", rows(1)), Remote("p2", rows(2))


def test_partition_of_which_nothing_is_proven_keeps_its_gateways() -> None:
    last = replace(LAST, partitions=(P1, P2))
    fresh = replace(NOTHING, partitions=(Remote("p1", ()),))
    assert merge_last_known(fresh, last, PendingSources(partitions=frozenset({"p1"}))).partitions == (P1,)
    assert merge_last_known(fresh, last, PendingSources(partitions=frozenset({"p2"}))).partitions == (
        *fresh.partitions,
        P2,
    )
    moved = replace(NOTHING, partitions=(Remote("p1", rows(9)),))
    assert merge_last_known(moved, last, PendingSources(partitions=frozenset({"p1"}))) is moved


def test_imported_service_without_an_answer_stays() -> None:
    db, api = ImportedService("db", "us", rows(1)), ImportedService("api", "us", rows(2), "team")
    last = replace(LAST, imports=(db, api))
    keys = frozenset({"db of peer us", "team/api of peer us"})
    assert merge_last_known(NOTHING, last, PendingSources()).imports == ()
    assert merge_last_known(NOTHING, last, PendingSources(imports=keys)).imports == (db, api)
    fresh = replace(NOTHING, imports=(ImportedService("db", "us", rows(9)),))
    assert merge_last_known(fresh, last, PendingSources(imports=keys)).imports == (*fresh.imports, api)


def test_exports_and_their_chains_stay_until_they_are_known() -> None:
    known = Export("web", peers=("us",), protocol="tcp", target=ChainTarget("web"))
    last = replace(LAST, exports=(known,))
    assert merge_last_known(NOTHING, last, PendingSources()).exports == ()
    assert merge_last_known(NOTHING, last, PendingSources(exports=True)).exports == (known,)
    fresh = replace(NOTHING, exports=(Export("new"), Export("web", peers=("eu",))))
    waiting = PendingSources(chains=frozenset({"web", "new"}))
    assert merge_last_known(fresh, last, waiting).exports == (Export("new"), replace(known, peers=("eu",)))
    assert merge_last_known(fresh, last, PendingSources()) is fresh


ALL, OTHERS = SamenessGroup("all", ("eu", "us"), ("p1",)), SamenessGroup("others", partitions=("p7",))
PEERS = SamenessGroup("peers", ("asia",))


def test_sameness_group_without_an_answer_has_its_last_members_in_what_is_exported_to_it_now() -> None:
    was = (Export("db", peers=("eu", "us")), Export("web", peers=("asia", "eu", "us"), partitions=("p1", "p9")))
    last = replace(LAST, exports=was, groups=(ALL, OTHERS))
    # db is no longer exported, nor web to others and to p9; it is now, and new.
    now = Export("new", "team", groups=("all", "unheard-of")), Export("web", peers=("cn",), groups=("all",))
    carried = merge_last_known(replace(NOTHING, exports=now), last, PendingSources())
    assert carried.exports == (
        replace(now[0], peers=("eu", "us"), partitions=("p1",)),
        replace(now[1], peers=("cn", "eu", "us"), partitions=("p1",)),
    )
    # They are there for the next restart, too.
    assert carried.groups == (ALL,)
    assert merge_last_known(replace(NOTHING, exports=now), carried, PendingSources()) == carried


def test_sameness_group_with_an_answer_is_taken_from_it() -> None:
    last = replace(LAST, exports=(Export("web", peers=("asia", "eu", "us")),), groups=(ALL, OTHERS, PEERS))
    fresh = replace(NOTHING, exports=(Export("web", peers=("cn",)),), groups=(SamenessGroup("all", ("cn",)),))
    assert merge_last_known(fresh, last, PendingSources()) is fresh
    db, web = Export("db", groups=("peers",)), Export("web", peers=("cn",), groups=("others",))
    mixed = replace(fresh, exports=(db, web))
    carried = merge_last_known(mixed, last, PendingSources())
    assert carried.exports == (replace(db, peers=("asia",)), replace(web, partitions=("p7",)))
    assert carried.groups == (*fresh.groups, OTHERS, PEERS)


def test_sameness_groups_stay_as_long_as_the_exports_that_name_them() -> None:
    last = replace(LAST, exports=(Export("web", peers=("eu",)),), groups=(ALL,))
    assert merge_last_known(NOTHING, last, PendingSources(exports=True)).groups == (ALL,)
    assert merge_last_known(NOTHING, last, PendingSources()).groups == ()
    fresh = replace(NOTHING, exports=(Export("web", peers=("eu",)),))
    assert merge_last_known(fresh, last, PendingSources(exports=True)) is fresh


def test_control_plane_of_peers_stays_until_it_is_known() -> None:
    last = replace(
        LAST, peer_servers=(PeerServers("us", "server.us.peering.x", (("192.0.2.9", 1),)),), peer_through=True
    )
    carried = merge_last_known(NOTHING, last, PendingSources(peers=True))
    assert (carried.peer_servers, carried.peer_through) == (last.peer_servers, True)
    assert merge_last_known(NOTHING, last, PendingSources()) is NOTHING
