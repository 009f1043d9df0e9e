"""What a probe makes of destinations that the real mesh of the end-to-end tests does not have."""

import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from io import StringIO

import pytest
import trio

from meshgate.adapters.consul.api import AgentFacts, ConsulClient, ConsulUnreachableError
from meshgate.adapters.mesh_tls import RefusedError
from meshgate.app.cli.main import execute
from meshgate.app.diagnostics.probe import Failure, Probe, Question, Verdict
from meshgate.app.settings.settings import Settings
from meshgate.core.addresses import HostPort
from tests.adapters.consul.fake_consul import FakeConsul, row
from tests.adapters.mesh_ca import Signer, mesh_root, serving_context
from tests.cuts import needs_cuts
from tests.harness.backend import serving
from tests.harness.ports import free_ports
from tests.harness.tls import TlsStream

from .consul_double import TOKEN, gateway, inspected, may

SETTINGS = Settings.load(environ={})
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
    signer: Signer,
    talk: Callable[[TlsStream], Awaitable[None]] = quiet,
    *,
    through: Signer = ROOT,
    trusts: Signer = ROOT,
    newest: bool = True,
) -> AsyncIterator[tuple[int, list[str | None]]]:
    """Whoever is behind the gateway: its port, and the names that it is asked for."""
    chain = signer.pem + (through.pem if through is not ROOT else "")
    context = serving_context(signer, chain, [trusts.pem])
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


async def probed(client: ConsulClient, port: int, settings: Settings = SETTINGS, **more: str) -> Probe:
    probe = Probe(Question("web", "shop", settings, via=HostPort("127.0.0.1", port), **more))
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
        place = {"CONSUL_NAMESPACE": "shops", "CONSUL_PARTITION": "ap1"}
        assert (await probed(client, port, Settings.load(environ=place))).ok
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


def intention(double: FakeConsul, *, allowed: bool, permissions: bool = False) -> None:
    double.set("/v1/connect/intentions/check", {"Allowed": allowed}, index=None)
    exact = {"SourceName": "shop", "Permissions": [{"Action": "allow"}]} if permissions else {"SourceName": "shop"}
    double.set("/v1/connect/intentions/match", {"web": [exact, {"SourceName": "*", "Action": "deny"}]})


async def close(stream: TlsStream) -> None:
    await stream.send_eof()


async def cut(stream: TlsStream) -> None:
    await stream.aclose()


async def greet(stream: TlsStream) -> None:
    await stream.send_all(b"220 ready\r\n")
    await quiet(stream)


@pytest.mark.parametrize(
    ("talk", "allowed", "permissions", "verdict", "words"),
    [
        # An Envoy sidecar says nothing before the first byte.
        (quiet, True, False, Verdict.ACCEPTED, "Consul's intentions allow the call"),
        (quiet, False, False, Verdict.DENIED, "no objection yet, but Consul's intentions deny the call"),
        (quiet, False, True, Verdict.ACCEPTED, "each request is judged"),
        (quiet, None, False, Verdict.ACCEPTED, "at the first byte only"),
        (close, False, False, Verdict.DENIED, "closed in order"),
        (close, False, True, Verdict.DENIED, "closed in order"),
        (close, True, False, Verdict.REFUSED, "closed in order"),
        (close, None, False, Verdict.REFUSED, "closed in order"),
        pytest.param(cut, False, False, Verdict.DENIED, "closed without close_notify", marks=needs_cuts),
        pytest.param(cut, True, False, Verdict.REFUSED, "closed without close_notify", marks=needs_cuts),
        (greet, False, False, Verdict.ACCEPTED, "the service spoke first"),
    ],
)
async def test_what_a_destination_does_is_read_with_what_the_intentions_say(
    talk: Callable[[TlsStream], Awaitable[None]],
    allowed: bool | None,
    permissions: bool,
    verdict: Verdict,
    words: str,
) -> None:
    async with inspected() as (double, client), destination(ROOT.leaf(WEB), talk) as (port, _):
        mesh(double)
        if allowed is not None:
            intention(double, allowed=allowed, permissions=permissions)
        probe = await probed(client, port)
        assert probe.verdict is verdict, probe.failure
        assert (probe.steps[-1].step, probe.ok) == ("consent", verdict is Verdict.ACCEPTED)
        assert words in probe.steps[-1].detail


@pytest.mark.parametrize(
    ("allowed", "verdict"), [(False, Verdict.DENIED), (True, Verdict.REFUSED), (None, Verdict.DENIED)]
)
async def test_an_alert_after_the_handshake_is_a_refusal(allowed: bool | None, verdict: Verdict) -> None:
    stranger = mesh_root("other")
    async with inspected() as (double, client):
        mesh(double)
        if allowed is not None:
            intention(double, allowed=allowed)
        async with destination(ROOT.leaf(WEB), trusts=stranger) as (port, _):
            failure = (await probed(client, port)).failure
        assert failure is not None
        assert (failure.step, failure.verdict, failure.alert) == ("consent", verdict, "unknown_ca")


async def test_what_ended_a_probe_is_told_apart() -> None:
    async with inspected() as (double, client):
        mesh(double)
        verdicts = []
        for signer in (ROOT.leaf(SHOP), mesh_root("evil").leaf(WEB), ROOT.leaf("https://example.com/")):
            async with destination(signer) as (port, _):
                verdicts.append((await probed(client, port)).verdict)
        assert verdicts == [Verdict.WRONG_IDENTITY] * 3
        assert (await probed(client, free_ports(1)[0])).verdict is Verdict.UNREACHABLE
        double.set("/v1/agent/connect/ca/leaf/shop", b"Permission denied", status=403)
        assert (await probed(client, 1)).verdict is Verdict.NOT_CALLED


def answering(text: bytes) -> Callable[[TlsStream], Awaitable[None]]:
    async def answer(stream: TlsStream) -> None:
        request = await stream.receive_some()
        assert request.startswith(b"GET /health HTTP/1.1\r\nHost: web\r\n")
        await stream.send_all(text)
        await stream.send_eof()

    return answer


@pytest.mark.parametrize(
    ("text", "verdict", "words"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nhi", Verdict.ACCEPTED, "HTTP/1.1 200 OK"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", Verdict.ACCEPTED, "HTTP/1.1 404 Not Found"),
        (b"HTTP/1.1 403 Forbidden\r\nserver: envoy\r\n\r\nRBAC: access denied", Verdict.DENIED, "403 Forbidden"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\nno such user", Verdict.ACCEPTED, "403 Forbidden"),
        (b"", Verdict.REFUSED, "without an answer of HTTP"),
        (b"220 ready\r\n", Verdict.REFUSED, "without an answer of HTTP"),
    ],
)
async def test_a_request_is_judged_by_its_answer(text: bytes, verdict: Verdict, words: str) -> None:
    async with inspected() as (double, client), destination(ROOT.leaf(WEB), answering(text)) as (port, _):
        mesh(double)
        probe = await probed(client, port, http="/health")
        assert probe.verdict is verdict
        assert words in probe.steps[-1].detail


@pytest.mark.parametrize("field", ["CertPEM", "PrivateKeyPEM", "RootCert"])
async def test_certificates_that_are_none_are_said(field: str) -> None:
    async with inspected() as (double, client):
        mesh(double)
        leaf = double.resources["/v1/agent/connect/ca/leaf/shop"].body
        root = double.resources["/v1/connect/ca/roots"].body["Roots"][0]
        (root if field == "RootCert" else leaf)[field] = ""
        failure = (await probed(client, 1)).failure
        assert failure is not None
        assert (failure.step, failure.verdict) == ("leaf", Verdict.NOT_CALLED)
        assert failure.detail.startswith("OpenSSL cannot read what Consul gave")


# --- a service of a peer ---------------------------------------------------------------------------------------------

EU = mesh_root("eu")
EU_WEB = "spiffe://eu.consul/ns/default/dc/berlin/svc/web"
EU_NAME = "web.default.default.us.external.eu.consul"


def imported(double: FakeConsul, port: int) -> None:
    found = row("web", address="127.0.0.1", port=port, kind="connect-proxy")
    found["Service"]["Connect"] = {"PeerMeta": {"SNI": [EU_NAME], "SpiffeID": [EU_WEB], "Protocol": "tcp"}}
    double.set("/v1/health/connect/web", [found])
    double.set("/v1/peering/eu", {"Name": "eu", "PeerCAPems": [EU.pem]}, index=None)


@pytest.mark.parametrize("via", ["lan", "wan"])
async def test_a_service_of_a_peer_is_asked_for_by_the_name_that_it_was_exported_under(via: str) -> None:
    async with inspected() as (double, client), destination(EU.leaf(EU_WEB), trusts=ROOT) as (port, names):
        mesh(double)
        imported(double, port if via == "wan" else 1)
        gateway(double, "dc1", "127.0.0.1", port if via == "lan" else 1)
        probe = Probe(Question("web", "shop", SETTINGS, peer="eu", via=via))
        await probe.run(client)
        assert probe.ok, probe.failure
        assert probe.met is not None
        assert (probe.met.spiffe_id, names) == (EU_WEB, [EU_NAME])
        assert [seen.query["peer"] for seen in double.requests("/v1/health/connect/web")] == ["eu"]


async def test_a_service_of_a_peer_has_to_prove_itself_by_the_roots_of_the_peer() -> None:
    async with inspected() as (double, client), destination(ROOT.leaf(EU_WEB)) as (port, _):
        mesh(double)
        imported(double, port)
        probe = Probe(Question("web", "shop", SETTINGS, peer="eu", via="wan"))
        await probe.run(client)
        assert probe.verdict is Verdict.WRONG_IDENTITY


async def test_what_keeps_a_service_of_a_peer_from_being_asked_for_is_said() -> None:
    async def failure(client: ConsulClient) -> Failure:
        probe = Probe(Question("web", "shop", SETTINGS, peer="eu"))
        await probe.run(client)
        assert probe.failure is not None
        assert probe.failure.step == "peer"
        return probe.failure

    async with inspected() as (double, client):
        mesh(double)
        imported(double, 1)
        double.set("/v1/health/connect/web", [])
        assert (await failure(client)).detail == "nothing named web is imported from the peer eu"
        double.set("/v1/peering/eu", {"Name": "eu"}, index=None)
        assert (await failure(client)).detail == "Consul knows no roots of the peer eu"
        double.set("/v1/peering/eu", b"peering not found", status=404)
        assert "404" in (await failure(client)).detail
        may(double, peering_read=False)
        assert (await failure(client)).meaning == 'add peering = "read" to its policy'
        # Consul takes twelve seconds to refuse.
        assert len(double.requests("/v1/peering/eu")) == 3


# --- the key in the agent's cache ------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.22.6", "1.16.0"])
def test_a_key_is_not_left_in_a_cache_that_gives_it_away_without_a_word(
    version: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("meshgate.app.diagnostics.inspection.inspect", lambda *_: AgentFacts("dc1", version=version))
    monkeypatch.setattr("meshgate.app.diagnostics.probe.Probe.run", lambda *_: asked.append("called"))
    monkeypatch.setattr("sys.stdin", StringIO())
    assert execute(["probe", "web", "--as", "shop"]) == 2
    said = capsys.readouterr().err
    assert f"Consul {version}" in said
    assert "certificate and key of shop" in said
    assert "--yes" in said
    assert asked == []


@pytest.mark.parametrize(("answer", "code"), [("n\n", 1), ("\n", 1), ("y\n", 0)])
def test_at_a_terminal_it_asks(
    answer: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("meshgate.app.diagnostics.inspection.inspect", lambda *_: AgentFacts("dc1", version="1.22.6"))
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    assert execute(["probe", "web", "--as", "shop"]) == code
    assert "Go on?" in capsys.readouterr().err


@pytest.mark.parametrize(("version", "flags"), [("1.8.7", []), ("1.22.6", ["--yes"])])
def test_where_no_key_is_given_away_or_it_was_confirmed_it_does_not_ask(
    version: str, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshgate.app.diagnostics.inspection.inspect", lambda *_: AgentFacts("dc1", version=version))
    monkeypatch.setattr("sys.stdin", StringIO())
    assert execute(["probe", "web", "--as", "shop", *flags]) == 0


@pytest.mark.parametrize("flags", [["--peer", "eu", "--dc", "dc2"], ["--http", "health"], ["--http", "/a b"]])
def test_flags_that_do_not_fit_are_wrong_usage(flags: list[str]) -> None:
    assert execute(["probe", "web", *flags]) == 2


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


async def test_what_answers_in_plain_text_is_said_to_speak_no_tls() -> None:
    async def answer(transport: trio.SocketStream) -> None:
        await transport.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await transport.receive_some()

    async with inspected() as (double, client), serving(answer) as port:
        mesh(double)
        failure = (await probed(client, port)).failure
        assert failure is not None
        assert (failure.detail, failure.meaning) == (
            "what answers there speaks no TLS",
            "is that the address of a mesh gateway?",
        )


async def test_a_healthy_gateway_is_preferred_and_an_unhealthy_one_is_used_if_it_is_the_only_one() -> None:
    async with inspected() as (double, client), destination(ROOT.leaf(WEB)) as (port, _):
        mesh(double)
        gateway(double, "dc1", "127.0.0.1", port)
        good = double.resources["/v1/health/service/mesh-gateway?dc=dc1"].body[0]
        bad = row("mesh-gateway", address="127.0.0.1", port=1, kind="mesh-gateway")
        bad["Checks"] = [{"CheckID": "c", "Status": "critical"}]
        double.set("/v1/health/service/mesh-gateway?dc=dc1", [bad, good])
        probe = Probe(Question("web", "shop", SETTINGS))
        await probe.run(client)
        assert (probe.ok, probe.address) == (True, HostPort("127.0.0.1", port))
        good["Checks"] = bad["Checks"]
        double.set("/v1/health/service/mesh-gateway?dc=dc1", [good])
        probe = Probe(Question("web", "shop", SETTINGS))
        await probe.run(client)
        assert probe.ok
        assert any("unhealthy for Consul" in step.detail for step in probe.steps)


async def test_gateways_that_may_not_be_seen_are_a_failure_of_that_step() -> None:
    async with inspected() as (double, client):
        mesh(double)
        double.set("/v1/health/service/mesh-gateway?dc=dc1", b"Permission denied", status=403)
        probe = Probe(Question("web", "shop", SETTINGS))
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
        probe = Probe(Question("web", "shop", SETTINGS))
        await probe.run(client)
        assert probe.failure is not None
        assert probe.failure.step == step
        assert probe.failure.detail.startswith("no token was given, and Consul refuses to answer without")


async def test_a_leaf_that_the_agent_blocks_is_no_matter_of_tokens_or_rules() -> None:
    for token in ("", TOKEN):
        async with inspected(HTTP_TOKEN=token) as (double, client):
            mesh(double)
            blocked = b"Endpoint is blocked by agent configuration"
            double.set("/v1/agent/connect/ca/leaf/shop", blocked, status=403)
            failure = (await probed(client, 1)).failure
            assert failure is not None
            assert (failure.step, failure.verdict, failure.meaning) == ("leaf", Verdict.NOT_CALLED, "")
            assert "http_config.block_endpoints" in failure.detail
            assert "token was given" not in failure.detail


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
