"""The one double of what pages see of a gateway: no relay, no Consul, and what a test sets."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import structlog
import trio

from meshgate.adapters.admin.http_server import AdminServer
from meshgate.adapters.consul import WatchState
from meshgate.adapters.consul.api import HealthCheck
from meshgate.adapters.relay import Counters, Limits, OpenStream, Refused, StreamRecord
from meshgate.adapters.relay.pool import OpenStreams, WorkerLoss
from meshgate.app.admin.admin_pages import admin_routes
from meshgate.app.admin.answers import Ejection, EndpointFacts
from meshgate.app.admin.gateway_view import GatewayView
from meshgate.app.admin.history import History
from meshgate.app.admin.metrics import Metrics
from meshgate.app.gateway.table_keeper import HealthHistory, Since
from meshgate.app.gateway.upgrade import UpgradeRefusedError
from meshgate.app.gateway.upgrade_record import Upgrade
from meshgate.app.logs import logs
from meshgate.app.settings.settings import Settings
from meshgate.core.addresses import host_port
from meshgate.core.catalog import Instance
from meshgate.core.outlier_detection import Address
from meshgate.core.proxy_config import BindAddress
from meshgate.core.reasons import Reason
from meshgate.core.routes import Endpoint, Route, RouteKind, RouteTable, difference

T = TypeVar("T")
TRUST_DOMAIN = "11111111-2222-3333-4444-555555555555.consul"


def table_of(*routes: Route) -> RouteTable:
    return RouteTable.of("dc1", TRUST_DOMAIN, "default", iter(routes))


class GatewayDouble(GatewayView):
    """Keywords set any of its attributes. `listed` counts the lists of streams, `asked` has the nodes asked about.

    `on_look` is called each time that the relay is asked for its numbers.
    """

    settings = Settings.load({}, environ={})
    limits = Limits()
    ready = listening = catalog_known = consul_found = True
    draining = catalog_stale = False
    token_problem = ""
    from_disk: float | None = None
    domain: str = "consul"
    unkept = "MESHGATE_STATE_DIR is not set"

    def __init__(self, *routes: Route, **known: object) -> None:
        self.started, self._since = 1e9, time.monotonic()
        self._began = self._since
        self.upgrades_of: Mapping[str, int] = {"done": 0}
        self.last_one: Upgrade | None = None
        self.refuses_upgrades = ""
        self.upgraded: list[str] = []
        self.levels: list[str] = []
        self.asked_by = ""
        self._stop: Callable[[], None] = lambda: None
        self.on_look: Callable[[], None] = lambda: None
        self.health = HealthHistory()
        self.in_force = table_of()
        self.numbers = Counters()
        self.streams: list[OpenStream] = []
        self.silent: list[int] = []
        self.wrong: list[str] = []
        self.recent: list[tuple[float, Refused]] = []
        self.history = History()
        self.ended: list[StreamRecord] = []
        self.losses: list[WorkerLoss] = []
        self.states: list[WatchState] = []
        self.errors: Mapping[str, int] = {}
        self.loads = [(4711, 2), (0, 0)]
        self.restarts: Mapping[str, int] = {"killed": 0}
        self.out: Mapping[Address, int] = {}
        self.names: Mapping[str, str] = {}
        self.facts: Mapping[Address, EndpointFacts] = {}
        self.expiries: tuple[float | None, float | None] = (4e9, None)
        self.dropped: int | None = None
        self.checks: tuple[HealthCheck, ...] | Exception = ()
        self.others: tuple[Instance, ...] | Exception = ()
        self.token_ends: float | Exception | None = None
        self.agent_limit: int | Exception | None = 200
        self.asked: list[tuple[str, str]] = []
        self.listed = self.drains = 0
        self.use(table_of(*routes))
        for name, value in known.items():
            assert hasattr(self, name)
            setattr(self, name, value)

    def use(self, table: RouteTable) -> None:
        """Place new streams by this table."""
        before, self.in_force = self.in_force, table
        with suppress(RuntimeError):  # outside of trio there is no time since which an endpoint is unhealthy
            self.health.note(difference(before, table))

    def table(self) -> RouteTable:
        return self.in_force

    def problems(self) -> list[str]:
        return self.wrong

    def watches(self) -> list[WatchState]:
        return self.states

    def ca_expiries(self) -> tuple[float | None, float | None]:
        return self.expiries

    def consul_errors(self) -> Mapping[str, int]:
        return self.errors

    def unhealthy_since(self, route: Route, endpoint: Endpoint) -> Since | None:
        return self.health.since(route, endpoint)

    def listeners(self) -> tuple[BindAddress, ...]:
        return (BindAddress("default", "127.0.0.1", 8443),)

    def workers(self) -> list[tuple[int, int]]:
        return self.loads

    def worker_restarts(self) -> Mapping[str, int]:
        return self.restarts

    def ejected(self) -> Mapping[Address, int]:
        return self.out

    def endpoint_facts(self, address: Address) -> EndpointFacts:
        return self.facts.get(address) or EndpointFacts(
            ejected=Ejection(self.out[address], 0.0, None) if address in self.out else None
        )

    async def caller_names(self) -> Callable[[str], str]:
        return lambda host: self.names.get(host, "")

    def totals(self) -> Counters:
        return self.numbers

    async def counters(self) -> Counters:
        await trio.lowlevel.checkpoint()
        self.on_look()
        return self.numbers.copy()

    async def connections(self) -> OpenStreams:
        await trio.lowlevel.checkpoint()
        self.listed += 1
        return OpenStreams(self.streams, self.silent)

    def recent_refusals(self) -> list[tuple[float, Refused]]:
        return self.recent[::-1]

    def ended_streams(self) -> list[StreamRecord]:
        return self.ended

    def worker_losses(self) -> list[WorkerLoss]:
        return self.losses

    def access_lines_dropped(self) -> int | None:
        return self.dropped

    async def look_up(self, name: str) -> None:
        await trio.lowlevel.checkpoint()

    async def why_missing(self, service: str) -> str | None:
        return f"no such service registered: {service}"

    async def node_checks(self, node: str, *, datacenter: str = "") -> tuple[HealthCheck, ...]:
        self.asked.append((node, datacenter))
        if isinstance(self.checks, Exception):
            raise self.checks
        return self.checks

    async def other_gateways(self) -> tuple[Instance, ...]:
        return await self._told(self.others)

    async def token_expiry(self) -> float | None:
        return await self._told(self.token_ends)

    async def agent_connections(self) -> int | None:
        return await self._told(self.agent_limit)

    async def _told(self, answer: T | Exception) -> T:
        await trio.lowlevel.checkpoint()
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def last_upgrade(self) -> Upgrade | None:
        return self.last_one

    def upgrades(self) -> Mapping[str, int]:
        return self.upgrades_of

    async def try_upgrade(self, python: str, asked: str) -> Upgrade:
        """Does what the gateway's own does, and is done at once."""
        await trio.lowlevel.checkpoint()
        self.asked_by = asked
        if self.refuses_upgrades:
            raise UpgradeRefusedError(self.refuses_upgrades)
        number = len(self.upgraded) + 1
        self.last_one = Upgrade(number=number, started=1e9, python=python or "/python", version_before="1")
        self.last_one.version_after = "2"
        return self.last_one

    def upgrade(self) -> None:
        assert self.last_one is not None
        self.upgraded.append(self.last_one.python)
        self.last_one.result, self.last_one.seconds = "done", 1.0

    def log_level_changed(self) -> None:
        self.levels.append(logs.level())

    def drain(self) -> None:
        self.drains += 1
        self.draining = True

    async def serve(self, nursery: trio.Nursery, bind: tuple[str, int] | Path = ("127.0.0.1", 0)) -> str:
        """Serves all pages in a nursery; gives their address as MESHGATE_ADMIN_BIND has it."""
        bound = await nursery.start(AdminServer(admin_routes(self, Metrics(self))).serve, bind)
        return host_port(*bound) if isinstance(bound, tuple) else f"unix://{bound}"

    def stop(self) -> None:
        """End what `serving` began, from within a handler or from any other thread."""
        self._stop()

    @contextmanager
    def serving(self, bind: tuple[str, int] | Path = ("127.0.0.1", 0)) -> Iterator[str]:
        """As `serve`, in a thread of its own."""
        started, address = threading.Event(), []

        async def main() -> None:
            token, scope = trio.lowlevel.current_trio_token(), trio.CancelScope()
            self._stop = lambda: token.run_sync_soon(scope.cancel)
            with scope:
                async with trio.open_nursery() as nursery:
                    address.append(await self.serve(nursery, bind))
                    started.set()

        thread = threading.Thread(target=trio.run, args=(main,))
        # In this process its log would come between what a command prints.
        with structlog.testing.capture_logs():
            thread.start()
            assert started.wait(5)
            try:
                yield address[0]
            finally:
                with suppress(trio.RunFinishedError):  # it stopped by itself
                    self.stop()
                thread.join(5)


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
