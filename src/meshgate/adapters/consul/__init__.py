"""The Consul adapter: the catalog as snapshots, the gateway's registration, and the client under both.

`api.ConsulClient` speaks HTTP with the agent, `CatalogWatcher` publishes snapshots of what routing depends on,
`Registrar` keeps the gateway registered, and `WatchRegistry` is what the two share. Everything runs in trio.
"""

from .catalog_watcher import CatalogWatcher as CatalogWatcher
from .lookups import Checks as Checks
from .policy import acl_policy as acl_policy
from .registrar import (
    GIVE_OWN_ID as GIVE_OWN_ID,
    Maintenance as Maintenance,
    OwnHealth as OwnHealth,
    Registrar as Registrar,
    RegistrarLeft as RegistrarLeft,
    rival_of as rival_of,
)
from .scope import Home as Home
from .service_definition import GatewayDefinition as GatewayDefinition, RegistrationError as RegistrationError
from .watch import (
    WatchKey as WatchKey,
    WatchLeft as WatchLeft,
    WatchRegistry as WatchRegistry,
    WatchState as WatchState,
    wait_for_agent as wait_for_agent,
)
