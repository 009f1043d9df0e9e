"""The commands that ask Consul or a gateway, beside a gateway in each of two real datacenters."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from meshgate.adapters.consul.policy import acl_policy
from meshgate.core.prerequisites import gives_keys_away
from tests.harness.gateway import gateway_beside
from tests.harness.native import native_service
from tests.harness.ports import free_ports
from tests.harness.sidecar import sidecar_for

from .asking import Outcome, checks, failed, flags_of, meshgate, probe, upstreams
from .world import Pair, World, until_equal

pytestmark = pytest.mark.consul


async def test_doctor_finds_a_running_gateway_in_order(world: World, gateways: Pair) -> None:
    local, remote = gateways
    dc1 = world.federation.dc1
    outcome = await meshgate(dc1, world.token, "doctor", "--json", *flags_of(local))
    found = checks(outcome)
    assert failed(outcome) == set(), outcome.out
    assert outcome.code == 0
    assert outcome.data["ok"] is True
    for name in (
        "consul version",
        "connect",
        "CA roots",
        "central config",
        "token: service:write",
        "token: service:read",
        "token: node:read",
        "token: agent:read",
        "primary of dc2",
        "token in dc2",
        "ACL replication to dc2",
        "gateways of dc2",
        "LAN address",
        "port lan",
        "admin port",
        "WAN address answers",
        "clock",
        "agent connections",
    ):
        assert found[name]["status"] == "ok", found[name]
    assert world.federation.trust_domain in found["connect"]["detail"]
    assert str(remote.address[1]) in found["gateways of dc2"]["detail"]
    assert "a meshgate is running" in found["port lan"]["detail"]
    # The demo's agents have no gRPC port, and everything is on one machine.
    assert {name for name, check in found.items() if check["status"] == "warning"} <= {
        "gRPC port",
        "WAN address",
        "descriptor limit",
        "keys of services",
    }
    given_away = gives_keys_away(".".join(map(str, dc1.version)))
    assert ("keys of services" in found) == given_away


async def shop_token(world: World) -> str:
    rules = acl_policy() + '\nservice "shop" { policy = "write" }\nservice "stranger" { policy = "write" }\n'
    return await world.federation.create_policy_token(rules, f"prober-{free_ports(1)[0]}")


@pytest.mark.parametrize("via", ["lan", "wan", "address"])
async def test_probe_meets_the_service_through_the_gateway_of_its_choice(
    world: World, gateways: Pair, via: str
) -> None:
    token = await shop_token(world)
    local, remote = gateways

    async def carried() -> list[float]:
        return [
            await local.counter("meshgate_connections_total"),
            await remote.counter("meshgate_connections_total", kind="service"),
        ]

    async with sidecar_for(world.federation.dc2, "web", named=True) as web:
        await world.until_known(remote, web.port)
        before = await carried()
        place = "{}:{}".format(*remote.address) if via == "address" else via
        outcome = await probe(world.federation.dc1, token, "web", "--dc=dc2", "--as=shop", f"--via={place}")
        assert outcome.code == 0, outcome.out
        found = outcome.data
        assert found["met"]["spiffe_id"] == world.spiffe()
        assert found["met"]["tls_version"] == "TLSv1.3"
        assert found["caller"] == world.spiffe("shop", "dc1")
        assert found["sni"] == world.sni()
        assert found["address"] == "{}:{}".format(*(local if via == "lan" else remote).address)
        steps = {step["step"]: step for step in found["steps"]}
        assert all(step["ok"] for step in steps.values())
        assert "verified against the CA roots" in steps["identity"]["detail"]
        assert {name for name, step in steps.items() if step["seconds"]} == {"leaf", "connect", "handshake", "consent"}
        assert steps["consent"]["detail"] == "the service spoke first"
        assert [now - then for now, then in zip(await carried(), before, strict=True)] == [via == "lan", 1]
        people = await meshgate(world.federation.dc1, token, "probe", "web", "-dc=dc2", "--as=shop", "--yes")
        assert "ok: web answers and accepts the caller" in people.out
        assert "PRIVATE KEY" not in outcome.out + people.out
        assert list(world.federation.folder.rglob("*.pem")) == []


async def test_probe_shows_that_an_intention_denies_the_caller(world: World, gateways: Pair) -> None:
    token = await shop_token(world)
    async with sidecar_for(world.federation.dc2, "web") as web:
        await world.until_known(gateways[1], web.port)
        outcome = await probe(world.federation.dc1, token, "web", "--dc=dc2", "--as=stranger")
        assert outcome.code == 1
        assert outcome.data["met"]["spiffe_id"] == world.spiffe()
        failure = outcome.data["failure"]
        assert (failure["step"], failure["alert"]) == ("consent", "bad_certificate")
        assert outcome.data["verdict"] == "denied"
        assert failure["meaning"] == "Consul's intentions deny the call"


async def test_probe_shows_a_destination_that_hangs_up_without_an_alert(world: World, gateways: Pair) -> None:
    token = await shop_token(world)
    async with native_service(world.federation.dc2, "web", world.federation.folder) as web:
        await world.until_known(gateways[1], web.port)
        outcome = await probe(world.federation.dc1, token, "web", "--dc=dc2", "--as=stranger")
        failure = outcome.data["failure"]
        assert (outcome.code, failure["step"], failure["alert"]) == (1, "consent", None)
        assert outcome.data["verdict"] == "denied"
        assert failure["meaning"] == "Consul's intentions deny the call"
        assert (await probe(world.federation.dc1, token, "web", "--dc=dc2", "--as=shop")).code == 0


@pytest.mark.usefixtures("gateways")
async def test_probe_names_the_alert_for_an_unknown_service_and_what_it_means(world: World) -> None:
    outcome = await meshgate(world.federation.dc1, world.token, "probe", "nosuch", "--dc=dc2", "--yes")
    assert outcome.code == 1
    assert "unreachable (at handshake): TLS alert unrecognized_name" in outcome.out
    assert "the gateway has no route for this name" in outcome.out


async def test_probe_shows_an_endpoint_that_the_gateway_cannot_reach(world: World, gateways: Pair) -> None:
    dc2 = world.federation.dc2
    _, remote = gateways
    async with native_service(dc2, "ghost", world.federation.folder) as ghost:
        real = ghost.port
        ghost.port = free_ports(1)[0]
        await dc2.register(
            {
                "ID": "ghost",
                "Name": "ghost",
                "Address": "127.0.0.1",
                "Port": ghost.port,
                "Connect": {"Native": True},
            }
        )
        await until_equal("the wrong port", partial(remote.endpoints, world.sni("ghost")), {ghost.port: True}, 20)
        outcome = await probe(world.federation.dc1, world.token, "ghost", "--dc=dc2")
        assert outcome.data["failure"]["alert"] == "internal_error"
        assert "could not reach any endpoint, or none is healthy" in outcome.data["failure"]["meaning"]
        assert real != ghost.port


async def test_modes_follow_consuls_precedence_and_show_the_path(world: World, gateways: Pair) -> None:
    federation, dc1 = world.federation, world.federation.dc1
    proxy = {
        "Upstreams": [
            {"DestinationName": "web", "Datacenter": "dc2", "LocalBindPort": 9191},
            {"DestinationName": "cart", "Datacenter": "dc2", "LocalBindPort": 9192, "MeshGateway": {"Mode": "remote"}},
            {"DestinationName": "web", "LocalBindPort": 9193, "MeshGateway": {"Mode": "local"}},
        ]
    }

    async def register(**extra: Any) -> None:
        sidecar = {"Port": 21000, "Proxy": proxy | extra}
        await dc1.register({"ID": "shop", "Name": "shop", "Port": 9, "Connect": {"SidecarService": sidecar}})

    async def first() -> tuple[str, str | None]:
        found = upstreams(await meshgate(dc1, world.token, "modes", "shop", "--json"))
        return found[0]["mode"], found[0]["set_by"]

    local, remote = gateways
    async with sidecar_for(federation.dc2, "web") as web:
        try:
            await register()
            assert await first() == ("none", None)
            # The agent of dc1 is asked; dc2 has the entries seconds later.
            await dc1.put("/v1/config", {"Kind": "proxy-defaults", "Name": "global", "MeshGateway": {"Mode": "local"}})
            await until_equal("proxy-defaults", first, ("local", "proxy-defaults"), seconds=20)
            gateway_1, gateway_2 = [f"127.0.0.1:{gateway.address[1]}" for gateway in (local, remote)]
            sidecar = f"127.0.0.1:{web.port}"
            by_default, by_upstream, nearby = upstreams(await meshgate(dc1, world.token, "modes", "shop", "--json"))
            assert by_default["targets"][0]["sni"] == world.sni()
            assert by_default["targets"][0]["path"] == [
                {"to": "local_gateway", "addresses": [gateway_1]},
                {"to": "remote_gateway", "addresses": [gateway_2]},
                {"to": "sidecar", "addresses": [sidecar]},
            ]
            assert (by_upstream["mode"], by_upstream["set_by"]) == ("remote", "registration Proxy.Upstreams")
            assert by_upstream["overruled"] == [{"place": "proxy-defaults", "mode": "local"}]
            assert by_upstream["targets"][0]["path"][0] == {"to": "remote_gateway", "addresses": [gateway_2]}
            assert nearby["targets"][0]["path"] == [{"to": "sidecar", "addresses": []}]
            await dc1.put(
                "/v1/config",
                {"Kind": "service-defaults", "Name": "shop", "Protocol": "tcp", "MeshGateway": {"Mode": "none"}},
            )
            await until_equal("service-defaults", first, ("none", "service-defaults"), seconds=20)
            await register(MeshGateway={"Mode": "remote"})
            await until_equal("the registration", first, ("remote", "registration Proxy.MeshGateway"), seconds=20)
            people = await meshgate(dc1, world.token, "modes")
            assert "  web in dc2, at 127.0.0.1:9191\n    mode   remote, set by registration Proxy.MeshG" in people.out
        finally:
            await dc1.deregister("shop")
            await dc1.delete("/v1/config/proxy-defaults/global")
            await dc1.delete("/v1/config/service-defaults/shop")


async def test_modes_show_both_targets_of_a_failover_and_no_fault_in_the_near_one(world: World, gateways: Pair) -> None:
    here, there = gateways
    federation, dc1 = world.federation, world.federation.dc1
    failover = {"Kind": "service-resolver", "Name": "web", "Failover": {"*": {"Datacenters": ["dc2"]}}}
    target = {"DestinationName": "web", "LocalBindPort": 9191, "MeshGateway": {"Mode": "local"}}
    sidecar = {"Port": 21000, "Proxy": {"Upstreams": [target]}}
    async with sidecar_for(dc1, "web") as near, sidecar_for(federation.dc2, "web") as far:
        try:
            await dc1.put("/v1/config", failover)
            await dc1.register({"ID": "shop", "Name": "shop", "Port": 9, "Connect": {"SidecarService": sidecar}})
            outcome = await meshgate(dc1, world.token, "modes", "shop", "--json")
            (found,) = upstreams(outcome)
            paths = {each["datacenter"]: each["path"] for each in found["targets"]}
            assert paths == {
                "dc1": [{"to": "sidecar", "addresses": [f"127.0.0.1:{near.port}"]}],
                "dc2": [
                    {"to": "local_gateway", "addresses": [f"127.0.0.1:{here.address[1]}"]},
                    {"to": "remote_gateway", "addresses": [f"127.0.0.1:{there.address[1]}"]},
                    {"to": "sidecar", "addresses": [f"127.0.0.1:{far.port}"]},
                ],
            }
            assert outcome.data["sound"], (found["notes"], [each["problems"] for each in found["targets"]])
        finally:
            await dc1.deregister("shop")
            await dc1.delete("/v1/config/service-resolver/web")


async def test_whatif_tells_what_dc2_and_the_only_gateway_carry(world: World, gateways: Pair) -> None:
    """A dc2 without its one gateway, the node that runs it all, and a token that ends: all told by the real Consul."""
    dc1 = world.federation.dc1
    local, _ = gateways
    async with native_service(dc1, "orders", world.federation.folder):

        async def single() -> set[str]:
            return {row["destination"] for row in (await local.ask("/whatif"))["single"]["rows"]}

        async def told(*arguments: str) -> Outcome:
            return await meshgate(dc1, "", "whatif", f"--admin-bind={local.admin}", *arguments)

        await until_equal("one endpoint each", partial(_has, single, {"dc2", "orders"}), wanted=True, seconds=20)
        answer = (await told("--json")).data
        assert [(it["name"], it["cut"]["total"]) for it in answer["gone"]] == [("dc2", 1)]
        assert answer["gateway"]["others"] == {"total": 0, "healthy": 0}
        assert answer["gateway"]["cut"] == answer["destinations"] - answer["broken"]["total"]
        ends = {it["what"]: it for it in answer["ends"]}
        assert all(it["known"] for it in ends.values())
        assert ends["CA root"]["seconds"] > 0
        assert all(it["limit"] for it in answer["limits"])

        node = next(it["node"] for it in answer["nodes"] if it["datacenter"] == "dc1")
        outcome = await told(f"--node={node}")
        assert (outcome.code, outcome.err) == (0, "")
        assert "    orders (service)\n" in outcome.out.partition(" cut:")[2]
        unknown = await told("--dc=dc9")
        assert (unknown.code, unknown.out) == (1, "")
        assert "no gateway of datacenter dc9 is known here" in unknown.err

        asked = {"Policies": [{"Name": "mesh-gateway"}], "Local": True, "ExpirationTTL": "1h"}
        token = (await dc1.put("/v1/acl/token", asked))["SecretID"]
        async with gateway_beside(dc1, token, instance="mesh-gateway-2") as second:
            ending = {it["what"]: it for it in (await second.ask("/whatif"))["ends"]}["ACL token"]
            assert ending["near"]
            assert 0 < ending["seconds"] <= 3600

            async def others() -> object:
                return (await local.ask("/whatif"))["gateway"]

            healthy = {"streams": 0, "others": {"total": 1, "healthy": 1}, "cut": 0}
            await until_equal("the second gateway", others, healthy, seconds=20)


async def _has(read: Callable[[], Awaitable[set[str]]], wanted: set[str]) -> bool:
    return wanted <= await read()
