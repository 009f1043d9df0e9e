"""A gateway without a relay and without Consul, as far as the dashboard asks: its numbers are what a test sets."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import trio

from meshgate.adapters.admin.messages import Request, Response, json_response
from meshgate.adapters.admin.server import AdminServer
from meshgate.adapters.admin.views import explain_view
from meshgate.adapters.consul.watch_registry import WatchState
from meshgate.adapters.relay import Counters, Limits, OpenStream, Refused
from meshgate.app.admin.dashboard import dashboard_routes
from meshgate.app.settings.settings import Settings
from meshgate.core.explain import explain
from meshgate.core.listeners import BindAddress
from meshgate.core.reasons import Reason
from meshgate.core.routes import Endpoint, Route, RouteKind, RouteTable

TRUST_DOMAIN = "11111111-2222-3333-4444-555555555555.consul"


@dataclass
class GatewayDouble:
    """What `dashboard_routes` asks of a gateway."""

    routes: list[Route] = field(default_factory=list)
    counters: Counters = field(default_factory=Counters)
    streams: list[OpenStream] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    recent: list[tuple[float, Refused]] = field(default_factory=list)
    states: list[WatchState] = field(default_factory=list)
    ready: bool = True
    draining: bool = False
    catalog_stale: bool = False
    listed: int = 0

    def __post_init__(self) -> None:
        self.settings = Settings.load({}, environ={}, env_file="/dev/null")
        self.limits = Limits()
        self.relay = SimpleNamespace(counters=self._counters, connections=self._connections, loads=[(4711, 2), (0, 0)])
        self.observer = SimpleNamespace(recent=self.recent)
        self.client = SimpleNamespace(errors={"500": 3})
        self.last_known = SimpleNamespace(detail=lambda: {"from_disk": False})
        addresses = (BindAddress("default", "127.0.0.1", 8443),)
        self.registration = SimpleNamespace(listeners=SimpleNamespace(addresses=addresses))
        self.watcher = SimpleNamespace(states=lambda: self.states, ca_root_expiry=4e9, ca_intermediate_expiry=None)

    def problems(self) -> list[str]:
        return self.wrong

    def relay_table(self) -> RouteTable:
        return RouteTable.of("dc1", TRUST_DOMAIN, "default", iter(self.routes))

    async def _counters(self) -> Counters:
        await trio.lowlevel.checkpoint()
        return self.counters.copy()

    async def _connections(self) -> list[OpenStream]:
        await trio.lowlevel.checkpoint()
        self.listed += 1
        return self.streams

    async def explain(self, request: Request) -> Response:
        explanation = await trio.to_thread.run_sync(explain, self.relay_table(), request.query["sni"])
        return json_response(explain_view(explanation))

    async def serve(self, nursery: trio.Nursery) -> str:
        """Serves the dashboard in a nursery; gives its address."""
        gateway: Any = self
        routes = {**dashboard_routes(gateway), ("GET", "/explain"): self.explain}
        host, port = await nursery.start(AdminServer(routes).serve, ("127.0.0.1", 0))
        return f"{host}:{port}"


def route(name: str, kind: RouteKind = RouteKind.SERVICE, healthy: int = 1, unhealthy: int = 0) -> Route:
    """A route to so many endpoints."""
    endpoints = tuple(
        Endpoint("10.0.0.7", 20000 + number, number < healthy, 1, "n1", f"{name}-{number}", _cause(number < healthy))
        for number in range(healthy + unhealthy)
    )
    if kind is RouteKind.DATACENTER:
        return Route(f"{name}.internal.{TRUST_DOMAIN}", kind, name, endpoints, suffix=True)
    return Route(f"{name}.default.dc1.internal.{TRUST_DOMAIN}".lower(), kind, name, endpoints)


def refused(sni: str | None, reason: Reason = Reason.UNKNOWN_SNI, detail: str = "no route for this name") -> Refused:
    """A refusal."""
    return Refused("192.0.2.9", sni, reason, detail)


def _cause(healthy: bool) -> str:
    return "" if healthy else "check is critical"
