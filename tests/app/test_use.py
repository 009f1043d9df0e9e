"""Which services are told to be in use."""

from dataclasses import dataclass, field

import trio
from trio.testing import MockClock

from meshgate.adapters.relay.counters import Counters
from meshgate.app.gateway.use import LOOK, tell_use
from meshgate.core.reasons import Reason
from meshgate.core.routes import RouteKind


@dataclass
class Relay:
    totals: Counters = field(default_factory=Counters)


async def test_services_are_named_when_streams_were_sent_to_them_or_could_not_be(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    relay, told = Relay(), []
    nursery.start_soon(tell_use, relay, lambda services: told.append(set(services)))
    counters = relay.totals
    await trio.sleep(3 * LOOK)
    assert told == []
    counters.count_routed(RouteKind.SERVICE, "web.v2")
    counters.count_routed(RouteKind.SUBSET, "v1.api.internal")
    await trio.sleep(2 * LOOK)
    assert told == [{"web.v2", "api.internal"}]
    counters.count_routed(RouteKind.SERVICE, "web.v2")
    await trio.sleep(2 * LOOK)
    assert told[1:] == [{"web.v2"}]
    counters.failed[(RouteKind.SERVICE, "db", Reason.CONNECT_FAILED)] = 1
    await trio.sleep(2 * LOOK)
    assert told[2:] == [{"db"}]
    await trio.sleep(10 * LOOK)
    assert len(told) == 3
    nursery.cancel_scope.cancel()


async def test_services_of_namespaces_and_those_exported_to_peers_are_named_without_either(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    relay, told = Relay(), []
    nursery.start_soon(tell_use, relay, lambda services: told.append(set(services)))
    relay.totals.count_routed(RouteKind.SERVICE, "team/web")
    relay.totals.count_routed(RouteKind.SUBSET, "team/v1.api")
    relay.totals.count_routed(RouteKind.PEER_EXPORT, "team/db to peer east")
    await trio.sleep(2 * LOOK)
    assert told == [{"web", "api", "db"}]
    nursery.cancel_scope.cancel()
