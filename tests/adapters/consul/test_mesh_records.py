"""How Consul's JSON for peerings, exports and chains becomes records, with what it leaves out or writes as null."""

import json
from typing import Any

import pytest

from meshgate.adapters.consul.api import Chain, InvalidAnswerError, Peering, records
from meshgate.adapters.consul.api.records import decode_instances
from meshgate.core.catalog import ChainTarget, Export, SamenessGroup

from .fake_consul import row
from .mesh_double import chain


def text(value: Any) -> bytes:
    return json.dumps(value).encode()


def test_a_peering_of_the_documentation() -> None:
    rows = [
        {
            "ID": "462c45e8-018e-f19d-85eb-1fc1bcc2ef12",
            "Name": "cluster-02",
            "State": "ACTIVE",
            "PeerServerName": "server.dc2.peering.x.consul",
            "PeerServerAddresses": ["10.0.0.2:8300", "[2001:db8::1]:8503", "lb.example:443", "bad", ":1", "h:", "h:x"],
            "StreamStatus": {"ImportedServices": ["web", "api"], "ExportedServices": None},
            "ModifyIndex": 89,
        },
        {"Name": "cluster-01", "State": None, "PeerServerAddresses": None, "StreamStatus": None},
    ]
    assert records.decode_peerings(text(rows)) == (
        Peering("cluster-01", ""),
        Peering(
            "cluster-02",
            "ACTIVE",
            "server.dc2.peering.x.consul",
            (("10.0.0.2", 8300), ("2001:db8::1", 8503), ("lb.example", 443)),
            ("api", "web"),
            89,
        ),
    )
    assert records.decode_peerings(b"null") == ()


@pytest.mark.parametrize(
    ("fields", "active"),
    [
        ({"State": "ACTIVE"}, True),
        ({"State": "FAILING"}, True),
        ({"State": "PENDING"}, True),
        ({"State": "DELETING"}, False),
        ({"State": "TERMINATED"}, False),
        ({"State": "ACTIVE", "DeletedAt": "2021-12-02T23:00:00Z"}, False),
    ],
)
def test_a_peering_that_is_ending_is_not_active(fields: dict[str, str], active: bool) -> None:
    (found,) = records.decode_peerings(text([{"Name": "x"} | fields]))
    assert found.active is active


def test_exported_services_as_they_are_listed() -> None:
    rows = [
        {"Service": "web", "Consumers": {"Peers": ["west", "east"]}},
        {"Service": "db", "Namespace": "team", "Partition": "p1", "Consumers": {"Partitions": ["p2"], "Peers": None}},
        {"Service": "api", "Namespace": "", "Consumers": None},
    ]
    assert records.decode_exported_services(text(rows)) == (
        Export("api", "default", (), ()),
        Export("web", "default", ("east", "west"), ()),
        Export("db", "team", (), ("p2",)),
    )


def test_an_exported_services_entry_with_both_names_of_a_peer() -> None:
    consumers = [{"Peer": "b"}, {"PeerName": "a"}, {"Partition": "p2"}, {"SamenessGroup": "all"}, {"Peer": "b"}]
    entry = {"Kind": "exported-services", "Name": "default", "Services": [{"Name": "web", "Consumers": consumers}]}
    assert records.decode_exported_entries(text([entry])) == {
        "default": (Export("web", "default", ("a", "b"), ("p2",), groups=("all",)),)
    }
    assert records.decode_exported_entries(text([{"Services": None}])) == {"default": ()}


def test_the_members_of_a_sameness_group() -> None:
    members = [{"Partition": "p2"}, {"Partition": "p1"}, {"Peer": "east"}, {"Peer": "", "Partition": None}]
    entry = {"Kind": "sameness-group", "Name": "all", "IncludeLocal": True, "Members": [*members, {"Peer": "east"}]}
    assert records.decode_sameness_groups(text([entry])) == {"all": SamenessGroup("all", ("east",), ("p1", "p2"))}
    assert records.decode_sameness_groups(text([{"Name": "none", "Members": None}])) == {"none": SamenessGroup("none")}


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        pytest.param(chain("web"), Chain("tcp", ChainTarget("web")), id="itself"),
        pytest.param(chain("web", target="db"), Chain("tcp", ChainTarget("db")), id="redirect"),
        pytest.param(chain("web", subset="v2"), Chain("tcp", ChainTarget("web", subset="v2")), id="subset"),
        pytest.param(chain("web", Namespace="team"), Chain("tcp", ChainTarget("web", "team")), id="namespace"),
        pytest.param(chain("web", Datacenter="dc2"), Chain("tcp", None), id="another datacenter"),
        pytest.param(chain("web", Partition="p2"), Chain("tcp", None), id="another partition"),
        pytest.param(chain("web", Peer="east"), Chain("tcp", None), id="a peer"),
        pytest.param(chain("web", External=True), Chain("tcp", None), id="external"),
        pytest.param(
            chain("web", protocol="http", target="db", start="router"), Chain("http", ChainTarget("web")), id="router"
        ),
        pytest.param(
            chain("web", protocol="grpc", target="db", start="splitter"),
            Chain("grpc", ChainTarget("web")),
            id="splitter",
        ),
    ],
)
def test_where_a_chain_leads(answer: dict[str, Any], found: Chain) -> None:
    decoded = records.decode_chain(text(answer))
    assert (decoded.protocol, decoded.target) == (found.protocol, found.target)
    assert [target.service for target in decoded.targets] == [answer["Chain"]["Targets"]["t"]["Service"]]


def test_without_enterprise_a_chain_names_no_namespace_or_partition() -> None:
    answer = chain("web")
    for name in ("Namespace", "Partition"):
        del answer["Chain"][name]
        del answer["Chain"]["Targets"]["t"][name]
    assert records.decode_chain(text(answer)).target == ChainTarget("web")


@pytest.mark.parametrize("lost", ["Nodes", "Targets"])
def test_a_chain_that_leads_nowhere_is_no_answer(lost: str) -> None:
    answer = chain("web")
    answer["Chain"][lost] = None
    with pytest.raises(InvalidAnswerError, match="discovery chain"):
        records.decode_chain(text(answer))


@pytest.mark.parametrize(
    ("entry", "through"),
    [
        ({"Kind": "mesh", "Peering": {"PeerThroughMeshGateways": True}}, True),
        ({"Kind": "mesh", "Peering": {"PeerThroughMeshGateways": False}}, False),
        ({"Kind": "mesh", "Peering": None}, False),
        ({"Kind": "mesh"}, False),
    ],
)
def test_whether_the_control_plane_goes_through_gateways(entry: dict[str, Any], through: bool) -> None:
    assert records.decode_peer_through(text([entry])) == {"mesh": through}


def test_partitions_and_namespaces_that_are_being_deleted_are_gone() -> None:
    rows = [{"Name": "b"}, {"Name": "a"}, {"Name": "c", "DeletedAt": "2021-12-14T23:00:00Z"}]
    for body in (rows, {"Partitions": rows}):
        assert records.decode_partitions(text(body)) == ("a", "b")
    assert records.decode_partitions(text({"Partitions": None})) == ()
    assert records.decode_partitions(b"null") == ()
    assert records.decode_namespaces(text(rows)) == ("a", "b")


@pytest.mark.parametrize(
    ("decode", "content"),
    [
        (records.decode_partitions, b'"x"'),
        (records.decode_partitions, b'{"Partitions": 7}'),
        (records.decode_peerings, b'[{"Name": null}]'),
        (records.decode_exported_services, b'{"Service": "web"}'),
        (records.decode_chain, b"{}"),
        (records.decode_peer_through, b"{}"),
    ],
)
def test_another_shape_is_no_answer(decode: Any, content: bytes) -> None:
    with pytest.raises(InvalidAnswerError):
        decode(content)


@pytest.mark.parametrize(
    ("connect", "names"),
    [
        ({"PeerMeta": {"SNI": ["a.x", "b.x"], "SpiffeID": ["s"], "Protocol": "tcp"}}, ("a.x", "b.x")),
        ({"PeerMeta": {"SNI": None}}, ()),
        ({"PeerMeta": None}, ()),
        ({"Native": True}, ()),
        (None, ()),
    ],
)
def test_an_imported_instance_has_the_names_that_its_exporter_gave_it(connect: Any, names: tuple[str, ...]) -> None:
    one = row("web-sidecar-proxy")
    one["Service"]["Connect"] = connect
    (instance,) = decode_instances(text([one]))
    assert instance.peer_sni == names
