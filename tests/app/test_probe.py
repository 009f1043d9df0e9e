"""What a probe makes of destinations that the real mesh of the end-to-end tests does not have."""

import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from meshgate.adapters.consul import ConsulClient, ConsulUnreachableError
from meshgate.adapters.mesh_tls import RefusedError
from meshgate.app.cli.main import execute
from meshgate.app.diagnostics.probe import Probe, Question
from meshgate.core.host_port import HostPort
from tests.adapters.consul.fake_consul import FakeConsul, row
from tests.adapters.mesh_ca import Signer, mesh_root, serving_context
from tests.harness.backend import serving
from tests.harness.tls import TlsStream

from .consul_double import gateway, inspected

ROOT = mesh_root()
SHOP = "spiffe://td.consul/ns/default/dc/dc1/svc/shop"
WEB = "spiffe://td.consul/ns/default/dc/dc1/svc/web"
WEB_2 = "spiffe://td.consul/ns/default/dc/dc2/svc/web"


def mesh(double: FakeConsul) -> None:
    """The CA of `ROOT`, and a leaf for shop."""
    root = {"ID": "r", "Active": True, "RootCert": ROOT.pem, "IntermediateCerts": []}
    double.set("/v1/connect/ca/roots", {"TrustDomain": "td.consul", "Roots": [root]})
    shop = ROOT.leaf(SHOP)
    leaf = {"ServiceURI": SHOP, "CertPEM": shop.pem, "PrivateKeyPEM": shop.key_pem}
    double.set("/v1/agent/connect/ca/leaf/shop", leaf)


async def quiet(stream: TlsStream) -> None:
    with suppress(RefusedError):
        await stream.receive_some()


@asynccontextmanager
async def destination(
    signer: Signer, talk: Callable[[TlsStream], Awaitable[None]] = quiet, *, through: Signer = ROOT, newest: bool = True
) -> AsyncIterator[tuple[int, list[str | None]]]:
    """Whoever is behind the gateway: its port, and the names that it is asked for."""
    chain = signer.pem + (through.pem if through is not ROOT else "")
    context = serving_context(signer, chain, [ROOT.pem])
    if not newest:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    names: list[str | None] = []
    context.sni_callback = lambda _object, name, _context: names.append(name)

    async def serve(transport: trio.SocketStream) -> None:
        stream = TlsStream(transport, context, server=True)
        with suppress(RefusedError):
            await stream.do_handshake()
            await talk(stream)

    async with serving(serve) as port:
        yield port, names


async def probed(client: ConsulClient, port: int, **more: str) -> Probe:
    probe = Probe(Question("web", "shop", via=HostPort("127.0.0.1", port), **more))  # type: ignore[arg-type]
    await probe.run(client)
    return probe


async def test_the_service_is_met_with_the_name_that_consul_gives_it() -> None:
    async with inspected() as (double, client), destination(ROOT.leaf(WEB)) as (port, names):
        mesh(double)
        probe = await probed(client, port)
        assert probe.ok
        assert probe.met is not None
        assert probe.met.spiffe_id == WEB
        assert names == ["web.default.dc1.internal.td.consul"]
        assert [step.step for step in probe.steps] == ["leaf", "connect", "handshake", "identity", "consent"]


async def test_a_service_of_a_partition_has_another_name_and_identity() -> None:
    identity = "spiffe://td.consul/ap/ap1/ns/shops/dc/dc1/svc/web"
    async with inspected() as (double, client), destination(ROOT.leaf(identity)) as (port, names):
        mesh(double)
        assert (await probed(client, port, namespace="shops", partition="ap1")).ok
        assert names == ["web.shops.ap1.dc1.internal-v1.td.consul"]


async def test_meeting_somebody_else_is_a_failure() -> None:
    async with inspected() as (double, client), destination(ROOT.leaf(SHOP)) as (port, _):
        mesh(double)
        failure = (await probed(client, port)).failure
        assert failure is not None
        assert (failure.step, failure.detail) == ("identity", f"met {SHOP} instead of {WEB}")


async def test_somebody_of_another_trust_domain_is_somebody_else() -> None:
    stranger = ROOT.leaf(WEB.replace("td.consul", "other.consul"))
    async with inspected() as (double, client), destination(stranger) as (port, _):
        mesh(double)
        failure = (await probed(client, port)).failure
        assert failure is not None
        assert failure.step == "identity"


async def test_a_certificate_of_another_ca_fails_in_the_handshake() -> None:
    async with inspected() as (double, client), destination(mesh_root("evil").leaf(WEB)) as (port, _):
        mesh(double)
        failure = (await probed(client, port)).failure
        assert failure is not None
        assert failure.step == "handshake"
        assert "does not lead to the roots of the mesh" in failure.detail


@pytest.mark.parametrize("subject", ["secondary", ""], ids=["named", "without a name, as Consul makes it since 1.11"])
async def test_a_service_of_a_secondary_datacenter_shows_its_intermediate(subject: str) -> None:
    between = ROOT.authority(subject)
    async with inspected() as (double, client), destination(between.leaf(WEB_2), through=between) as (port, _):
        mesh(double)
        probe = await probed(client, port, datacenter="dc2")
        assert probe.ok, probe.failure


async def test_a_destination_that_closes_in_order_at_once_does_not_accept() -> None:
    async def close(stream: TlsStream) -> None:
        await stream.send_eof()

    async with inspected() as (double, client), destination(ROOT.leaf(WEB), close) as (port, _):
        mesh(double)
        failure = (await probed(client, port)).failure
        assert failure is not None
        assert (failure.step, failure.detail) == ("consent", "the connection was closed in order")


async def test_tls_1_2_alone_is_refused() -> None:
    async with inspected() as (double, client), destination(ROOT.leaf(WEB), newest=False) as (port, _):
        mesh(double)
        failure = (await probed(client, port)).failure
        assert failure is not None
        assert (failure.step, failure.alert) == ("handshake", "protocol_version")


async def test_what_does_not_speak_tls_is_said_to_cut_the_connection() -> None:
    async def hang_up(transport: trio.SocketStream) -> None:
        await transport.receive_some()

    async with inspected() as (double, client), serving(hang_up) as port:
        mesh(double)
        failure = (await probed(client, port)).failure
        assert failure is not None
        assert (failure.step, failure.alert) == ("handshake", None)
        assert "without a TLS alert" in failure.meaning


async def test_a_healthy_gateway_is_preferred_and_an_unhealthy_one_is_used_if_it_is_the_only_one() -> None:
    async with inspected() as (double, client), destination(ROOT.leaf(WEB)) as (port, _):
        mesh(double)
        gateway(double, "dc1", "127.0.0.1", port)
        good = double.resources["/v1/health/service/mesh-gateway?dc=dc1"].body[0]
        bad = row("mesh-gateway", address="127.0.0.1", port=1, kind="mesh-gateway")
        bad["Checks"] = [{"CheckID": "c", "Status": "critical"}]
        double.set("/v1/health/service/mesh-gateway?dc=dc1", [bad, good])
        probe = Probe(Question("web", "shop"))
        await probe.run(client)
        assert (probe.ok, probe.address) == (True, HostPort("127.0.0.1", port))
        good["Checks"] = bad["Checks"]
        double.set("/v1/health/service/mesh-gateway?dc=dc1", [good])
        probe = Probe(Question("web", "shop"))
        await probe.run(client)
        assert probe.ok
        assert any("unhealthy for Consul" in step.detail for step in probe.steps)


async def test_gateways_that_may_not_be_seen_are_a_failure_of_that_step() -> None:
    async with inspected() as (double, client):
        mesh(double)
        double.set("/v1/health/service/mesh-gateway?dc=dc1", b"Permission denied", status=403)
        probe = Probe(Question("web", "shop"))
        await probe.run(client)
        assert probe.failure is not None
        assert probe.failure.step == "gateway"
        assert 'service "mesh-gateway" { policy = "read" }' in probe.failure.detail


@pytest.mark.parametrize(
    ("path", "step"),
    [("/v1/agent/connect/ca/leaf/shop", "leaf"), ("/v1/health/service/mesh-gateway?dc=dc1", "gateway")],
)
async def test_step_that_is_refused_to_whoever_gives_no_token_says_so(path: str, step: str) -> None:
    async with inspected(HTTP_TOKEN="") as (double, client):
        mesh(double)
        double.set(path, b"Permission denied", status=403)
        probe = Probe(Question("web", "shop"))
        await probe.run(client)
        assert probe.failure is not None
        assert probe.failure.step == step
        assert probe.failure.detail.startswith("no token was given, and Consul refuses to answer without")


async def test_no_agent_at_all_is_an_error() -> None:
    async with inspected() as (double, client):
        double.set("/v1/agent/self", None, cut=True)
        with pytest.raises(ConsulUnreachableError):
            await probed(client, 1)


async def test_the_key_is_in_no_repr() -> None:
    async with inspected() as (double, client):
        mesh(double)
        assert "PRIVATE" not in repr(await client.leaf("shop"))
        assert "PRIVATE" in json.dumps(double.resources["/v1/agent/connect/ca/leaf/shop"].body)


@pytest.mark.parametrize("via", ["nowhere", "host:", "host:0", ":8443", "[::1]", "host:99999"])
def test_an_address_that_is_none_is_wrong_usage(via: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["probe", "web", "--via", via, "--env-file", "/dev/null"]) == 2
    assert "--via: lan, wan or host:port" in capsys.readouterr().err
