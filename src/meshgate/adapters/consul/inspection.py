"""A client for the commands that look at a mesh from outside: what the gateway itself never asks.

Nothing here blocks or follows; each method is one request and fails as those of `Endpoints` do.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime

from . import inspection_wire as wire
from .client import ConsulClient
from .endpoints import SEE_AGENT
from .errors import InvalidAnswerError, NotFoundError, PermissionDeniedError, Rule
from .inspection_records import (
    AgentReport,
    CaCertificates,
    LeafCertificate,
    Replication,
    ServiceDefaults,
    Sidecar,
    Targets,
    TokenFacts,
)
from .records import Instances
from .transport import decoded, segment
from .wire import decode_instances


class ConsulInspector(ConsulClient):
    """`ConsulClient` with further questions. Use it as an asynchronous context manager.

    `datacenter` asks another datacenter through the local agent; "" is the agent's own.
    """

    async def agent_report(self) -> AgentReport:
        """`/v1/agent/self`."""
        with self._counted(SEE_AGENT):
            return (await self._http.get(decoded(wire.decode_agent_report), "/v1/agent/self")).value

    async def agent_clock(self) -> float | None:
        """The agent's Unix time in whole seconds, from the `Date` of an answer; needs no rights. None: not told."""
        with self._counted():
            return (await self._http.get(lambda response: _date(response.headers), "/v1/status/leader")).value

    async def ca_certificates(self, datacenter: str = "") -> CaCertificates:
        """`/v1/connect/ca/roots` with the certificates."""
        with self._counted():
            path = "/v1/connect/ca/roots"
            return (await self._http.get(decoded(wire.decode_ca_certificates), path, _params(dc=datacenter))).value

    async def leaf(self, service: str) -> LeafCertificate:
        """`/v1/agent/connect/ca/leaf/:service`: a certificate with its key. It stays in the agent's cache for days."""
        with self._counted(Rule("service", service, "write")):
            path = f"/v1/agent/connect/ca/leaf/{segment(service)}"
            return (await self._http.get(decoded(wire.decode_leaf), path)).value

    async def token_self(self, datacenter: str = "") -> TokenFacts:
        """`/v1/acl/token/self`. Another datacenter does not know a local token: PermissionDeniedError."""
        with self._counted():
            path = "/v1/acl/token/self"
            return (await self._http.get(decoded(wire.decode_token), path, _params(dc=datacenter))).value

    async def allowed(self, rules: Sequence[Rule], datacenter: str = "") -> tuple[bool, ...]:
        """`/v1/internal/acl/authorize` (undocumented, there since 1.8): what the token may do, one answer a rule.

        A prefix rule is asked as the right to everything that begins so, which only a prefix policy grants.
        """
        asked = [{"Resource": rule.resource, "Access": rule.access, "Segment": rule.name} for rule in rules]
        with self._counted():
            path = "/v1/internal/acl/authorize"
            callback = decoded(wire.decode_allowed)
            granted = (await self._http.post(callback, path, _params(dc=datacenter), data=json.dumps(asked))).value
            if len(granted) != len(rules):
                raise InvalidAnswerError(f"Consul was asked for {len(rules)} rights and told {len(granted)}", "invalid")
            return granted

    async def acl_replication(self, datacenter: str = "") -> Replication:
        """`/v1/acl/replication`."""
        with self._counted():
            path = "/v1/acl/replication"
            return (await self._http.get(decoded(wire.decode_replication), path, _params(dc=datacenter))).value

    async def sidecars(self) -> tuple[Sidecar, ...]:
        """`/v1/agent/services`: those of kind connect-proxy that the token may read, in a stable order."""
        with self._counted():
            return (await self._http.get(decoded(wire.decode_sidecars), "/v1/agent/services")).value

    async def proxy_defaults_mode(self) -> str:
        """The mode of `/v1/config/proxy-defaults/global`; "" where there is none."""
        with self._counted(), suppress(NotFoundError):
            path = "/v1/config/proxy-defaults/global"
            return (await self._http.get(decoded(wire.decode_service_defaults), path)).value.mode
        return ""

    async def service_defaults(self, service: str, *, namespace: str = "", partition: str = "") -> ServiceDefaults:
        """`/v1/config/service-defaults/:service`."""
        with self._counted(Rule("service", service)), suppress(NotFoundError):
            params = _params(ns=namespace, partition=partition)
            path = f"/v1/config/service-defaults/{segment(service)}"
            return (await self._http.get(decoded(wire.decode_service_defaults), path, params)).value
        return ServiceDefaults()

    async def chain_targets(
        self, service: str, *, datacenter: str = "", namespace: str = "", partition: str = ""
    ) -> Targets:
        """`/v1/discovery-chain/:service`: where calls of a service may end up, as evaluated in `datacenter`."""
        with self._counted(Rule("service", service)):
            params = [("compile-dc", datacenter)] if datacenter else []
            params += _params(ns=namespace, partition=partition)
            return (
                await self._http.get(decoded(wire.decode_targets), f"/v1/discovery-chain/{segment(service)}", params)
            ).value

    async def instances_at(
        self,
        service: str,
        *,
        kind: str = "",
        datacenter: str = "",
        namespace: str = "",
        partition: str = "",
        peer: str = "",
    ) -> Instances:
        """Who answers for a service in the mesh, at any place; with `kind` the instances of that name and kind.

        As `connect_instances` and `instances` of `Endpoints`, which the gateway needs for its own place alone.
        """
        with self._counted(Rule("service", service)):
            params = _params(dc=datacenter, ns=namespace, partition=partition, peer=peer)
            path = f"/v1/health/{'service' if kind else 'connect'}/{segment(service)}"
            reply = await self._http.get(decoded(decode_instances), path, params)
            if not reply.value and not reply.known_leader and (reply.index or 0) <= 1:
                raise PermissionDeniedError("Consul answered an empty list without a look")
            return tuple(instance for instance in reply.value if not kind or instance.kind == kind)


def _params(**params: str) -> list[tuple[str, str]]:
    """Those that are not empty. Consul without Enterprise refuses even the default namespace and partition."""
    default = {"ns": "default", "partition": "default"}
    return [(name, value) for name, value in params.items() if value and value != default.get(name)]


def _date(headers: Mapping[str, str]) -> float | None:
    try:
        return parsedate_to_datetime(headers.get("Date", "")).timestamp()
    except (TypeError, ValueError):
        return None
