"""Routes to peered clusters: their services, and their Consul servers (the peering control plane).

Services of a peer are asked for by the name that their exporter gave them (`Connect.PeerMeta.SNI`); the instances that
Consul holds for them stand for the peer's mesh gateways, so streams of every protocol pass. Servers find each other
through gateways where the mesh entry says so (`agent/xds` makeMeshGatewayPeerFilterChain and
makePeerServerEndpointGroups): a gateway of the default partition has one name for the servers of its own datacenter,
and one for each peer that this cluster dials.

These names come from the peer. A peer must not be able to draw traffic of this mesh to itself, and an exact name beats
the suffix of a datacenter; so names of this trust domain, of this cluster's servers, and names of imported services
that do not have the form of one are no routes.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from .addresses import PORTS, is_numeric
from .catalog import Instance, PeerServers, Snapshot
from .endpoint_maker import EndpointMaker, best_address
from .routes import Route, RouteKind
from .sni import DEFAULT, PeeringServerSni, ServerSni, parse

_PORT_META: Final = "grpc_tls_port"
_REPLICA: Final = ("read_replica", "true")
_DIGITS: Final = 5


def peering_routes(snapshot: Snapshot, maker: EndpointMaker) -> Iterator[Route]:
    """The routes to what peers have; the exports to them are made in `export_routes`."""
    yield from _imports(snapshot, maker)
    if snapshot.peer_through and snapshot.partition == DEFAULT:
        yield from _servers_here(snapshot, maker)
        yield from _servers_of_peers(snapshot, maker)


def _imports(snapshot: Snapshot, maker: EndpointMaker) -> Iterator[Route]:
    for service in snapshot.imports:
        # All names that the exporter gave; the instances of one service have the same ones.
        for name in sorted({name for instance in service.instances for name in instance.peer_sni}):
            # A peered service's is `….external.<trust domain>`; trust domains have two labels.
            labels = name.lower().split(".")
            if not _foreign(name, snapshot) or len(labels) < 4 or labels[-3] != "external":
                continue
            yield Route(
                name=name.lower(),
                kind=RouteKind.PEER_IMPORT,
                destination=service.key,
                endpoints=maker.of_gateways(_elsewhere(it) for it in service.instances if name in it.peer_sni),
                panic_threshold=maker.view.panic_threshold,
                service=service.name,
                namespace=service.namespace,
            )


def _elsewhere(instance: Instance) -> Instance:
    """An instance of a peer: always dialed at its WAN address, and never of this gateway's own datacenter or node.

    A peer's may have the same names.
    """
    address, port = best_address(instance, wan=True)
    return replace(instance, address=address, port=port, wan=None, datacenter="")


def _servers_here(snapshot: Snapshot, maker: EndpointMaker) -> Iterator[Route]:
    """Any server may be met: followers refuse, and the peer's server tries again until it meets the leader."""
    servers = [
        replace(server, port=port, wan=None, checks=(), weight_passing=1)
        for server in snapshot.servers
        if _REPLICA not in server.meta and (port := _port(dict(server.meta).get(_PORT_META, "")))
    ]
    if servers:
        yield Route(
            name=str(PeeringServerSni(snapshot.datacenter, snapshot.trust_domain)).lower(),
            kind=RouteKind.PEER_SERVER,
            destination=f"server.{snapshot.datacenter}",
            endpoints=maker.of_services(servers),
        )


def _port(text: str) -> int:
    """The port that a server names in its meta; 0 where it has none or names none."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS else 0
    return number if number < PORTS else 0


def _servers_of_peers(snapshot: Snapshot, maker: EndpointMaker) -> Iterator[Route]:
    chosen: dict[str, PeerServers] = {}
    for peer in sorted(snapshot.peer_servers, key=lambda it: (it.modify_index, it.peer)):
        if peer.server_name and peer.addresses and _foreign(peer.server_name, snapshot):
            chosen[peer.server_name.lower()] = peer
    for name in sorted(chosen):
        peer = chosen[name]
        named = [address for address in peer.addresses if not is_numeric(address[0])]
        servers = [
            Instance(peer.peer, "", f"server of {peer.peer}", "consul", host, port, host)
            for host, port in named or peer.addresses
        ]
        yield Route(
            name=name,
            kind=RouteKind.PEER_SERVER,
            destination=f"servers of peer {peer.peer}",
            endpoints=maker.of_services(servers),
        )


def _foreign(name: str, snapshot: Snapshot) -> bool:
    """Whether a name is none that this mesh or its servers could be asked for."""
    text = name.lower()
    if text.endswith(f".{snapshot.trust_domain.lower()}"):
        return False
    return not isinstance(parse(text, domain=snapshot.domain), ServerSni)
