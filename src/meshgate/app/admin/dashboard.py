"""What the dashboard asks: the gateway's whole world in one answer, of bounded size."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, get_args

import trio

from meshgate import __version__
from meshgate.adapters.admin.dashboard import FOLDER, page_routes
from meshgate.adapters.admin.dashboard_view import (
    MAX_TEXT,
    Sort,
    destinations_view,
    places_view,
    refused_view,
    totals_view,
)
from meshgate.adapters.admin.messages import Request, Response, error_response, json_response
from meshgate.adapters.admin.server import Handler
from meshgate.adapters.admin.views import safe_text
from meshgate.adapters.consul import WatchState
from meshgate.adapters.relay import CONNECT_BUCKETS
from meshgate.app.admin.dashboard_sampler import Sampler
from meshgate.app.settings.setting_types import HostPort

if TYPE_CHECKING:
    from meshgate.app.gateway.gateway import Gateway

_MAX_PROBLEMS: Final = 10
_SORTS: Final[dict[str, Sort]] = {sort: sort for sort in get_args(Sort)}


def dashboard_routes(gateway: "Gateway") -> Mapping[tuple[str, str], Handler]:
    """The page, its files, and what it asks."""
    return {**page_routes(), ("GET", f"{FOLDER}/state"): _State(gateway).answer}


class _State:
    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._started = time.time()
        self._since = time.monotonic()
        self._sampler = Sampler(gateway.relay.counters, gateway.relay.connections)

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
        table, wanted = gateway.relay_table(), request.query.get("filter", "")
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
        table, ages = gateway.relay_table(), gateway.last_known.detail()
        return {
            "service": safe_text(settings.service),
            "id": safe_text(settings.proxy_id),
            "datacenter": safe_text(table.datacenter),
            "partition": safe_text(table.partition),
            "trust_domain": safe_text(table.trust_domain),
            "version": __version__,
            "now": time.time(),
            "started": self._started,
            "uptime_seconds": time.monotonic() - self._since,
            "state": "draining" if gateway.draining else "ready" if gateway.ready else "starting",
            "stale": gateway.catalog_stale,
            "from_disk_seconds": ages.get("age_seconds"),
            "limit": gateway.limits.max_connections,
            "listeners": [
                {"name": safe_text(bind.name), "address": str(HostPort(bind.address, bind.port))}
                for bind in gateway.registration.listeners.addresses
            ],
            "workers": [{"pid": pid or None, "open": active} for pid, active in gateway.relay.loads],
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
            for at, refused in reversed(self._gateway.observer.recent)
        ]

    def _consul(self) -> dict[str, Any]:
        gateway, now = self._gateway, trio.current_time()
        watcher = gateway.watcher
        kinds: dict[str, list[WatchState]] = {}
        for state in () if watcher is None else watcher.states():
            kinds.setdefault(state.kind, []).append(state)
        return {
            "known": watcher is not None,
            "watches": [_watches(kind, states, now) for kind, states in sorted(kinds.items())],
            "errors": dict(sorted(gateway.client.errors.items())),
            "ca_root_expiry": None if watcher is None else watcher.ca_root_expiry,
            "ca_intermediate_expiry": None if watcher is None else watcher.ca_intermediate_expiry,
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
