"""The client on a real socket, against a double of Consul's HTTP API."""

import json
import logging
from pathlib import Path

import pytest
import trio

from meshgate.adapters.consul.api import ConsulAddress, ConsulClient, Cursor, PermissionDeniedError

from .connected import TOKEN, WEB, connected
from .fake_consul import fake_consul, row


async def test_the_token_is_in_a_header_and_nowhere_else() -> None:
    async with connected() as (double, client):
        double.set("/v1/catalog/services", {"web": []})
        await client.service_names(Cursor())
        (seen,) = double.seen
        assert seen.headers["authorization"] == f"Bearer {TOKEN}"
        assert "x-consul-token" not in seen.headers
        assert TOKEN not in seen.target


async def test_with_basic_authentication_the_token_has_its_own_header() -> None:
    async with connected(HTTP_AUTH="user:pass") as (double, client):
        double.set("/v1/catalog/datacenters", ["dc1"])
        await client.datacenters()
        assert double.seen[0].headers["authorization"] == "Basic dXNlcjpwYXNz"
        assert double.seen[0].headers["x-consul-token"] == TOKEN


async def test_a_rotated_token_is_used_by_the_next_request(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first")
    async with connected(HTTP_TOKEN_FILE=str(file)) as (double, client):
        double.set("/v1/catalog/datacenters", ["dc1"])
        await client.datacenters()
        file.write_text("second-token")
        await client.datacenters()
        sent = [seen.headers["authorization"] for seen in double.seen]
        assert sent == ["Bearer first", "Bearer second-token"]


async def test_the_environment_does_not_leak_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "https://[::1]:1/x")
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "of-the-environment")
    monkeypatch.setenv("CONSUL_HTTP_SSL", "true")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with connected() as (double, client):
        double.set("/v1/catalog/services", {})
        await client.service_names(Cursor())
        assert double.seen[0].headers["authorization"] == f"Bearer {TOKEN}"


async def test_namespace_and_partition_go_with_each_request_only_if_they_are_set() -> None:
    async with connected(NAMESPACE="team", PARTITION="p1") as (double, client):
        double.set("/v1/catalog/services", {})
        await client.service_names(Cursor())
        assert double.seen[0].query == {"ns": "team", "partition": "p1"}
    async with connected() as (double, client):
        double.set("/v1/catalog/services", {})
        await client.service_names(Cursor())
        assert double.seen[0].query == {}


async def test_a_path_prefix_comes_before_each_path() -> None:
    async with fake_consul() as double:
        address = ConsulAddress.from_settings({"CONSUL_HTTP_ADDR": f"http://127.0.0.1:{double.port}/behind/proxy"})
        double.set("/behind/proxy/v1/catalog/datacenters", ["dc1"])
        async with ConsulClient(address) as client:
            assert (await client.datacenters()).value == ("dc1",)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("web api", "/v1/health/connect/web%20api"),
        ("a?b#c%d&e", "/v1/health/connect/a%3Fb%23c%25d%26e"),
        ("ünï", "/v1/health/connect/%C3%BCn%C3%AF"),
    ],
)
async def test_a_name_is_quoted_and_cannot_change_the_request(name: str, target: str) -> None:
    async with connected() as (double, client):
        double.set(target, [])
        await client.connect_instances(name, Cursor())
        assert double.seen[0].target == target


async def test_a_blocking_query_carries_index_and_wait_and_returns_the_new_index() -> None:
    async with connected() as (double, client):
        double.set(WEB, [row("web-sidecar-proxy")], index=7)
        first = await client.connect_instances("web", Cursor())
        assert (len(first.value), first.index, first.filtered) == (1, 7, False)
        async with client.dedicated() as reader, trio.open_nursery() as nursery:

            async def change() -> None:
                while not double.held:
                    await trio.sleep(0.005)
                double.set(WEB, [], headers={"X-Consul-Results-Filtered-By-ACLs": "true"})

            nursery.start_soon(change)
            page = await reader.connect_instances("web", Cursor(7, wait=90.0), subset_filter="Service.Meta.v == 1")
        assert (page.value, page.index, page.filtered) == ((), 8, True)
        assert double.seen[1].query == {"index": "7", "wait": "1m30s", "filter": "Service.Meta.v == 1"}
        assert double.seen[1].connection != double.seen[0].connection


async def test_a_registration_is_followed_by_its_hash() -> None:
    async with connected() as (double, client):
        double.set("/v1/agent/service/gw", {"ID": "gw", "Service": "gw", "Port": 1}, index=None, hash="abc")
        page = await client.agent_service("gw", Cursor())
        assert (page.index, page.content_hash) == (None, "abc")
        with trio.move_on_after(0.2):
            await client.agent_service("gw", Cursor(content_hash="abc"))
        assert double.seen[1].query == {"hash": "abc", "wait": "1m"}


async def test_gateways_of_one_kind_are_asked_of_their_datacenter() -> None:
    async with connected() as (double, client):
        rows = [row("gw", kind="mesh-gateway"), row("gw-app", kind="")]
        double.set("/v1/health/service/gw?dc=dc2", rows)
        page = await client.instances("gw", Cursor(), datacenter="dc2", kind="mesh-gateway")
        assert [instance.id for instance in page.value] == ["gw-1"]
        chosen = 'Service.Kind == "mesh-gateway"'
        assert double.seen[0].query == {"dc": "dc2", "filter": chosen, "near": "_agent"}


async def test_every_other_endpoint_is_read() -> None:
    async with connected() as (double, client):
        double.set("/v1/connect/ca/roots", {"TrustDomain": "td.consul"})
        double.set("/v1/catalog/services", {"web": [], "api": None})
        double.set("/v1/config/service-resolver", [{"Name": "web"}])
        double.set("/v1/discovery-chain/web?dc=dc2", {"Chain": {}})
        double.set("/v1/catalog/datacenters", ["dc2", "dc1"], index=None)
        double.set("/v1/internal/federation-states/mesh-gateways", {"dc2": None})
        double.set("/v1/internal/ui/services?dc=dc2", [{"Name": "gw", "Kind": "mesh-gateway"}])
        double.set("/v1/agent/self", {"Config": {"Datacenter": "dc1"}, "DebugConfig": None}, index=None)
        assert (await client.ca_roots(Cursor())).value.trust_domain == "td.consul"
        assert (await client.service_names(Cursor())).value == ("api", "web")
        assert [resolver.name for resolver in (await client.resolvers(Cursor())).value] == ["web"]
        await client.confirm_readable("web", datacenter="dc2")
        assert (await client.datacenters()).value == ("dc1", "dc2")
        assert (await client.federated_gateways(Cursor())).value == {"dc2": ()}
        assert (await client.gateway_names("dc2")).value == ("gw",)
        assert (await client.agent_facts()).datacenter == "dc1"
        assert client.errors == {}


async def test_registering_and_deregistering_are_puts() -> None:
    async with connected() as (double, client):
        double.set("/v1/agent/service/register", b"", index=None)
        double.set("/v1/agent/service/deregister/gw 1", b"", index=None)
        double.set("/v1/agent/service/deregister/gw%201", b"", index=None)
        await client.register({"Name": "gw", "Port": 1})
        await client.deregister("gw 1")
        assert double.seen[0].query == {}
        assert [seen.method for seen in double.seen] == ["PUT", "PUT"]
        assert json.loads(double.seen[0].body) == {"Name": "gw", "Port": 1}
        assert double.seen[1].target == "/v1/agent/service/deregister/gw%201"


async def test_a_cancelled_query_closes_its_connection_and_leaves_the_client_usable() -> None:
    async with connected() as (double, client):
        double.set(WEB, [], index=5)
        async with client.dedicated() as reader:
            for _ in range(3):
                with trio.move_on_after(0.05) as scope:
                    await reader.connect_instances("web", Cursor(5))
                assert scope.cancelled_caught
            assert (await reader.connect_instances("web", Cursor())).index == 5
        assert len({seen.connection for seen in double.seen}) == 4


async def test_a_long_poll_does_not_hold_up_short_requests() -> None:
    async with connected() as (double, client):
        double.set(WEB, [], index=5)
        double.set("/v1/catalog/datacenters", ["dc1"], index=None)
        async with trio.open_nursery() as nursery:
            async with client.dedicated() as reader:
                nursery.start_soon(reader.connect_instances, "web", Cursor(5))
                with trio.fail_after(20):
                    async with trio.open_nursery() as many:
                        for _ in range(40):
                            many.start_soon(client.datacenters)
                nursery.cancel_scope.cancel()
        connections = {seen.connection for seen in double.requests("/v1/catalog/datacenters")}
        assert len(connections) <= 4


async def test_facts_without_the_right_to_read_the_agent_come_from_the_catalog() -> None:
    async with connected() as (double, client):
        double.set("/v1/agent/self", b"Permission denied", status=403)
        double.set("/v1/health/service/consul", [row("consul", kind="")])
        facts = await client.agent_facts()
        assert (facts.datacenter, facts.node, facts.dns_domain) == ("dc1", "", "consul")
        assert 'agent_prefix "" { policy = "read" }' in facts.limited


async def test_facts_that_nothing_gives_are_refused_with_the_rule() -> None:
    async with connected() as (double, client):
        double.set("/v1/agent/self", b"Permission denied", status=403)
        double.set("/v1/health/service/consul", [])
        with pytest.raises(PermissionDeniedError, match=r'agent_prefix "" \{ policy = "read" \}'):
            await client.agent_facts()


async def test_httpx_does_not_log_requests(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with connected() as (double, client):
            double.set("/v1/catalog/datacenters", ["dc1"])
            await client.datacenters()
    assert not [record for record in caplog.records if record.name.startswith(("httpx", "httpcore"))]
