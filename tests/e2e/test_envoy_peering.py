"""Two peered clusters whose sidecars are real Envoys, configured over xDS, and meshgate as the only gateways."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.harness.backend import backend
from tests.harness.envoy_sidecar import EnvoySidecar, envoy_sidecar_for
from tests.harness.gateway import gateway_beside
from tests.harness.instance import HOST
from tests.versions import PEERING

from .peered import Cluster, cluster, peer_with_each_other, until_routed
from .world import until_equal

pytestmark = [pytest.mark.consul, pytest.mark.envoy, pytest.mark.since_consul(*PEERING), pytest.mark.timeout(240)]

EXPORTED = {"us": "billing", "eu": "orders"}
EJECTION = 30.0  # How long the caller's Envoy leaves a gateway alone that refused its streams, by Consul's default.


@asynccontextmanager
async def sidecars(here: Cluster, peer: str, mode: str) -> AsyncIterator[EnvoySidecar]:
    """The service that `here` will export, and a caller of what the peer will."""
    name = here.consul.datacenter
    allowed = {"Name": "shop", "Peer": peer, "Action": "allow"}
    await here.write(Kind="service-intentions", Name=EXPORTED[name], Sources=[allowed])
    upstream = {"DestinationName": EXPORTED[peer], "DestinationPeer": peer, "MeshGateway": {"Mode": mode}}
    async with (
        backend(f"{EXPORTED[name]} of {name}\n".encode()) as port,
        envoy_sidecar_for(here.consul, EXPORTED[name], backend_port=port),
        envoy_sidecar_for(here.consul, "shop", upstreams=[upstream]) as shop,
    ):
        yield shop


async def export(here: Cluster, peer: str) -> None:
    rows = [{"Name": EXPORTED[here.consul.datacenter], "Consumers": [{"Peer": peer}]}]
    await here.write(Kind="exported-services", Name="default", Services=rows)


async def greeting(port: int) -> str:
    """What a caller hears first, or nothing."""
    with trio.move_on_after(10):
        try:
            async with await trio.open_tcp_stream(HOST, port) as stream:
                return (await stream.receive_some()).decode()
        except (OSError, trio.BrokenResourceError):
            pass
    return ""


async def test_envoys_of_peered_clusters_call_each_other_through_the_gateways_alone(
    consul_binary: str, tmp_path: Path
) -> None:
    async with (
        cluster(consul_binary, "us", tmp_path) as us,
        cluster(consul_binary, "eu", tmp_path) as eu,
        gateway_beside(us.consul, us.token) as gateway_us,
        gateway_beside(eu.consul, eu.token) as gateway_eu,
    ):
        await until_routed(gateway_us, "peer-server", "server.us.peering.")
        await peer_with_each_other(us, eu)
        await until_routed(gateway_eu, "peer-server", "server.us.peering.")
        gateways = {"us": gateway_us, "eu": gateway_eu}
        clusters = {"us": us, "eu": eu}
        async with sidecars(eu, "us", "local") as shop_eu, sidecars(us, "eu", "remote") as shop_us:
            for exporter, importer, shop, both in (("us", "eu", shop_eu, True), ("eu", "us", shop_us, False)):
                service = EXPORTED[exporter]
                assert not await greeting(shop.listens[service])
                await export(clusters[exporter], importer)
                started = trio.current_time()
                call = partial(greeting, shop.listens[service])
                await until_equal(service, call, f"{service} of {exporter}\n", EJECTION / 2)
                print(f"{service}: {trio.current_time() - started:.2f} s from its export to the first answer")
                kinds = {"peer-export": gateways[exporter], "peer-import": gateways[importer]}
                before = {kind: await gw.counter("meshgate_connections_total", kind=kind) for kind, gw in kinds.items()}
                assert await call() == f"{service} of {exporter}\n"
                for kind, gateway in kinds.items():
                    passed = await gateway.counter("meshgate_connections_total", kind=kind) - before[kind]
                    assert passed == (kind == "peer-export" or both), kind
