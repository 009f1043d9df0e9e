"""What Consul has not answered yet, of what the last known catalog has: read off the watches."""

from collections.abc import Iterable

from meshgate.adapters.consul import WatchState
from meshgate.adapters.consul.exports import EXPORTS
from meshgate.core.catalog import Snapshot, in_namespace
from meshgate.core.sni import DEFAULT
from meshgate.core.warm_start import PendingSources


class _Asked:
    """What is asked for, and what of it was never answered, by kind of watch."""

    def __init__(self, states: Iterable[WatchState]) -> None:
        self.names: set[str] = set()
        self._kinds: set[str] = set()
        self._silent: dict[str, set[str]] = {}
        for state in states:
            self.names.add(state.name)
            self._kinds.add(state.kind)
            if state.last_success is None and state.status != "400":
                self._silent.setdefault(state.kind, set()).add(state.name)

    def silent(self, kind: str) -> frozenset[str]:
        return frozenset(self._silent.get(kind, ()))

    def answered(self, kind: str) -> bool:
        """Whether something of this kind is asked for, and all of it was answered."""
        return kind in self._kinds and kind not in self._silent

    def unproven(self, place: str, lists: str, *, early: bool) -> bool:
        """Whether an empty or missing list of a place's gateways proves nothing yet."""
        ours = {name for name in self.names if name.endswith(f" in {place}")}
        if ours:
            return not ours.isdisjoint(self.silent("gateways"))
        return early or bool(self.silent(lists))


def unanswered_of(last: Snapshot, states: Iterable[WatchState], *, early: bool) -> PendingSources:
    """What of `last` is still to be carried over.

    Args:
        last: the last known catalog.
        states: the watches that run now.
        early: whether Consul itself may have begun so lately that what it lacks proves nothing. Its leader learns by
            gossip of other datacenters, and from peers what they export.
    """
    asked = _Asked(states)
    elsewhere = {service.namespace for service in last.services} - {DEFAULT}
    unlisted = {it for it in elsewhere if in_namespace(it, "service names") in asked.silent("services")}
    listed = asked.answered("namespaces")
    # Without peering there is no such watch, and with it not at once.
    peered = asked.answered("peerings")
    imports = {service.key for service in last.imports}
    return PendingSources(
        services=asked.silent("health"),
        subsets=asked.silent("subset"),
        resolvers=bool(asked.silent("resolvers")),
        remotes=frozenset(
            it.name for it in last.remotes if it.gateways and asked.unproven(it.name, "datacenters", early=early)
        ),
        servers=bool(asked.silent("servers")) or (early and last.peer_through and not peered),
        namespaces=frozenset(unlisted if listed else elsewhere),
        partitions=frozenset(
            it.name
            for it in last.partitions
            if it.gateways and asked.unproven(f"partition {it.name}", "partitions", early=early)
        ),
        imports=frozenset(imports if early else imports & asked.silent("imports")),
        exports=bool(last.exports) and (EXPORTS in asked.silent("exports") or (early and not peered)),
        chains=asked.silent("chain"),
        peers=early and not (peered and asked.answered("mesh-entry")) and bool(last.peer_servers or last.peer_through),
    )
