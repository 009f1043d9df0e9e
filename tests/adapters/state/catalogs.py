"""Catalogs for the tests of the state file."""

from meshgate.adapters.state import Kept
from meshgate.core.catalog import (
    ChainTarget,
    Check,
    Export,
    ImportedService,
    Instance,
    Locality,
    PeerServers,
    Remote,
    SamenessGroup,
    Service,
    Snapshot,
    Subset,
    WanAddress,
)
from meshgate.core.routes import Policy

TRUST_DOMAIN = "11111111-2222-3333-4444-555555555555.consul"


def instance(service: str, number: int = 1, *, datacenter: str = "dc1", port: int = 21000) -> Instance:
    return Instance(
        node=f"n{number}",
        datacenter=datacenter,
        id=f"{service}-{number}",
        service=service,
        address="web.example" if number == 2 else f"10.0.0.{number}",
        port=port,
        node_address=f"10.0.0.{number}",
        kind="connect-proxy",
        wan=WanAddress("192.0.2.7", 8443),
        node_wan="192.0.2.1",
        weight_passing=3,
        weight_warning=2,
        checks=(Check("serfHealth", "passing", "Serf"), Check("c", "warning", 'a "name"\n with é')),
        modify_index=1 << 40,
        meta=(("version", "1"),),
        peer_sni=(f"{service}.default.default.us.external.{TRUST_DOMAIN}",),
        peer_identities=(f"spiffe://{TRUST_DOMAIN}/ns/default/dc/us/svc/{service}",),
        locality=Locality("us-west-1", "us-west-1a"),
    )


def catalog(services: int = 2) -> Snapshot:
    """A snapshot in which the fields of a gateway in Consul's community edition differ from their defaults."""
    web = Service(
        "web",
        (instance("web"), instance("web", 2)),
        subsets=(Subset("v1", only_passing=True, instances=(instance("web"),)), Subset("v2")),
        default_subset="v1",
        connect_timeout=2.5,
        policy=Policy.LEAST_REQUEST,
        choices=5,
        cold=True,
    )
    others = (Service(f"s{number}", (instance(f"s{number}", 3),)) for number in range(1, services))
    return Snapshot(
        "dc1",
        TRUST_DOMAIN,
        services=(web, *others),
        remotes=(
            Remote("dc2", (instance("mesh-gateway", 4, datacenter="dc2"),)),
            Remote("dc3", ()),
        ),
        servers=(instance("consul", 5),),
        domain="example",
        expose_servers=True,
        partitions=(Remote("p1", (instance("mesh-gateway", 6),)), Remote("p2", ())),
        exports=(
            Export("web", "team", ("us",), ("p1",), "tcp", ChainTarget("web", "team", "v1")),
            Export("api", peers=("us",), groups=("others",)),
        ),
        imports=(ImportedService("db", "us", (instance("db", 7),), "team"),),
        peer_servers=(PeerServers("us", "server.us.peering.x", (("192.0.2.9", 8443),), 7),),
        peer_through=True,
        groups=(SamenessGroup("all", ("us",), ("p1",)),),
        node="n1",
    )


def kept(services: int = 2) -> Kept:
    return Kept(catalog(services), "mesh-gateway", 1_800_000_000.25, {"web.example": ("192.0.2.8", "2001:db8::8")})
