"""Who a client is, as far as the catalog tells: its address is all that a gateway knows of it.

Sidecars call from the address that they are registered with, or from their node's. So an address stands for the
services that have it, for a mesh gateway elsewhere, or for one of Consul's servers. Several may share one, as the
services of a virtual machine do: then any of them may be the caller, and all are named.

Only what the gateway follows anyway is looked at: the mesh services of its own datacenter and partition, the gateways
of the others and of peers, and Consul's servers where their traffic goes through it. Whoever calls from elsewhere, or
from behind an address translation, has no name. A name is no proof of anything.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final

from .addresses import is_numeric, plain
from .catalog import Instance, Snapshot

MOST_NAMED: Final = 3
_LOOPBACK: Final = ("127.0.0.1", "::1")


class Callers:
    """The names of a catalog's addresses. Making it takes milliseconds for thousands of instances."""

    def __init__(self, snapshot: Snapshot) -> None:
        found: defaultdict[str, dict[str, dict[str, None]]] = defaultdict(dict)
        for address, where, name in _all(snapshot):
            found[address].setdefault(where, {})[name] = None
        self._found = dict(found)

    def name(self, host: str) -> str:
        """Who calls from an address: `web on n1`, `api or web on n1`, `mesh gateway of dc2 on gw2`; "" if unknown."""
        places = self._found.get(_plain(host))
        if places is None:
            return ""
        named = [(name, where) for where, names in places.items() for name in names]
        if len(named) > MOST_NAMED:
            where = next(iter(places)) if len(places) == 1 else f"{len(places)} nodes"
            return f"one of {len(named)} services on {where}"
        return " or ".join(f"{' or '.join(sorted(names))} on {where}" for where, names in places.items())


def _all(snapshot: Snapshot) -> Iterator[tuple[str, str, str]]:
    """Addresses, the node that each is of, and what calls from there."""
    for service in snapshot.services:
        for instance in service.instances:
            for address in _addresses(instance):
                yield address, instance.node, service.key
            if instance.node == snapshot.node:
                for address in _LOOPBACK:
                    yield address, instance.node, service.key
    for place in snapshot.remotes:
        yield from _named(place.gateways, f"mesh gateway of {place.name}")
    for partition in snapshot.partitions:
        yield from _named(partition.gateways, f"mesh gateway of partition {partition.name}")
    for imported in snapshot.imports:
        yield from _named(imported.instances, f"mesh gateway of peer {imported.peer}")
    yield from _named(snapshot.servers, "Consul server")


def _named(instances: Iterable[Instance], name: str) -> Iterator[tuple[str, str, str]]:
    for instance in instances:
        for address in _addresses(instance):
            yield address, instance.node, name


def _addresses(instance: Instance) -> set[str]:
    """Those that it may call from. A host name is none: what it stands for here need not be what its owner has."""
    wan = instance.wan.address if instance.wan is not None else ""
    own = instance.address or instance.node_address
    # A program that listens on all addresses of its node, or on loopback for others there, calls by the node's.
    if own in ("0.0.0.0", "::", *_LOOPBACK):  # noqa: S104 (compared with, never bound)
        own = instance.node_address
    return {_plain(address) for address in (own, wan, instance.node_wan) if address} - {""}


def _plain(address: str) -> str:
    """An IP address in the one form that it is compared in; "" for what is none."""
    return str(plain(address)) if is_numeric(address) else ""
