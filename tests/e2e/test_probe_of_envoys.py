"""`meshgate probe` of services whose sidecars are real Envoys: what they let in, refuse, and export to a peer.

An Envoy sidecar says nothing of its intentions before the first byte of a stream, or the first request.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from meshgate.adapters.consul.policy import acl_policy
from tests.harness.backend import backend
from tests.harness.envoy_sidecar import XdsFederation, envoy_sidecar_for
from tests.harness.gateway import gateway_beside
from tests.harness.visit import Visitor
from tests.harness.web_backend import web_backend
from tests.versions import PEERING, XDS

from .peered import cluster, peer_with_each_other, until_routed
from .world import World

pytestmark = [pytest.mark.consul, pytest.mark.envoy, pytest.mark.since_consul(*XDS), pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def mesh(consul_binary: str) -> Iterator[World]:
    federation = trio.run(XdsFederation.start, consul_binary)

    async def prepare() -> World:
        return World(federation, await federation.create_policy_token(acl_policy(), "mesh-gateway"))

    try:
        yield trio.run(prepare)
    finally:
        trio.run(federation.stop)


async def probed(visitor: Visitor, *arguments: str) -> dict[str, Any]:
    code, said = await visitor.ask("probe", *arguments, "--yes", "--json")
    found: dict[str, Any] = json.loads(said)
    assert code == (0 if found["ok"] else 1)
    return found


async def test_envoys_that_deny_a_caller_and_envoys_that_let_it_in_are_told_apart(mesh: World) -> None:
    federation = mesh.federation
    visitor = Visitor(federation.dc1, federation.dc1.master_token)
    permissions = [{"Action": "allow", "HTTP": {"PathPrefix": "/open"}}]
    callers = [{"Name": "shop", "Action": "allow"}, {"Name": "stranger", "Action": "deny"}]
    by_path = {"Name": "reader", "Permissions": permissions}
    for name, protocol, sources in (("db", "tcp", callers), ("web", "http", [*callers, by_path])):
        await federation.write_config_entry({"Kind": "service-defaults", "Name": name, "Protocol": protocol})
        await federation.write_config_entry({"Kind": "service-intentions", "Name": name, "Sources": sources})

    async def call(service: str, caller: str, *more: str) -> tuple[str, str]:
        found = await probed(visitor, service, "--dc", "dc2", "--as", caller, *more)
        return found["verdict"], found["steps"][-1]["detail"]

    async with (
        backend() as port,
        web_backend("web") as web_port,
        envoy_sidecar_for(federation.dc2, "db", backend_port=port),
        envoy_sidecar_for(federation.dc2, "web", backend_port=web_port),
        mesh.gateways(),
    ):
        assert await call("db", "shop") == ("accepted", "no objection, and Consul's intentions allow the call")
        denied = "no objection yet, but Consul's intentions deny the call"
        assert await call("db", "stranger") == ("denied", denied)
        assert await call("db", "nobody") == ("denied", denied)
        assert await call("web", "shop", "--http=/") == ("accepted", "HTTP/1.1 200 OK")
        assert await call("web", "stranger", "--http=/") == ("denied", "HTTP/1.1 403 Forbidden")
        assert (await call("web", "reader"))[0] == "accepted"
        assert await call("web", "reader", "--http=/open") == ("accepted", "HTTP/1.1 200 OK")
        assert await call("web", "reader", "--http=/secret") == ("denied", "HTTP/1.1 403 Forbidden")


@pytest.mark.since_consul(*PEERING)
async def test_a_service_of_a_peer_is_met_through_the_gateways(consul_binary: str, tmp_path: Path) -> None:
    async with (
        cluster(consul_binary, "us", tmp_path) as us,
        cluster(consul_binary, "eu", tmp_path) as eu,
        gateway_beside(us.consul, us.token) as exporter,
        gateway_beside(eu.consul, eu.token) as importer,
        backend(b"billing\n") as port,
        envoy_sidecar_for(us.consul, "billing", backend_port=port),
    ):
        await until_routed(exporter, "peer-server", "server.us.peering.")
        await peer_with_each_other(us, eu)
        await us.write(
            Kind="service-intentions", Name="billing", Sources=[{"Name": "shop", "Peer": "eu", "Action": "allow"}]
        )
        await us.write(
            Kind="exported-services", Name="default", Services=[{"Name": "billing", "Consumers": [{"Peer": "eu"}]}]
        )
        await until_routed(importer, "peer-import", "billing.")
        visitor = Visitor(eu.consul, eu.consul.master_token)
        domain = (await us.roots())["TrustDomain"]
        for via, gateway in (("lan", importer), ("wan", exporter)):
            found = await probed(visitor, "billing", "--peer=us", "--as=shop", f"--via={via}")
            assert found["verdict"] == "accepted", found
            assert found["met"]["spiffe_id"] == f"spiffe://{domain}/ns/default/dc/us/svc/billing"
            assert found["sni"] == f"billing.default.default.eu.external.{domain}"
            assert found["address"] == "{}:{}".format(*gateway.address)
        assert (await probed(visitor, "nosuch", "--peer=us", "--as=shop"))["failure"]["step"] == "peer"
        rules = acl_policy("shop").replace('peering = "read"', "")
        policy = await eu.consul.put("/v1/acl/policy", {"Name": "blind", "Rules": rules})
        token = await eu.consul.put("/v1/acl/token", {"Policies": [{"ID": policy["ID"]}]})
        blind = await probed(Visitor(eu.consul, token["SecretID"]), "billing", "--peer=us", "--as=shop")
        assert blind["verdict"] == "not_called"
        assert blind["failure"]["meaning"] == 'add peering = "read" to its policy'
