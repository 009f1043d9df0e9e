"""Which clients have a name, and which one."""

from dataclasses import replace

import pytest

from meshgate.core.callers import Callers
from meshgate.core.catalog import (
    ImportedService,
    Instance,
    Remote,
    Service,
    Snapshot,
    WanAddress,
)


def at(address: str, node: str, node_address: str = "", *, wan: str = "", node_wan: str = "") -> Instance:
    there = WanAddress(wan, 443) if wan else None
    return Instance(node, "dc1", "x", "x", address, 20000, node_address, wan=there, node_wan=node_wan)


SNAPSHOT = Snapshot(
    "dc1",
    "td.consul",
    services=(
        Service("web", (at("10.1.0.5", "k8s", "10.0.0.1"), at("", "vm1", "10.0.0.7"))),
        Service("api", (at("10.0.0.7", "vm1", "10.0.0.7"),)),
        Service("batch", (at("", "own", "10.0.0.9", node_wan="198.51.100.9"),), namespace="team"),
        Service("local", (at("127.0.0.1", "vm2", "10.0.0.8"), at("0.0.0.0", "vm3", "10.0.0.3"))),
        Service("six", (at("2001:db8:0:0::6", "vm6"), at("host.example", "vm7", "also.example"))),
        *(Service(f"s{number}", (at("", "big", "10.0.0.20"),)) for number in range(4)),
        *(Service(f"t{number}", (at("10.0.0.30", f"n{number}"),)) for number in range(4)),
        Service("near", (at("10.0.0.40", "a"),)),
        Service("far", (at("10.0.0.40", "b"),)),
    ),
    remotes=(Remote("dc2", (at("10.2.0.1", "gw2", wan="203.0.113.2"),)),),
    partitions=(Remote("p2", (at("10.3.0.1", "gw3"),)),),
    imports=(
        ImportedService("db", "peer-a", (at("198.18.1.1", "gw4"),)),
        ImportedService("alt", "peer-a", (at("198.18.1.1", "gw4"),)),
    ),
    servers=(at("10.0.0.100", "server1"),),
    node="own",
)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("10.1.0.5", "web on k8s"),
        ("::ffff:10.1.0.5", "web on k8s"),
        ("10.0.0.1", ""),  # Its node's, but the instance has an address of its own.
        ("10.0.0.7", "api or web on vm1"),
        ("10.0.0.9", "team/batch on own"),
        ("198.51.100.9", "team/batch on own"),
        ("127.0.0.1", "team/batch on own"),
        ("::1", "team/batch on own"),
        ("10.0.0.8", "local on vm2"),
        ("10.0.0.3", "local on vm3"),
        ("2001:db8::6", "six on vm6"),
        ("10.0.0.20", "one of 4 services on big"),
        ("10.0.0.30", "one of 4 services on 4 nodes"),
        ("10.0.0.40", "near on a or far on b"),
        ("10.2.0.1", "mesh gateway of dc2 on gw2"),
        ("203.0.113.2", "mesh gateway of dc2 on gw2"),
        ("10.3.0.1", "mesh gateway of partition p2 on gw3"),
        ("198.18.1.1", "mesh gateway of peer peer-a on gw4"),
        ("10.0.0.100", "Consul server on server1"),
        ("192.0.2.1", ""),
        ("", ""),
        ("host.example", ""),
        ("no address", ""),
    ],
)
def test_client_has_the_name_of_what_has_its_address(host: str, name: str) -> None:
    assert Callers(SNAPSHOT).name(host) == name


def test_without_a_node_of_its_own_nothing_on_this_machine_has_a_name() -> None:
    assert Callers(replace(SNAPSHOT, node="")).name("127.0.0.1") == ""
