"""Every decoder, and the rules that read an answer, held to what real versions of Consul answered.

The recordings are made by `scripts/record-consul`.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from meshgate.adapters.consul.api import (
    BadRequestError,
    ConsulAddress,
    ConsulError,
    EndpointBlockedError,
    InvalidAnswerError,
    NotFoundError,
    PermissionDeniedError,
    Rule,
    ServerError,
    records,
)
from meshgate.adapters.consul.api.endpoints import CONSUL
from meshgate.core.catalog import ChainTarget, Export
from meshgate.core.endpoint_maker import assess, best_address
from meshgate.core.prerequisites import stops_without
from meshgate.core.proxy_config import NO_LIMITS, DestinationLimits
from meshgate.core.routes import Policy

from .recorded import DATA, QUESTIONS, PlayingTransport, Tape, TapedClient

OLD, NEW = "consul-1.8.7", "consul-1.22.6"
# Consul without Enterprise has none of these, or they were not there to be asked for.
UNSEEN = {"decode_namespaces", "decode_partitions", "decode_login"}
# What commands and pages ask, and the gateway does not.
BESIDE = (
    "/v1/acl/replication",
    "/v1/acl/token/self",
    "/v1/agent/connect/ca/leaf/",
    "/v1/config/proxy-defaults",
    "/v1/connect/intentions/",
    "/v1/health/node/",
    "/v1/peering/",
)


async def played(version: str, name: str) -> Any:
    """What the client makes of a recording: the answer, or the error."""
    client = TapedClient(ConsulAddress(), PlayingTransport)
    client.tape.exchanges += Tape.read(DATA / version / f"{name}.json").exchanges
    async with client:
        try:
            answer = await QUESTIONS[name][1](client)
        except ConsulError as error:
            return error
    return answer.value if isinstance(answer, records.Page) else answer


def _names(version: str) -> list[str]:
    return sorted(file.stem for file in (DATA / version).glob("*.json"))


@pytest.mark.parametrize("version", [OLD, NEW])
async def test_every_recording_is_understood_and_every_decoder_has_one(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: set[str] = set()

    def noting(name: str, decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        def decoded(content: bytes) -> Any:
            used.add(name)
            return decode(content)

        return decoded

    decoders = {name for name in vars(records) if name.startswith("decode_")}
    for name in decoders:
        monkeypatch.setattr(records, name, noting(name, getattr(records, name)))
    names = _names(version)
    for name in names:
        found = await played(version, name)
        assert not isinstance(found, InvalidAnswerError), f"{name}: {found}"
    if version == NEW:
        assert set(names) == set(QUESTIONS)
        assert decoders - used == UNSEEN


def test_no_recording_holds_a_secret_or_a_path_of_the_machine_it_was_made_on() -> None:
    for file in _files():
        text = file.read_text()
        assert not re.search(r"BEGIN [A-Z ]*PRIVATE KEY-----(?!-----END)", text), file
        assert not re.search(r"SecretID\\?\":\\?\"(?!0{8}-)", text), file
        assert not re.search(r"/(tmp|home|root|work)/", text), file


def _files() -> Iterator[Path]:
    for version in (OLD, NEW):
        yield from (DATA / version).glob("*.json")


@pytest.mark.parametrize("version", [OLD, NEW])
async def test_instances_of_the_mesh(version: str) -> None:
    rows = await played(version, "connect-instances")
    assert [(row.id, row.service, row.kind) for row in rows] == [
        ("web-1-sidecar-proxy", "web-sidecar-proxy", "connect-proxy"),
        ("web-2-sidecar-proxy", "web-sidecar-proxy", "connect-proxy"),
    ]
    assert all(assess(row).healthy and best_address(row, wan=False) == ("127.0.0.1", 21000) for row in rows)
    (second,) = await played(version, "connect-instances-of-a-subset")
    assert dict(second.meta)["version"] == "2"
    assert await played(version, "connect-instances-of-nobody") == ()
    (gateway,) = await played(version, "gateways-elsewhere")
    assert (gateway.datacenter, best_address(gateway, wan=True)) == ("dc2", ("198.51.100.7", 443))
    assert {"dc1", "dc2"} <= set(await played(version, "federated-gateways"))


@pytest.mark.parametrize("version", [OLD, NEW])
async def test_what_is_refused_is_told_apart(version: str) -> None:
    denied = await played(version, "connect-instances-denied")
    assert isinstance(denied, PermissionDeniedError)
    assert denied.missing_rule == Rule("service", "web")
    denied = await played(version, "readable-denied")
    assert isinstance(denied, PermissionDeniedError)
    assert denied.missing_rule == Rule("service", "web")
    blocked = await played(version, "gateway-names-blocked")
    assert isinstance(blocked, EndpointBlockedError)
    assert (blocked.missing_rule, blocked.status) == (None, "blocked")
    unknown = await played(version, "token-unknown")
    assert isinstance(unknown, PermissionDeniedError)
    assert unknown.unknown_token
    assert isinstance(await played(version, "connect-instances-by-a-broken-filter"), BadRequestError)
    assert isinstance(await played(version, "namespace-refused"), BadRequestError)
    assert isinstance(await played(version, "no-such-datacenter"), ServerError)
    for name in ("agent-service-that-does-not-exist", "no-namespaces", "no-partitions"):
        assert isinstance(await played(version, name), NotFoundError)
    for name in ("readable", "readable-although-it-does-not-exist"):
        assert await played(version, name) is None
    assert await played(version, "allowed") == (False, False)


@pytest.mark.parametrize("version", [OLD, NEW])
def test_of_each_endpoint_that_the_gateway_asks_it_is_known_what_stops_where_an_agent_blocks_it(version: str) -> None:
    answers = (each for name in _names(version) for each in Tape.read(DATA / version / f"{name}.json").exchanges)
    asked = {each.path for each in answers if not each.path.startswith(BESIDE)}
    agent = CONSUL.agent
    asked |= {
        request.path
        for request in (
            agent.service.register_definition({}),
            agent.service.deregister("mesh-gateway"),
            agent.check.deregister("service:mesh-gateway"),
            CONSUL.acl.login("workloads", ""),
            CONSUL.acl.logout(),
        )
    }
    assert len(asked) > 20
    assert [path for path in sorted(asked) if stops_without(path)[1] == "what it tells is missing"] == []


async def test_a_token_that_may_not_see_everything_is_told_so_by_newer_versions() -> None:
    for name in ("service-names-filtered", "visible-nodes-filtered"):
        (answer,) = Tape.read(DATA / NEW / f"{name}.json").exchanges
        assert answer.headers["x-consul-results-filtered-by-acls"] == "true"
    assert await played(NEW, "visible-nodes-filtered") == await played(OLD, "visible-nodes-filtered") == 0


@pytest.mark.parametrize("version", [OLD, NEW])
async def test_central_configuration(version: str) -> None:
    web = next(each for each in await played(version, "resolvers") if each.name == "web")
    assert (web.default_subset, web.connect_timeout, web.policy) == ("v2", 3.0, Policy.ROUND_ROBIN)
    assert [(each.name, each.only_passing) for each in web.subsets] == [("v2", True)]
    chain = await played(version, "chain-with-failover")
    assert (chain.protocol, chain.target) == ("tcp", ChainTarget("web", subset="v2"))
    assert [(each.datacenter, each.subset) for each in chain.targets] == [("dc1", "v2"), ("dc2", "v2")]
    assert all(each.sni.startswith("v2.web.default.dc") for each in chain.targets)
    assert (await played(version, "chain-with-redirect")).target is None
    assert (await played(version, "chain-by-default")).target == ChainTarget("nobody")
    assert (await played(version, "service-defaults")).mode == "remote"
    assert await played(version, "service-defaults-that-do-not-exist") == records.ServiceDefaults()
    assert await played(version, "proxy-defaults") == "local"
    limits = DestinationLimits(512, 7) if version == NEW else NO_LIMITS
    assert await played(version, "destination-limits") == limits


@pytest.mark.parametrize("version", [OLD, NEW])
async def test_the_agent_and_what_it_holds(version: str) -> None:
    facts = await played(version, "agent-self")
    assert (facts.datacenter, facts.node, facts.version) == ("dc1", "dc1-server", version.removeprefix("consul-"))
    assert (facts.server, facts.connect, facts.central_config, facts.acls) == (True, True, True, True)
    assert (facts.max_connections, facts.streaming) == (200, version != "consul-1.8.7")
    own = await played(version, "agent-service")
    assert (own.id, own.kind, own.port) == ("mesh-gateway", "mesh-gateway", 8443)
    tagged = {each.name: (each.address, each.port) for each in own.tagged}
    assert (tagged["lan"], tagged["wan"]) == (("10.0.0.7", 8443), ("198.51.100.7", 443))
    assert (await played(version, "agent-registration")).id == own.id
    (there,) = await played(version, "own-instances")
    assert (there.node, there.registration.port) == ("dc1-server", 8443)
    assert [check.service_id for check in await played(version, "agent-checks")] == ["mesh-gateway"]
    assert {"serfHealth"} <= {check.id for check in await played(version, "node-checks")}
    web = next(each for each in await played(version, "sidecars") if each.service == "web")
    assert (web.mode, [(each.name, each.datacenter) for each in web.upstreams]) == ("local", [("api", "dc2")])


@pytest.mark.parametrize("version", [OLD, NEW])
async def test_certificates_and_rights(version: str) -> None:
    roots = await played(version, "ca-roots")
    assert roots.trust_domain.endswith(".consul")
    assert roots.expires is not None
    secondary = await played(version, "ca-roots-of-a-secondary")
    assert secondary.trust_domain == roots.trust_domain
    assert secondary.intermediate_expires is not None
    leaf = await played(version, "leaf")
    assert leaf.spiffe_id == f"spiffe://{roots.trust_domain}/ns/default/dc/dc1/svc/web"
    assert await played(version, "token-self") is None
    replication = await played(version, "acl-replication")
    assert (replication.enabled, replication.running, replication.source) == (True, True, "dc1")
    assert await played(version, "intention") == "allow"
    assert await played(version, "intention-denied") == "deny"


async def test_peers() -> None:
    (peering,) = await played(NEW, "peerings")
    assert (peering.name, peering.state, peering.active, peering.imported) == ("us", "ACTIVE", True, ("web",))
    assert len(peering.addresses) == 1
    (instance,) = await played(NEW, "connect-instances-of-a-peer")
    assert instance.peer_sni[0].startswith("web.default.default.eu.external.")
    assert best_address(instance, wan=True) == ("198.51.100.7", 443)
    (root,) = await played(NEW, "peering-roots")
    assert root.startswith("-----BEGIN CERTIFICATE-----")
    assert await played(NEW, "peer-through") is True
    assert await played(NEW, "peer-through-unset") is False
    expected = (Export("web", "default", ("eu",), ()),)
    assert await played(NEW, "exported-services") == await played(NEW, "exported-entry") == expected
    assert await played(NEW, "exported-entry-unset") == ()
    denied = await played(NEW, "peerings-denied")
    assert isinstance(denied, PermissionDeniedError)
    assert denied.missing_rule == Rule("peering")
