"""The limits on what is open at once, and all that a stream counts for, in one ticket.

    client        streams of one client, for all workers together; and those that it began within the last second
    total         streams, for all workers together
    destination   streams of one destination, for all workers together
    waiting       those of them whose connection is dialed and does not stand yet, for all workers together
    pending       connections to one endpoint that are dialed and do not stand yet, of this worker
    load          streams that one endpoint carries, of this worker; no limit, but what `least_request` goes by

What Consul sets for destinations (`UpstreamConfig.Defaults.Limits` in the `service-defaults` of the gateway's own name)
Envoy keeps as circuit breakers of a cluster. As in Consul's own gateway, what peers export has none.

The limits per client are for those that stand for themselves. Mesh gateways elsewhere stand for many: those of which
the route table has the address are exempt, and so is who is named in `Limits.exempt_clients` (load balancers, gateways
behind address translation). Whether somebody is, is looked up only where a limit would refuse it.

What always holds: what a ticket was taken for is given back exactly once, whatever the limits are by then.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

from meshgate.core.addresses import is_numeric
from meshgate.core.load_balancer import HostSet
from meshgate.core.outlier_detection import Address
from meshgate.core.reasons import Reason
from meshgate.core.routes import KINDS, RouteTable
from meshgate.core.text import counted

from .limits import Limits
from .shared_counts import SharedCounts
from .sockets import client_key, in_networks

_RATE_SECONDS: Final = 1.0
_TO: Final = "to "  # In front of a route's name.
_MANY: Final = "if it stands for many, name it in MESHGATE_EXEMPT_CLIENTS"


class CircuitBreakers:
    """The counts, as one worker sees them.

    Args:
        counts: of all workers. No client's key there looks like a destination's: it is an IPv4 address or hexadecimal.
        table: gives the route table in force.
    """

    def __init__(self, counts: SharedCounts, table: Callable[[], RouteTable]) -> None:
        self.counts = counts
        self._table = table
        self._gateways: tuple[RouteTable | None, frozenset[str]] = None, frozenset()
        self._recent: deque[tuple[float, str]] = deque()  # What is counted for `max_connection_rate_per_client`.
        self.pending = 0
        """Connections to endpoints that are dialed and do not stand yet."""
        self._pending: dict[Address, int] = {}
        self.loads: dict[Address, int] = {}
        """The streams that each endpoint carries, where the load balancer wants to know."""

    def admit(
        self, host: str, limits: Limits, makes_room: Callable[[SharedCounts], bool], now: float = 0.0
    ) -> "Ticket | tuple[Reason, str]":
        """Count a new client in, or say which limit it is over; `makes_room` is asked where slots are short."""
        counts, active = self.counts, self.counts.active
        most, rate = limits.max_connections_per_client, limits.max_connection_rate_per_client
        key = client_key(host) if most or rate else ""
        # Nobody has more streams than all have together, so that mostly one look is enough.
        if most and active >= most and active >= limits.crowded_from and counts.keyed(key) >= most:  # noqa: SIM102
            if not self._exempt(host, key, limits):
                return Reason.MAX_CONNECTIONS_PER_CLIENT, f"it has {counted(most, 'stream')} already; {_MANY}"
        if rate and not self._in_time(host, key, limits, now):
            return Reason.MAX_CONNECTIONS_PER_CLIENT, f"it has begun {counted(rate, 'stream')} within a second; {_MANY}"
        if active >= limits.overload_from and not makes_room(counts):
            return Reason.MAX_CONNECTIONS, f"all {limits.max_connections} slots are in use"
        if most:
            counts.add_keyed(key, 1)
        counts.add(1)
        return Ticket(self, key if most else "")

    def forget_old(self, now: float) -> None:
        """Count out what was counted for the rate and is too old; to be called from time to time."""
        while self._recent and self._recent[0][0] <= now - _RATE_SECONDS:
            self.counts.add_keyed(self._recent.popleft()[1], -1)

    def _in_time(self, host: str, client: str, limits: Limits, now: float) -> bool:
        """Count a new stream of a client for its rate, unless it is over that."""
        self.forget_old(now)
        key = f"lately from {client}"
        most = limits.max_connection_rate_per_client
        if self.counts.keyed(key) >= most and not self._exempt(host, client, limits):
            return False
        self.counts.add_keyed(key, 1)
        self._recent.append((now, key))
        return True

    def _exempt(self, host: str, client: str, limits: Limits) -> bool:
        """Whether somebody stands for many: a mesh gateway elsewhere, or who the operator says."""
        table = self._table()
        if self._gateways[0] is not table:
            routes = (*table.suffixes.values(), *table.exact.values())
            ends = (each.address for route in routes if KINDS[route.kind].to_gateways for each in route.endpoints)
            # A host name that could not be resolved is an endpoint, too.
            self._gateways = table, frozenset(client_key(each) for each in ends if is_numeric(each))
        return client in self._gateways[1] or in_networks(host, limits.exempt_clients)

    def full(self, hosts: HostSet, most: int) -> tuple[int, ...]:
        """The positions of the candidates that have `most` connections pending: they get no more for now."""
        pending = self._pending
        if self.pending < most:
            return ()
        return tuple(position for position, address in enumerate(hosts.address_of) if pending.get(address, 0) >= most)


class Ticket:
    """All that one stream counts for."""

    __slots__ = ("_breakers", "_client", "_destination", "_load", "_pending", "_waiting")

    def __init__(self, breakers: CircuitBreakers, client: str) -> None:
        self._breakers: CircuitBreakers | None = breakers
        self._client = client
        self._destination = ""
        self._waiting = ""
        self._pending: tuple[Address, ...] = ()
        self._load: Address | None = None

    def charge(self, hosts: HostSet, limits: Limits) -> tuple[Reason, str] | None:
        """Count the stream to its destination, where these are limited, or give what to refuse it with."""
        streams, waiting = limits.max_connections_per_destination, limits.max_pending_per_destination
        if not (streams or waiting) or not hosts.limited or self._breakers is None:
            return None
        counts, key, name = self._breakers.counts, f"{_TO}{hosts.sni}", hosts.route.destination
        if self._destination:  # Of an earlier setup, in another process.
            counts.add_keyed(self._destination, -1)
            self._destination = ""
        if streams and counts.keyed(key) >= streams:
            return Reason.MAX_CONNECTIONS, f"{name} has its {streams} connections"
        if waiting and counts.keyed(_waiting_for(hosts)) >= waiting:
            return Reason.CONNECT_FAILED, f"{waiting} streams wait for a connection to {name} already"
        if streams:
            counts.add_keyed(key, 1)
            self._destination = key
        return None

    @property
    def counted(self) -> tuple[bool, str]:
        """What it counts for beside the total: whether for its client, and the route (`Route.sni`), "" for none."""
        return bool(self._client), self._destination.removeprefix(_TO)

    def count_in(self, client: str, charged: str) -> None:
        """Count a stream in that another process has let go of, with what was `counted` there; no limit is asked."""
        assert self._breakers is not None
        counts = self._breakers.counts
        self._client, self._destination = client, charged and f"{_TO}{charged}"
        counts.add(1)
        for key in (self._client, self._destination):
            if key:
                counts.add_keyed(key, 1)

    def wait(self, hosts: HostSet, address: Address, limits: Limits) -> None:
        """Count a connection that does not stand at once.

        A stream that is tried elsewhere waits on, and is not held to the destination's limit again.
        """
        breakers = self._breakers
        if breakers is None:
            return
        breakers.pending += 1
        breakers._pending[address] = breakers._pending.get(address, 0) + 1  # noqa: SLF001 (two halves of one thing)
        self._pending += (address,)
        if limits.max_pending_per_destination and hosts.limited and not self._waiting:
            self._waiting = _waiting_for(hosts)
            breakers.counts.add_keyed(self._waiting, 1)

    def settle(self, address: Address) -> None:
        """Count a connection out that was awaited and stands, has failed or is given up; nothing for any other."""
        breakers = self._breakers
        if breakers is None or address not in self._pending:
            return
        breakers.pending -= 1
        _subtract(breakers._pending, address)  # noqa: SLF001
        kept = list(self._pending)
        kept.remove(address)
        self._pending = tuple(kept)
        if not kept and self._waiting:
            breakers.counts.add_keyed(self._waiting, -1)
            self._waiting = ""

    def carry(self, hosts: HostSet, address: Address) -> None:
        """Count the stream among those that an endpoint carries."""
        if hosts.counts_load and self._breakers is not None:
            loads = self._breakers.loads
            loads[address] = loads.get(address, 0) + 1
            self._load = address

    def release(self) -> None:
        """Give everything back; a second time gives nothing."""
        breakers = self._breakers
        if breakers is None:
            return
        while self._pending:
            self.settle(self._pending[0])
        self._breakers = None
        counts = breakers.counts
        counts.add(-1)
        if self._client:
            counts.add_keyed(self._client, -1)
        if self._destination:
            counts.add_keyed(self._destination, -1)
        if self._load is not None:
            _subtract(breakers.loads, self._load)


def _subtract(counts: dict[Address, int], address: Address) -> None:
    counts[address] -= 1
    if not counts[address]:
        del counts[address]


def _waiting_for(hosts: HostSet) -> str:
    return f"waiting for {hosts.sni}"
