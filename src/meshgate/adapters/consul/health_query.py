"""What is followed: a query for instances, of a service or of a subset. How it is, `watch_scheduler` decides."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Final

from .acl_visibility import VerifiedInstances
from .api import ConsulClient, ConsulError, Cursor, Instances, Page

if TYPE_CHECKING:
    from .watch_registry import WatchState

# Sidecars are registered as services of this name, unless somebody says otherwise.
SIDECAR: Final = "-sidecar-proxy"
# The interest in what was never used.
NEVER: Final = float("-inf")


class HealthQuery:
    """A query for the instances of something that belongs to a service; `service` is its lower-case name.

    `kind` and `name` are those of its `WatchState`. `held` has what is known. `last_used` is when it was last used, on
    trio's clock. `cold` is whether Consul is asked for it only now and then, so that what is known may be old.
    """

    __slots__ = ("cold", "held", "kind", "last_used", "name", "service", "state")

    def __init__(self, kind: str, name: str, service: str, held: VerifiedInstances) -> None:
        self.kind = kind
        self.name = name
        self.service = service
        self.held = held
        self.last_used = NEVER
        self.cold = True
        self.state: WatchState | None = None

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


def nothing_expected(query: HealthQuery) -> bool:
    """Whether a query was answered with nothing, as are those for sidecars by their own names."""
    return query.service.endswith(SIDECAR) and query.held.known and not query.held.value
