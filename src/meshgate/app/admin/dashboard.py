"""What the dashboard asks: the gateway's whole world in one answer, of bounded size."""

import time
from typing import Any, Final, get_args

import trio

from meshgate import __version__
from meshgate.adapters.admin.dashboard_view import (
    MAX_TEXT,
    Sort,
    destinations_view,
    places_view,
    refused_view,
    totals_view,
)
from meshgate.adapters.admin.http_server import Request, Response, error_response, json_response
from meshgate.adapters.admin.views import safe_text
from meshgate.adapters.consul import WatchState
from meshgate.adapters.relay import CONNECT_BUCKETS
from meshgate.app.admin.dashboard_sampler import Sampler
from meshgate.app.admin.gateway_view import GatewayView
from meshgate.core.host_port import HostPort

_MAX_PROBLEMS: Final = 10
_SORTS: Final[dict[str, Sort]] = {sort: sort for sort in get_args(Sort)}


class DashboardState:
    """Answers `/dashboard/state`."""

    def __init__(self, gateway: GatewayView) -> None:
        self._gateway = gateway
        self._sampler = Sampler(gateway.counters, gateway.connections)

    async def answer(self, request: Request) -> Response:
        """The state. `filter` and `sort` choose which destinations are in it."""
        sort = _SORTS.get(request.query.get("sort", "busy"))
        if sort is None:
            return error_response(400, f"sort is one of {', '.join(_SORTS)}")
        gateway = self._gateway
        span = await self._sampler.span()
        state = {
            "gateway": self._identity(),
            "problems": [safe_text(line) for line in gateway.problems()[:_MAX_PROBLEMS]],
            "totals": totals_view(span),
            "connect_bounds": CONNECT_BUCKETS,
            "refused": {"reasons": refused_view(span), "recent": self._recent()},
            "consul": self._consul(),
        }
        table, wanted = gateway.table(), request.query.get("filter", "")
        # Thousands of destinations take tens of milliseconds, which others should not wait for.
        return await trio.to_thread.run_sync(
            lambda: json_response(
                state
                | {
                    "places": places_view(table, span),
                    "destinations": destinations_view(table, span, wanted=wanted, sort=sort),
                }
            )
        )

    def _identity(self) -> dict[str, Any]:
        gateway, settings = self._gateway, self._gateway.settings
        table, from_disk = gateway.table(), gateway.from_disk
        return {
            "service": safe_text(settings.service),
            "id": safe_text(settings.proxy_id),
            "datacenter": safe_text(table.datacenter),
            "partition": safe_text(table.partition),
            "trust_domain": safe_text(table.trust_domain),
            "version": __version__,
            "now": time.time(),
            "started": gateway.started,
            "uptime_seconds": gateway.uptime,
            "state": "draining" if gateway.draining else "ready" if gateway.ready else "starting",
            "stale": gateway.catalog_stale,
            "from_disk_seconds": None if from_disk is None else round(from_disk, 1),
            "limit": gateway.limits.max_connections,
            "listeners": [
                {"name": safe_text(bind.name), "address": str(HostPort(bind.address, bind.port))}
                for bind in gateway.listeners()
            ],
            "workers": [{"pid": pid or None, "open": active} for pid, active in gateway.workers()],
        }

    def _recent(self) -> list[dict[str, Any]]:
        """The refusals of late, the newest first."""
        return [
            {
                "time": at,
                "reason": refused.reason.value,
                "sni": None if refused.server_name is None else safe_text(refused.server_name[:MAX_TEXT]),
                "client": safe_text(refused.client),
                "detail": safe_text(refused.detail[:MAX_TEXT]),
            }
            for at, refused in self._gateway.recent_refusals()
        ]

    def _consul(self) -> dict[str, Any]:
        gateway, now = self._gateway, trio.current_time()
        root_expiry, intermediate_expiry = gateway.ca_expiries()
        kinds: dict[str, list[WatchState]] = {}
        for state in gateway.watches():
            kinds.setdefault(state.key.kind, []).append(state)
        return {
            "known": gateway.consul_found,
            "watches": [_watches(kind, states, now) for kind, states in sorted(kinds.items())],
            "errors": dict(sorted(gateway.consul_errors().items())),
            "ca_root_expiry": root_expiry,
            "ca_intermediate_expiry": intermediate_expiry,
        }


def _watches(kind: str, states: list[WatchState], now: float) -> dict[str, Any]:
    """All watches of a kind as one line: how many, the age of the oldest answer, and what is wrong with the first."""
    failing = [state for state in states if state.error]
    return {
        "kind": kind,
        "count": len(states),
        "failing": len(failing),
        "age_seconds": round(max(state.age(now) for state in states), 1),
        "error": safe_text(failing[0].error[:MAX_TEXT]) if failing else None,
    }
