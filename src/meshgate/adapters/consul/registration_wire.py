"""What the agent says of a registration of its own and of its checks, and Consul of entries about a gateway alone."""

from typing import Any

import msgspec

from meshgate.core.catalog import Locality
from meshgate.core.gateway_options import DestinationLimits
from meshgate.core.listeners import BindAddress

from .records import AgentCheck, OwnRegistration
from .wire import decoder


class _Place(msgspec.Struct, rename="pascal"):
    address: str | None = ""
    port: int | None = 0


class _Proxy(msgspec.Struct, rename="pascal"):
    config: dict[str, Any] | None = None
    access_logs: dict[str, Any] | None = None


class _Locality(msgspec.Struct, rename="pascal"):
    region: str | None = ""
    zone: str | None = ""


class _AgentService(msgspec.Struct, rename="pascal"):
    """`/v1/agent/service/:id`."""

    id: str = msgspec.field(name="ID", default="")
    service: str = ""
    kind: str | None = ""
    address: str | None = ""
    port: int | None = 0
    tagged_addresses: dict[str, _Place] | None = None
    meta: dict[str, str] | None = None
    proxy: _Proxy | None = None
    locality: _Locality | None = None
    content_hash: str | None = ""


class _Check(msgspec.Struct, rename="pascal"):
    """A value of `/v1/agent/checks`."""

    check_id: str = msgspec.field(name="CheckID", default="")
    service_id: str | None = msgspec.field(name="ServiceID", default="")
    notes: str | None = ""


class _Limits(msgspec.Struct, rename="pascal"):
    max_connections: int | None = None
    max_pending_requests: int | None = None


class _Upstream(msgspec.Struct, rename="pascal"):
    limits: _Limits | None = None


class _UpstreamConfig(msgspec.Struct, rename="pascal"):
    defaults: _Upstream | None = None


class _ServiceDefaults(msgspec.Struct, rename="pascal"):
    """The part of `/v1/config/service-defaults/:name` that a gateway follows for itself."""

    upstream_config: _UpstreamConfig | None = None


def _own_registration(answer: _AgentService) -> OwnRegistration:
    tagged = (BindAddress(tag, at.address or "", at.port or 0) for tag, at in (answer.tagged_addresses or {}).items())
    place = answer.locality or _Locality()
    return OwnRegistration(
        id=answer.id,
        service=answer.service,
        kind=answer.kind or "",
        address=answer.address or "",
        port=answer.port or 0,
        tagged=tuple(sorted(tagged, key=lambda address: address.name)),
        meta=answer.meta or {},
        config=(answer.proxy or _Proxy()).config or {},
        access_logs=(answer.proxy or _Proxy()).access_logs or {},
        content_hash=answer.content_hash or "",
        locality=Locality(place.region or "", place.zone or ""),
    )


def _agent_checks(rows: dict[str, _Check] | None) -> tuple[AgentCheck, ...]:
    return tuple(AgentCheck(row.check_id, row.service_id or "", row.notes or "") for row in (rows or {}).values())


def _destination_limits(entry: _ServiceDefaults) -> DestinationLimits:
    """`UpstreamConfig.Defaults.Limits`; 0 for each that is no limit which could be kept.

    `MaxConcurrentRequests` is left out: Envoy holds no TCP connection pool to it (`enforceMaxRequests`).
    """
    defaults = (entry.upstream_config or _UpstreamConfig()).defaults or _Upstream()
    limits = defaults.limits or _Limits()
    return DestinationLimits(max(0, limits.max_connections or 0), max(0, limits.max_pending_requests or 0))


decode_own_registration = decoder(_AgentService, _own_registration)
decode_agent_checks = decoder(dict[str, _Check] | None, _agent_checks)
decode_destination_limits = decoder(_ServiceDefaults, _destination_limits)
