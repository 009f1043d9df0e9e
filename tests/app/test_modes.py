"""What Consul 1.8 lacks: UpstreamConfig, partitions, peers; and agents that hide or switch off things."""

from typing import Any

from meshgate.app.diagnostics.modes_report import ModesReader, UpstreamReport
from tests.adapters.consul.fake_consul import FakeConsul, row

from .consul_double import datacenter, gateway, inspected

SNI = "web.default.dc2.internal.td.consul"


def sidecar(double: FakeConsul, *upstreams: dict[str, Any], mode: str = "", **fields: Any) -> None:
    web = {"DestinationName": "web", "Datacenter": "dc2", "LocalBindPort": 9191}
    proxy = {
        "DestinationServiceName": "shop",
        "MeshGateway": {"Mode": mode},
        "Upstreams": [web | each for each in upstreams],
    }
    service = {"ID": "shop-sidecar-proxy", "Service": "shop-sidecar-proxy", "Kind": "connect-proxy", "Proxy": proxy}
    others = {
        "shop": {"ID": "shop", "Service": "shop", "Kind": "", "Proxy": None},
        "gw": {"ID": "gw", "Kind": "mesh-gateway", "Proxy": {}},
    }
    double.set("/v1/agent/services", {"shop-sidecar-proxy": service | fields, **others}, index=None)


def chain(double: FakeConsul, service: str = "web", **target: Any) -> None:
    known = {"Service": service, "Datacenter": "dc2", "SNI": SNI, "Namespace": "default"} | target
    compiled = {"ServiceName": service, "StartNode": "r", "Nodes": {"r": {"Resolver": {"Target": "t"}}}}
    double.set(f"/v1/discovery-chain/{service}", {"Chain": {**compiled, "Targets": {"t": known}}})


def federated(double: FakeConsul) -> None:
    gateway(double, "dc1", "10.0.0.5", 8443)
    gateway(double, "dc2", "10.2.0.5", 8443, TaggedAddresses={"wan": {"Address": "198.51.100.7", "Port": 443}})
    double.set("/v1/health/connect/web?dc=dc2", [row("web", address="10.2.0.9", port=21000)])


async def one(client: Any) -> UpstreamReport:
    report = await ModesReader(client).read()
    return report.sidecars[0].upstreams[0]


def path(report: UpstreamReport) -> list[tuple[str, list[str]]]:
    return [(leg.hop.name, list(map(str, leg.addresses))) for leg in report.ways[0].legs]


async def test_upstream_config_overrides_the_registration_and_is_found_in_it_merged() -> None:
    async with inspected() as (double, client):
        federated(double)
        chain(double)
        sidecar(double, {"MeshGateway": {"Mode": "local"}}, mode="remote")
        upstream_config = {
            "Defaults": {"MeshGateway": {"Mode": "none"}},
            "Overrides": [
                {"Name": "other", "MeshGateway": {"Mode": "none"}},
                {"Name": "web", "MeshGateway": {"Mode": "local"}},
            ],
        }
        double.set("/v1/config/service-defaults/shop", {"Kind": "service-defaults", "UpstreamConfig": upstream_config})
        found = await one(client)
        assert (found.effective.mode, found.effective.set_by) == ("local", "service-defaults UpstreamConfig.Overrides")
        assert [mode for _, mode in found.effective.overruled] == ["none", "remote"]
        assert path(found) == [
            ("LOCAL_GATEWAY", ["10.0.0.5:8443"]),
            ("REMOTE_GATEWAY", ["198.51.100.7:443"]),
            ("SIDECAR", ["10.2.0.9:21000"]),
        ]
        assert found.ways[0].target.sni == SNI
        assert found.sound


async def test_where_the_sidecar_listens_for_an_upstream_is_an_address_that_can_be_dialed() -> None:
    async with inspected() as (double, client):
        federated(double)
        chain(double)
        sidecar(double, {"LocalBindAddress": "::1"})
        assert (await one(client)).upstream.listens == "[::1]:9191"


async def test_the_upstream_itself_overrides_the_override() -> None:
    async with inspected() as (double, client):
        federated(double)
        chain(double)
        sidecar(double, {"MeshGateway": {"Mode": "remote"}})
        overrides = {"Overrides": [{"Name": "web", "MeshGateway": {"Mode": "local"}}]}
        double.set("/v1/config/service-defaults/shop", {"UpstreamConfig": overrides})
        found = await one(client)
        assert (found.effective.mode, found.effective.set_by) == ("remote", "registration Proxy.Upstreams")


async def test_the_destinations_own_defaults_count_where_the_caller_says_nothing() -> None:
    async with inspected() as (double, client):
        federated(double)
        chain(double)
        sidecar(double, {})
        double.set("/v1/config/service-defaults/web", {"MeshGateway": {"Mode": "remote"}})
        assert (await one(client)).effective.set_by == "service-defaults of the destination"


async def test_an_agent_that_does_not_merge_is_told_apart_and_flagged() -> None:
    async with inspected() as (double, client):
        datacenter(double, EnableCentralServiceConfig=False)
        federated(double)
        chain(double)
        sidecar(double, {})
        double.set("/v1/config/service-defaults/shop", {"MeshGateway": {"Mode": "local"}})
        found = await one(client)
        assert found.effective.mode == "none"
        assert path(found)[0][0] == "REMOTE_SIDECAR"
        assert "central configuration is off in this agent" in found.notes[0]
        assert not found.sound


async def test_nothing_of_enterprise_is_asked_of_a_consul_without_it() -> None:
    async with inspected() as (double, client):
        federated(double)
        agent = double.resources["/v1/agent/self"].body
        agent["Config"]["Version"] = "1.22.6"
        chain(double)
        sidecar(double, {}, mode="local")
        assert (await one(client)).sound
        assert not any({"ns", "partition"} & seen.query.keys() for seen in double.seen)


async def test_enterprise_is_told_the_default_places_too_since_an_agent_has_a_place_of_its_own() -> None:
    async with inspected(PARTITION="p2") as (double, client):
        double.resources["/v1/agent/self"].body["Config"]["Partition"] = "p2"
        federated(double)
        chain(double, Partition="default")
        sidecar(double, {"DestinationPartition": "default"}, mode="local", Namespace="default", Partition="p2")
        await one(client)
        for path in ("/v1/discovery-chain/web", "/v1/health/connect/web", "/v1/config/service-defaults/web"):
            assert [seen.query["partition"] for seen in double.requests(path)] == ["default"], path


async def test_a_service_of_a_peer_is_dialled_at_the_peers_gateway() -> None:
    async with inspected() as (double, client):
        gateway(double, "dc1", "10.0.0.5", 8443)
        double.set("/v1/health/connect/web", [row("web", address="203.0.113.9", port=443)])
        sidecar(double, {"Datacenter": "", "DestinationPeer": "cloud"})
        found = await one(client)
        assert path(found) == [("PEER_GATEWAY", ["203.0.113.9:443"]), ("SIDECAR", [])]
        assert double.requests("/v1/health/connect/web")[0].query == {
            "ns": "default",
            "partition": "default",
            "peer": "cloud",
        }
        sidecar(double, {"Datacenter": "", "DestinationPeer": "cloud"}, mode="local")
        assert [name for name, _ in path(await one(client))] == ["LOCAL_GATEWAY", "PEER_GATEWAY", "SIDECAR"]


async def test_a_chain_that_may_not_be_read_is_replaced_by_the_name_alone() -> None:
    async with inspected() as (double, client):
        federated(double)
        double.set("/v1/discovery-chain/web", b"Permission denied", status=403)
        sidecar(double, {}, mode="local")
        report = await ModesReader(client).read()
        way = report.sidecars[0].upstreams[0].ways[0]
        assert way.target.sni == SNI
        assert any('service "web" { policy = "read" }' in note for note in report.notes)


async def test_whoever_gives_no_token_is_told_that_instead_of_rules() -> None:
    async with inspected(HTTP_TOKEN="") as (double, client):
        federated(double)
        double.set("/v1/discovery-chain/web", b"Permission denied", status=403)
        sidecar(double, {}, mode="local")
        notes = (await ModesReader(client).read()).notes
        assert [note.partition(":")[0] for note in notes] == [
            "no token was given, and Consul refuses to answer without"
        ]
        double.set("/v1/agent/services", {}, index=None)
        (note,) = (await ModesReader(client).read()).notes
        assert note.startswith("no token was given, so this is what anybody may see: use --token-file")
        datacenter(double, ACLsEnabled=False)
        assert (await ModesReader(client).read()).notes == ()


async def test_a_sidecar_that_is_critical_is_not_shown_as_where_traffic_goes() -> None:
    async with inspected() as (double, client):
        federated(double)
        chain(double)
        sick = row("web", address="10.2.0.8")
        sick["Checks"] = [{"CheckID": "c", "Status": "critical"}]
        double.set("/v1/health/connect/web?dc=dc2", [sick, row("web", address="10.2.0.9")])
        sidecar(double, {}, mode="remote")
        assert path(await one(client))[-1] == ("SIDECAR", ["10.2.0.9:21000"])


async def test_what_several_upstreams_need_is_asked_for_once() -> None:
    async with inspected() as (double, client):
        federated(double)
        chain(double)
        sidecar(double, {"LocalBindPort": 1}, {"LocalBindPort": 2}, {"LocalBindPort": 3}, mode="local")
        report = await ModesReader(client).read()
        assert len(report.sidecars[0].upstreams) == 3
        assert len(double.requests("/v1/discovery-chain/web")) == 1
        assert len(double.requests("/v1/health/service/mesh-gateway")) == 2


async def test_the_federation_states_tell_of_gateways_only_where_their_datacenter_cannot_be_asked() -> None:
    async with inspected() as (double, client):
        federated(double)
        chain(double)
        sidecar(double, {}, mode="remote")
        gone = row("mesh-gateway", address="203.0.113.1", port=443, kind="mesh-gateway")
        gone["Service"]["ModifyIndex"] = 1000
        double.set("/v1/internal/federation-states/mesh-gateways", {"dc2": [gone]})
        assert path(await one(client))[0] == ("REMOTE_GATEWAY", ["198.51.100.7:443"])
        double.set("/v1/health/service/mesh-gateway?dc=dc2", [])
        assert path(await one(client))[0] == ("REMOTE_GATEWAY", [])
        double.set("/v1/health/service/mesh-gateway?dc=dc2", b"No path to datacenter", status=500)
        assert path(await one(client))[0] == ("REMOTE_GATEWAY", ["203.0.113.1:443"])


async def test_only_sidecars_that_are_asked_for_are_shown() -> None:
    async with inspected() as (double, client):
        federated(double)
        chain(double)
        sidecar(double, {})
        assert (await ModesReader(client).read("nosuch")).sidecars == ()
        assert len((await ModesReader(client).read("shop")).sidecars) == 1


async def test_a_mode_on_a_prepared_query_is_flagged() -> None:
    async with inspected() as (double, client):
        sidecar(double, {"DestinationType": "prepared_query", "MeshGateway": {"Mode": "local"}})
        assert "a prepared query" in (await one(client)).notes[0]
        sidecar(double, {"DestinationType": "prepared_query"})
        assert (await one(client)).sound
