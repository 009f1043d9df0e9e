"""`/whatif`: what breaks if something goes away, and what ends or fills up soon.

The table is looked through in a thread. Consul is asked for three things that no watch brings; what it does not tell in
time is null, never a guess. Lists are cut at `MAX_ROWS` and say how long they are.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import trio

from meshgate.adapters.admin.http_server import Request, Response, error_response, json_response
from meshgate.adapters.admin.views import safe_text
from meshgate.adapters.consul.api import ConsulError
from meshgate.app.admin.gateway_view import GatewayView
from meshgate.app.admin.metrics import usage_of
from meshgate.core.prerequisites import OTHER_CONNECTIONS
from meshgate.core.routes import Route, RouteTable
from meshgate.core.text import printable
from meshgate.core.whatif import Left, Loss, WhatIf

MAX_ROWS: Final = 100
# Seconds that Consul gets: a person waits, and the rest of the answer does not depend on it.
_PATIENCE: Final = 3.0
# Seconds before an end, as the alerts have them, and the share of a limit, from which on they are near.
_ENDS_SOON: Final = {"CA root": 14 * 86400, "CA intermediate": 3 * 86400, "ACL token": 3 * 86400}
_NEAR: Final = 0.8


class WhatIfPage:
    def __init__(self, gateway: GatewayView) -> None:
        self._gateway = gateway

    async def answer(self, request: Request) -> Response:
        """All of it; with `node` or `dc` only that one among what may go away. `dc` says which datacenter's node."""
        gateway, node, datacenter = self._gateway, request.query.get("node", ""), request.query.get("dc", "")
        table, ejected = gateway.table(), frozenset(gateway.ejected())
        workers = [pid for pid, _ in gateway.workers() if pid]
        world, usages = await trio.to_thread.run_sync(
            lambda: (WhatIf(table, ejected), [usage_of(pid) for pid in workers])
        )
        if missing := _unknown(table, world, node, datacenter):
            return error_response(404, missing)
        active = (await gateway.counters()).active
        others, token, connections = await self._asked()
        state = {
            "datacenter": safe_text(table.datacenter),
            "destinations": len(table),
            "consul": self._without_consul(table),
            "ends": self._ends(token),
            "limits": self._limits(active, usages, connections),
        }
        return await trio.to_thread.run_sync(
            lambda: json_response(
                state
                | {
                    "broken": _listed([each.route for each in world.broken]),
                    "single": _listed([each.route for each in world.single]),
                    "gone": _gone(world, table.datacenter, node, datacenter),
                    "gateway": None if node or datacenter else _gateway(world, table, others, active),
                    "nodes": [] if node or datacenter else _nodes(world),
                }
            )
        )

    async def _asked(self) -> tuple[list[bool] | None, tuple[float | None] | None, int | None]:
        """What Consul says of other gateways (whether each is healthy), of the token's end and of its own limit."""
        gateway = self._gateway
        answers: dict[str, Any] = {}

        async def ask(what: str, question: Callable[[], Awaitable[object]]) -> None:
            try:
                answers[what] = await question()
            except ConsulError:
                return

        with trio.move_on_after(_PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, "others", gateway.other_gateways)
                nursery.start_soon(ask, "token", gateway.token_expiry)
                nursery.start_soon(ask, "connections", gateway.agent_connections)
        others = answers.get("others")
        healthy = None if others is None else [all(it.status != "critical" for it in each.checks) for each in others]
        return healthy, (answers["token"],) if "token" in answers else None, answers.get("connections")

    def _without_consul(self, table: RouteTable) -> dict[str, Any]:
        gateway, age = self._gateway, self._gateway.catalog_age
        return {
            "stale": gateway.catalog_stale,
            "age_seconds": None if age is None else round(age, 1),
            "restart": printable(gateway.unkept) or None,
            "cold": sum(route.stale for route in table),
        }

    def _ends(self, token: tuple[float | None] | None) -> list[dict[str, Any]]:
        root, intermediate = self._gateway.ca_expiries()
        now = time.time()
        rows = (
            ("CA root", root is not None, root),
            # Where there is none the root signs.
            *([] if intermediate is None else [("CA intermediate", True, intermediate)]),
            ("ACL token", token is not None, None if token is None else token[0]),
        )
        return [
            {
                "what": what,
                "known": known,
                "expires": at,
                "seconds": None if at is None else round(at - now),
                "near": at is not None and at - now < _ENDS_SOON[what],
            }
            for what, known, at in rows
        ]

    def _limits(self, active: int, usages: Sequence[dict[str, float]], allowed: int | None) -> list[dict[str, Any]]:
        gateway = self._gateway
        watches = gateway.settings.catalog_watches
        rows = [
            ("streams", active, gateway.limits.max_connections),
            ("watches", len(gateway.watches()), watches),
            # The most that it will ever take.
            ("agent connections", watches + OTHER_CONNECTIONS, allowed or None),
        ]
        bounded = [each for each in usages if "open_fds" in each and each.get("max_fds")]
        if bounded:
            worst = max(bounded, key=lambda each: each["open_fds"] / each["max_fds"])
            rows.append(("descriptors of a worker", int(worst["open_fds"]), int(worst["max_fds"])))
        return [
            {"what": what, "used": used, "limit": limit, "near": limit is not None and used >= _NEAR * limit}
            for what, used, limit in rows
        ]


def _unknown(table: RouteTable, world: WhatIf, node: str, datacenter: str) -> str:
    """Why a question cannot be answered; a name with a typing error in it must not read as "nothing breaks"."""
    places = {name.lower() for name in (table.datacenter, *world.datacenters)}
    if datacenter and datacenter.lower() not in places:
        return f"no gateway of datacenter {printable(datacenter)} is known here"
    where = datacenter or table.datacenter
    if node and (where.lower(), node.lower()) not in {(it.lower(), name.lower()) for it, name in world.nodes}:
        return f"no endpoint on node {printable(node)} of datacenter {printable(where)} is known here"
    return ""


def _gone(world: WhatIf, here: str, node: str, datacenter: str) -> list[dict[str, Any]]:
    """What was asked about; without a question each other datacenter's gateways."""
    if node:
        where = datacenter or here
        return [_loss("node", node, where, world.without_node(node, where))]
    return [
        _loss("gateways", name, name, world.without_gateways(name))
        for name in ([datacenter] if datacenter else world.datacenters[:MAX_ROWS])
    ]


def _loss(what: str, name: str, datacenter: str, loss: Loss) -> dict[str, Any]:
    return {
        "what": what,
        "name": safe_text(name),
        "datacenter": safe_text(datacenter),
        "cut": _listed([each.route for each in loss.cut]),
        "thinner": {
            "total": len(loss.thinner),
            "rows": [_row(each.route) | _counts(each) for each in loss.thinner[:MAX_ROWS]],
        },
    }


def _gateway(world: WhatIf, table: RouteTable, others: list[bool] | None, active: int) -> dict[str, Any]:
    """If this gateway goes away: its streams end; destinations are cut where no other gateway is healthy."""
    return {
        "streams": active,
        "others": None if others is None else {"total": len(others), "healthy": sum(others)},
        "cut": None if others is None else 0 if any(others) else len(table) - len(world.broken),
    }


def _nodes(world: WhatIf) -> list[dict[str, Any]]:
    return [
        {"datacenter": safe_text(datacenter), "node": safe_text(node), "cut": cut}
        for datacenter, node, cut in world.cutting_nodes()[:MAX_ROWS]
    ]


def _listed(routes: Sequence[Route]) -> dict[str, Any]:
    return {"total": len(routes), "rows": [_row(route) for route in routes[:MAX_ROWS]]}


def _row(route: Route) -> dict[str, Any]:
    return {"sni": safe_text(route.sni), "kind": route.kind, "destination": safe_text(route.destination)}


def _counts(each: Left) -> dict[str, int]:
    return {"now": each.now, "left": each.left}
