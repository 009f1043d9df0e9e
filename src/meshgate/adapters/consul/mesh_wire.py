"""Consul's JSON for namespaces, partitions, peerings and exports, and how it becomes records; see `wire`."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import msgspec

from meshgate.core.catalog import ChainTarget, SamenessGroup
from meshgate.core.sni import DEFAULT

from .mesh_records import Chain, Exported, Peering
from .wire import decoder


class _Named(msgspec.Struct, rename="pascal"):
    name: str
    deleted_at: str | None = None


class _Partitions(msgspec.Struct, rename="pascal"):
    """`/v1/partitions` as Consul's own client reads it; its documentation shows a bare list."""

    partitions: list[_Named] | None = None


class _StreamStatus(msgspec.Struct, rename="pascal"):
    imported_services: list[str] | None = None


class _Peering(msgspec.Struct, rename="pascal"):
    name: str
    state: str | None = ""
    deleted_at: str | None = None
    peer_server_name: str | None = ""
    peer_server_addresses: list[str] | None = None
    stream_status: _StreamStatus | None = None
    modify_index: int | None = 0


class _MeshPeering(msgspec.Struct, rename="pascal"):
    peer_through_mesh_gateways: bool | None = False


class _MeshEntry(msgspec.Struct, rename="pascal"):
    peering: _MeshPeering | None = None


class _Consumers(msgspec.Struct, rename="pascal"):
    peers: list[str] | None = None
    partitions: list[str] | None = None


class _Exported(msgspec.Struct, rename="pascal"):
    """A row of `/v1/exported-services`."""

    service: str
    namespace: str | None = ""
    consumers: _Consumers | None = None


class _Consumer(msgspec.Struct, rename="pascal"):
    """`PeerName` was the first name of `Peer`."""

    peer: str | None = ""
    peer_name: str | None = ""
    partition: str | None = ""
    sameness_group: str | None = ""


class _EntryService(msgspec.Struct, rename="pascal"):
    name: str
    namespace: str | None = ""
    consumers: list[_Consumer] | None = None


class _Entry(msgspec.Struct, rename="pascal"):
    """An exported-services config entry."""

    services: list[_EntryService] | None = None


class _Member(msgspec.Struct, rename="pascal"):
    peer: str | None = ""
    partition: str | None = ""


class _SamenessGroup(msgspec.Struct, rename="pascal"):
    """A sameness-group config entry (Enterprise 1.16 and later)."""

    name: str | None = ""
    members: list[_Member] | None = None


class _Resolver(msgspec.Struct, rename="pascal"):
    target: str = ""


class _ChainNode(msgspec.Struct, rename="pascal"):
    type: str = ""
    resolver: _Resolver | None = None


class _Target(msgspec.Struct, rename="pascal"):
    service: str
    service_subset: str | None = ""
    namespace: str | None = ""
    partition: str | None = ""
    datacenter: str | None = ""
    peer: str | None = ""
    external: bool | None = False


class _CompiledChain(msgspec.Struct, rename="pascal"):
    service_name: str
    start_node: str
    namespace: str | None = ""
    partition: str | None = ""
    datacenter: str | None = ""
    protocol: str | None = ""
    nodes: dict[str, _ChainNode] | None = None
    targets: dict[str, _Target] | None = None


class _Compiled(msgspec.Struct, rename="pascal"):
    """`/v1/discovery-chain/:service`."""

    chain: _CompiledChain


def _names(rows: list[_Named] | None) -> tuple[str, ...]:
    return tuple(sorted(row.name for row in rows or () if not row.deleted_at))


def _partitions(answer: object) -> tuple[str, ...]:
    if isinstance(answer, dict):
        return _names(msgspec.convert(answer, _Partitions).partitions)
    return _names(msgspec.convert(answer, list[_Named] | None))


def _peerings(rows: list[_Peering] | None) -> tuple[Peering, ...]:
    return tuple(sorted(map(_peering, rows or ()), key=lambda peering: peering.name))


def _peering(row: _Peering) -> Peering:
    return Peering(
        row.name,
        "DELETING" if row.deleted_at else row.state or "",
        row.peer_server_name or "",
        tuple(sorted(_addresses(row.peer_server_addresses or []))),
        tuple(sorted((row.stream_status or _StreamStatus()).imported_services or ())),
        row.modify_index or 0,
    )


def _addresses(texts: list[str]) -> Iterator[tuple[str, int]]:
    """`host:port` with brackets around IPv6; what is none is left out."""
    for text in texts:
        host, _, port = text.rpartition(":")
        if host and port.isascii() and port.isdigit() and len(port) <= len("65535"):
            yield host.removeprefix("[").removesuffix("]"), int(port)


def _peer_through(entry: _MeshEntry) -> bool:
    return bool((entry.peering or _MeshPeering()).peer_through_mesh_gateways)


def _exported(rows: list[_Exported] | None) -> tuple[Exported, ...]:
    def one(row: _Exported) -> Exported:
        to = row.consumers or _Consumers()
        return _export(row.service, row.namespace, to.peers or [], to.partitions or [])

    return tuple(sorted(map(one, rows or ()), key=_order))


def _entry(entry: _Entry) -> tuple[Exported, ...]:
    def one(row: _EntryService) -> Exported:
        to = row.consumers or []
        peers = [consumer.peer or consumer.peer_name for consumer in to]
        export = _export(row.name, row.namespace, peers, [consumer.partition for consumer in to])
        return replace(export, groups=_distinct(consumer.sameness_group for consumer in to))

    return tuple(sorted(map(one, entry.services or ()), key=_order))


def _export(
    service: str, namespace: str | None, peers: Iterable[str | None], partitions: Iterable[str | None]
) -> Exported:
    return Exported(service, namespace or DEFAULT, _distinct(peers), _distinct(partitions))


def _group(entry: _SamenessGroup) -> SamenessGroup:
    members = entry.members or []
    return SamenessGroup(
        entry.name or "",
        _distinct(member.peer for member in members),
        _distinct(member.partition for member in members),
    )


def _distinct(names: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(sorted({name for name in names if name}))


def _order(export: Exported) -> tuple[str, str]:
    return export.namespace, export.service


def _chain(answer: _Compiled) -> Chain:
    chain = answer.chain
    start = (chain.nodes or {}).get(chain.start_node)
    if start is None:
        raise ValueError("a discovery chain has no start node")
    if start.resolver is None:
        # A router or splitter: which way a request goes is not for a gateway that sees no requests.
        return Chain(chain.protocol or "tcp", ChainTarget(chain.service_name, chain.namespace or DEFAULT))
    target = (chain.targets or {}).get(start.resolver.target)
    if target is None:
        raise ValueError("a discovery chain lacks its target")
    here = (chain.datacenter or "", chain.partition or DEFAULT)
    local = (target.datacenter or "", target.partition or DEFAULT) == here and not (target.peer or target.external)
    found = ChainTarget(target.service, target.namespace or DEFAULT, target.service_subset or "")
    return Chain(chain.protocol or "tcp", found if local else None)


decode_namespaces = decoder(list[_Named] | None, _names)
decode_nodes = decoder(list[Any] | None, lambda rows: len(rows or ()))
decode_partitions = decoder(Any, _partitions)
decode_peerings = decoder(list[_Peering] | None, _peerings)
decode_peer_through = decoder(_MeshEntry, _peer_through)
decode_exported_services = decoder(list[_Exported] | None, _exported)
decode_exported_entry = decoder(_Entry, _entry)
decode_sameness_group = decoder(_SamenessGroup, _group)
decode_chain = decoder(_Compiled, _chain)
