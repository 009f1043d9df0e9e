"""The Consul adapter: the catalog as snapshots, the gateway's registration, and the client under both.

`api.ConsulClient` speaks HTTP with the agent, `CatalogWatcher` publishes snapshots of what routing depends on,
`Registrar` keeps the gateway registered, and `WatchRegistry` is what the two share. Everything runs in trio.
"""

from .catalog_watcher import CatalogWatcher
from .lookups import Checks
from .policy import acl_policy
from .registrar import GIVE_OWN_ID, Maintenance, OwnHealth, Registrar, RegistrarLeft, rival_of
from .scope import Home
from .service_definition import GatewayDefinition, RegistrationError
from .watch import WatchKey, WatchLeft, WatchRegistry, WatchState, wait_for_agent

__all__ = [
    "GIVE_OWN_ID",
    "CatalogWatcher",
    "Checks",
    "GatewayDefinition",
    "Home",
    "Maintenance",
    "OwnHealth",
    "Registrar",
    "RegistrarLeft",
    "RegistrationError",
    "WatchKey",
    "WatchLeft",
    "WatchRegistry",
    "WatchState",
    "acl_policy",
    "rival_of",
    "wait_for_agent",
]
