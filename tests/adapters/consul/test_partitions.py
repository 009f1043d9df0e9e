"""Namespaces and admin partitions of Consul Enterprise, followed over HTTP against the double."""

import pytest

from meshgate.adapters.consul import catalog_watcher
from meshgate.core.export_routes import ExportRules

from .fake_consul import row
from .mesh_double import TRUST_DOMAIN, exported, key, mesh_double
from .mesh_watched import following

ENFORCED = ExportRules(enforce=True)


def here(service: str, partition: str = "", ns: str = "default") -> str:
    if partition:
        return f"{service}.{ns}.{partition}.dc1.internal-v1.{TRUST_DOMAIN}"
    return f"{service}.{ns}.dc1.internal.{TRUST_DOMAIN}"


async def test_community_edition_is_never_asked_for_namespaces_or_partitions() -> None:
    async with mesh_double(enterprise=False) as double:
        double.serve("web", row("web-sidecar-proxy"))
        double.set("/v1/catalog/datacenters", ["dc1", "dc2"], index=None)
        async with following(double) as followed:
            await followed.until(lambda seen: seen.services)
            assert followed.routes() == {here("web"): ["10.0.0.7:21000"]}
            asked = [name for seen in double.seen for name in seen.query if name in ("ns", "partition", "peer")]
            assert asked == []
            assert not {"/v1/namespaces", "/v1/partitions"} & set(double.paths())
            assert "400" not in followed.client.errors


async def test_services_of_all_namespaces_are_routed_with_their_resolvers() -> None:
    async with mesh_double() as double:
        double.tenant(ns="team")
        double.serve("web", row("web-sidecar-proxy"))
        double.serve("web", row("web-sidecar-proxy", address="10.0.0.8"), ns="team")
        entry = {"Kind": "service-resolver", "Name": "web", "Subsets": {"all": {}}, "ConnectTimeout": "7s"}
        double.set_at("/v1/config/service-resolver", [entry], ns="team")
        async with following(double) as followed:
            await followed.until(lambda seen: len(seen.services) == 2 and seen.services[1].subsets)
            assert followed.routes() == {
                here("web"): ["10.0.0.7:21000"],
                here("web", ns="team"): ["10.0.0.8:21000"],
                here("all.web", ns="team"): ["10.0.0.8:21000"],
            }
            assert [service.connect_timeout for service in followed.last.services] == [None, 7.0]
            assert [service.key for service in followed.last.services] == ["web", "team/web"]
            assert followed.watcher.problems() == []


async def test_the_first_snapshot_has_all_namespaces() -> None:
    async with mesh_double() as double:
        for name in ("a", "b", "c"):
            double.tenant(ns=name)
            double.serve("web", row("web-sidecar-proxy"), ns=name)
        async with following(double) as followed:
            assert [service.namespace for service in followed.published[0].services] == ["a", "b", "c"]


async def test_a_namespace_that_appears_and_one_that_goes_are_followed() -> None:
    async with mesh_double() as double:
        async with following(double) as followed:
            double.tenant(ns="late")
            double.serve("web", row("web-sidecar-proxy"), ns="late")
            await followed.until(lambda seen: [service.key for service in seen.services] == ["late/web"])
            double.serve("web", ns="late")
            double.set_at("/v1/namespaces", [{"Name": "default"}])
            await followed.until(lambda seen: not seen.services)
            await followed.until(
                lambda _: not [it for it in followed.registry.states() if str(it.key).startswith("late/")]
            )


async def test_a_namespace_that_is_not_listed_any_more_keeps_its_services_while_they_answer() -> None:
    async with mesh_double() as double:
        double.tenant(ns="team")
        double.serve("web", row("web-sidecar-proxy"), ns="team")
        async with following(double) as followed:
            await followed.until(lambda seen: seen.services)
            asked = len(double.requests("/v1/namespaces"))
            double.set_at("/v1/namespaces", [{"Name": "default"}])
            await followed.until(lambda _: len(double.requests("/v1/namespaces")) > asked)
            double.serve("late", row("late-sidecar-proxy"), ns="team")
            await followed.until(lambda seen: len(seen.services) == 2)


async def test_the_namespace_of_the_token_or_setting_does_not_narrow_what_is_routed() -> None:
    async with mesh_double() as double:
        double.tenant(ns="team")
        double.serve("web", row("web-sidecar-proxy"))
        double.serve("api", row("api-sidecar-proxy"), ns="team")
        async with following(double, namespace="team") as followed:
            await followed.until(lambda seen: len(seen.services) == 2)
            assert set(followed.routes()) == {here("web"), here("api", ns="team")}


async def test_every_other_partition_has_a_suffix_that_leads_to_its_gateways() -> None:
    async with mesh_double() as double:
        for partition, port in (("default", 1000), ("p1", 1001), ("p2", 1002)):
            double.tenant(partition)
            double.serve("web", row("web-sidecar-proxy"), partition=partition)
            double.gateway(partition, "198.18.0.1", port)
        async with following(double, partition="p1") as followed:
            await followed.until(lambda seen: len(seen.partitions) == 2 and all(p.gateways for p in seen.partitions))
            assert followed.routes() == {
                here("web", "p1"): ["10.0.0.7:21000"],
                f"*.dc1.internal.{TRUST_DOMAIN}": ["198.18.0.1:1000"],
                f"*.p2.dc1.internal-v1.{TRUST_DOMAIN}": ["198.18.0.1:1002"],
            }
        async with following(double) as followed:
            await followed.until(lambda seen: len(seen.partitions) == 2 and all(p.gateways for p in seen.partitions))
            assert followed.routes() == {
                here("web"): ["10.0.0.7:21000"],
                f"*.p1.dc1.internal-v1.{TRUST_DOMAIN}": ["198.18.0.1:1001"],
                f"*.p2.dc1.internal-v1.{TRUST_DOMAIN}": ["198.18.0.1:1002"],
            }


async def test_gateways_of_a_partition_under_a_name_of_their_own_are_found() -> None:
    async with mesh_double() as double:
        double.tenant("p1")
        double.gateway("p1", "198.18.0.1", 1001, name="edge")
        async with following(double) as followed:
            await followed.until(lambda seen: [p.gateways for p in seen.partitions if p.gateways])
            assert followed.routes() == {f"*.p1.dc1.internal-v1.{TRUST_DOMAIN}": ["198.18.0.1:1001"]}


async def test_a_gateway_of_a_partition_that_moves_is_followed() -> None:
    async with mesh_double() as double:
        double.tenant("p1")
        double.gateway("p1", "198.18.0.1", 1001)
        async with following(double) as followed:
            await followed.until(lambda seen: seen.partitions and seen.partitions[0].gateways)
            double.gateway("p1", "198.18.0.9", 1009)
            await followed.until(lambda _: followed.routes() == {
                f"*.p1.dc1.internal-v1.{TRUST_DOMAIN}": ["198.18.0.9:1009"]
            })  # fmt: skip


async def test_only_a_gateway_of_the_default_partition_watches_other_datacenters() -> None:
    async with mesh_double() as double:
        double.tenant("p1")
        double.set("/v1/catalog/datacenters", ["dc1", "dc2"], index=None)
        double.set_at("/v1/internal/ui/services", [{"Name": "mesh-gateway", "Kind": "mesh-gateway"}], dc="dc2")
        remote = row("mesh-gateway", address="10.1.0.1", port=8443, kind="mesh-gateway")
        remote["Node"]["Datacenter"] = "dc2"
        double.set_at("/v1/health/service/mesh-gateway", [remote], dc="dc2")
        async with following(double) as followed:
            await followed.until(lambda seen: seen.remotes and seen.remotes[0].gateways)
            assert followed.routes() == {f"*.dc2.internal.{TRUST_DOMAIN}": ["10.1.0.1:8443"]}
        double.seen.clear()
        async with following(double, partition="p1", expose=True) as followed:
            assert followed.routes() == {}
            assert not {"/v1/catalog/datacenters", "/v1/internal/federation-states/mesh-gateways"} & set(double.paths())
            assert not [seen for seen in double.seen if "dc" in seen.query]
            assert followed.last.remotes == ()
            assert not followed.last.expose_servers


async def test_a_token_that_may_not_list_partitions_still_gets_the_default_one_and_is_told_the_rule() -> None:
    async with mesh_double() as double:
        double.tenant("p1")
        double.gateway("default", "198.18.0.1", 1000)
        double.set(
            "/v1/partitions", b"Permission denied: token lacks permission 'operator:read'", status=403, index=None
        )
        async with following(double, partition="p1") as followed:
            await followed.until(lambda seen: seen.partitions and seen.partitions[0].gateways)
            assert set(followed.routes()) == {f"*.dc1.internal.{TRUST_DOMAIN}"}
            await followed.until_told('operator = "read"')


async def test_partitions_are_read_in_either_shape_that_consul_documents() -> None:
    async with mesh_double() as double:
        double.tenant("p1")
        gone = {"Name": "p9", "DeletedAt": "2021-12-14T23:00:00Z"}
        double.set("/v1/partitions", {"Partitions": [{"Name": "default"}, {"Name": "p1"}, gone]}, index=None)
        async with following(double) as followed:
            await followed.until(lambda seen: [p.name for p in seen.partitions] == ["p1"])


@pytest.mark.parametrize("partition", ["default", "p1"])
async def test_exports_are_enforced_only_where_that_is_wanted(partition: str) -> None:
    async with mesh_double() as double:
        double.tenant(partition)
        own = "" if partition == "default" else partition
        for name in ("web", "db"):
            double.serve(name, row(f"{name}-sidecar-proxy"), partition=partition)
        double.set_at("/v1/exported-services", [exported("web", partitions=("p2",))], partition=partition)
        async with following(double, partition=own) as followed:
            await followed.until(lambda seen: len(seen.services) == 2)
            assert set(followed.routes()) == {here("web", own), here("db", own)}
            assert "/v1/exported-services" not in double.paths()
        async with following(double, partition=own, enforce_exports=True) as followed:
            await followed.until(lambda seen: len(seen.services) == 2 and seen.exports)
            assert set(followed.routes(ENFORCED)) == {here("web", own)}
            rows = [exported("web", partitions=("p2",)), exported("db", partitions=("p2",))]
            double.set_at("/v1/exported-services", rows, partition=partition)
            await followed.until(lambda seen: len(seen.exports) == 2)
            assert set(followed.routes(ENFORCED)) == {here("web", own), here("db", own)}


async def test_enforced_exports_that_the_token_may_not_read_open_nothing_and_say_so() -> None:
    async with mesh_double() as double:
        double.serve("web", row("web-sidecar-proxy"))
        double.set(key("/v1/exported-services"), b"Permission denied", status=403, index=None)
        async with following(double, enforce_exports=True) as followed:
            await followed.until(lambda seen: seen.services)
            assert followed.routes(ENFORCED) == {}
            await followed.until_told('mesh = "read"')


async def test_an_empty_partition_is_known_before_the_gateway_itself_is_registered_there() -> None:
    async with mesh_double() as double:
        double.tenant("p1")
        async with following(double, partition="p1") as followed:
            assert followed.routes() == {}


async def test_a_partition_whose_nodes_are_hidden_is_not_taken_for_an_empty_one() -> None:
    async with mesh_double() as double:
        double.tenant("p1")
        double.serve("web", row("web-sidecar-proxy"), partition="p1")
        async with following(double, partition="p1") as followed:
            await followed.until(lambda seen: seen.services)
            hidden = {"X-Consul-Results-Filtered-By-ACLs": "true"}
            double.set(key("/v1/catalog/nodes", partition="p1"), [], headers=hidden)
            double.set(key("/v1/catalog/services", partition="p1"), {}, headers=hidden)
            await followed.until(
                lambda _: [it for it in followed.registry.states() if it.key.kind == "services" and it.error]
            )
            assert set(followed.routes()) == {here("web", "p1")}
            await followed.until_told('node_prefix ""')


async def test_enterprise_without_partitions_yet_is_no_failure() -> None:
    async with mesh_double(version="1.10.0+ent") as double:
        double.tenant(ns="team")
        double.serve("web", row("web-sidecar-proxy"), ns="team")
        double.set("/v1/partitions", b"Invalid URL path", status=404, index=None)
        async with following(double) as followed:
            await followed.until(lambda seen: seen.services)
            assert followed.watcher.problems() == []
            assert followed.last.partitions == ()


async def test_a_namespace_that_fails_does_not_make_the_whole_catalog_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_watcher, "STALE_AFTER", 0.0)
    async with mesh_double() as double:
        double.tenant(ns="team")
        double.set(key("/v1/config/service-resolver", ns="team"), b"Permission denied", status=403, index=None)
        async with following(double) as followed:
            await followed.until(lambda _: [it for it in followed.registry.states() if it.error])
            assert not followed.watcher.stale
            double.set(key("/v1/config/service-resolver"), b"Permission denied", status=403, index=None)
            await followed.until(lambda _: followed.watcher.stale)


async def test_why_a_service_is_missing_is_asked_in_its_own_namespace() -> None:
    async with mesh_double() as double:
        double.tenant(ns="team")
        double.serve("web", row("web-sidecar-proxy"))
        double.set_at("/v1/health/service/web", [row("web", kind="")], ns="team")
        double.set_at("/v1/health/connect/web", [], ns="team")
        async with following(double) as followed:
            assert await followed.watcher.why_missing("web") is None
            why = await followed.watcher.why_missing("team/web")
            assert why == "registered but without a sidecar or native instance"
    async with mesh_double(enterprise=False) as double:
        double.serve("web", row("web-sidecar-proxy"))
        async with following(double) as followed:
            assert await followed.watcher.why_missing("team/web") is None
