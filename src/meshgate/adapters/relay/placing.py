"""Which endpoint of a route the next stream gets: by the route's policy and weights, away from those that fail."""

import random

from meshgate.core.balance import Policy
from meshgate.core.ejection import Address, Ejections
from meshgate.core.routes import Endpoint, Route, RouteTable

# An enum's members are slow to get at (as in the pump).
_ROUND_ROBIN, _LEAST_REQUEST, _RANDOM = Policy


class Placing:
    """What placing remembers between streams. Times are in seconds on the engine's clock.

    `pending` is how many connections to endpoints are dialled and do not stand yet.
    """

    def __init__(self) -> None:
        self._turns: dict[str, int] = {}
        self._ejections = Ejections()
        self._loads: dict[Address, int] = {}
        self.pending = 0
        self._pending: dict[Address, int] = {}

    def next(self, route: Route, tried: tuple[int, ...], now: float) -> int | None:
        """The position of the candidate to try; None when all are tried.

        Endpoints that failed of late come last: they are only taken when every other one has been tried. The nearest
        ones come before those that are farther away.
        """
        shunned = self._ejections.shunned(route.candidates, now) if len(self._ejections) else ()
        if route.far:
            position = self._choose(route, tried + shunned + route.far)
            if position is not None:
                return position
        if shunned:
            position = self._choose(route, tried + shunned)
            if position is not None:
                return position
        return self._choose(route, tried)

    def trying(self, endpoint: Endpoint, now: float) -> None:
        """A connection to the endpoint begins."""
        self._ejections.trying(endpoint, now)

    def awaited(self, endpoint: Endpoint) -> None:
        """The connection does not stand at once."""
        address = (endpoint.address, endpoint.port)
        self.pending += 1
        self._pending[address] = self._pending.get(address, 0) + 1

    def settled(self, endpoint: Endpoint) -> None:
        """One that was awaited stands, has failed or is given up."""
        address = (endpoint.address, endpoint.port)
        self.pending -= 1
        self._pending[address] -= 1
        if not self._pending[address]:
            del self._pending[address]

    def full(self, route: Route, most: int) -> tuple[int, ...]:
        """The positions of the candidates that have `most` connections pending: they get no more for now."""
        pending = self._pending
        return tuple(
            position
            for position, endpoint in enumerate(route.candidates)
            if pending.get((endpoint.address, endpoint.port), 0) >= most
        )

    def failed(self, endpoint: Endpoint, now: float) -> None:
        """It could not be had."""
        self._ejections.failed(endpoint, now)

    def began(self, route: Route, endpoint: Endpoint) -> None:
        """It stands, and carries a stream."""
        if len(self._ejections):
            self._ejections.succeeded(endpoint)
        if route.policy is _LEAST_REQUEST:
            address = (endpoint.address, endpoint.port)
            self._loads[address] = self._loads.get(address, 0) + 1

    def ended(self, route: Route, endpoint: Endpoint) -> None:
        """A stream that began has ended."""
        if route.policy is _LEAST_REQUEST:
            address = (endpoint.address, endpoint.port)
            self._loads[address] -= 1
            if not self._loads[address]:
                del self._loads[address]

    def keep_only(self, table: RouteTable) -> None:
        """Forget what is not in the table any more."""
        self._turns = {name: turn for name, turn in self._turns.items() if table.has(name)}
        if len(self._ejections):
            self._ejections.keep_only(
                {(endpoint.address, endpoint.port) for route in table for endpoint in route.candidates}
            )

    def _choose(self, route: Route, excluded: tuple[int, ...]) -> int | None:
        if route.policy is _ROUND_ROBIN:
            return route.rotation.pick(self._turn(route), excluded)
        if route.policy is _RANDOM:
            return route.rotation.draw(random.random(), excluded)  # noqa: S311  (balance, not secrecy)
        drawn = {route.rotation.draw(random.random(), excluded) for _ in range(route.choices)}  # noqa: S311
        return min((each for each in drawn if each is not None), key=lambda each: self._load(route, each), default=None)

    def _load(self, route: Route, position: int) -> float:
        endpoint = route.candidates[position]
        return self._loads.get((endpoint.address, endpoint.port), 0) / endpoint.weight

    def _turn(self, route: Route) -> int:
        """The number of a route's pick. Counted by name, so that a new table goes on where the old one was."""
        turn = self._turns.get(route.sni)
        if turn is None:
            # At random, so that a fleet of gateways does not begin with the same endpoint.
            turn = random.randrange(1 << 16)  # noqa: S311
        self._turns[route.sni] = turn + 1
        return turn
