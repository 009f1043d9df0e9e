"""Since when endpoints are unhealthy, as far as this gateway has seen it: Consul does not keep the times."""

from collections.abc import Iterable
from dataclasses import dataclass

import trio

from meshgate.core.routes import Endpoint, Route, RouteTable


@dataclass(frozen=True, slots=True)
class Since:
    """When an endpoint was first seen unhealthy, on trio's clock; `seen` is whether it had been seen healthy before."""

    time: float
    seen: bool


class HealthHistory:
    """Follows the tables. Costs time only for routes that have changed."""

    def __init__(self) -> None:
        self._routes: dict[str, tuple[Route, dict[Endpoint, Since]]] = {}

    def note(self, table: RouteTable) -> None:
        """Take the next table."""
        self._routes = dict(self._noted(table))

    def since(self, route: Route, endpoint: Endpoint) -> Since | None:
        """Since when an endpoint of a route is unhealthy; None where it is not, or nothing is known."""
        return self._routes.get(route.sni, (route, {}))[1].get(_same(endpoint))

    def _noted(self, table: RouteTable) -> Iterable[tuple[str, tuple[Route, dict[Endpoint, Since]]]]:
        now = trio.current_time()
        for route in table:
            before = self._routes.get(route.sni)
            if before is not None and before[0] is route:
                yield route.sni, before
                continue
            known = {} if before is None else {_same(each): each.healthy for each in before[0].endpoints}
            since = {} if before is None else before[1]
            yield (
                route.sni,
                (
                    route,
                    {
                        key: since.get(key) or Since(now, seen=known.get(key, False))
                        for key in (_same(each) for each in route.endpoints if not each.healthy)
                    },
                ),
            )


def _same(endpoint: Endpoint) -> Endpoint:
    """The endpoint without what may change of it."""
    return Endpoint(endpoint.address, endpoint.port, True, 0, endpoint.node, endpoint.instance)
