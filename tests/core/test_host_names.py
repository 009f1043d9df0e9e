"""One host name for each destination, where an operator asks for LOGICAL_DNS."""

from dataclasses import replace

from meshgate.core.catalog import Check, ImportedService, Instance, Remote, Snapshot, WanAddress

from .samples import plan

SNI = "web.default.default.us.external.other.consul"
SICK = (Check("up", "critical"),)


def gateway(name: str, address: str, *, checks: tuple[Check, ...] = ()) -> Instance:
    return Instance(
        name, "dc2", name, "mesh-gateway", "10.0.0.1", 8443, "10.0.0.1", wan=WanAddress(address, 443), checks=checks
    )


def kept(*gateways: Instance) -> list[str]:
    peers = tuple(replace(gateway, peer_sni=(SNI,)) for gateway in gateways)
    snapshot = Snapshot(
        "dc1",
        "td.consul",
        remotes=(Remote("dc2", gateways),),
        imports=(ImportedService("web", "far", peers),),
    )
    table = plan(snapshot, one_host_name=True)
    remote, imported = (
        {endpoint.instance for endpoint in route.endpoints} for route in sorted(table, key=lambda route: route.kind)
    )
    assert imported == remote
    return [gateway.id for gateway in gateways if gateway.id in remote]


def test_first_healthy_name_is_kept_and_numeric_addresses_stay() -> None:
    gateways = (
        gateway("sick", "a.example.com", checks=SICK),
        gateway("first", "b.example.com"),
        gateway("second", "c.example.com"),
        gateway("numeric", "198.51.100.7"),
        gateway("v6", "2001:db8::7"),
    )
    assert kept(*gateways) == ["first", "numeric", "v6"]


def test_last_name_is_kept_where_none_is_healthy() -> None:
    assert kept(gateway("a", "a.example", checks=SICK), gateway("b", "b.example", checks=SICK)) == ["b"]


def test_nothing_changes_without_host_names() -> None:
    assert kept(gateway("a", "198.51.100.7"), gateway("b", "198.51.100.8")) == ["a", "b"]
