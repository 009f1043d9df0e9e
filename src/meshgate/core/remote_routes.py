"""Routes to other datacenters, and to other admin partitions of the own one: a suffix for each.

Sources as for `service_routes`. A gateway never has a suffix for its own datacenter and partition, so a stream can
cross at most from here to there.
"""

from collections.abc import Iterator

from .catalog import Snapshot
from .endpoint_maker import EndpointMaker
from .routes import Route, RouteKind
from .sni import GatewaySni


def remote_routes(snapshot: Snapshot, maker: EndpointMaker) -> Iterator[Route]:
    """Those to places elsewhere that have a gateway."""
    for remote in snapshot.remotes:
        if remote.gateways and remote.name.lower() != snapshot.datacenter.lower():
            name = GatewaySni(remote.name, snapshot.trust_domain)
            yield Route(
                name=str(name).lower(),
                kind=RouteKind.DATACENTER,
                destination=remote.name,
                endpoints=maker.of_gateways(remote.gateways),
                suffix=True,
                panic_threshold=maker.view.panic_threshold,
            )
    for partition in snapshot.partitions:
        if partition.gateways and partition.name.lower() != snapshot.partition.lower():
            name = GatewaySni(snapshot.datacenter, snapshot.trust_domain, partition.name)
            yield Route(
                name=str(name).lower(),
                kind=RouteKind.PARTITION,
                destination=partition.name,
                endpoints=maker.of_gateways(partition.gateways, one_name=False),
                suffix=True,
                panic_threshold=maker.view.panic_threshold,
            )
