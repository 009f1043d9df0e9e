"""Since when endpoints are unhealthy, as far as this gateway has seen it: Consul does not keep the times."""

from dataclasses import dataclass

import trio

from meshgate.core.routes import Endpoint, Route, TableChange


@dataclass(frozen=True, slots=True)
class Since:
    """When an endpoint was first seen unhealthy, on trio's clock; `seen` is whether it had been seen healthy before."""

    time: float
    seen: bool


class HealthHistory:
    """Follows the tables, by what changes in them."""

    def __init__(self) -> None:
        self._routes: dict[str, tuple[Route, dict[Endpoint, Since]]] = {}

    def note(self, change: TableChange) -> None:
        """Take the next table: what makes it of the last one, an empty table at first."""
        for name in change.removed:
            self._routes.pop(name, None)
        now = trio.current_time()
        for route in change.routes:
            self._routes[route.sni] = route, self._unhealthy(route, now)

    def since(self, route: Route, endpoint: Endpoint) -> Since | None:
        """Since when an endpoint of a route is unhealthy; None where it is not, or nothing is known."""
        return self._routes.get(route.sni, (route, {}))[1].get(_same(endpoint))

    def _unhealthy(self, route: Route, now: float) -> dict[Endpoint, Since]:
        before, since = self._routes.get(route.sni, (None, {}))
        known = {} if before is None else {_same(each): each.healthy for each in before.endpoints}
        return {
            key: since.get(key) or Since(now, seen=known.get(key, False))
            for key in (_same(each) for each in route.endpoints if not each.healthy)
        }


def _same(endpoint: Endpoint) -> Endpoint:
    """The endpoint without what may change of it."""
    return Endpoint(endpoint.address, endpoint.port, True, 0, endpoint.node, endpoint.instance)
