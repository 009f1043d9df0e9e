"""From the last known catalog to Consul's present one, without losing what Consul has not said yet.

A gateway that starts may get answers for a part of the catalog only: the rest failed, or Consul itself has just
started and does not see the other datacenters yet. "Not answered" is no "not there": such parts are carried over from
the last known catalog until Consul has answered for them, and not a moment longer.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from .catalog import Export, Remote, SamenessGroup, Service, Snapshot, Subset, in_namespace


@dataclass(frozen=True, slots=True)
class PendingSources:
    """For what Consul has not answered yet.

    `services` are names that its list has and whose instances are not known; `subsets` are written as
    `subset.service`, both with the namespace in front where it is not the default one; `namespaces` are those whose
    services are not listed yet; `resolvers` stands for all service-resolvers. `remotes` are the datacenters, and
    `partitions` the partitions, of which an empty or missing list of gateways proves nothing yet. `servers` stands for
    Consul's own servers. `imports` are keys of imported services, `exports` stands for what is exported, `chains` are
    keys of exported services whose discovery chain is not known; `peers` stands for the servers of peers. All names are
    in lower case but those of datacenters, partitions and what is exported or imported.
    """

    services: frozenset[str] = frozenset()
    subsets: frozenset[str] = frozenset()
    resolvers: bool = False
    remotes: frozenset[str] = frozenset()
    servers: bool = False
    namespaces: frozenset[str] = frozenset()
    partitions: frozenset[str] = frozenset()
    imports: frozenset[str] = frozenset()
    exports: bool = False
    chains: frozenset[str] = frozenset()
    peers: bool = False


def merge_last_known(fresh: Snapshot, last: Snapshot, unanswered: PendingSources) -> Snapshot:
    """The present catalog, with what Consul has not answered for as it was last known.

    Which sameness groups it has not answered for, the exports of `fresh` say themselves: of those the last known
    members are carried over, to the services that are exported to them now.

    Nothing is carried from another datacenter, partition or trust domain. Without anything to carry the result is
    `fresh` itself.
    """
    if _place(fresh) != _place(last):
        return fresh
    known = {service.key: service for service in last.services}
    services = {service.key: _completed(service, known.get(service.key), unanswered) for service in fresh.services}
    for key, service in known.items():
        if key in unanswered.services or service.namespace in unanswered.namespaces:
            services.setdefault(key, service)
    imports = {it.key: it for it in last.imports if it.key in unanswered.imports} | {it.key: it for it in fresh.imports}
    result = replace(
        fresh,
        services=tuple(sorted(services.values(), key=lambda service: (service.namespace, service.name))),
        remotes=tuple(_with_gateways(fresh.remotes, last.remotes, unanswered.remotes)),
        servers=fresh.servers or (last.servers if unanswered.servers else ()),
        partitions=tuple(_with_gateways(fresh.partitions, last.partitions, unanswered.partitions)),
        imports=tuple(sorted(imports.values(), key=lambda it: (it.peer, it.namespace, it.name))),
        exports=tuple(_exports(fresh, last, unanswered)),
        peer_servers=fresh.peer_servers or (last.peer_servers if unanswered.peers else ()),
        peer_through=fresh.peer_through or (last.peer_through and unanswered.peers),
        groups=tuple(_groups(fresh, last, unanswered)),
    )
    return fresh if result == fresh else result


def _place(snapshot: Snapshot) -> tuple[str, str, str]:
    return snapshot.datacenter, snapshot.partition, snapshot.trust_domain


def _completed(service: Service, last: Service | None, unanswered: PendingSources) -> Service:
    if last is None:
        return service
    if unanswered.resolvers:
        return replace(last, instances=service.instances)
    known = {subset.name: subset for subset in last.subsets}

    def completed(subset: Subset) -> Subset:
        name = in_namespace(service.namespace, f"{subset.name}.{service.name}")
        waiting = subset.instances is None and name in unanswered.subsets
        return replace(subset, instances=known[subset.name].instances) if waiting and subset.name in known else subset

    subsets = tuple(map(completed, service.subsets))
    return service if subsets == service.subsets else replace(service, subsets=subsets)


def _with_gateways(fresh: Iterable[Remote], last: Iterable[Remote], unanswered: frozenset[str]) -> Iterator[Remote]:
    seen = {place.name: place for place in fresh}
    for place in last:
        if place.name in unanswered and not (place.name in seen and seen[place.name].gateways):
            seen[place.name] = place
    yield from (seen[name] for name in sorted(seen))


def _groups(fresh: Snapshot, last: Snapshot, unanswered: PendingSources) -> Iterator[SamenessGroup]:
    waiting = {name for export in fresh.exports for name in export.groups}
    yield from fresh.groups
    yield from (it for it in last.groups if it.name in waiting or (unanswered.exports and not fresh.exports))


def _exports(fresh: Snapshot, last: Snapshot, unanswered: PendingSources) -> Iterator[Export]:
    known = {(export.namespace, export.service): export for export in last.exports}
    groups = {group.name: group for group in last.groups}
    for export in fresh.exports or (last.exports if unanswered.exports else ()):
        before = known.get((export.namespace, export.service))
        waiting = not export.protocol and in_namespace(export.namespace, export.service) in unanswered.chains
        found = replace(export, protocol=before.protocol, target=before.target) if waiting and before else export
        yield found.opened_to([groups[name] for name in export.groups if name in groups])
