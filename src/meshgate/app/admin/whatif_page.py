"""`/whatif`: what breaks if something goes away, and what ends or fills up soon.

The table is looked through in a thread. Consul is asked for three things that no watch brings; what it does not tell in
time is null, never a guess. Lists are cut at `MAX_ROWS` and say how long they are.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

import trio

from meshgate.adapters.admin.http_server import Request, Response, error_response, json_response
from meshgate.adapters.consul.api import ConsulError
from meshgate.app.admin import answers
from meshgate.app.admin.gateway_view import GatewayView
from meshgate.app.admin.metrics import usage_of
from meshgate.core.prerequisites import OTHER_CONNECTIONS
from meshgate.core.routes import RouteTable
from meshgate.core.text import printable
from meshgate.core.whatif import Left, WhatIf

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
        table, ejected, asked = gateway.table(), frozenset(gateway.ejected()), bool(node or datacenter)
        workers = [pid for pid, _ in gateway.workers() if pid]
        world, usages = await trio.to_thread.run_sync(
            lambda: (WhatIf(table, ejected), [usage_of(pid) for pid in workers])
        )
        if missing := _unknown(table, world, node, datacenter):
            return error_response(404, missing)
        active = (await gateway.counters()).active
        others, token, connections = await self._asked()
        make = partial(
            answers.WhatIf,
            datacenter=table.datacenter,
            destinations=len(table),
            consul=answers.ConsulGone(
                stale=gateway.catalog_stale,
                age_seconds=gateway.catalog_age,
                restart=printable(gateway.unkept) or None,
                cold=sum(route.stale for route in table),
            ),
            ends=self._ends(token),
            limits=self._limits(active, usages, connections),
        )
        return await trio.to_thread.run_sync(
            lambda: json_response(
                make(
                    broken=_listed(world.broken),
                    single=_listed(world.single),
                    gone=_gone(world, table.datacenter, node, datacenter),
                    gateway=None if asked else _gateway(world, table, others, active),
                    nodes=[] if asked else [answers.NodeGone(*it) for it in world.cutting_nodes()[:MAX_ROWS]],
                )
            )
        )

    async def _asked(self) -> tuple[list[bool] | None, tuple[float | None] | None, int | None]:
        """What Consul says of other gateways (whether each is healthy), of the token's end and of its own limit."""
        gateway = self._gateway
        told: dict[str, Any] = {}

        async def ask(what: str, question: Callable[[], Awaitable[object]]) -> None:
            try:
                told[what] = await question()
            except ConsulError:
                return

        with trio.move_on_after(_PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, "others", gateway.other_gateways)
                nursery.start_soon(ask, "token", gateway.token_expiry)
                nursery.start_soon(ask, "connections", gateway.agent_connections)
        others = told.get("others")
        healthy = None if others is None else [all(it.status != "critical" for it in each.checks) for each in others]
        return healthy, (told["token"],) if "token" in told else None, told.get("connections")

    def _ends(self, token: tuple[float | None] | None) -> list[answers.End]:
        root, intermediate = self._gateway.ca_expiries()
        found = [_end("CA root", root, known=root is not None)]
        # Where there is no intermediate the root signs.
        found += [] if intermediate is None else [_end("CA intermediate", intermediate)]
        return [*found, _end("ACL token", None if token is None else token[0], known=token is not None)]

    def _limits(self, active: int, usages: Sequence[dict[str, float]], allowed: int | None) -> list[answers.Limit]:
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
        return [answers.Limit(what, used, most, most is not None and used >= _NEAR * most) for what, used, most in rows]


def _end(what: str, at: float | None, *, known: bool = True) -> answers.End:
    seconds = None if at is None else round(at - time.time())
    return answers.End(what, known, at, seconds, seconds is not None and seconds < _ENDS_SOON[what])


def _unknown(table: RouteTable, world: WhatIf, node: str, datacenter: str) -> str:
    """Why a question cannot be answered; a name with a typing error in it must not read as "nothing breaks"."""
    places = {name.lower() for name in (table.datacenter, *world.datacenters)}
    if datacenter and datacenter.lower() not in places:
        return f"no gateway of datacenter {printable(datacenter)} is known here"
    where = datacenter or table.datacenter
    if node and (where.lower(), node.lower()) not in {(it.lower(), name.lower()) for it, name in world.nodes}:
        return f"no endpoint on node {printable(node)} of datacenter {printable(where)} is known here"
    return ""


def _gone(world: WhatIf, here: str, node: str, datacenter: str) -> list[answers.Gone]:
    """What was asked about; without a question each other datacenter's gateways."""
    if node:
        where = datacenter or here
        loss = world.without_node(node, where)
        return [answers.Gone("node", node, where, _listed(loss.cut), _listed(loss.thinner, counts=True))]
    return [
        answers.Gone("gateways", name, name, _listed(loss.cut), _listed(loss.thinner, counts=True))
        for name in ([datacenter] if datacenter else world.datacenters[:MAX_ROWS])
        for loss in (world.without_gateways(name),)
    ]


def _gateway(world: WhatIf, table: RouteTable, others: list[bool] | None, active: int) -> answers.GatewayGone:
    """If this gateway goes away: its streams end; destinations are cut where no other gateway is healthy."""
    if others is None:
        return answers.GatewayGone(active, None, None)
    cut = 0 if any(others) else len(table) - len(world.broken)
    return answers.GatewayGone(active, answers.OtherGateways(len(others), sum(others)), cut)


def _listed(found: Sequence[Left], *, counts: bool = False) -> answers.Listing:
    rows = [
        answers.Concerned(route.sni, route.kind, route.destination, *((each.now, each.left) if counts else ()))
        for each in found[:MAX_ROWS]
        for route in (each.route,)
    ]
    return answers.Listing(len(found), rows)
