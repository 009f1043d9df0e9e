"""Services that real clusters export to each other, as callers and gateways see them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from meshgate.adapters.mesh_tls import RefusedError
from tests.harness.backend import echo, serving
from tests.harness.caller import Caller
from tests.harness.gateway import GatewayProcess, gateway_beside
from tests.harness.instance import HOST
from tests.harness.tls import TlsStream, mesh_context
from tests.harness.waiting import until
from tests.versions import PEERING

from .asking import checks, flags_of, meshgate
from .peered import PATIENCE, Cluster, cluster, peer_with_each_other, until_routed

pytestmark = [pytest.mark.consul, pytest.mark.since_consul(*PEERING)]


@asynccontextmanager
async def exported_service(here: Cluster, service: str, peer: Cluster) -> AsyncIterator[None]:
    """A service whose sidecar echoes to callers that have an identity of the peer."""
    leaf = await here.consul.get(f"/v1/agent/connect/ca/leaf/{service}")
    context = mesh_context(leaf, await peer.roots(), here.folder, server=True)

    async def serve(transport: trio.SocketStream) -> None:
        stream = TlsStream(transport, context, server=True)
        with suppress(RefusedError):
            await stream.do_handshake()
            await echo(stream)

    async with serving(serve) as port:
        check = {"CheckID": f"{service}-up", "Name": "up", "TTL": "24h", "Status": "passing"}
        sidecar = {"Address": HOST, "Port": port, "Checks": [check]}
        registration = {"ID": service, "Name": service, "Address": HOST, "Port": 1}
        await here.consul.register(registration | {"Connect": {"SidecarService": sidecar}})
        yield


async def test_two_real_clusters_peer_and_exchange_tcp_services_through_their_gateways_alone(
    consul_binary: str, tmp_path: Path
) -> None:
    async with (
        cluster(consul_binary, "us", tmp_path) as us,
        cluster(consul_binary, "eu", tmp_path) as eu,
        gateway_beside(us.consul, us.token) as exporter,
        gateway_beside(eu.consul, eu.token) as importer,
        exported_service(us, "web", eu),
        exported_service(us, "shop", eu),
    ):
        await us.write(Kind="service-defaults", Name="web", Protocol="tcp")
        await us.write(Kind="service-defaults", Name="shop", Protocol="http")
        consumers = [{"Peer": "eu"}]
        rows = [{"Name": name, "Consumers": consumers} for name in ("web", "shop")]
        await us.write(Kind="exported-services", Name="default", Services=rows)
        await until_routed(exporter, "peer-server", "server.us.peering.")
        await peer_with_each_other(us, eu)
        await until_routed(importer, "peer-server", "server.us.peering.")

        exported = await until_routed(exporter, "peer-export", "web.")
        imported = await until_routed(importer, "peer-import", "web.")
        assert imported["sni"] == exported["sni"]
        assert [one["port"] for one in imported["endpoints"]] == [exporter.address[1]]

        roots, leaf = await us.roots(), await eu.consul.get("/v1/agent/connect/ca/leaf/caller")
        caller = Caller("caller", leaf["ServiceURI"], roots["TrustDomain"], mesh_context(leaf, roots, tmp_path))
        web = f"spiffe://{roots['TrustDomain']}/ns/default/dc/us/svc/web"
        answer = await caller.call(importer.address, imported["sni"], expect=web)
        assert answer.data == b"hello\n"

        shop = await until_routed(importer, "peer-import", "shop.")
        with pytest.raises(RefusedError):
            await caller.call(importer.address, shop["sni"])
        await said_wherever_one_looks(us, exporter, shop["sni"])

        # What is no longer exported is no longer routed, on either side.
        await us.write(Kind="exported-services", Name="default", Services=[rows[1]])

        async def still_routed() -> str | None:
            for gateway in (exporter, importer):
                listed = (await gateway.ask("/routes"))["routes"]
                if any(it["sni"] == imported["sni"] for it in listed):
                    return "still routed"
            return None

        await until("web to be withdrawn", still_routed, seconds=PATIENCE)


async def said_wherever_one_looks(us: Cluster, exporter: GatewayProcess, sni: str) -> None:
    """That `shop` is exported with protocol http and so gets no route, and what to do."""
    what, remedy = "exported with protocol http", "in service-defaults/shop, or use Envoy gateways"
    told = str((await exporter.ask(f"/explain?sni={sni}"))["steps"])
    assert what in told
    (route,) = [each for each in (await exporter.ask("/routes"))["unroutable"] if each["sni"] == sni]
    (problem,) = [each for each in (await exporter.ask("/readyz"))["problems"] if what in each]
    assert what in route["reason"]
    logged: list[str] = []

    async def missing() -> str | None:
        lines = (us.consul.folder / f"{exporter.instance}.log").read_text().splitlines()
        logged[:] = [line for line in lines if what in line]
        told_of = {"stream refused" in line for line in logged}
        return None if told_of == {True, False} else f"only {logged}"

    await until("a line when it appeared and one for the stream", missing, seconds=PATIENCE)
    outcome = await meshgate(us.consul, us.token, "doctor", "--json", *flags_of(exporter))
    found = checks(outcome)["export of shop"]
    assert (outcome.code, found["status"]) == (1, "failed")
    assert "protocol http" in found["detail"]
    for each in (told, route["reason"], problem, found["advice"], *logged):
        assert remedy in each, each


async def test_a_new_peering_is_noticed_at_once(consul_binary: str, tmp_path: Path) -> None:
    """By a gateway that knew of none; a list that is asked for now and then would show it after minutes."""
    async with (
        cluster(consul_binary, "us", tmp_path) as us,
        cluster(consul_binary, "eu", tmp_path) as eu,
        gateway_beside(us.consul, us.token) as exporter,
        gateway_beside(eu.consul, eu.token) as importer,
    ):
        await until_routed(exporter, "peer-server", "server.us.peering.")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer_with_each_other, us, eu)
            await eu.until("the peering", "/v1/peerings", bool)
            begun = trio.current_time()
            await until_routed(importer, "peer-server", "server.us.peering.", seconds=10)
            print(f"{trio.current_time() - begun:.2f} s from the peering to the way to its servers")


async def test_the_first_stream_of_a_service_that_was_only_just_exported_is_answered(
    consul_binary: str, tmp_path: Path
) -> None:
    async with (
        cluster(consul_binary, "us", tmp_path) as us,
        cluster(consul_binary, "eu", tmp_path) as eu,
        gateway_beside(us.consul, us.token) as exporter,
        gateway_beside(eu.consul, eu.token) as importer,
    ):
        await until_routed(exporter, "peer-server", "server.us.peering.")
        await peer_with_each_other(us, eu)
        await until_routed(importer, "peer-server", "server.us.peering.")
        roots, leaf = await us.roots(), await eu.consul.get("/v1/agent/connect/ca/leaf/caller")
        caller = Caller("caller", leaf["ServiceURI"], roots["TrustDomain"], mesh_context(leaf, roots, tmp_path))
        for name in ("first", "second"):
            async with exported_service(us, name, eu):
                await us.write(Kind="service-defaults", Name=name, Protocol="tcp")
                rows = [{"Name": name, "Consumers": [{"Peer": "eu"}]}]
                begun = trio.current_time()
                await us.write(Kind="exported-services", Name="default", Services=rows)

                async def known(name: str = name) -> str | None:
                    # What a caller's sidecar waits for before it calls.
                    return None if await eu.consul.get(f"/v1/health/connect/{name}", peer="us") else "no instances yet"

                await until(f"{name} to be imported", known, seconds=PATIENCE)
                instances = await eu.consul.get(f"/v1/health/connect/{name}", peer="us")
                (sni,) = instances[0]["Service"]["Connect"]["PeerMeta"]["SNI"]
                identity = f"spiffe://{roots['TrustDomain']}/ns/default/dc/us/svc/{name}"
                answer = await caller.call(importer.address, sni, expect=identity)
                assert answer.data == b"hello\n"
                print(f"{name}: {trio.current_time() - begun:.2f} s from the export to the first answer")
