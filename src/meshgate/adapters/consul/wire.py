"""Consul's JSON, and how it becomes the records of the core.

Only the fields that are used are named; msgspec skips the rest. Consul writes null for empty lists and maps and leaves
out what is empty, so everything is optional here. What has another shape is an `InvalidAnswerError`.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from meshgate.core.balance import Policy
from meshgate.core.catalog import NOWHERE, Check, Instance, Locality, WanAddress
from meshgate.core.durations import parse_duration
from meshgate.core.sni import DEFAULT

from .errors import InvalidAnswerError
from .records import GATEWAY_KIND, CaRoots, Instances, Resolver, SubsetRule

T = TypeVar("T")


class _Locality(msgspec.Struct, rename="pascal"):
    region: str | None = ""
    zone: str | None = ""


class _Node(msgspec.Struct, rename="pascal"):
    node: str = ""
    address: str | None = ""
    datacenter: str | None = ""
    partition: str | None = ""
    tagged_addresses: dict[str, str] | None = None
    locality: _Locality | None = None


class _Address(msgspec.Struct, rename="pascal"):
    address: str | None = ""
    port: int | None = 0


class _Weights(msgspec.Struct, rename="pascal"):
    passing: int = 1
    warning: int = 1


class _PeerMeta(msgspec.Struct, rename="pascal"):
    """What the exporter of a peered instance says of it."""

    sni: list[str] | None = msgspec.field(name="SNI", default=None)


class _Connect(msgspec.Struct, rename="pascal"):
    peer_meta: _PeerMeta | None = None


class _Service(msgspec.Struct, rename="pascal"):
    id: str = msgspec.field(name="ID", default="")
    service: str = ""
    kind: str | None = ""
    connect: _Connect | None = None
    address: str | None = ""
    port: int | None = 0
    tagged_addresses: dict[str, _Address] | None = None
    weights: _Weights | None = None
    meta: dict[str, str] | None = None
    modify_index: int | None = 0
    locality: _Locality | None = None


class _Check(msgspec.Struct, rename="pascal"):
    check_id: str = msgspec.field(name="CheckID", default="")
    name: str | None = ""
    status: str | None = ""


class _Row(msgspec.Struct, rename="pascal"):
    """A CheckServiceNode, the row of all health endpoints."""

    node: _Node
    service: _Service
    checks: list[_Check] | None = None


class _Root(msgspec.Struct, rename="pascal"):
    id: str = msgspec.field(name="ID", default="")
    not_after: str | None = ""
    active: bool | None = False
    intermediate_certs: list[str] | None = None


class _Roots(msgspec.Struct, rename="pascal"):
    """`/v1/connect/ca/roots`."""

    trust_domain: str | None = ""
    active_root_id: str | None = msgspec.field(name="ActiveRootID", default="")
    roots: list[_Root] | None = None


class _Subset(msgspec.Struct, rename="pascal"):
    filter: str | None = ""
    only_passing: bool | None = False


# More choices than that find the least loaded endpoint no better, and each costs time for each stream.
_MOST_CHOICES = 16


class _LeastRequest(msgspec.Struct, rename="pascal"):
    choice_count: int | None = 0


class _LoadBalancer(msgspec.Struct, rename="pascal"):
    policy: str | None = ""
    least_request_config: _LeastRequest | None = None


class _Resolver(msgspec.Struct, rename="pascal"):
    """A service-resolver of `/v1/config/service-resolver`."""

    name: str
    default_subset: str | None = ""
    subsets: dict[str, _Subset | None] | None = None
    connect_timeout: str | int | None = ""
    load_balancer: _LoadBalancer | None = None


class _UiService(msgspec.Struct, rename="pascal"):
    """A row of `/v1/internal/ui/services`."""

    name: str
    kind: str | None = ""


def decoder(shape: object, build: Callable[[Any], T]) -> Callable[[bytes], T]:
    """A decoder of JSON text of a shape, which then makes a record of it."""
    json_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(shape)

    def decode(content: bytes) -> T:
        try:
            return build(json_decoder.decode(content))
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise _unreadable(error) from None

    return decode


def converted(value: object, shape: type[T]) -> T:
    """What JSON was decoded to already, as a shape.

    Raises:
        InvalidAnswerError: it is of another shape.
    """
    try:
        return msgspec.convert(value, shape)
    except ValueError as error:
        # Of msgspec, or of Python where the text to complain about is half a surrogate pair.
        raise _unreadable(error) from None


def _service_names(answer: dict[str, msgspec.Raw] | None) -> tuple[str, ...]:
    """The names in `/v1/catalog/services`, a map from name to tags."""
    return tuple(sorted(answer or ()))


def datacenters(value: object) -> tuple[str, ...]:
    """`/v1/catalog/datacenters`, in a stable order (Consul sorts by distance)."""
    return tuple(sorted(converted(value or [], list[str])))


def _instances(rows: list[_Row] | None) -> Instances:
    """Rows in a stable order, so that equal answers are equal values."""
    return tuple(sorted(map(_instance, rows or ()), key=lambda one: (one.node, one.id)))


def _instance(row: _Row) -> Instance:
    node, service = row.node, row.service
    wan = (service.tagged_addresses or {}).get("wan")
    weights = service.weights or _Weights()
    place = service.locality or node.locality
    checks = (Check(check.check_id, check.status or "", check.name or "") for check in row.checks or ())
    return Instance(
        node=node.node,
        datacenter=node.datacenter or "",
        id=service.id,
        service=service.service,
        address=service.address or "",
        port=service.port or 0,
        node_address=node.address or "",
        kind=service.kind or "",
        wan=None if wan is None else WanAddress(wan.address or "", wan.port or 0),
        node_wan=(node.tagged_addresses or {}).get("wan", ""),
        weight_passing=weights.passing,
        weight_warning=weights.warning,
        checks=tuple(sorted(checks, key=lambda check: check.id)),
        modify_index=service.modify_index or 0,
        partition=node.partition or DEFAULT,
        meta=tuple(sorted((service.meta or {}).items())),
        locality=Locality(place.region or "", place.zone or "") if place else NOWHERE,
        peer_sni=tuple(((service.connect or _Connect()).peer_meta or _PeerMeta()).sni or ()),
    )


def _ca_roots(answer: _Roots) -> CaRoots:
    active = next((root for root in answer.roots or () if root.active or root.id == answer.active_root_id), None)
    if active is None:
        return CaRoots(answer.trust_domain or "")
    # Consul appends each new intermediate: the last one signs.
    signing = (active.intermediate_certs or [""])[-1]
    return CaRoots(answer.trust_domain or "", unix_time(active.not_after or ""), _certificate_end(signing))


def _certificate_end(pem: str) -> float | None:
    """Unix time at which a certificate ends; None where the text holds none."""
    if not pem:
        return None
    from cryptography import x509  # noqa: PLC0415 - heavy, and few datacenters have intermediates

    try:
        return x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc.timestamp()
    except ValueError:
        return None


def _resolvers(entries: list[_Resolver] | None) -> tuple[Resolver, ...]:
    return tuple(sorted(map(_resolver, entries or ()), key=lambda entry: entry.name))


def _resolver(entry: _Resolver) -> Resolver:
    subsets = (
        SubsetRule(name, subset.filter or "", bool(subset.only_passing)) if subset else SubsetRule(name)
        for name, subset in (entry.subsets or {}).items()
    )
    balancer = entry.load_balancer or _LoadBalancer()
    named = balancer.policy or Policy.ROUND_ROBIN.value
    followed = named in list(Policy)
    return Resolver(
        entry.name,
        subsets=tuple(sorted(subsets, key=lambda subset: subset.name)),
        default_subset=entry.default_subset or "",
        connect_timeout=_timeout(entry.connect_timeout or ""),
        policy=Policy(named) if followed else Policy.ROUND_ROBIN,
        choices=min(max((balancer.least_request_config or _LeastRequest()).choice_count or 2, 2), _MOST_CHOICES),
        ignored_policy="" if followed else named,
    )


def _federated(answer: Mapping[str, list[_Row] | None] | None) -> dict[str, Instances]:
    return {datacenter: _instances(rows) for datacenter, rows in (answer or {}).items()}


def _gateway_names(rows: list[_UiService] | None) -> tuple[str, ...]:
    return tuple(sorted({row.name for row in rows or () if row.kind == GATEWAY_KIND}))


def _timeout(value: str | int) -> float | None:
    """Seconds of a duration string, or of the nanoseconds that Go writes for a bare duration; None if unreadable."""
    try:
        return (value / 1e9 if isinstance(value, int) else parse_duration(value)) or None
    except (ValueError, OverflowError):
        return None


def unix_time(text: str) -> float | None:
    """The Unix time that an RFC 3339 text names; None where it names none."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def _unreadable(error: Exception) -> InvalidAnswerError:
    return InvalidAnswerError(f"Consul's answer cannot be read: {error}", "invalid")


decode_service_names = decoder(dict[str, msgspec.Raw] | None, _service_names)
decode_instances = decoder(list[_Row] | None, _instances)
decode_ca_roots = decoder(_Roots, _ca_roots)
decode_resolvers = decoder(list[_Resolver] | None, _resolvers)
decode_federated_gateways = decoder(dict[str, list[_Row] | None] | None, _federated)
decode_gateway_names = decoder(list[_UiService] | None, _gateway_names)
