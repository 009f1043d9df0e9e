"""Cluster peering, followed over HTTP against the double: imports, exports, and the control plane."""

import json

import pytest
import trio
from structlog.testing import capture_logs

from meshgate.adapters.consul.peerings import POLL
from meshgate.adapters.consul.watch_scheduler import WatchScheduler
from meshgate.core.export_routes import ExportRules
from meshgate.core.routes import RouteKind
from meshgate.core.sni import PeeredServiceSni, parse

from .fake_consul import FakeConsul, Resource, row
from .mesh_double import TRUST_DOMAIN, MeshDouble, chain, exported, key, mesh_double, peering
from .mesh_watched import SELDOM, following

PASSED = ExportRules(pass_http=True)


def external(service: str, peer: str, ns: str = "default", partition: str = "default") -> str:
    return f"{service}.{ns}.{partition}.{peer}.external.{TRUST_DOMAIN}"


def absent(
    double: FakeConsul, text: bytes = b"Invalid URL path: not a recognized HTTP API endpoint", status: int = 404
) -> None:
    double.set("/v1/peerings", text, status=status, index=None)


# --- none at all ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "text"),
    [
        pytest.param(404, b"Invalid URL path: not a recognized HTTP API endpoint", id="before 1.13"),
        pytest.param(500, b"rpc error: peering must be enabled to use this endpoint", id="switched off"),
        pytest.param(412, b"peering must be enabled to use this endpoint", id="switched off, otherwise said"),
    ],
)
async def test_consul_without_peering_is_asked_once_and_nothing_is_said_of_it(status: int, text: bytes) -> None:
    async with mesh_double(enterprise=False, version="1.8.7") as double:
        double.serve("web", row("web-sidecar-proxy"))
        absent(double, text, status)
        # Asked for where an answer takes long, as on a busy machine.
        double.set("/v1/internal/acl/authorize", [{"Allow": True}], index=None)
        with capture_logs() as logs:
            async with following(double) as followed:
                await followed.until(lambda seen: seen.services)
                await trio.sleep(1)
                assert double.paths().count("/v1/peerings") == 1
                assert not {"/v1/exported-services", "/v1/config/mesh"} & set(double.paths())
                assert followed.watcher.problems() == []
                assert not {"mesh-entry", "exports"} & {state.key.kind for state in followed.registry.states()}
                assert dict(followed.client.errors) == {}
        assert [entry for entry in logs if entry["log_level"] != "info"] == []


async def test_peering_that_comes_with_an_upgrade_of_consul_is_found() -> None:
    async with mesh_double(enterprise=False) as double:
        absent(double)
        async with following(double, intervals={"ABSENT_POLL": 0.2}) as followed:
            name = double.import_from("east", "web", ("198.18.2.1", 443))
            double.peering(peering("east", "web"))
            await followed.until(lambda seen: seen.imports)
            assert followed.routes() == {name: ["198.18.2.1:443"]}


async def test_a_token_without_the_right_to_peerings_is_a_notice_and_no_failure() -> None:
    async with mesh_double(enterprise=False) as double:
        absent(double, b"Permission denied: token with AccessorID 'x' lacks permission 'peering:read'", 403)
        async with following(double) as followed:
            await followed.until_told('peering = "read"')
            assert [state for state in followed.registry.states() if state.error] == []
            double.import_from("east", "web", ("198.18.2.1", 443))
            double.peering(peering("east", "web"))
            await followed.until(lambda seen: seen.imports)
            assert followed.watcher.problems() == []


async def test_a_consul_that_takes_long_to_refuse_peerings_costs_the_start_no_second() -> None:
    """1.22 answers 403 after 11 s; what the token may do it tells at once."""
    async with mesh_double(enterprise=False) as double:
        double.peering()
        held_back = double.hold_back("/v1/peerings")
        double.set("/v1/internal/acl/authorize", [{"Allow": False}], index=None)
        begun = trio.current_time()
        async with following(double) as followed:
            assert trio.current_time() - begun < 3
            await followed.until_told('peering = "read"')
            await trio.sleep(1)
            # While it is refused, only the right is asked for.
            assert [seen for seen in double.requests("/v1/peerings") if seen.method == "GET"] == []
            double.set("/v1/internal/acl/authorize", [{"Allow": True}], index=None)
            double.import_from("east", "web", ("198.18.2.1", 443))
            double.peering(peering("east", "web"))
            held_back.set()
            await followed.until(lambda seen: seen.imports)


@pytest.mark.parametrize(("partition", "told"), [("p1", {"Partition": "p1"}), ("default", {})])
async def test_the_right_is_asked_for_in_the_own_partition(partition: str, told: dict[str, str]) -> None:
    """Consul's community edition answers 400 to the field, and knows the name `default`."""
    async with mesh_double() as double:
        double.tenant(partition)
        double.peering(partition=partition)
        double.hold_back(key("/v1/peerings", partition=partition))
        double.set_at("/v1/internal/acl/authorize", [{"Allow": False}], index=None, partition=partition)
        async with following(double, partition=partition) as followed:
            await followed.until_told('peering = "read"')
            asked = [json.loads(seen.body) for seen in double.requests("/v1/internal/acl/authorize")]
            assert [{"Resource": "peering", "Access": "read", "Segment": "", **told}] in asked
            assert [seen for seen in double.requests("/v1/peerings") if seen.method == "GET"] == []


async def test_a_new_peering_is_told_by_a_held_query_where_the_version_holds_it() -> None:
    async with mesh_double(enterprise=False) as double:
        double.set_at("/v1/peerings", [])
        double.import_from("east", "web", ("198.18.2.1", 443))
        async with following(double, intervals=SELDOM) as followed:
            await trio.sleep(1)
            # The first may be asked again: it shares few connections with all other first questions.
            assert "index" in double.requests("/v1/peerings")[-1].query
            double.set_at("/v1/peerings", [peering("east", "web")])
            await followed.until(lambda seen: seen.imports)


async def test_another_peering_is_noticed_soon_after_the_first() -> None:
    """Beside one that is known the list cannot be held, as what a peering imports moves no index."""
    async with mesh_double(enterprise=False) as double:
        for peer in ("east", "west"):
            double.import_from(peer, f"from-{peer}", ("198.18.2.1", 443))
        double.peering(peering("east", "from-east"))
        async with following(double, intervals={}) as followed:
            await followed.until(lambda seen: seen.imports)
            double.peering(peering("east", "from-east"), peering("west", "from-west"))
            await followed.until(lambda seen: len(seen.imports) == 2)
    # Seconds between two looks as a rule; it was ten once.
    assert POLL <= 1


# --- importing --------------------------------------------------------------------------------------------------------


async def test_imported_services_are_routed_by_the_name_that_their_exporter_gave_them() -> None:
    async with mesh_double(enterprise=False) as double:
        web = double.import_from("east", "web", ("198.18.2.1", 443), ("198.18.2.2", 8443))
        api = double.import_from("west", "api", ("198.18.3.1", 443), sni="api.default.default.me.external.3.consul")
        double.peering(peering("east", "web"), peering("west", "api"))
        async with following(double) as followed:
            await followed.until(lambda seen: len(seen.imports) == 2)
            assert followed.routes() == {web: ["198.18.2.1:443", "198.18.2.2:8443"], api: ["198.18.3.1:443"]}
            assert {route.kind for route in followed.table()} == {RouteKind.PEER_IMPORT}
            assert {route.destination for route in followed.table()} == {"web of peer east", "api of peer west"}


async def test_the_first_snapshot_has_the_imports() -> None:
    async with mesh_double(enterprise=False) as double:
        double.import_from("east", "web", ("198.18.2.1", 443))
        double.peering(peering("east", "web"))
        async with following(double) as followed:
            assert [service.key for service in followed.published[0].imports] == ["web of peer east"]


async def test_a_gateway_of_the_peer_that_is_replaced_is_followed_at_once() -> None:
    async with mesh_double(enterprise=False) as double:
        name = double.import_from("east", "web", ("198.18.2.1", 443))
        double.peering(peering("east", "web"))
        async with following(double) as followed:
            await followed.until(lambda seen: seen.imports)
            double.import_from("east", "web", ("198.18.2.1", 443), ("198.18.2.9", 443))
            await followed.until(lambda _: followed.routes() == {name: ["198.18.2.1:443", "198.18.2.9:443"]})
            double.import_from("east", "web", ("198.18.2.9", 443))
            await followed.until(lambda _: followed.routes() == {name: ["198.18.2.9:443"]})


async def test_what_the_leader_forgets_after_an_election_stays_while_something_answers_for_it() -> None:
    async with mesh_double(enterprise=False) as double:
        double.import_from("east", "web", ("198.18.2.1", 443))
        double.peering(peering("east", "web"))
        async with following(double) as followed:
            await followed.until(lambda seen: seen.imports)
            double.peering(peering("east"))
            asked = len(double.requests("/v1/peerings"))
            await followed.until(lambda _: len(double.requests("/v1/peerings")) > asked + 2)
            assert [service.key for service in followed.last.imports] == ["web of peer east"]
            double.import_from("east", "web")
            await followed.until(lambda seen: not seen.imports)
            assert [state for state in followed.registry.states() if state.key.kind == "imports"] == []


@pytest.mark.parametrize(
    "fields", [{"State": "TERMINATED"}, {"State": "DELETING"}, {"DeletedAt": "2023-01-01T00:00:00Z"}]
)
async def test_a_peering_that_ends_takes_its_imports_with_it(fields: dict[str, str]) -> None:
    async with mesh_double(enterprise=False) as double:
        double.import_from("east", "web", ("198.18.2.1", 443))
        double.peering(peering("east", "web"))
        async with following(double) as followed:
            await followed.until(lambda seen: seen.imports)
            double.peering(peering("east", "web", **fields))
            await followed.until(lambda seen: not seen.imports)


async def test_imports_outlive_a_token_that_loses_its_rights_and_consul_that_fails() -> None:
    async with mesh_double(enterprise=False) as double:
        double.import_from("east", "web", ("198.18.2.1", 443))
        double.peering(peering("east", "web"))
        async with following(double) as followed:
            await followed.until(lambda seen: seen.imports)
            absent(double, b"Permission denied", 403)
            await followed.until(
                lambda _: [it for it in followed.registry.states() if it.key.kind == "peerings" and it.error]
            )
            assert followed.last.imports
            await followed.until_told('peering = "read"')


async def test_in_enterprise_an_import_has_the_namespace_that_its_name_says() -> None:
    async with mesh_double() as double:
        name = double.import_from("east", "web", ("198.18.2.1", 443), ns="team")
        double.peering(peering("east", "default/team/web"))
        async with following(double) as followed:
            await followed.until(lambda seen: seen.imports)
            assert followed.routes() == {name: ["198.18.2.1:443"]}
            assert followed.last.imports[0].key == "team/web of peer east"


# --- exporting --------------------------------------------------------------------------------------------------------


def exporting(double: MeshDouble, **place: str) -> None:
    """web and db are exported to east, web also to west; db's resolver redirects to store, subset v2."""
    double.peering(peering("east"), peering("west"), **place)
    for name in ("web", "db"):
        double.serve(name, row(f"{name}-sidecar-proxy"))
    double.serve("store", row("store-sidecar-proxy", address="10.0.0.9"))
    entry = {"Kind": "service-resolver", "Name": "store", "Subsets": {"v2": {}}}
    double.set_at("/v1/config/service-resolver", [entry])
    double.set_at("/v1/exported-services", [exported("web", peers=("east", "west")), exported("db", peers=("east",))])
    double.set_at("/v1/discovery-chain/web", chain("web"))
    double.set_at("/v1/discovery-chain/db", chain("db", target="store", subset="v2"))


OWN = {f"{name}.default.dc1.internal.{TRUST_DOMAIN}" for name in ("web", "db", "store", "v2.store")}


async def test_tcp_exports_are_routed_for_each_peer_along_redirects_and_subsets() -> None:
    async with mesh_double(enterprise=False) as double:
        exporting(double)
        async with following(double) as followed:
            await followed.until(lambda seen: len(seen.exports) == 2 and all(it.protocol for it in seen.exports))
            await followed.until(lambda seen: len(seen.services) == 3 and seen.services[1].subsets)
            routes = followed.routes()
            assert set(routes) - OWN == {external("web", "east"), external("web", "west"), external("db", "east")}
            assert routes[external("web", "west")] == ["10.0.0.7:21000"]
            assert routes[external("db", "east")] == ["10.0.0.9:21000"]


async def test_the_first_snapshot_has_the_exports_with_their_chains() -> None:
    async with mesh_double(enterprise=False) as double:
        exporting(double)
        async with following(double) as followed:
            assert [it.protocol for it in followed.published[0].exports] == ["tcp", "tcp"]


async def test_a_service_that_changes_its_protocol_is_withdrawn_with_a_reason_or_passed_on() -> None:
    async with mesh_double(enterprise=False) as double:
        exporting(double)
        async with following(double) as followed:
            await followed.until(lambda _: external("web", "east") in followed.routes())
            double.set_at("/v1/discovery-chain/web", chain("web", protocol="http", start="router"))
            await followed.until(lambda _: external("web", "east") not in followed.routes())
            assert "web is exported with protocol http" in followed.table().unroutable[external("web", "east")]
            assert followed.routes(PASSED)[external("web", "east")] == ["10.0.0.7:21000"]


async def test_streams_for_an_export_count_for_the_service_that_it_leads_to(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[set[str]] = []
    monkeypatch.setattr(WatchScheduler, "used", lambda _, services: told.append(set(services)))
    async with mesh_double(enterprise=False) as double:
        exporting(double)
        async with following(double) as followed:
            await followed.until(lambda _: external("db", "east") in followed.routes())
            followed.watcher.used(("db",))
            assert told == [{"db", "store"}]


async def test_an_export_that_ends_and_one_that_begins_are_followed() -> None:
    async with mesh_double(enterprise=False) as double:
        exporting(double)
        async with following(double) as followed:
            await followed.until(lambda _: external("web", "west") in followed.routes())
            double.set_at("/v1/discovery-chain/store", chain("store"))
            double.set_at("/v1/exported-services", [exported("store", peers=("west",))])
            await followed.until(lambda _: set(followed.routes()) - OWN == {external("store", "west")})
            assert {str(state.key) for state in followed.registry.states() if state.key.kind == "chain"} == {"store"}


async def test_the_last_peering_that_ends_takes_the_exports_with_it_and_a_new_one_brings_them_back() -> None:
    async with mesh_double(enterprise=False) as double:
        exporting(double)
        async with following(double) as followed:
            await followed.until(lambda _: external("web", "east") in followed.routes())
            double.peering()
            await followed.until(lambda seen: not seen.exports)
            assert not {"exports", "chain"} & {state.key.kind for state in followed.registry.states()}
            double.peering(peering("east"))
            await followed.until(lambda _: external("web", "east") in followed.routes())


async def test_before_1_17_3_the_entry_is_read_and_its_wildcards_resolved() -> None:
    async with mesh_double(enterprise=False, version="1.14.4") as double:
        exporting(double)
        missing = b"Invalid URL path: not a recognized HTTP API endpoint"
        double.set("/v1/exported-services", missing, status=404, index=None)
        entry = {
            "Kind": "exported-services",
            "Name": "default",
            "Services": [
                {"Name": "*", "Consumers": [{"Peer": "east"}]},
                {"Name": "web", "Consumers": [{"PeerName": "west"}, {"Partition": "p9"}]},
            ],
        }
        double.set_at("/v1/config/exported-services/default", entry)
        double.set_at("/v1/discovery-chain/store", chain("store"))
        async with following(double) as followed:
            wanted = {external(name, "east") for name in ("web", "db", "store")} | {external("web", "west")}
            await followed.until(lambda _: set(followed.routes()) - OWN == wanted)
            double.serve("late", row("late-sidecar-proxy"))
            double.set_at("/v1/discovery-chain/late", chain("late"))
            await followed.until(lambda _: external("late", "east") in followed.routes())


async def test_an_entry_that_does_not_exist_yet_is_waited_for() -> None:
    async with mesh_double(enterprise=False, version="1.14.4") as double:
        exporting(double)
        double.set("/v1/exported-services", b"Invalid URL path", status=404, index=None)
        async with following(double) as followed:
            assert not followed.last.exports
            assert followed.watcher.problems() == []
            double.set_at(
                "/v1/config/exported-services/default",
                {"Services": [{"Name": "web", "Consumers": [{"Peer": "east"}]}]},
            )
            await followed.until(lambda _: external("web", "east") in followed.routes())


async def test_exports_that_the_token_may_not_read_are_a_problem_with_the_rule() -> None:
    async with mesh_double(enterprise=False) as double:
        exporting(double)
        double.set("/v1/exported-services", b"Permission denied", status=403, index=None)
        async with following(double) as followed:
            await followed.until(lambda _: any('mesh = "read"' in line for line in followed.watcher.problems()))


async def test_in_enterprise_exports_have_their_namespace_and_partition() -> None:
    async with mesh_double() as double:
        double.tenant("p1")
        double.tenant("p1", "team")
        double.peering(peering("east"), partition="p1")
        double.serve("web", row("web-sidecar-proxy"), partition="p1", ns="team")
        double.set_at("/v1/exported-services", [exported("web", peers=("east",), ns="team")], partition="p1")
        here = {"Namespace": "team", "Partition": "p1"}
        found = chain("web", **here)
        found["Chain"] |= here
        double.set_at("/v1/discovery-chain/web", found, partition="p1", ns="team")
        async with following(double, partition="p1") as followed:
            name = external("web", "east", "team", "p1")
            await followed.until(lambda _: followed.routes().get(name) == ["10.0.0.7:21000"])


# --- the control plane ------------------------------------------------------------------------------------------------


def servers(double: MeshDouble, through: bool = True) -> None:
    found = row("consul", address="10.0.0.1", port=8300, kind="")
    found["Service"]["Meta"] = {"grpc_tls_port": "8503"}
    double.set_at("/v1/health/service/consul", [found])
    entry = {"Kind": "mesh", "Peering": {"PeerThroughMeshGateways": through}}
    double.set_at("/v1/config/mesh/mesh", entry)
    dialled = {"PeerServerName": "server.us.peering.x.consul", "PeerServerAddresses": ["198.18.2.1:443", "[::1]:8443"]}
    double.peering(peering("east", **dialled))


CONTROL = {
    f"server.dc1.peering.{TRUST_DOMAIN}": ["10.0.0.1:8503"],
    "server.us.peering.x.consul": ["198.18.2.1:443", "::1:8443"],
}


async def test_the_control_plane_is_routed_both_ways_while_the_mesh_entry_says_so() -> None:
    async with mesh_double(enterprise=False) as double:
        servers(double)
        async with following(double) as followed:
            await followed.until(lambda seen: seen.servers)
            assert followed.routes() == CONTROL
            assert {route.kind for route in followed.table()} == {RouteKind.PEER_SERVER}
            double.set_at("/v1/config/mesh/mesh", {"Kind": "mesh", "Peering": None})
            await followed.until(lambda _: followed.routes() == {})


async def test_a_mesh_entry_that_does_not_exist_is_waited_for_without_a_word() -> None:
    async with mesh_double(enterprise=False) as double:
        servers(double)
        del double.resources["/v1/config/mesh"]
        async with following(double) as followed:
            await followed.until(lambda _: double.requests("/v1/config/mesh"))
            assert followed.routes() == {}
            assert followed.watcher.problems() == []
            servers(double)
            await followed.until(lambda _: followed.routes() == CONTROL)


async def test_the_first_snapshot_has_the_control_plane() -> None:
    async with mesh_double(enterprise=False) as double:
        servers(double)
        async with following(double) as followed:
            assert followed.published[0].servers
            assert followed.published[0].peer_through


async def test_a_gateway_of_another_partition_has_no_control_plane() -> None:
    async with mesh_double() as double:
        double.tenant("p1")
        servers(double)
        double.peering(peering("east", PeerServerName="s", PeerServerAddresses=["198.18.2.1:443"]), partition="p1")
        async with following(double, partition="p1") as followed:
            await followed.until(lambda seen: seen.peer_servers)
            assert followed.routes() == {}
            assert key("/v1/config/mesh") not in double.paths()


# --- on demand --------------------------------------------------------------------------------------------------------


def said(name: str) -> PeeredServiceSni:
    found = parse(name.lower())
    assert isinstance(found, PeeredServiceSni)
    return found


@pytest.mark.parametrize("peer", ["new", "known", "of a known trust domain"])
async def test_a_service_of_a_peer_that_no_list_has_yet_is_found_by_its_name(peer: str) -> None:
    async with mesh_double(enterprise=False) as double:
        other = "99999999-3333-4444-5555-666666666666.consul"
        before = [peering("east"), peering("west", PeerServerName=f"server.dc9.peering.{other}")]
        double.peering(*(before if peer != "new" else before[1:]))
        async with following(double, intervals=SELDOM) as followed:
            name = double.import_from("east", "fresh", ("198.18.2.1", 443))
            double.set_at("/v1/health/connect/fresh", [], peer="west")
            if peer == "of a known trust domain":
                double.import_from("east", "web", ("198.18.2.9", 443))
                await followed.watcher.lookup_peered(said(name.replace("fresh", "web")))
            double.peering(*before)
            await trio.sleep(0.3)
            await followed.watcher.lookup_peered(said(name.upper()))
            assert followed.routes()[name] == ["198.18.2.1:443"]
            assert not [seen for seen in double.requests("/v1/health/connect/fresh") if seen.query["peer"] == "west"]
            # The list names it later, as it is spelled, or Consul's leader has forgotten it: it stays.
            double.import_from("east", "Fresh", ("198.18.2.1", 443), sni=name)
            for listed in ("Fresh", ""):
                double.peering(peering("east", *filter(None, [listed])), before[1])
                await trio.sleep(0.3)
                await followed.watcher.lookup_peered(said(f"other.default.default.us.external.{'1' * 8}.consul"))
                assert followed.routes()[name] == ["198.18.2.1:443"]


async def test_a_name_that_no_peer_has_is_nothing_and_costs_little() -> None:
    async with mesh_double(enterprise=False) as double:
        double.peering(peering("east", PeerServerName="server.dc9.peering.99999999-3333-4444-5555-666666666666.consul"))
        async with following(double, intervals=SELDOM) as followed:
            for number in range(20):
                name = f"made-up-{number}.default.default.us.external.11111111-0000-4444-5555-666666666666.consul"
                await followed.watcher.lookup_peered(said(name))
            assert followed.routes() == {}
            assert not [path for path in double.paths() if path.startswith("/v1/health/connect/made-up")]
            assert double.paths().count("/v1/peerings") < 5


@pytest.mark.parametrize("peer", ["new", "known"])
async def test_a_service_that_was_only_just_exported_is_found_by_its_name(peer: str) -> None:
    async with mesh_double(enterprise=False) as double:
        double.peering(*[peering("east")] * (peer == "known"))
        double.set_at("/v1/exported-services", [])
        async with following(double, intervals=SELDOM) as followed:
            await trio.sleep(0.3)
            double.peering(peering("east"))
            double.serve("web", row("web-sidecar-proxy", address="198.18.1.1", port=21000))
            double.set_at("/v1/discovery-chain/web", chain("web"))
            double.set_at("/v1/exported-services", [exported("web", peers=("east",))])
            name = f"web.default.default.east.external.{TRUST_DOMAIN}"
            await followed.watcher.lookup_peered(said(name))
            assert followed.routes()[name] == ["198.18.1.1:21000"]
            assert followed.table().exact[name].kind is RouteKind.PEER_EXPORT


async def test_what_is_not_exported_to_a_peer_is_not_found_by_its_name() -> None:
    async with mesh_double(enterprise=False) as double:
        double.peering(peering("east"), peering("west"))
        double.serve("web", row("web-sidecar-proxy"))
        double.set_at("/v1/discovery-chain/web", chain("web"))
        double.set_at("/v1/exported-services", [exported("web", peers=("west",))])
        async with following(double, intervals=SELDOM) as followed:
            for peer in ("east", "unknown"):
                await followed.watcher.lookup_peered(said(f"web.default.default.{peer}.external.{TRUST_DOMAIN}"))
            assert {name for name in followed.routes() if "external" in name} == {
                f"web.default.default.west.external.{TRUST_DOMAIN}"
            }


async def unseen(double: MeshDouble, path: str, body: object) -> Resource:
    """Give a path another answer without waking the query that is held on it; the answer that it had."""
    while "index" not in double.requests(path)[-1].query:
        await trio.sleep(0.01)
    before = double.resources[path]
    assert before.index is not None
    double.resources[path] = Resource(body, index=before.index + 1)
    return before


async def test_an_export_that_a_lookup_missed_in_passing_is_served_again() -> None:
    """The list's own watch has the same answer before and after, and may never see the one in between."""
    async with mesh_double(enterprise=False) as double:
        double.peering(peering("east"))
        double.serve("web", row("web-sidecar-proxy", address="198.18.1.1", port=21000))
        double.set_at("/v1/discovery-chain/web", chain("web"))
        double.set_at("/v1/exported-services", [exported("web", peers=("east",))])
        async with following(double, intervals=SELDOM) as followed:
            await followed.until(lambda _: external("web", "east") in followed.routes())
            before = await unseen(double, "/v1/exported-services", [])
            await followed.watcher.lookup_peered(said(external("db", "east")))
            double.set_at("/v1/exported-services", before.body)
            before.changed.set()
            double.serve("late", row("late-sidecar-proxy"))
            await followed.until(lambda seen: any(service.name == "late" for service in seen.services))
            await followed.until(lambda _: external("web", "east") in followed.routes())


async def test_where_an_export_leads_is_what_consul_said_last_whoever_asked() -> None:
    async with mesh_double(enterprise=False) as double:
        double.peering(peering("east"))
        double.serve("web", row("web-sidecar-proxy", address="198.18.1.1", port=21000))
        double.serve("api", row("api-sidecar-proxy", address="198.18.1.2", port=21000))
        double.set_at("/v1/discovery-chain/web", chain("web"))
        double.set_at("/v1/exported-services", [exported("web", peers=("east",))])
        name = external("web", "east")
        async with following(double, intervals=SELDOM) as followed:
            await followed.until(lambda _: followed.routes().get(name) == ["198.18.1.1:21000"])
            before = await unseen(double, "/v1/discovery-chain/web", chain("web", target="api"))
            await followed.watcher.lookup_peered(said(name))
            await followed.until(lambda _: followed.routes()[name] == ["198.18.1.2:21000"])
            double.set_at("/v1/discovery-chain/web", before.body)
            before.changed.set()
            await followed.until(lambda _: followed.routes()[name] == ["198.18.1.1:21000"])


async def test_a_peering_that_a_lookup_saw_in_passing_is_forgotten() -> None:
    async with mesh_double(enterprise=False) as double:
        double.set_at("/v1/peerings", [])
        double.set_at("/v1/exported-services", [exported("web", peers=("east",))])
        async with following(double, intervals=SELDOM) as followed:
            await trio.sleep(0.3)  # A list of 0.2 s is as good as a new one.
            before = await unseen(double, "/v1/peerings", [peering("east")])
            await followed.watcher.lookup_peered(said(external("web", "east")))
            await followed.until(lambda seen: seen.exports)
            double.set_at("/v1/peerings", before.body)
            before.changed.set()
            await trio.sleep(1.5)
            print(
                [(s.method, s.target, s.connection) for s in double.requests("/v1/peerings")],
                followed.watcher._peerings._peerings,
            )
            await followed.until(lambda seen: not seen.exports)
