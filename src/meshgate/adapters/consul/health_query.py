"""What is followed: a query for instances, of a service or of a subset. How closely, `watch_scheduler` decides."""

from abc import ABC, abstractmethod
from typing import Final

from .acl_visibility import VerifiedInstances
from .api import ConsulClient, ConsulError, Cursor, Instances, Page
from .watch_registry import WatchKey, WatchState

# Sidecars are registered as services of this name, unless somebody says otherwise.
SIDECAR: Final = "-sidecar-proxy"
# `last_used` of what was never used.
NEVER: Final = float("-inf")


class HealthQuery(ABC):
    """A query for the instances of something that belongs to a service; `service` is its lower-case name.

    `held` has what is known. `last_used` is on trio's clock. `cold` is whether Consul is asked for it only now and
    then, so that what is known may be old. `state` is None while nobody follows it.
    """

    __slots__ = ("cold", "held", "key", "last_used", "service", "state")

    def __init__(self, key: WatchKey, service: str, held: VerifiedInstances) -> None:
        self.key = key
        self.service = service
        self.held = held
        self.last_used = NEVER
        self.cold = True
        self.state: WatchState | None = None

    @property
    def expects_nothing(self) -> bool:
        """Whether it was answered with nothing, as are those for sidecars by their own names."""
        return self.service.endswith(SIDECAR) and self.held.known and not self.held.value

    @abstractmethod
    async def ask(self, reader: ConsulClient, cursor: Cursor) -> Page[Instances]:
        """One request."""

    @abstractmethod
    def answered(self) -> None:
        """There is a first answer, or another one than before; `held` has it."""

    @abstractmethod
    def failed(self, error: ConsulError) -> None:
        """A request has failed."""

    @abstractmethod
    def on_staleness_changed(self) -> None:
        """`cold` is not what it was."""
