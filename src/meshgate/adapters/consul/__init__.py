"""The Consul adapter: the catalog as snapshots, the gateway's registration, and the client under both.

`ConsulClient` speaks HTTP with the agent, `CatalogWatcher` publishes snapshots of what routing depends on, `Registrar`
keeps the gateway registered, and `WatchRegistry` is what the two share. Everything runs in trio.
"""

from meshgate.core.listeners import BindAddress

from .address import FLAG_TOKEN, FLAG_TOKEN_FILE, ConsulAddress, ConsulConfigError
from .agent import wait_for_agent
from .catalog import CatalogWatcher
from .checks import Checks, NodeCheck
from .client import ConsulClient
from .errors import (
    BadRequestError,
    ConsulError,
    ConsulUnreachableError,
    InvalidAnswerError,
    NotFoundError,
    NotReadyError,
    PermissionDeniedError,
    RateLimitedError,
    Rule,
    ServerError,
    UnexpectedStatusError,
)
from .policy import acl_policy
from .records import AgentFacts, CaRoots, Client, Cursor, OwnRegistration, Page, Reader
from .registrar import Registrar
from .registration import GatewayDefinition, RegistrationError
from .tokens import TokenSource
from .watch_registry import WatchRegistry, WatchState

__all__ = [
    "FLAG_TOKEN",
    "FLAG_TOKEN_FILE",
    "AgentFacts",
    "BadRequestError",
    "BindAddress",
    "CaRoots",
    "CatalogWatcher",
    "Checks",
    "Client",
    "ConsulAddress",
    "ConsulClient",
    "ConsulConfigError",
    "ConsulError",
    "ConsulUnreachableError",
    "Cursor",
    "GatewayDefinition",
    "InvalidAnswerError",
    "NodeCheck",
    "NotFoundError",
    "NotReadyError",
    "OwnRegistration",
    "Page",
    "PermissionDeniedError",
    "RateLimitedError",
    "Reader",
    "Registrar",
    "RegistrationError",
    "Rule",
    "ServerError",
    "TokenSource",
    "UnexpectedStatusError",
    "WatchRegistry",
    "WatchState",
    "acl_policy",
    "wait_for_agent",
]
