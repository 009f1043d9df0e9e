"""Of the gateways of a destination, those whose host name is used, where an operator wants one name only.

Consul's own gateway uses one host name of a datacenter's gateways and drops their IP addresses beside it, unless
`envoy_dns_discovery_type` is `STRICT_DNS` (`agent/xds/clusters.go`). This gateway uses all
of both, and keeps to one name only where `LOGICAL_DNS` is set in so many words; addresses that are numeric stay.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from .catalog import Instance, Snapshot
from .health import assess, best_address, is_numeric


def with_one_host_name(snapshot: Snapshot) -> Snapshot:
    """The snapshot with one host name for each remote datacenter and each imported service.

    The name is that of the first healthy gateway, else of the last one, as in Consul.
    """
    return replace(
        snapshot,
        remotes=tuple(replace(remote, gateways=tuple(_one_name(remote.gateways))) for remote in snapshot.remotes),
        imports=tuple(replace(each, instances=tuple(_one_name(each.instances))) for each in snapshot.imports),
    )


def _one_name(gateways: Iterable[Instance]) -> Iterator[Instance]:
    listed = tuple(gateways)
    named = [gateway for gateway in listed if not is_numeric(best_address(gateway, wan=True)[0])]
    chosen = next((gateway for gateway in named if assess(gateway).healthy), named[-1] if named else None)
    return (gateway for gateway in listed if gateway not in named or gateway is chosen)
