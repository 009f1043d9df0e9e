"""The SNI forms, by Consul's own test vectors (agent/connect/sni_test.go and its kin) and by round trips."""

import pytest
from hypothesis import given, strategies as st

from meshgate.core.sni import (
    GatewaySni,
    PeeredServiceSni,
    PeeringServerSni,
    QuerySni,
    ServerSni,
    ServiceSni,
    Sni,
    parse,
)

from .samples import TD1, TD2, TD3

# Numbered, so that none gets lost. 22, 23 and 28 stand for what a listener matches by: `*.` in front of that name.
VECTORS: list[tuple[str, Sni, str]] = [
    ("1 service", ServiceSni("api", "foo", TD1), f"api.default.foo.internal.{TD1}"),
    ("2 service in another datacenter", ServiceSni("api", "bar", TD1), f"api.default.bar.internal.{TD1}"),
    ("3 namespace", ServiceSni("api", "foo", TD2, "neighbor"), f"api.neighbor.foo.internal.{TD2}"),
    ("4 namespace elsewhere", ServiceSni("api", "bar", TD2, "neighbor"), f"api.neighbor.bar.internal.{TD2}"),
    ("5 subset", ServiceSni("api", "foo", TD1, subset="v2"), f"v2.api.default.foo.internal.{TD1}"),
    ("6 subset elsewhere", ServiceSni("api", "bar", TD1, subset="v2"), f"v2.api.default.bar.internal.{TD1}"),
    (
        "7 subset, namespace",
        ServiceSni("api", "foo", TD2, "neighbor", subset="canary"),
        f"canary.api.neighbor.foo.internal.{TD2}",
    ),
    (
        "8 subset, namespace, elsewhere",
        ServiceSni("api", "bar", TD2, "neighbor", subset="canary"),
        f"canary.api.neighbor.bar.internal.{TD2}",
    ),
    ("9 partition", ServiceSni("api", "foo", TD1, partition="part1"), f"api.default.part1.foo.internal-v1.{TD1}"),
    (
        "10 partition, namespace",
        ServiceSni("api", "foo", TD2, "neighbor", "part1"),
        f"api.neighbor.part1.foo.internal-v1.{TD2}",
    ),
    (
        "11 partition, subset",
        ServiceSni("api", "foo", TD1, "default", "part1", "v2"),
        f"v2.api.default.part1.foo.internal-v1.{TD1}",
    ),
    (
        "12 partition, namespace, subset",
        ServiceSni("api", "foo", TD2, "neighbor", "part1", "canary"),
        f"canary.api.neighbor.part1.foo.internal-v1.{TD2}",
    ),
    (
        "13 default partition, said",
        ServiceSni("api", "foo", TD1, partition="default"),
        f"api.default.foo.internal.{TD1}",
    ),
    ("14 query", QuerySni("magicquery", "foo", TD1), f"magicquery.default.foo.query.{TD1}"),
    ("15 query elsewhere", QuerySni("magicquery", "bar", TD2), f"magicquery.default.bar.query.{TD2}"),
    ("16 gateway", GatewaySni("foo", "domain1"), "foo.internal.domain1"),
    ("17 gateway elsewhere", GatewaySni("bar", "domain2"), "bar.internal.domain2"),
    (
        "18 peered service",
        PeeredServiceSni("api", "webstuff", f"internal.{TD1}", "billing"),
        f"api.billing.default.webstuff.external.internal.{TD1}",
    ),
    ("19 servers", ServerSni("dc1", "consul"), "server.dc1.consul"),
    ("20 peering server", PeeringServerSni("dc1", TD3), f"server.dc1.peering.{TD3}"),
    ("21 one server", ServerSni("dc1", "consul", "node1"), "node1.server.dc1.consul"),
    ("22 cluster of a remote datacenter", GatewaySni("dc2", TD3), f"dc2.internal.{TD3}"),
    ("23 cluster of remote servers", ServerSni("dc4", "consul"), "server.dc4.consul"),
    ("24 exported to peer-a", PeeredServiceSni("bar", "peer-a", TD3), f"bar.default.default.peer-a.external.{TD3}"),
    ("25 exported to peer-b", PeeredServiceSni("gir", "peer-b", TD3), f"gir.default.default.peer-b.external.{TD3}"),
    ("26 local service", ServiceSni("foo", "dc1", TD3), f"foo.default.dc1.internal.{TD3}"),
    ("27 local subset", ServiceSni("bar", "dc1", TD3, subset="v2"), f"v2.bar.default.dc1.internal.{TD3}"),
    ("28 gateway of a partition", GatewaySni("dc2", TD3, "p1"), f"p1.dc2.internal-v1.{TD3}"),
    ("29 another DNS domain", ServerSni("dc2", "example.com"), "server.dc2.example.com"),
    ("30 another mesh's service", ServiceSni("foo", "dc2", TD1), f"foo.default.dc2.internal.{TD1}"),
    # 31 is about case, which is the route table's business; what it sees is the folded name.
    ("31 folded", ServiceSni("foo", "dc1", TD3), "FOO.Default.DC1.internal.".lower() + TD3),
]
BY_VECTOR = pytest.mark.parametrize(("sni", "name"), [row[1:] for row in VECTORS], ids=[row[0] for row in VECTORS])


def test_every_vector_is_there() -> None:
    assert [int(title.split()[0]) for title, _, _ in VECTORS] == list(range(1, 32))


@BY_VECTOR
def test_a_form_builds_consuls_text(sni: Sni, name: str) -> None:
    assert str(sni) == name


@BY_VECTOR
def test_a_name_parses_to_its_form(sni: Sni, name: str) -> None:
    trust_domain = "" if isinstance(sni, ServerSni) else sni.trust_domain
    domain = sni.domain if isinstance(sni, ServerSni) else "consul"
    assert parse(name, trust_domain=trust_domain, domain=domain) == sni


@pytest.mark.parametrize(
    ("sni", "name"),
    [
        (ServiceSni("api", "foo", TD1, "", ""), f"api.default.foo.internal.{TD1}"),
        (GatewaySni("foo", TD1, ""), f"foo.internal.{TD1}"),
        (PeeredServiceSni("api", "p", TD1, "", ""), f"api.default.default.p.external.{TD1}"),
        (ServerSni("dc1", "consul.", "*"), "server.dc1.consul"),
        (ServerSni("dc2", "example.com."), "server.dc2.example.com"),
    ],
)
def test_what_is_left_out_means_the_default(sni: Sni, name: str) -> None:
    assert str(sni) == name


@pytest.mark.parametrize("name", [name for _, sni, name in VECTORS if "domain" not in name and "external" not in name])
def test_the_trust_domain_is_the_last_two_labels_where_none_is_expected(name: str) -> None:
    sni = parse(name, domain="example.com" if name.endswith(".com") else "consul")
    assert sni is not None
    assert str(sni) == name


def test_the_name_of_a_server_needs_no_trust_domain_of_the_mesh() -> None:
    assert parse("node1.server.dc1.consul", trust_domain=TD1) == ServerSni("dc1", "consul", "node1")
    assert parse("server.dc1.example.com", trust_domain=TD1, domain="example.com.") == ServerSni("dc1", "example.com")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "web",
        "localhost",
        "consul",
        "10.0.0.7",
        "www.example.com",
        TD1,
        f"internal.{TD1}",
        f"query.{TD1}",
        f"web.internal.{TD1}.",
        f".web.default.dc1.internal.{TD1}",
        f".default.dc1.internal.{TD1}",
        f"web..dc1.internal.{TD1}",
        f"default.dc1.internal.{TD1}",
        f"a.b.c.default.dc1.internal.{TD1}",
        f"dc1.internal-v1.{TD1}",
        f"a.b.c.default.p1.dc1.internal-v1.{TD1}",
        f"api.default.peer.external.{TD1}",
        f"magicquery.neighbor.foo.query.{TD1}",
        f"web.dc1.peering.{TD1}",
        f"server.peering.{TD1}",
        f"web.default.dc1.internal.{TD2}",
        "server.consul",
        "a.node1.server.dc1.consul",
        "node1.servers.dc1.consul",
    ],
)
def test_a_name_of_no_form_is_none(name: str) -> None:
    assert parse(name, trust_domain=TD1) is None


@pytest.mark.parametrize(
    "name",
    [
        f"api.default.default.dc1.internal-v1.{TD1}",
        f"v2.api.default.default.dc1.internal-v1.{TD1}",
        f"default.dc1.internal-v1.{TD1}",
        "*.server.dc1.consul",
    ],
)
def test_a_spelling_that_consul_never_builds_is_none(name: str) -> None:
    assert parse(name, trust_domain=TD1) is None


def test_an_empty_dns_domain_has_no_servers() -> None:
    assert parse("server.dc1.consul", trust_domain=TD1, domain="") is None


LABEL = st.from_regex(r"[a-z0-9_]([a-z0-9_-]{0,8}[a-z0-9_])?", fullmatch=True)
TRUST_DOMAIN = st.uuids().map(lambda cluster: f"{cluster}.consul")
FORMS: st.SearchStrategy[Sni] = st.one_of(
    st.builds(ServiceSni, LABEL, LABEL, TRUST_DOMAIN, LABEL, LABEL, st.just("") | LABEL),
    st.builds(ServiceSni, LABEL, LABEL, TRUST_DOMAIN, subset=st.just("") | LABEL),
    st.builds(GatewaySni, LABEL, TRUST_DOMAIN, st.just("default") | LABEL),
    st.builds(QuerySni, LABEL, LABEL, TRUST_DOMAIN),
    st.builds(PeeredServiceSni, LABEL, LABEL, TRUST_DOMAIN, LABEL, LABEL),
    st.builds(PeeringServerSni, LABEL, TRUST_DOMAIN),
)


@given(FORMS)
def test_parse_undoes_build(sni: Sni) -> None:
    assert not isinstance(sni, ServerSni)
    assert parse(str(sni), trust_domain=sni.trust_domain) == sni
    assert parse(str(sni)) == sni


@given(st.builds(ServerSni, LABEL, st.sampled_from(["consul", "example.com", "a.b.c"]), st.just("") | LABEL))
def test_parse_undoes_build_of_servers(sni: ServerSni) -> None:
    assert parse(str(sni), trust_domain=TD1, domain=sni.domain) == sni


WORD = st.sampled_from(
    [
        "",
        "*",
        "web",
        "default",
        "dc1",
        "p1",
        "internal",
        "internal-v1",
        "external",
        "query",
        "peering",
        "server",
        "consul",
    ]
)


@given(st.lists(WORD, max_size=8).map(".".join), st.sampled_from(["", "consul", TD1, "dc1.consul"]))
def test_build_undoes_parse(name: str, trust_domain: str) -> None:
    sni = parse(name, trust_domain=trust_domain)
    assert sni is None or str(sni) == name


@given(st.text())
def test_any_text_parses_without_an_error(name: str) -> None:
    sni = parse(name, trust_domain=TD1)
    assert sni is None or str(sni) == name
