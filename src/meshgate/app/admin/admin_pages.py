"""What the admin address answers: what the gateway holds and does at this moment, and the few things it can be told.

No answer holds a token, key or secret: settings are shown as `meshgate config` shows them, and files by their names.
Pages that grow with the number of streams or routes are made in a thread, one at a time and seldom (`shared`), so that
nothing waits for them.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Final

import msgspec
import structlog
import trio

from meshgate import __version__
from meshgate.adapters.admin.http_server import (
    JSON,
    Handler,
    Request,
    Response,
    error_response,
    json_response,
    shared,
)
from meshgate.adapters.admin.static_files import static_routes
from meshgate.adapters.consul import WatchState
from meshgate.adapters.relay.pool import OpenStreams
from meshgate.adapters.relay.sandbox import support
from meshgate.app.admin import answers
from meshgate.app.admin.dashboard import DashboardPage
from meshgate.app.admin.explain_page import ExplainPage
from meshgate.app.admin.gateway_view import GatewayView
from meshgate.app.admin.metrics import Metrics
from meshgate.app.admin.views import (
    Active,
    clusters_text,
    clusters_view,
    ended_view,
    routes_view,
    upgrade_view,
)
from meshgate.app.admin.whatif_page import WhatIfPage
from meshgate.app.gateway.from_settings import definition_of
from meshgate.app.gateway.upgrade import UpgradeRefusedError
from meshgate.app.logs import logs
from meshgate.app.settings.setting_table import TABLE
from meshgate.app.settings.setting_types import LOG_LEVELS
from meshgate.app.settings.settings import Origin
from meshgate.core.addresses import host_of

log = structlog.get_logger(module="meshgate.admin")

_ENVOYS_LEVELS: Final = {"warning": "warn", "critical": "error"}
PROBES: Final = ("/livez", "/readyz", "/ready")


def admin_routes(gateway: GatewayView, metrics: Metrics) -> Mapping[tuple[str, str], Handler]:
    pages, explaining, numbers = _Pages(gateway), ExplainPage(gateway), shared(metrics.response)
    readiness = shared(pages.readyz)
    dashboard = DashboardPage(gateway)
    return {
        ("GET", "/livez"): pages.livez,
        ("GET", "/readyz"): readiness,
        ("GET", "/ready"): readiness,
        ("GET", "/routes"): shared(pages.routes),
        ("GET", "/explain"): explaining.of_sni,
        ("GET", "/explain/name"): explaining.of_name,
        ("GET", "/whatif"): shared(WhatIfPage(gateway).answer, "node", "dc"),
        ("GET", "/names"): shared(explaining.names, "text"),
        ("GET", "/metrics"): numbers,
        ("GET", "/stats/prometheus"): numbers,
        ("GET", "/clusters"): shared(pages.clusters, "format"),
        ("GET", "/connections"): shared(pages.connections),
        ("GET", "/connections/ended"): shared(pages.ended),
        ("GET", "/config_dump"): shared(pages.config_dump),
        ("GET", "/server_info"): shared(pages.server_info),
        ("GET", "/logging"): pages.logging,
        ("POST", "/logging"): pages.set_logging,
        ("POST", "/drain"): pages.drain,
        ("POST", "/upgrade"): pages.upgrade,
        ("GET", "/openapi.json"): shared(pages.openapi),
        ("GET", "/dashboard/state"): shared(dashboard.answer, "sort", "filter"),
        ("GET", "/dashboard/history"): shared(dashboard.history),
        **static_routes(),
    }


class _Pages:
    def __init__(self, gateway: GatewayView) -> None:
        self._gateway = gateway

    def livez(self, _request: Request) -> Response:
        return Response(body=b"live\n")

    async def readyz(self, _request: Request) -> Response:
        gateway, age = self._gateway, self._gateway.from_disk
        detail = answers.Readiness(
            ready=gateway.ready,
            catalog_known=gateway.catalog_known,
            catalog_stale=gateway.catalog_stale,
            from_disk=age is not None,
            listening=gateway.listening,
            draining=gateway.draining,
            problems=gateway.problems(),
            age_seconds=age,
        )
        return json_response(detail, 200 if gateway.ready else 503)

    async def routes(self, _request: Request) -> Response:
        table = self._gateway.table()
        return await trio.to_thread.run_sync(lambda: json_response(routes_view(table)))

    async def clusters(self, request: Request) -> Response:
        form = request.query.get("format", "text")
        if form not in ("text", "json"):
            return error_response(400, "format is text or json")
        gateway, counters = self._gateway, await self._gateway.counters()
        table, facts = gateway.table(), gateway.endpoint_facts
        streams = (await gateway.connections()).listed
        active: Active = Counter((it.route, it.endpoint) for it in streams if it.route and it.endpoint)

        def made() -> Response:
            found = clusters_view(table, active, facts, counters)
            if form == "json":
                return json_response(found)
            return Response(200, clusters_text(found).encode())

        return await trio.to_thread.run_sync(made)

    async def connections(self, _request: Request) -> Response:
        names = await self._gateway.caller_names()
        return await trio.to_thread.run_sync(_connections, await self._gateway.connections(), names)

    async def ended(self, _request: Request) -> Response:
        gateway = self._gateway
        counters, names = await gateway.counters(), await gateway.caller_names()
        refusals, ended, losses = gateway.recent_refusals(), gateway.ended_streams(), gateway.worker_losses()
        return await trio.to_thread.run_sync(
            lambda: json_response(ended_view(gateway.started, counters, ended, refusals, losses, names))
        )

    async def config_dump(self, _request: Request) -> Response:
        gateway, now = self._gateway, trio.current_time()
        settings = gateway.settings
        make = partial(
            answers.ConfigDump,
            version=__version__,
            settings={
                row.name: answers.SettingValue(settings.shown(row.name) or None, settings.origin(row.name).value)
                for row in TABLE
            },
            # What is registered, or what an existing registration is looked up by.
            registration={"register": settings.register, **asdict(definition_of(settings))},
            limits=asdict(gateway.limits),
            problems=gateway.problems(),
            catalog_stale=gateway.catalog_stale,
        )
        table, watches = gateway.table(), gateway.watches()

        def made() -> Response:
            shown = answers.Table(**msgspec.structs.asdict(routes_view(table)), conflicts=[*table.conflicts])
            return json_response(make(watches=[_watch(it, now) for it in watches], table=shown))

        return await trio.to_thread.run_sync(made)

    async def server_info(self, _request: Request) -> Response:
        gateway, settings, sandbox = self._gateway, self._gateway.settings, support()
        seconds = gateway.uptime
        info = answers.ServerInfo(
            version=__version__,
            state="DRAINING" if gateway.draining else "LIVE" if gateway.ready else "PRE_INITIALIZING",
            uptime_seconds=round(seconds, 3),
            # Envoy's own names and shape for the same.
            uptime_current_epoch=f"{int(gateway.version_uptime)}s",
            uptime_all_epochs=f"{int(seconds)}s",
            node=answers.Node(settings.proxy_id, settings.service),
            command_line_options={
                row.flag.removeprefix("--"): settings.shown(row.name)
                for row in TABLE
                if row.flag and settings.origin(row.name) is Origin.FLAG
            },
            sandbox=answers.Sandbox(settings.sandbox, sandbox.seccomp, sandbox.landlock, sandbox.missing),
            problems=gateway.problems(),
            last_upgrade=upgrade_view(gateway.last_upgrade),
        )
        return json_response(info)

    async def upgrade(self, request: Request) -> Response:
        """Try the next version, and answer; then it goes on, which cuts this connection."""
        gateway = self._gateway
        try:
            upgrade = await gateway.try_upgrade(request.query.get("python", ""), request.peer)
        except UpgradeRefusedError as error:
            return error_response(409, str(error))
        return replace(json_response(upgrade_view(upgrade)), then=gateway.upgrade)

    def drain(self, request: Request) -> Response:
        log.info("asked to drain through the admin address", peer=request.peer)
        self._gateway.drain()
        return json_response(answers.Draining("DRAINING", self._gateway.settings.drain_timeout))

    def logging(self, _request: Request) -> Response:
        return json_response(answers.Logging(logs.level()))

    def set_logging(self, request: Request) -> Response:
        wanted = request.query.get("level", "" if request.query else logs.level())
        level = _ENVOYS_LEVELS.get(wanted.lower(), wanted.lower())
        if level not in LOG_LEVELS:
            return error_response(400, f"level is one of {', '.join(LOG_LEVELS)}")
        before = logs.level()
        if level != before:
            # Said at the more talkative of the two levels, where it is more likely to be seen.
            logs.set_level(min(before, level, key=LOG_LEVELS.index))
            log.info("log level changed through the admin address", level=level, before=before, peer=request.peer)
            logs.set_level(level)
            self._gateway.log_level_changed()
        return self.logging(request)

    async def openapi(self, _request: Request) -> Response:
        from meshgate.app.admin.openapi import openapi_document  # noqa: PLC0415 - a gateway does without until it is asked

        return Response(200, await trio.to_thread.run_sync(openapi_document), JSON)


def _connections(found: OpenStreams, names: Callable[[str], str]) -> Response:
    response = json_response(
        [
            answers.Stream(
                id=stream.id,
                client=stream.client,
                caller=names(host_of(stream.client)) or None,
                sni=stream.sni,
                route=stream.route,
                endpoint=stream.endpoint,
                state=stream.state,
                age_seconds=round(stream.age, 3),
                bytes_received=stream.bytes_received,
                bytes_sent=stream.bytes_sent,
                worker=stream.worker,
            )
            for stream in found.listed
        ]
    )
    silent = ",".join(map(str, found.silent))
    return replace(response, headers=((answers.WORKERS_SILENT, silent),)) if silent else response


def _watch(state: WatchState, now: float) -> answers.Watch:
    return answers.Watch(
        kind=state.key.kind,
        name=str(state.key),
        age_seconds=round(state.age(now), 3),
        answered=state.last_success is not None,
        index=state.index,
        error=state.error or None,
        status=state.status or None,
        failures=state.failures,
        failing_seconds=None if state.failing_since is None else round(now - state.failing_since, 3),
    )
