"""Two peered clusters with a gateway each: `us` exports, `eu` imports, and their servers meet through the gateways.

Consul is a double in the first tests. The last one is for two real ones, and needs Consul 1.17 or newer.
"""

from pathlib import Path

import trio

from meshgate.adapters.state import read
from tests.adapters.consul.fake_consul import row
from tests.adapters.consul.mesh_double import TRUST_DOMAIN, MeshDouble, chain, exported, mesh_double, peering

from .doubled import Mesh, gateway_of, until_routed

EU = "99999999-2222-3333-4444-555555555555.consul"


def external(service: str) -> str:
    return f"{service}.default.default.eu.external.{TRUST_DOMAIN}"


def peered(us: MeshDouble, eu: MeshDouble) -> None:
    """`us` exports web (tcp) and shop (http) to `eu`."""
    eu.set("/v1/connect/ca/roots", {"TrustDomain": EU, "ActiveRootID": "", "Roots": None})
    us.peering(peering("eu"))
    us.set_at("/v1/exported-services", [exported(name, peers=("eu",)) for name in ("web", "shop")])
    us.set_at("/v1/discovery-chain/web", chain("web", target="store"))
    us.set_at("/v1/discovery-chain/shop", chain("shop", protocol="http", start="router"))


async def test_streams_for_imported_services_reach_what_their_exporter_redirects_them_to(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path)
    async with (
        mesh_double(enterprise=False) as us,
        mesh_double(enterprise=False) as eu,
        mesh.service("store") as store,
        mesh.service("shop") as shop,
    ):
        peered(us, eu)
        us.serve("store", store)
        us.serve("web", row("web-sidecar-proxy", address="192.0.2.7"))
        us.serve("shop", shop)
        async with gateway_of(us, tmp_path) as exporter:
            for name in ("web", "shop"):
                eu.import_from("us", name, exporter.address, sni=external(name))
            eu.peering(peering("us", "web", "shop"))
            async with gateway_of(eu, tmp_path) as importer:
                kinds = await until_routed(importer, external("web"), external("shop"))
                assert set(kinds.values()) == {"peer-import"}
                assert (await until_routed(exporter, external("web")))[external("web")] == "peer-export"
                assert await mesh.call(importer.address, external("web")) == "I am store; you said hello"

                # http would have to be terminated by the exporter: refused, and said why.
                assert "unrecognized name" in (await mesh.call(importer.address, external("shop"))).lower()
                told = await exporter.ask(f"/explain?sni={external('shop')}")
                assert (told["decision"], told["reason"]) == ("refused", "unknown_sni")
                assert "exported with protocol http" in str(told["steps"])
                assert any(
                    "exported with protocol http" in line for line in (await exporter.ask("/readyz"))["problems"]
                )


async def test_http_exports_are_passed_on_unterminated_where_the_operator_wants_that(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path)
    async with mesh_double(enterprise=False) as us, mesh_double() as eu, mesh.service("shop") as shop:
        peered(us, eu)
        us.serve("shop", shop)
        async with gateway_of(us, tmp_path, MESHGATE_PASS_HTTP_EXPORTS="true") as exporter:
            await until_routed(exporter, external("shop"))
            assert await mesh.call(exporter.address, external("shop")) == "I am shop; you said hello"


async def test_servers_of_peered_clusters_meet_through_both_gateways(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path)
    name = f"server.dc1.peering.{TRUST_DOMAIN}"
    async with (
        mesh_double(enterprise=False) as us,
        mesh_double(enterprise=False) as eu,
        mesh.service("server") as server,
    ):
        peered(us, eu)
        listed = row("consul", address="127.0.0.1", port=8300, kind="")
        listed["Service"]["Meta"] = {"grpc_tls_port": str(server["Service"]["Port"])}
        us.set_at("/v1/health/service/consul", [listed])
        for cluster in (us, eu):
            entry = {"Kind": "mesh", "Peering": {"PeerThroughMeshGateways": True}}
            cluster.set_at("/v1/config/mesh/mesh", entry)
        async with gateway_of(us, tmp_path) as acceptor:
            address = f"127.0.0.1:{acceptor.address[1]}"
            eu.peering(peering("us", PeerServerName=name, PeerServerAddresses=[address]))
            async with gateway_of(eu, tmp_path) as dialer:
                assert (await until_routed(acceptor, name))[name] == "peer-server"
                assert (await until_routed(dialer, name))[name] == "peer-server"
                assert await mesh.call(dialer.address, name) == "I am server; you said hello"


async def test_a_restart_without_consul_serves_peers_and_partitions_from_disk(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path)
    state = tmp_path / "state"
    async with mesh_double() as us, mesh.service("store") as store, mesh.service("db") as db, mesh.service("p1") as p1:
        peered(us, us)
        us.set("/v1/connect/ca/roots", {"TrustDomain": TRUST_DOMAIN, "ActiveRootID": "", "Roots": None})
        us.tenant("p1")
        us.tenant(ns="team")
        us.serve("store", store)
        us.serve("api", store | {}, ns="team")
        us.gateway("p1", "127.0.0.1", p1["Service"]["Port"])
        imported = us.import_from("eu", "db", ("127.0.0.1", db["Service"]["Port"]))
        us.peering(peering("eu", "default/default/db"))
        names = (
            external("web"),
            imported,
            f"*.p1.dc1.internal-v1.{TRUST_DOMAIN}",
            f"api.team.dc1.internal.{TRUST_DOMAIN}",
        )
        async with gateway_of(us, tmp_path, MESHGATE_STATE_DIR=str(state)) as before:
            await until_routed(before, *names)
            with trio.fail_after(30):
                while (kept := read(state)) is None or not (kept.snapshot.imports and kept.snapshot.partitions):
                    await trio.sleep(0.05)
        us.stop()
        async with gateway_of(us, tmp_path, MESHGATE_STATE_DIR=str(state)) as after:
            assert (await after.ask("/readyz"))["from_disk"]
            await until_routed(after, *names)
            assert await mesh.call(after.address, external("web")) == "I am store; you said hello"
            assert await mesh.call(after.address, imported) == "I am db; you said hello"
            assert await mesh.call(after.address, f"web.default.p1.dc1.internal-v1.{TRUST_DOMAIN}") == (
                "I am p1; you said hello"
            )
