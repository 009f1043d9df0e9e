"""What a mesh gateway needs of Consul and of its machine, judged: facts in, findings out.

The prerequisites are those of Consul's documentation of mesh gateways and WAN federation. A finding that failed keeps
traffic from flowing; a warning says that some of it may not, or may not for long.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address
from typing import Final

from .export_routes import remedy
from .text import counted

OLDEST_CONSUL: Final = (1, 8)
# From here on an agent merges proxy-defaults and service-defaults into registrations unless it is told not to.
_CENTRAL_BY_DEFAULT: Final = (1, 9)
# From here on an agent gives a leaf with its key that it has in its cache to any token: seen on 1.22.6, and by its
# source so since 1.16 or 1.17, when the cache of leaves lost the token in its key. 1.8.7 answers 403.
_KEYS_GIVEN_AWAY: Final = (1, 16)
LEAF_ENDPOINT: Final = "/v1/agent/connect/ca/leaf"
# What the gateway asks for, and what it cannot do without. Of two that begin alike the longer one comes first.
_USED: Final = {
    "/v1/agent/self": "the gateway does not learn the agent's domain, node and limits",
    "/v1/agent/services": "the gateway does not learn whether somebody has its registration",
    "/v1/agent/service/register": "the gateway cannot register",
    "/v1/agent/service/deregister/*": "the registration stays behind when the gateway stops",
    "/v1/agent/service/*": "central configuration of the gateway is not followed",
    "/v1/agent/checks": "maintenance of the gateway is not seen",
    "/v1/agent/check/deregister/*": "checks of an earlier registration stay",
    "/v1/acl/login": "the gateway gets no token where it has to log in",
    "/v1/acl/logout": "the token of a login stays when the gateway stops",
    "/v1/catalog/services": "services are not found",
    "/v1/catalog/nodes": "what is gone stays, for a token that sees few services",
    "/v1/catalog/datacenters": "other datacenters are not found",
    "/v1/health/connect/*": "services have no endpoints",
    "/v1/health/service/*": "gateways have no endpoints",
    "/v1/config/service-resolver": "service-resolvers are not followed",
    "/v1/config/service-defaults": "limits of destinations are not followed",
    "/v1/config/mesh": "servers of peers have no route",
    "/v1/config/exported-services": "nothing is exported to peers before Consul 1.17.3",
    "/v1/config/sameness-group": "members of sameness groups get no exports before Consul 1.17.3",
    "/v1/connect/ca/roots": "the trust domain is unknown, and nothing has a route",
    "/v1/discovery-chain/*": "nothing is exported to peers, and what is gone stays",
    "/v1/exported-services": "nothing is exported to peers",
    "/v1/peerings": "services of peers have no route",
    "/v1/namespaces": "services of other namespaces have no route",
    "/v1/partitions": "other partitions have no route",
    "/v1/internal/ui/services": "gateways of another name than this one's are not found",
    "/v1/internal/federation-states/mesh-gateways": "gateways of datacenters that cannot be asked are not found",
    "/v1/internal/acl/authorize": "doctor cannot tell what the token may do",
}
# Consul dates a leaf back by a minute, so clocks further apart make fresh certificates invalid.
WORST_SKEW: Final = 60.0
SMALL_SKEW: Final = 5.0
# Connections to the agent beside those that hold watches: short requests, the registration, this command.
OTHER_CONNECTIONS: Final = 20
_DAY: Final = 86400.0


class Status(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. `advice` says what to do; "" where there is nothing to do."""

    check: str
    status: Status
    detail: str
    advice: str = ""


def ok(check: str, detail: str) -> Finding:
    return Finding(check, Status.OK, detail)


def warning(check: str, detail: str, advice: str = "") -> Finding:
    return Finding(check, Status.WARNING, detail, advice)


def failed(check: str, detail: str, advice: str = "") -> Finding:
    return Finding(check, Status.FAILED, detail, advice)


def consul_version(text: str) -> Finding:
    """Consul's version as the agent writes it: 1.8.7, 1.15.3+ent, 1.23.0-dev."""
    release = _release(text)
    if release is None:
        return warning("consul version", f"unknown version {text!r}", "meshgate needs Consul 1.8 or newer")
    if release < OLDEST_CONSUL:
        return failed("consul version", text, "upgrade to Consul 1.8 or newer")
    return ok("consul version", text)


def _release(version: str) -> tuple[int, int] | None:
    """Major and minor number; None where the text has none."""
    numbers = version.partition("-")[0].partition("+")[0].split(".")
    if len(numbers) < 2 or not all(number.isdecimal() for number in numbers[:2]):
        return None
    return int(numbers[0]), int(numbers[1])


def gives_keys_away(version: str) -> bool:
    """Whether an agent of this version gives a cached leaf and its key to any token; an unknown version may."""
    return (_release(version) or _KEYS_GIVEN_AWAY) >= _KEYS_GIVEN_AWAY


def keys_of_services(version: str, blocked: Collection[str] = ()) -> Finding | None:
    """Whether this agent gives keys away; None where its version does not. `blocked` are its blocked endpoints.

    Nobody asks for a leaf to find out: that would put it into the agent's cache.
    """
    check = "keys of services"
    if not gives_keys_away(version):
        return None
    if any(f"{LEAF_ENDPOINT}/".startswith(prefix) for prefix in blocked):
        return ok(check, "this agent blocks the endpoint that would give them to any token")
    detail = f"Consul {version or 'of this version'} may give a key in this agent's cache to any token (1.22.6 does)"
    advice = f'http_config {{ block_endpoints = ["{LEAF_ENDPOINT}"] }} in this agent; see SECURITY.md'
    return warning(check, detail, advice)


def stops_without(path: str) -> tuple[str, str]:
    """An endpoint by the path of a request, and what stops working where the agent blocks it."""
    if path.startswith(LEAF_ENDPOINT):
        return LEAF_ENDPOINT, "`meshgate probe` gets no certificate"
    for used, stops in _USED.items():
        if path.startswith(endpoint := used.removesuffix("/*")):
            return endpoint, stops
    return path, "what it tells is missing"


def blocked_endpoints(blocked: Collection[str]) -> list[Finding]:
    """What stops working where the agent blocks endpoints that the gateway asks; `blocked` are beginnings of paths."""
    advice = "take it out of http_config { block_endpoints }, or give the gateway another agent"
    return [
        failed("blocked endpoints", f"{prefix} answers no token at all here: {stops}", advice)
        for prefix in blocked
        for path, stops in _USED.items()
        if path.startswith(prefix)
    ]


def http_export(check: str, service: str, protocol: str, *, passed: bool) -> Finding:
    """A service of an HTTP-like protocol that is exported to peers; `passed`: unterminated, as a setting asks for."""
    advice = remedy(service)
    if passed:
        detail = (
            f"protocol {protocol}, passed on unterminated: its routers and L7 intentions do not apply, and where "
            "intentions default to deny its sidecar denies every call (seen on Consul 1.22.6)"
        )
        return warning(check, detail, advice)
    detail = f"protocol {protocol}: for peers a gateway has to end its TLS, which this one never does, so it is refused"
    return failed(check, detail, advice)


def connect_enabled(enabled: bool | None, trust_domain: str) -> Finding:
    """Whether Connect is on: the servers answer with a trust domain. `enabled` is the agent's own setting."""
    if not trust_domain:
        advice = "set connect { enabled = true } on the servers; a new secondary datacenter needs a moment"
        return failed("connect", "Consul has no trust domain", advice)
    if enabled is False:
        advice = "set connect { enabled = true } on this agent"
        return warning("connect", "on in the servers, off in this agent", advice)
    return ok("connect", f"trust domain {trust_domain}")


def ca_roots(count: int, expires: float | None, now: float) -> Finding:
    """The roots of the mesh; `expires` is the end of the active one. Times are Unix times in seconds."""
    if not count:
        return failed("CA roots", "there is none", "initialize Consul's CA: /v1/connect/ca/configuration")
    if expires is None:
        return warning("CA roots", "no root is active", "look at /v1/connect/ca/roots")
    days = (expires - now) / _DAY
    advice = "rotate the CA: PUT /v1/connect/ca/configuration"
    if days <= 0:
        return failed("CA roots", "the active root has expired", advice)
    shown = f"{counted(count, 'root')}, the active one for {days:.0f} more days"
    return Finding("CA roots", Status.WARNING if days < 30 else Status.OK, shown, advice if days < 30 else "")


def grpc_port(ports: tuple[int, ...] | None) -> Finding:
    """Whether Envoy sidecars can get their configuration from this agent."""
    if ports is None:
        return warning("gRPC port", "the agent does not tell", "Envoy sidecars need it: ports { grpc = 8502 }")
    if not ports:
        advice = "set ports { grpc = 8502 } where Envoy sidecars use this agent"
        return warning("gRPC port", "off", advice)
    return ok("gRPC port", ", ".join(map(str, ports)))


def central_config(enabled: bool | None, version: str) -> Finding:
    """Whether modes in proxy-defaults and service-defaults reach the sidecars of this agent; `version` is Consul's."""
    check, to_set = "central config", "enable_central_service_config = true"
    if enabled is None:
        advice = f"where it is off, modes in proxy- and service-defaults do nothing: set {to_set}"
        return warning(check, "not told; by default it is on from Consul 1.9 on, off before", advice)
    if not enabled:
        by_default = (_release(version) or _CENTRAL_BY_DEFAULT) < _CENTRAL_BY_DEFAULT
        shown = f"off{', as by default before 1.9' if by_default else ''}"
        advice = f"a problem if modes are set there: then set {to_set} in this agent and restart it"
        return warning(check, f"{shown}: sidecars here ignore proxy-defaults and service-defaults", advice)
    return ok(check, "on: sidecars here follow proxy-defaults and service-defaults")


def clock(skew: float | None) -> Finding:
    """`skew` is this machine's clock minus the agent's, in seconds."""
    if skew is None:
        return warning("clock", "the agent's answers have no date")
    shown = f"{abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} the agent"
    if abs(skew) <= SMALL_SKEW:
        return ok("clock", f"within {SMALL_SKEW:g} s of the agent")
    advice = "synchronize the clocks (NTP): certificates are judged by them"
    return Finding("clock", Status.FAILED if abs(skew) > WORST_SKEW else Status.WARNING, shown, advice)


def descriptors(limit: int, streams: int, reserved: int) -> Finding:
    """Whether `limit` descriptors carry `streams` streams, which take two each, beside `reserved` others."""
    shown = f"{limit} descriptors for {counted(streams, 'stream')}"
    if limit <= reserved:
        return failed("descriptor limit", shown, f"allow at least {reserved + 2000}: ulimit -n, LimitNOFILE=")
    if streams * 2 + reserved > limit:
        advice = f"raise it to {streams * 2 + reserved} (ulimit -n, LimitNOFILE=), or lower MESHGATE_MAX_CONNECTIONS"
        return warning("descriptor limit", shown, advice)
    if streams < 1000 and (streams + 1) * 2 + reserved > limit:  # Fewer may be what the operator wants.
        return warning("descriptor limit", shown, "raise it: ulimit -n, LimitNOFILE=")
    return ok("descriptor limit", shown)


def agent_connections(limit: int | None, watches: int) -> Finding:
    """Whether the agent allows one client as many connections as the gateway needs; a limit of 0 allows any number."""
    if limit is None:
        return warning("agent connections", "the agent does not tell its limit", "the default is 200")
    shown = f"{watches} watches and {OTHER_CONNECTIONS} others, {limit or 'any number'} allowed"
    if limit and watches + OTHER_CONNECTIONS > limit:
        fitting = max(1, limit - OTHER_CONNECTIONS)
        advice = f"raise limits.http_max_conns_per_client or set MESHGATE_CATALOG_WATCHES to {fitting}"
        return failed("agent connections", shown, advice)
    return ok("agent connections", shown)


def one_primary(own: tuple[str, str], others: Mapping[str, tuple[str, str]]) -> list[Finding]:
    """Whether all datacenters have one primary: a pair of trust domain and primary ("" unknown) for each."""
    found = []
    for name, (trust_domain, primary) in sorted(others.items()):
        check = f"primary of {name}"
        advice = f"set the same primary_datacenter in {name}: identities of one mesh have one trust domain"
        if trust_domain != own[0]:
            shown = f"trust domain {trust_domain or 'not known yet'} instead of {own[0]}"
            found.append(failed(check, shown, advice))
        elif primary and own[1] and primary != own[1]:
            found.append(failed(check, f"{primary} instead of {own[1]}", advice))
        else:
            found.append(ok(check, f"same trust domain{f', {own[1]}' if own[1] else ''}"))
    return found


def wan_address(host: str, *, federated: bool) -> Finding:
    """Whether other datacenters can make sense of the address that they are told; "" where none is."""
    check = "WAN address"
    if not host:
        if not federated:
            return ok(check, "none, and there is no other datacenter")
        advice = "set --wan-address to what other datacenters can dial; they are told the LAN address now"
        return warning(check, "none", advice)
    try:
        address = ip_address(host)
    except ValueError:
        return ok(check, f"{host}, a host name: the sidecars and gateways elsewhere must resolve it")
    if address.is_unspecified or address.is_multicast:
        return failed(check, f"{host} is no address of a machine", "set --wan-address to one")
    if address.is_loopback or address.is_link_local:
        advice = "set --wan-address to an address that other machines can dial"
        kind = "loopback" if address.is_loopback else "link-local"
        return warning(check, f"{host} is a {kind} address", advice)
    return ok(check, f"{host}{' (private: fine inside one network)' if address.is_private else ''}")
