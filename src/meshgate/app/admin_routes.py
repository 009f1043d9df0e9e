"""What the admin address answers: the gateway's state, as the contract says it."""

import dataclasses
from collections.abc import Mapping
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
    }


class _Pages:
    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway

    def livez(self, _request: Request) -> Response:
        return text_response("live")

    def readyz(self, _request: Request) -> Response:
        gateway = self._gateway
        watcher = gateway.watcher
        detail = {
            "ready": gateway.ready,
            "catalog_known": gateway.table is not None,
            "catalog_stale": watcher is not None and watcher.stale,
            "listening": gateway.listening,
            "draining": gateway.draining,
            "problems": [] if watcher is None else watcher.problems(),
        }
        return json_response(detail, 200 if gateway.ready else 503)

    def routes(self, _request: Request) -> Response:
        return json_response(routes_view(self._gateway.relay_table()))

    async def explain(self, request: Request) -> Response:
        name = request.query.get("sni")
        if name is None:
            return error_response(400, "say which name: /explain?sni=NAME")
        # Looking for similar names among thousands takes a tenth of a second, which streams should not wait for.
        explanation = await trio.to_thread.run_sync(explain, self._gateway.relay_table(), name)
        return json_response(explain_view(await self._with_consul_facts(explanation)))

    async def metrics(self, request: Request) -> Response:
        return await self._gateway.metrics.response(_stats(self._gateway), request)

    async def _with_consul_facts(self, explanation: Explanation) -> Explanation:
        """Add what only Consul can say: why a service is not in the table, and how old the table's data is."""
        watcher, table = self._gateway.watcher, self._gateway.relay_table()
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


def _stats(gateway: "Gateway") -> GatewayStats:
    counters = gateway.relay.counters()
    watcher = gateway.watcher
    ages: dict[str, float] = {}
    for state in watcher.states() if watcher is not None else ():
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
        catalog_stale=watcher is not None and watcher.stale,
        ca_root_expiry=None if watcher is None else watcher.ca_root_expiry,
        draining=gateway.draining,
    )
