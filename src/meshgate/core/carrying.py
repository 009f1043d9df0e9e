"""From the last known catalog to Consul's present one, without losing what Consul has not said yet.

A gateway that starts may get answers for a part of the catalog only: the rest failed, or Consul itself has just
started and does not see the other datacenters yet. "Not answered" is no "not there": such parts are carried over from
the last known catalog until Consul has answered for them, and not a moment longer.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .catalog import RemoteDatacenter, Service, Snapshot, Subset


@dataclass(frozen=True, slots=True)
class Unanswered:
    """For what Consul has not answered yet.

    `services` are names that its list has and whose instances are not known; `subsets` are written as
    `subset.service`; `resolvers` stands for all service-resolvers. `remotes` are the datacenters of which an empty or
    missing list of gateways proves nothing yet. `servers` stands for Consul's own servers. All names are in lower case
    but those of datacenters.
    """

    services: frozenset[str] = frozenset()
    subsets: frozenset[str] = frozenset()
    resolvers: bool = False
    remotes: frozenset[str] = frozenset()
    servers: bool = False


def carry_over(fresh: Snapshot, last: Snapshot, unanswered: Unanswered) -> Snapshot:
    """The present catalog, with what Consul has not answered for as it was last known.

    Nothing is carried from another datacenter, partition or trust domain. Without anything to carry the result is
    `fresh` itself.
    """
    if _place(fresh) != _place(last):
        return fresh
    known = {service.name: service for service in last.services}
    services = {service.name: _completed(service, known.get(service.name), unanswered) for service in fresh.services}
    services |= {name: known[name] for name in known.keys() & unanswered.services if name not in services}
    result = replace(
        fresh,
        services=tuple(services[name] for name in sorted(services)),
        remotes=tuple(_remotes(fresh, last, unanswered.remotes)),
        servers=fresh.servers or (last.servers if unanswered.servers else ()),
    )
    return fresh if result == fresh else result


def _place(snapshot: Snapshot) -> tuple[str, str, str]:
    return snapshot.datacenter, snapshot.partition, snapshot.trust_domain


def _completed(service: Service, last: Service | None, unanswered: Unanswered) -> Service:
    if last is None:
        return service
    if unanswered.resolvers:
        return replace(last, instances=service.instances)
    known = {subset.name: subset for subset in last.subsets}

    def completed(subset: Subset) -> Subset:
        waiting = subset.instances is None and f"{subset.name}.{service.name}" in unanswered.subsets
        return replace(subset, instances=known[subset.name].instances) if waiting and subset.name in known else subset

    subsets = tuple(map(completed, service.subsets))
    return service if subsets == service.subsets else replace(service, subsets=subsets)


def _remotes(fresh: Snapshot, last: Snapshot, unanswered: frozenset[str]) -> Iterator[RemoteDatacenter]:
    seen = {remote.name: remote for remote in fresh.remotes}
    for remote in last.remotes:
        if remote.name in unanswered and not (remote.name in seen and seen[remote.name].gateways):
            seen[remote.name] = remote
    for name in sorted(seen):
        yield seen[name]
