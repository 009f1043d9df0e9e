import json
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, strategies as st

from meshgate.adapters.consul.api import (
    CaRoots,
    InvalidAnswerError,
    OwnRegistration,
    Resolver,
    SubsetRule,
    records,
)
from meshgate.core.catalog import Check, Instance, Locality, WanAddress
from meshgate.core.proxy_config import BindAddress

FULL: dict[str, Any] = {
    "Node": {
        "ID": "7c37eab5",
        "Node": "n1",
        "Address": "10.0.0.1",
        "Datacenter": "dc2",
        "Partition": "p1",
        "TaggedAddresses": {"lan": "10.0.0.1", "wan": "192.0.2.1"},
        "Meta": {"x": "y"},
    },
    "Service": {
        "Kind": "mesh-gateway",
        "ID": "gw-1",
        "Service": "gw",
        "Tags": ["a"],
        "Address": "10.0.0.7",
        "TaggedAddresses": {"lan": {"Address": "10.0.0.7", "Port": 1}, "wan": {"Address": "198.18.1.1", "Port": 443}},
        "Meta": {"z": "1", "consul-wan-federation": "1"},
        "Port": 8443,
        "Weights": {"Passing": 5, "Warning": 0},
        "Proxy": {"Config": {"a": [1, {"b": None}]}},
        "CreateIndex": 3,
        "ModifyIndex": 49,
    },
    "Checks": [
        {"CheckID": "service:gw-1", "Name": "listening", "Status": "warning", "Output": "text"},
        {"CheckID": "serfHealth", "Name": "Serf", "Status": "passing"},
    ],
}


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def test_a_row_becomes_an_instance_with_all_that_routing_needs() -> None:
    assert records.decode_instances(encoded([FULL])) == (
        Instance(
            node="n1",
            datacenter="dc2",
            id="gw-1",
            service="gw",
            address="10.0.0.7",
            port=8443,
            node_address="10.0.0.1",
            kind="mesh-gateway",
            wan=WanAddress("198.18.1.1", 443),
            node_wan="192.0.2.1",
            weight_passing=5,
            weight_warning=0,
            checks=(Check("serfHealth", "passing", "Serf"), Check("service:gw-1", "warning", "listening")),
            modify_index=49,
            partition="p1",
            meta=(("consul-wan-federation", "1"), ("z", "1")),
        ),
    )


def test_null_and_absent_fields_have_the_defaults_of_consul() -> None:
    bare = {"Node": {"Node": "n1"}, "Service": {"ID": "a", "Service": "a"}}
    nulls = {
        "Node": {"Node": "n1", "Address": None, "Datacenter": None, "TaggedAddresses": None, "Partition": None},
        "Service": {
            "ID": "a",
            "Service": "a",
            "Kind": None,
            "Address": None,
            "Port": None,
            "TaggedAddresses": None,
            "Weights": None,
            "Meta": None,
            "ModifyIndex": None,
        },
        "Checks": None,
    }
    expected = Instance(node="n1", datacenter="", id="a", service="a", address="", port=0, node_address="")
    assert records.decode_instances(encoded([bare])) == records.decode_instances(encoded([nulls])) == (expected,)


@pytest.mark.parametrize("body", [b"null", b"[]"])
def test_no_rows_are_an_empty_tuple(body: bytes) -> None:
    assert records.decode_instances(body) == ()


def test_rows_have_an_order_of_their_own() -> None:
    rows = [FULL | {"Service": FULL["Service"] | {"ID": str(number)}} for number in (3, 1, 2)]
    assert records.decode_instances(encoded(rows)) == records.decode_instances(encoded(rows[::-1]))


def test_a_changed_output_of_a_check_changes_nothing() -> None:
    other = FULL | {"Checks": [FULL["Checks"][1], FULL["Checks"][0] | {"Output": "other"}]}
    assert records.decode_instances(encoded([FULL])) == records.decode_instances(encoded([other]))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[",
        b"[{}]",
        b"nonsense",
        b'"text"',
        b'[{"Node":1,"Service":{}}]',
        b"[" * 100_000,
        b"\xff\xfe",
        b"{}",
    ],
)
def test_what_is_no_answer_of_consul_is_an_invalid_answer(body: bytes) -> None:
    with pytest.raises(InvalidAnswerError, match="cannot be read") as raised:
        records.decode_instances(body)
    assert raised.value.status == "invalid"


@given(st.binary(max_size=40), st.integers(0, 400))
def test_a_cut_or_spoilt_body_never_raises_anything_else(junk: bytes, at: int) -> None:
    body = encoded([FULL])
    for spoilt in (body[:at], body[:at] + junk + body[at + 1 :], junk):
        try:
            records.decode_instances(spoilt)
        except InvalidAnswerError:
            continue


def test_roots_give_the_trust_domain_and_the_end_of_the_active_root() -> None:
    body = {
        "ActiveRootID": "b",
        "TrustDomain": "td.consul",
        "Roots": [
            {"ID": "a", "NotAfter": "2020-01-01T00:00:00Z", "Active": False},
            {"ID": "b", "NotAfter": "2036-11-19T03:53:10Z", "Active": True},
        ],
    }
    assert records.decode_ca_roots(encoded(body)) == CaRoots("td.consul", 2110679590.0)


def test_the_last_intermediate_of_the_active_root_is_the_one_that_signs() -> None:
    old, new = certificate_until(datetime(2031, 1, 1, tzinfo=UTC)), certificate_until(datetime(2033, 1, 1, tzinfo=UTC))
    root = {"ID": "b", "NotAfter": "2036-11-19T03:53:10Z", "Active": True, "IntermediateCerts": [old, new]}
    roots = records.decode_ca_roots(encoded({"TrustDomain": "td.consul", "Roots": [root]}))
    assert (roots.trust_domain, roots.expires) == ("td.consul", 2110679590.0)
    assert roots.intermediate_expires == datetime(2033, 1, 1, tzinfo=UTC).timestamp()
    for unreadable in ([], None, [""], ["x"], [new.replace("\nMI", "\nXX")]):
        body = {"TrustDomain": "td.consul", "Roots": [root | {"IntermediateCerts": unreadable}]}
        found = records.decode_ca_roots(encoded(body))
        assert (found.expires, found.intermediate_expires) == (2110679590.0, None)


def certificate_until(end: datetime) -> str:
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    certificate = x509.CertificateBuilder(name, name, key.public_key(), 1, datetime(2020, 1, 1, tzinfo=UTC), end)
    return certificate.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize(
    "body",
    [
        {"ActiveRootID": "", "TrustDomain": "td.consul", "Roots": None},
        {"TrustDomain": "td.consul"},
        {"TrustDomain": "td.consul", "ActiveRootID": "a", "Roots": [{"ID": "a", "NotAfter": "soon"}]},
    ],
)
def test_roots_without_a_readable_end_still_give_the_trust_domain(body: Any) -> None:
    assert records.decode_ca_roots(encoded(body)) == CaRoots("td.consul", None)


def test_resolvers_keep_what_a_gateway_follows() -> None:
    body = [
        {"Kind": "service-resolver", "Name": "web", "ConnectTimeout": "1m15s", "Redirect": {"Service": "other"}},
        {
            "Kind": "service-resolver",
            "Name": "api",
            "DefaultSubset": "v1",
            "Subsets": {"v2": {"Filter": "F", "OnlyPassing": True}, "v1": {}, "v0": None},
            "ConnectTimeout": 2_500_000_000,
        },
        {"Name": "odd", "ConnectTimeout": "soon", "Subsets": None},
    ]
    subsets = (SubsetRule("v0"), SubsetRule("v1"), SubsetRule("v2", "F", only_passing=True))
    assert records.decode_resolvers(encoded(body)) == (
        Resolver("api", subsets, "v1", 2.5),
        Resolver("odd"),
        Resolver("web", connect_timeout=75.0),
    )


def test_federation_states_are_rows_by_datacenter() -> None:
    found = records.decode_federated_gateways(encoded({"dc1": [], "dc2": [FULL], "dc3": None}))
    assert {name: len(rows) for name, rows in found.items()} == {"dc1": 0, "dc2": 1, "dc3": 0}
    assert records.decode_federated_gateways(b"null") == {}


def test_only_mesh_gateways_count_as_gateway_names() -> None:
    body = [{"Name": "web"}, {"Name": "gw", "Kind": "mesh-gateway"}, {"Name": "in", "Kind": "ingress-gateway"}]
    assert records.decode_gateway_names(encoded(body)) == ("gw",)


def test_an_own_registration_keeps_the_opaque_configuration() -> None:
    body = {
        "ID": "gw-1",
        "Kind": "mesh-gateway",
        "Service": "gw",
        "Address": "",
        "Port": 8443,
        "TaggedAddresses": {"wan": {"Address": "192.0.2.1", "Port": 443}, "lan": {"Address": "10.0.0.7", "Port": 8443}},
        "Meta": None,
        "Proxy": {
            "Config": {"connect_timeout_ms": 300, "envoy_gateway_bind_addresses": {"a": {"port": 1}}},
            "AccessLogs": {"Enabled": True, "Type": "file", "Path": "/log"},
        },
        "ContentHash": "abc",
    }
    assert records.decode_own_registration(encoded(body)) == OwnRegistration(
        id="gw-1",
        service="gw",
        address="",
        port=8443,
        tagged=(BindAddress("lan", "10.0.0.7", 8443), BindAddress("wan", "192.0.2.1", 443)),
        config={"connect_timeout_ms": 300, "envoy_gateway_bind_addresses": {"a": {"port": 1}}},
        access_logs={"Enabled": True, "Type": "file", "Path": "/log"},
    )


@pytest.mark.parametrize(
    ("service", "node", "found"),
    [
        ({"Region": "us-west-1", "Zone": "a"}, {"Region": "us-east-1", "Zone": "b"}, Locality("us-west-1", "a")),
        (None, {"Region": "us-east-1", "Zone": None}, Locality("us-east-1")),
        (None, None, Locality()),
    ],
)
def test_locality_of_an_instance_is_that_of_its_service_else_of_its_node(
    service: object, node: object, found: Locality
) -> None:
    row = {"Node": {"Node": "n1", "Locality": node}, "Service": {"ID": "gw", "Locality": service}}
    (instance,) = records.decode_instances(encoded([row]))
    assert instance.locality == found
    own = records.decode_own_registration(encoded({"ID": "gw", "Locality": service}))
    assert own.locality == (found if service else Locality())


def test_agent_facts_are_read_from_old_and_new_versions() -> None:
    old = {
        "Config": {"Datacenter": "dc2", "NodeName": "n1", "Version": "1.8.7", "Server": True},
        "DebugConfig": {"DNSDomain": "example.", "PrimaryDatacenter": "dc1"},
    }
    facts = records.decode_agent_facts(encoded(old))
    assert (facts.datacenter, facts.node, facts.version, facts.server) == ("dc2", "n1", "1.8.7", True)
    assert (facts.dns_domain, facts.primary_datacenter, facts.partition) == ("example", "dc1", "default")
    new = records.decode_agent_facts(
        encoded({"Config": {"Datacenter": "dc2", "PrimaryDatacenter": "dc1", "Partition": "p1"}})
    )
    assert (new.dns_domain, new.primary_datacenter, new.partition) == ("consul", "dc1", "p1")


@pytest.mark.parametrize("value", [None, [], {}, {"Config": {}}, {"Config": {"Datacenter": 1}}])
def test_facts_without_a_datacenter_are_an_invalid_answer(value: Any) -> None:
    with pytest.raises(InvalidAnswerError):
        records.decode_agent_facts(encoded(value))


def test_names_and_datacenters_are_sorted_and_tolerate_null() -> None:
    assert records.decode_service_names(b'{"b": [], "a": null}') == ("a", "b")
    assert records.decode_service_names(b"null") == ()
    assert records.decode_datacenters(b'["dc2", "dc1"]') == ("dc1", "dc2")
    assert records.decode_datacenters(b"null") == ()


@pytest.mark.parametrize(
    ("given", "policy", "choices", "ignored"),
    [
        (None, "round_robin", 2, ""),
        ({"Policy": "least_request", "LeastRequestConfig": {"ChoiceCount": 5}}, "least_request", 5, ""),
        ({"Policy": "least_request", "LeastRequestConfig": None}, "least_request", 2, ""),
        ({"Policy": "least_request", "LeastRequestConfig": {"ChoiceCount": 2000000000}}, "least_request", 16, ""),
        ({"Policy": "least_request", "LeastRequestConfig": {"ChoiceCount": -1}}, "least_request", 2, ""),
        ({"Policy": "random"}, "random", 2, ""),
        ({"Policy": "maglev"}, "round_robin", 2, "maglev"),
        ({"Policy": "ring_hash", "RingHashConfig": {"MinimumRingSize": 10}}, "round_robin", 2, "ring_hash"),
    ],
)
def test_load_balancer_of_a_resolver(given: object, policy: str, choices: int, ignored: str) -> None:
    entry = {"Kind": "service-resolver", "Name": "web", "LoadBalancer": given}
    (resolver,) = records.decode_resolvers(json.dumps([entry]).encode())
    assert (resolver.policy, resolver.choices, resolver.ignored_policy) == (policy, choices, ignored)


@pytest.mark.parametrize(
    ("answer", "allowed"),
    [({"Allowed": True, "Reason": "default"}, True), ({"Allowed": None}, False), ({}, False)],
)
def test_an_intention_check_may_say_more_or_less_than_is_read(answer: dict[str, object], allowed: bool) -> None:
    assert records.decode_intention_check(encoded(answer)) is allowed
