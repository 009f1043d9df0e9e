"""Routes to other datacenters and admin partitions, and to Consul's own servers for WAN federation through gateways.

Each other datacenter, and each other partition of the own one, has a suffix (sources: `planner.service_routes`). A
gateway never has a suffix for its own datacenter and partition, so a stream can cross at most from here to there.

The servers of a datacenter gossip with and call those of another one through gateways, by names of the form
`<node>.server.<datacenter>.<domain>` (`agent/consul/wanfed`, `tlsutil` ServerSNI). Each gateway has an exact name for
every server of its own datacenter and a suffix for each other datacenter, so the name of a server that does not exist
ends at the gateway of its datacenter. Only a gateway of the default partition that is registered as one for servers
(Meta `consul-wan-federation=1`) has any of them.

What depends on health, and what does not:

- Servers here are dialed whatever their checks say, as Consul's gateway does: gossip and Raft judge them better, and a
  server that recovers has to be reached in order to be seen.
- Of the gateways there, those count that are registered for servers, since the others refuse these names; Consul's
  servers choose theirs in the same way. One with a critical check is avoided while there is a healthy one. Where none
  is healthy, all are tried: what is known of their health came by the path that these streams are to make, so a stale
  "critical" could never be corrected. Consul's gateway gets there by Envoy's panic mode.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from .catalog import Remote, Snapshot
from .endpoint_maker import EndpointMaker
from .routes import Endpoint, Route, RouteKind
from .sni import DEFAULT, GatewaySni, ServerSni

# `Service.Meta` of a gateway that carries the traffic of servers; no other value counts.
WAN_FEDERATION: Final = ("consul-wan-federation", "1")
# Percent: in force where none at all is healthy.
_NONE_HEALTHY: Final = 1


def remote_routes(snapshot: Snapshot, maker: EndpointMaker) -> Iterator[Route]:
    """Those to places elsewhere that have a gateway."""

    def route(kind: RouteKind, place: Remote, name: GatewaySni, here: str) -> Iterator[Route]:
        if place.gateways and place.name.lower() != here.lower():
            yield Route(
                name=str(name).lower(),
                kind=kind,
                destination=place.name,
                endpoints=maker.of_gateways(place.gateways, one_name=kind is RouteKind.DATACENTER),
                suffix=True,
                panic_threshold=maker.view.panic_threshold,
            )

    for remote in snapshot.remotes:
        name = GatewaySni(remote.name, snapshot.trust_domain)
        yield from route(RouteKind.DATACENTER, remote, name, snapshot.datacenter)
    for partition in snapshot.partitions:
        name = GatewaySni(snapshot.datacenter, snapshot.trust_domain, partition.name)
        yield from route(RouteKind.PARTITION, partition, name, snapshot.partition)


def server_routes(snapshot: Snapshot, maker: EndpointMaker) -> Iterator[Route]:
    """The routes to servers that a gateway has by this snapshot; none where it does not expose servers."""
    if not snapshot.expose_servers or snapshot.partition != DEFAULT:
        return
    # Whatever their checks say.
    servers = [replace(server, checks=(), weight_passing=1) for server in snapshot.servers]
    for server in servers:
        yield _route(snapshot, snapshot.datacenter, server.node, maker.of_services([server]))
    if servers:
        yield _route(snapshot, snapshot.datacenter, "", maker.of_services(servers))
    for remote in snapshot.remotes:
        gateways = [gateway for gateway in remote.gateways if WAN_FEDERATION in gateway.meta]
        if gateways and remote.name.lower() != snapshot.datacenter.lower():
            endpoints = maker.of_gateways(gateways)
            threshold = max(maker.view.panic_threshold, _NONE_HEALTHY)
            yield _route(snapshot, remote.name, "*", endpoints, threshold)
            yield _route(snapshot, remote.name, "", endpoints, threshold)


def _route(
    snapshot: Snapshot, datacenter: str, node: str, endpoints: tuple[Endpoint, ...], panic_threshold: int = 0
) -> Route:
    """One name: of the server on `node`, of all servers by name where it is `*`, of any server where it is empty."""
    place = f"server.{datacenter}"
    return Route(
        name=str(ServerSni(datacenter, snapshot.domain, node)).lower(),
        kind=RouteKind.SERVER,
        destination=f"{node}.{place}" if node else place,
        endpoints=endpoints,
        suffix=node == "*",
        panic_threshold=panic_threshold,
    )
