"""How far gateways elsewhere are from this one, where Consul knows the region and the zone of both.

Consul's own gateway does not look at localities; its sidecars do (Enterprise), in these steps: the same zone, the same
region, anywhere. Where this gateway's own region is not known, everything is equally far.
"""

from collections.abc import Iterable
from dataclasses import replace

from .catalog import Instance, Locality, Snapshot


def distance(here: Locality, there: Locality) -> int:
    """0 for the same zone, 1 for the same region, 2 for anywhere else."""
    if not here.region or here.region != there.region:
        return 2
    return 0 if here.zone == there.zone else 1


def measured(snapshot: Snapshot, here: Locality) -> Snapshot:
    """The snapshot with the distance of each gateway elsewhere: of datacenters, partitions and peers."""
    return replace(
        snapshot,
        remotes=tuple(replace(each, gateways=_measured(each.gateways, here)) for each in snapshot.remotes),
        partitions=tuple(replace(each, gateways=_measured(each.gateways, here)) for each in snapshot.partitions),
        imports=tuple(replace(each, instances=_measured(each.instances, here)) for each in snapshot.imports),
    )


def _measured(gateways: Iterable[Instance], here: Locality) -> tuple[Instance, ...]:
    return tuple(replace(gateway, distance=distance(here, gateway.locality)) for gateway in gateways)
