"""What all streams of one relay share."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from meshgate.core.load_balancer import LoadBalancer
from meshgate.core.outlier_detection import Address
from meshgate.core.routes import RouteTable

from .circuit_breakers import CircuitBreakers
from .counters import Counters, Refused, RelayObserver
from .limits import Limits
from .on_demand import OnDemand
from .overload import Overload
from .pump import Pump
from .reactor import Reactor

StreamT = TypeVar("StreamT")

log = logging.getLogger("meshgate.relay")

_DEFECTS_TOLD: Final = 20


@dataclass(eq=False, slots=True)
class Context(Generic[StreamT]):
    """The parts of one relay.

    `report` tells the other workers why an endpoint of a route (as in `Route.sni`) failed, or with "" that it is well.
    """

    reactor: Reactor
    pump: Pump
    table: RouteTable
    limits: Limits
    observer: RelayObserver
    worker: int
    breakers: CircuitBreakers
    load_balancer: LoadBalancer
    on_demand: OnDemand[StreamT]
    overload: Overload
    report: Callable[[str, Address, str], None]
    streams: set[StreamT] = field(default_factory=set)
    counters: Counters = field(default_factory=Counters)

    def on_refused(self, refused: Refused) -> None:
        """A stream was refused, or shed before its hello was read."""
        self.counters.count_refused(refused.reason)
        self.observer.on_refused(refused)

    def on_defect(self) -> None:
        """An error of ours is being handled: count it, and log it if it is one of the first."""
        self.counters.internal_errors += 1
        if self.counters.internal_errors <= _DEFECTS_TOLD:
            log.exception("internal error in a stream, it is reset; please report this")
