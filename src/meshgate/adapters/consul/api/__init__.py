"""Consul's HTTP API: one client, a record for each thing it answers, and the errors in which it fails."""

from .address import ConsulAddress as ConsulAddress, ConsulConfigError as ConsulConfigError
from .client import (
    SEE_AGENT as SEE_AGENT,
    SEE_NODES as SEE_NODES,
    SEE_PEERINGS as SEE_PEERINGS,
    SEE_SERVICES as SEE_SERVICES,
    ConsulClient as ConsulClient,
)
from .consul_errors import (
    BadRequestError as BadRequestError,
    ConsulError as ConsulError,
    ConsulUnreachableError as ConsulUnreachableError,
    EndpointBlockedError as EndpointBlockedError,
    InvalidAnswerError as InvalidAnswerError,
    LoginError as LoginError,
    NotFoundError as NotFoundError,
    NotReadyError as NotReadyError,
    PermissionDeniedError as PermissionDeniedError,
    RateLimitedError as RateLimitedError,
    Rule as Rule,
    ServerError as ServerError,
    UnexpectedStatusError as UnexpectedStatusError,
)
from .credentials import Login as Login
from .endpoints import askable as askable
from .records import (
    GATEWAY_KIND as GATEWAY_KIND,
    LONGEST_WAIT as LONGEST_WAIT,
    NODE_MAINTENANCE as NODE_MAINTENANCE,
    NOW as NOW,
    AgentFacts as AgentFacts,
    CaRoots as CaRoots,
    Chain as Chain,
    Cursor as Cursor,
    HealthCheck as HealthCheck,
    Instances as Instances,
    Intention as Intention,
    OwnInstance as OwnInstance,
    OwnRegistration as OwnRegistration,
    Page as Page,
    Peering as Peering,
    Replication as Replication,
    Resolver as Resolver,
    ServiceDefaults as ServiceDefaults,
    Sidecar as Sidecar,
    SubsetRule as SubsetRule,
    Tenant as Tenant,
    UpstreamDefinition as UpstreamDefinition,
)
