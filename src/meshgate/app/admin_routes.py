"""What the admin address answers: the gateway's state, as the contract says it."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import trio

from meshgate import __version__
from meshgate.adapters.admin.messages import Request, Response, error_response, json_response, text_response
from meshgate.adapters.admin.metrics import Destination, GatewayStats, Histogram, endpoint_counts
from meshgate.adapters.admin.server import Handler
from meshgate.adapters.admin.views import explain_view, routes_view
from meshgate.adapters.relay import CONNECT_BUCKETS
from meshgate.core.explain import Explanation, Step, explain
from meshgate.core.reasons import Reason
from meshgate.core.sni import ServiceSni, parse

from . import logs
from .admin_operator import operator_routes

if TYPE_CHECKING:
    from .gateway import Gateway


def admin_routes(gateway: "Gateway") -> Mapping[tuple[str, str], Handler]:
    """The handlers, by method and path."""
    pages = _Pages(gateway)
    return {
        ("GET", "/livez"): pages.livez,
        ("GET", "/readyz"): pages.readyz,
        ("GET", "/ready"): pages.readyz,
        ("GET", "/routes"): pages.routes,
        ("GET", "/explain"): pages.explain,
        ("GET", "/metrics"): pages.metrics,
        ("GET", "/stats/prometheus"): pages.metrics,
        **operator_routes(gateway),
    }


class _Pages:
    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway

    def livez(self, _request: Request) -> Response:
        return text_response("live")

    def readyz(self, _request: Request) -> Response:
        gateway = self._gateway
        detail = {
            "ready": gateway.ready,
            "catalog_known": gateway.table is not None,
            "catalog_stale": gateway.catalog_stale,
            **gateway.last_known.detail(),
            "listening": gateway.listening,
            "draining": gateway.draining,
            "problems": gateway.problems(),
        }
        return json_response(detail, 200 if gateway.ready else 503)

    def routes(self, _request: Request) -> Response:
        return json_response(routes_view(self._gateway.relay_table()))

    async def explain(self, request: Request) -> Response:
        name = request.query.get("sni")
        if name is None:
            return error_response(400, "say which name: /explain?sni=NAME")
        # Looking for similar names among thousands takes a tenth of a second, which streams should not wait for.
        snapshot = self._gateway.watcher.snapshot if self._gateway.watcher else None
        described = partial(explain, domain=snapshot.domain) if snapshot else explain
        explanation = await trio.to_thread.run_sync(described, self._gateway.relay_table(), name)
        return json_response(explain_view(await self._with_consul_facts(explanation)))

    async def metrics(self, request: Request) -> Response:
        return await self._gateway.metrics.response(await _stats(self._gateway), request)

    async def _with_consul_facts(self, explanation: Explanation) -> Explanation:
        """Add what only Consul can say: why a service is not in the table, and how old the table's data is."""
        watcher, table, last_known = self._gateway.watcher, self._gateway.relay_table(), self._gateway.last_known
        if last_known.from_disk:
            step = Step("catalog", f"from disk, {last_known.age:.0f} s old: Consul has not answered yet")
            return dataclasses.replace(explanation, steps=(*explanation.steps, step))
        if watcher is None:
            return dataclasses.replace(
                explanation, steps=(*explanation.steps, Step("catalog", "not known yet: Consul has not answered"))
            )
        steps = list(explanation.steps)
        asked = parse(explanation.sni.lower(), trust_domain=table.trust_domain)
        if (
            explanation.reason is Reason.UNKNOWN_SNI
            and isinstance(asked, ServiceSni)
            and (asked.datacenter, asked.partition) == (table.datacenter.lower(), table.partition)
        ):
            why = await watcher.why_missing(asked.service)
            if why is not None:
                steps.append(Step("consul", why))
        ages = [state.age(trio.current_time()) for state in watcher.states() if state.error]
        if ages:
            steps.append(
                Step("age of the data", f"{len(ages)} watches fail, the oldest answer is {max(ages):.0f} s old")
            )
        return dataclasses.replace(explanation, steps=tuple(steps))


async def _stats(gateway: "Gateway") -> GatewayStats:
    counters = await gateway.relay.counters()
    watcher = gateway.watcher
    states = [] if watcher is None else watcher.states()
    ages: dict[str, float] = {}
    for state in states:
        ages[state.kind] = max(ages.get(state.kind, 0.0), state.age(trio.current_time()))
    return GatewayStats(
        version=__version__,
        connections={Destination(kind, name): count for (kind, name), count in counters.connections.items()},
        connections_active=counters.active,
        bytes_received=counters.bytes_received,
        bytes_sent=counters.bytes_sent,
        refused=counters.refused,
        connect_seconds=Histogram(CONNECT_BUCKETS, tuple(counters.connect_counts), counters.connect_sum),
        watch_age_seconds=ages,
        consul_errors=gateway.client.errors,
        endpoints=endpoint_counts(gateway.relay_table()),
        catalog_stale=gateway.catalog_stale,
        ca_root_expiry=None if watcher is None else watcher.ca_root_expiry,
        ca_intermediate_expiry=None if watcher is None else watcher.ca_intermediate_expiry,
        draining=gateway.draining,
        ready=gateway.ready,
        routes=len(gateway.relay_table()),
        connections_limit=gateway.settings.max_connections,
        idle_timeouts=counters.idle_timeouts,
        internal_errors=counters.internal_errors,
        watches=Counter("failing" if state.error else "working" for state in states),
        token_problem=bool(gateway.client.token.problem) or any(state.status == "403" for state in states),
        log_lines_dropped=_lines_dropped(gateway),
    )


def _lines_dropped(gateway: "Gateway") -> dict[str, int]:
    dropped = {"process": logs.dropped()}
    if gateway.access_log is not None:
        dropped["access"] = gateway.access_log.dropped
    return dropped
