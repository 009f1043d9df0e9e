"""What the admin address answers: the gateway's state, as the contract says it."""

from collections.abc import Mapping
from functools import partial

import trio

from meshgate.adapters.admin import openapi
from meshgate.adapters.admin.messages import Request, Response, error_response, json_response, text_response
from meshgate.adapters.admin.server import Handler
from meshgate.adapters.admin.views import explain_view, routes_view
from meshgate.adapters.relay.pool import LEARN_SECONDS
from meshgate.app.admin.admin_operator import operator_routes
from meshgate.app.admin.consul_facts import ConsulFacts
from meshgate.app.admin.dashboard import dashboard_routes
from meshgate.app.admin.gateway_view import GatewayView
from meshgate.app.admin.metrics import Metrics
from meshgate.core.explain import explain


def admin_routes(gateway: GatewayView, metrics: Metrics) -> Mapping[tuple[str, str], Handler]:
    """The handlers, by method and path."""
    pages = _Pages(gateway)
    return {
        ("GET", "/livez"): pages.livez,
        ("GET", "/readyz"): pages.readyz,
        ("GET", "/ready"): pages.readyz,
        ("GET", "/routes"): pages.routes,
        ("GET", "/explain"): pages.explain,
        ("GET", "/metrics"): metrics.response,
        ("GET", "/stats/prometheus"): metrics.response,
        ("GET", openapi.PATH): openapi.OpenApiPage().answer,
        **operator_routes(gateway),
        **dashboard_routes(gateway),
    }


class _Pages:
    def __init__(self, gateway: GatewayView) -> None:
        self._gateway = gateway
        self._facts = ConsulFacts(gateway)

    def livez(self, _request: Request) -> Response:
        return text_response("live")

    def readyz(self, _request: Request) -> Response:
        gateway, age = self._gateway, self._gateway.from_disk
        detail = {
            "ready": gateway.ready,
            "catalog_known": gateway.catalog_known,
            "catalog_stale": gateway.catalog_stale,
            "from_disk": age is not None,
            **({} if age is None else {"age_seconds": round(age, 1)}),
            "listening": gateway.listening,
            "draining": gateway.draining,
            "problems": gateway.problems(),
        }
        return json_response(detail, 200 if gateway.ready else 503)

    def routes(self, _request: Request) -> Response:
        return json_response(routes_view(self._gateway.table()))

    async def explain(self, request: Request) -> Response:
        name = request.query.get("sni")
        if name is None:
            return error_response(400, "say which name: /explain?sni=NAME")
        # What a stream of this name would wait for: it is the answer that such a stream would get.
        with trio.move_on_after(LEARN_SECONDS):
            await self._gateway.look_up(name)
        # Looking for similar names among thousands takes a tenth of a second, which streams should not wait for.
        domain = self._gateway.domain
        described = explain if domain is None else partial(explain, domain=domain)
        explanation = await trio.to_thread.run_sync(described, self._gateway.table(), name)
        return json_response(explain_view(await self._facts.added_to(explanation)))
