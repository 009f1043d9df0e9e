"""A gateway without a relay and without Consul: its admin address, with numbers that a test sets."""

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import structlog
import trio

from meshgate.adapters.admin.messages import Request, Response, json_response
from meshgate.adapters.admin.metrics import Metrics
from meshgate.adapters.admin.server import AdminServer
from meshgate.adapters.admin.stats import GatewayStats
from meshgate.adapters.admin.views import routes_view
from meshgate.adapters.relay import Limits
from meshgate.adapters.relay.counters import OpenStream
from meshgate.app.admin.admin_operator import operator_routes
from meshgate.app.settings.settings import Settings
from meshgate.core.routes import RouteTable

METRICS = Metrics()


@dataclass
class FakeGateway:
    """`on_metrics` is called before each metrics page; `process_started` stands in for the process's own time."""

    routes: RouteTable = field(default_factory=lambda: RouteTable.of("dc1", "td.consul", "default", iter(())))
    stats: GatewayStats = field(default_factory=lambda: GatewayStats("1.2.3"))
    streams: list[OpenStream] = field(default_factory=list)
    settings: Settings = field(default_factory=lambda: Settings.load({}, environ={}, env_file=os.devnull))
    ready: bool = True
    draining: bool = False
    catalog_stale: bool = False
    limits: Limits = field(default_factory=Limits)
    process_started: float = 1e9
    on_metrics: Callable[[], None] = lambda: None
    drains: int = 0
    wrong: list[str] = field(default_factory=list)
    _stop: Callable[[], None] = lambda: None

    def watches(self) -> list[Any]:
        return []

    def table(self) -> RouteTable:
        return self.routes

    def problems(self) -> list[str]:
        return self.wrong

    def drain(self) -> None:
        self.drains += 1
        self.draining = True

    async def connections(self) -> list[OpenStream]:
        await trio.lowlevel.checkpoint()
        return self.streams

    def stop(self) -> None:
        """End it from within a handler, or from any other thread."""
        self._stop()

    @contextmanager
    def serving(self, bind: tuple[str, int] | Path = ("127.0.0.1", 0)) -> Iterator[str]:
        """It runs in a thread; gives the address as MESHGATE_ADMIN_BIND has it."""
        started, bound = threading.Event(), []

        async def main() -> None:
            token, scope = trio.lowlevel.current_trio_token(), trio.CancelScope()
            self._stop = lambda: token.run_sync_soon(scope.cancel)
            with scope:
                async with trio.open_nursery() as nursery:
                    routes = {
                        **operator_routes(cast("Any", self)),
                        ("GET", "/routes"): lambda _: json_response(routes_view(self.routes)),
                        ("GET", "/metrics"): self._metrics,
                    }
                    bound.append(await nursery.start(AdminServer(routes).serve, bind))
                    started.set()

        thread = threading.Thread(target=trio.run, args=(main,))
        # In this process its log would come between what a command prints.
        with structlog.testing.capture_logs():
            thread.start()
            assert started.wait(5)
            try:
                yield f"{bound[0][0]}:{bound[0][1]}" if isinstance(bound[0], tuple) else f"unix://{bound[0]}"
            finally:
                with suppress(trio.RunFinishedError):  # it stopped by itself
                    self.stop()
                thread.join(5)

    def _metrics(self, request: Request) -> Response:
        self.on_metrics()
        body, content_type = METRICS.render(self.stats, request.headers.get("accept", ""))
        started = b"process_start_time_seconds %.3f" % self.process_started
        return Response(200, re.sub(rb"process_start_time_seconds [0-9.e+]+", started, body), content_type)
