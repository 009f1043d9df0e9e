"""The JSON behind `inspection_records`; as in `wire`, everything is optional and what has another shape is an error."""

from collections.abc import Iterator, Mapping

import msgspec

from meshgate.core.modes import Target
from meshgate.core.sni import DEFAULT

from .inspection_records import (
    AgentReport,
    CaCertificates,
    LeafCertificate,
    Replication,
    ServiceDefaults,
    Sidecar,
    Targets,
    TokenFacts,
    UpstreamDefinition,
    UpstreamModes,
)
from .wire import decoder, unix_time


class _Struct(msgspec.Struct, rename="pascal"):
    pass


class _AgentConfig(_Struct):
    datacenter: str
    node_name: str | None = ""
    version: str | None = ""
    primary_datacenter: str | None = ""
    partition: str | None = ""


class _DebugConfig(_Struct):
    primary_datacenter: str | None = ""
    connect_enabled: bool | None = None
    enable_central_service_config: bool | None = None
    grpc_port: int | None = msgspec.field(name="GRPCPort", default=None)
    grpc_tls_port: int | None = msgspec.field(name="GRPCTLSPort", default=None)
    http_max_conns_per_client: int | None = msgspec.field(name="HTTPMaxConnsPerClient", default=None)
    acls_enabled: bool | None = msgspec.field(name="ACLsEnabled", default=None)


class _AgentSelf(_Struct):
    config: _AgentConfig
    debug_config: _DebugConfig | None = None


class _Root(_Struct):
    id: str = msgspec.field(name="ID", default="")
    root_cert: str | None = ""
    intermediate_certs: list[str] | None = None
    not_after: str | None = ""
    active: bool | None = False


class _Roots(_Struct):
    trust_domain: str | None = ""
    roots: list[_Root] | None = None


class _Leaf(_Struct):
    service_uri: str = msgspec.field(name="ServiceURI")
    cert_pem: str = msgspec.field(name="CertPEM")
    private_key_pem: str = msgspec.field(name="PrivateKeyPEM")


class _Token(_Struct):
    accessor_id: str | None = msgspec.field(name="AccessorID", default="")
    local: bool | None = False


class _Replication(_Struct):
    enabled: bool | None = False
    running: bool | None = False
    source_datacenter: str | None = ""
    replication_type: str | None = ""


class _Allowed(_Struct):
    allow: bool | None = False


class _Mode(_Struct):
    mode: str | None = ""


class _Upstream(_Struct):
    destination_name: str | None = ""
    destination_type: str | None = ""
    destination_namespace: str | None = ""
    destination_partition: str | None = ""
    destination_peer: str | None = ""
    datacenter: str | None = ""
    local_bind_address: str | None = ""
    local_bind_port: int | None = 0
    local_bind_socket_path: str | None = ""
    mesh_gateway: _Mode | None = None


class _Proxy(_Struct):
    destination_service_name: str | None = ""
    mesh_gateway: _Mode | None = None
    upstreams: list[_Upstream] | None = None


class _AgentService(_Struct):
    id: str = msgspec.field(name="ID", default="")
    kind: str | None = ""
    namespace: str | None = ""
    partition: str | None = ""
    proxy: _Proxy | None = None


class _Override(_Struct):
    name: str | None = ""
    namespace: str | None = ""
    partition: str | None = ""
    peer: str | None = ""
    mesh_gateway: _Mode | None = None


class _UpstreamConfig(_Struct):
    defaults: _Override | None = None
    overrides: list[_Override] | None = None


class _ConfigEntry(_Struct):
    """proxy-defaults or service-defaults."""

    mesh_gateway: _Mode | None = None
    upstream_config: _UpstreamConfig | None = None


class _Target(_Struct):
    service: str
    datacenter: str
    sni: str | None = msgspec.field(name="SNI", default="")
    namespace: str | None = ""
    partition: str | None = ""
    service_subset: str | None = ""
    peer: str | None = ""
    external: bool | None = False


class _Chain(_Struct):
    targets: dict[str, _Target] | None = None


class _Compiled(_Struct):
    chain: _Chain


def _agent_report(answer: _AgentSelf) -> AgentReport:
    config, debug = answer.config, answer.debug_config or _DebugConfig()
    ports = [port for port in (debug.grpc_port, debug.grpc_tls_port) if port is not None]
    return AgentReport(
        datacenter=config.datacenter,
        node=config.node_name or "",
        version=config.version or "",
        primary_datacenter=config.primary_datacenter or debug.primary_datacenter or "",
        partition=config.partition or DEFAULT,
        connect=debug.connect_enabled,
        central_config=debug.enable_central_service_config,
        grpc_ports=tuple(port for port in ports if port > 0) if ports else None,
        max_connections=debug.http_max_conns_per_client,
        acls=debug.acls_enabled,
    )


def _ca_certificates(answer: _Roots) -> CaCertificates:
    roots = answer.roots or []
    active = next((root for root in roots if root.active), None)
    return CaCertificates(
        answer.trust_domain or "",
        tuple(root.root_cert for root in roots if root.root_cert),
        tuple(pem for root in roots for pem in root.intermediate_certs or ()),
        None if active is None else unix_time(active.not_after or ""),
    )


def _sidecars(services: Mapping[str, _AgentService] | None) -> tuple[Sidecar, ...]:
    return tuple(sorted(_each_sidecar(services or {}), key=lambda one: (one.partition, one.namespace, one.id)))


def _each_sidecar(services: Mapping[str, _AgentService]) -> Iterator[Sidecar]:
    for service in services.values():
        if service.kind != "connect-proxy" or service.proxy is None:
            continue
        yield Sidecar(
            id=service.id,
            service=service.proxy.destination_service_name or "",
            namespace=service.namespace or DEFAULT,
            partition=service.partition or DEFAULT,
            mode=_mode(service.proxy.mesh_gateway),
            upstreams=tuple(map(_upstream, service.proxy.upstreams or ())),
        )


def _upstream(found: _Upstream) -> UpstreamDefinition:
    listens = found.local_bind_socket_path or f"{found.local_bind_address or '127.0.0.1'}:{found.local_bind_port or 0}"
    return UpstreamDefinition(
        name=found.destination_name or "",
        datacenter=found.datacenter or "",
        namespace=found.destination_namespace or "",
        partition=found.destination_partition or "",
        peer=found.destination_peer or "",
        mode=_mode(found.mesh_gateway),
        listens=listens,
        prepared_query=found.destination_type == "prepared_query",
    )


def _service_defaults(entry: _ConfigEntry) -> ServiceDefaults:
    upstreams = entry.upstream_config or _UpstreamConfig()
    defaults = upstreams.defaults or _Override()
    return ServiceDefaults(
        mode=_mode(entry.mesh_gateway),
        upstream_mode=_mode(defaults.mesh_gateway),
        overrides=tuple(
            UpstreamModes(
                each.name or "", each.namespace or "", each.partition or "", each.peer or "", _mode(each.mesh_gateway)
            )
            for each in upstreams.overrides or ()
        ),
    )


def _targets(answer: _Compiled) -> Targets:
    return tuple(target for _, target in sorted(_each_target(answer.chain.targets or {})))


def _each_target(targets: Mapping[str, _Target]) -> Iterator[tuple[str, Target]]:
    for name, found in targets.items():
        yield (
            name,
            Target(
                service=found.service,
                datacenter=found.datacenter,
                sni=found.sni or "",
                namespace=found.namespace or DEFAULT,
                partition=found.partition or DEFAULT,
                subset=found.service_subset or "",
                peer=found.peer or "",
                external=bool(found.external),
            ),
        )


def _mode(found: _Mode | None) -> str:
    return (found.mode or "") if found else ""


decode_agent_report = decoder(_AgentSelf, _agent_report)
decode_ca_certificates = decoder(_Roots, _ca_certificates)
decode_leaf = decoder(_Leaf, lambda leaf: LeafCertificate(leaf.service_uri, leaf.cert_pem, leaf.private_key_pem))
decode_token = decoder(_Token, lambda token: TokenFacts(token.accessor_id or "", bool(token.local)))
decode_replication = decoder(
    _Replication,
    lambda answer: Replication(
        bool(answer.enabled), bool(answer.running), answer.source_datacenter or "", answer.replication_type or ""
    ),
)
decode_allowed = decoder(list[_Allowed] | None, lambda rows: tuple(bool(row.allow) for row in rows or ()))
decode_sidecars = decoder(dict[str, _AgentService] | None, _sidecars)
decode_service_defaults = decoder(_ConfigEntry, _service_defaults)
decode_targets = decoder(_Compiled, _targets)
