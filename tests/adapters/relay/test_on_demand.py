"""Streams that wait for the lookup of their name: who waits, what is asked, and where they go then."""

import pytest

from meshgate.adapters.relay import Limits, on_demand as on_demand_module
from meshgate.core.reasons import Reason
from meshgate.core.routes import Route, RouteKind, RouteTable

from .streams import (
    TRUST_DOMAIN,
    WEB,
    backend,
    echo,
    endpoint,
    hello_for,
    named,
    running,
    table_of,
)
from .test_pool import UNRECOGNIZED_NAME
from .waiters import HELLO, answer, refusal, until_over, waiter

ELSEWHERE = f"web.default.dc2.internal.{TRUST_DOMAIN}"


async def test_stream_of_a_cold_route_waits_and_goes_where_the_table_says_by_then() -> None:
    asked: list[str] = []
    async with (
        backend(named(b"old")) as old,
        backend(named(b"new")) as new,
        running({}, ask=asked.append) as it,
    ):
        it.relay.install(table_of({WEB: [endpoint(old)]}, stale=[WEB]))
        async with await waiter(it) as client:
            assert asked == [WEB]
            (stream,) = it.relay.connections()
            assert (stream.state, stream.sni, stream.route, stream.endpoint) == ("connecting", WEB, None, None)
            it.relay.install(table_of({WEB: [endpoint(new)]}))
            await it.relay.lookup_done(WEB)
            assert await answer(client, 3) == b"new"
            assert it.counters().connections == {(RouteKind.SERVICE, "web"): 1}
        await until_over(it)
        assert (it.refused, asked) == ([], [WEB])


async def test_stream_of_an_unknown_name_is_served_once_the_table_has_it() -> None:
    asked: list[str] = []
    async with backend(echo) as port, running({}, ask=asked.append) as it:
        async with await waiter(it) as client:
            it.relay.install(table_of({WEB: [endpoint(port)]}, stale=[WEB]))
            await it.relay.lookup_done(WEB)
            assert await answer(client, len(HELLO)) == HELLO
        assert (it.refused, asked) == ([], [WEB])
        await until_over(it)


async def test_stream_of_a_name_that_nobody_has_is_refused_when_that_is_known() -> None:
    async with running({}, ask=lambda _: None) as it:
        async with await waiter(it) as client:
            assert it.refused == []
            await it.relay.lookup_done(WEB)
            assert await refusal(client) == UNRECOGNIZED_NAME
        assert [(refused.reason, refused.server_name) for refused in it.refused] == [(Reason.UNKNOWN_SNI, WEB)]
        await until_over(it)


async def test_route_that_vanishes_while_its_stream_waits_is_not_used() -> None:
    async with backend(echo) as port, running({}, ask=lambda _: None) as it:
        it.relay.install(table_of({WEB: [endpoint(port)]}, stale=[WEB]))
        async with await waiter(it) as client:
            it.relay.install(table_of({}))
            await it.relay.lookup_done(WEB)
            assert await refusal(client) == UNRECOGNIZED_NAME
        await until_over(it)


async def test_case_of_a_name_makes_no_other_question() -> None:
    asked: list[str] = []
    async with backend(echo) as port, running({}, ask=asked.append) as it:
        it.relay.install(table_of({WEB: [endpoint(port)]}, stale=[WEB]))
        clients = [await waiter(it, hello_for(name)) for name in (WEB, WEB.upper(), WEB.title())]
        assert asked == [WEB]
        await it.relay.lookup_done(WEB)
        for client in clients:
            await answer(client, 1)
            await client.aclose()
        await until_over(it)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(ELSEWHERE, id="another datacenter"),
        pytest.param("web.default.dc1.internal.99999999-2222-3333-4444-555555555555.consul", id="another trust domain"),
        pytest.param(f"web.default.p1.dc1.internal-v1.{TRUST_DOMAIN}", id="another partition"),
        pytest.param(f"web.default.default.dc1.internal-v1.{TRUST_DOMAIN}", id="nothing builds this"),
        pytest.param(f"web.default.dc1.query.{TRUST_DOMAIN}", id="a prepared query"),
        pytest.param(f"dc1.internal.{TRUST_DOMAIN}", id="the datacenter itself"),
        pytest.param(f"a.b.c.d.e.dc1.internal.{TRUST_DOMAIN}", id="too many labels"),
        pytest.param("server.dc1.consul", id="the servers"),
        pytest.param("example.com", id="garbage"),
    ],
)
async def test_name_that_no_service_here_could_have_is_refused_at_once(name: str) -> None:
    asked: list[str] = []
    async with running({}, ask=asked.append) as it:
        async with await it.dial() as client:
            await client.send_all(hello_for(name))
            assert await refusal(client) == UNRECOGNIZED_NAME
        assert asked == []
        await until_over(it)


async def test_routes_that_are_not_cold_wait_for_nothing() -> None:
    asked: list[str] = []
    async with backend(echo) as port, running({WEB: [endpoint(port)]}, ask=asked.append) as it:
        to_dc2 = Route(f"dc2.internal.{TRUST_DOMAIN}", RouteKind.DATACENTER, "dc2", (endpoint(port),), suffix=True)
        it.relay.install(RouteTable.of("dc1", TRUST_DOMAIN, "default", iter([*it.relay.context.table, to_dc2])))
        for name in (WEB, ELSEWHERE):
            async with await it.dial() as client:
                await client.send_all(hello_for(name))
                await answer(client, 1)
        assert asked == []


async def test_where_nobody_can_be_asked_nobody_waits() -> None:
    async with backend(echo) as port, running({}) as it:
        it.relay.install(table_of({WEB: [endpoint(port)]}, stale=[WEB]))
        async with await it.dial() as client:
            await client.send_all(HELLO)
            assert await answer(client, len(HELLO)) == HELLO
        async with await it.dial() as client:
            await client.send_all(hello_for(f"wbe.default.dc1.internal.{TRUST_DOMAIN}"))
            assert await refusal(client) == UNRECOGNIZED_NAME


async def test_stream_whose_question_is_never_answered_is_placed_by_what_is_known() -> None:
    async with backend(named(b"known")) as port, running({}, ask=lambda _: None, patience=0.2) as it:
        it.relay.install(table_of({WEB: [endpoint(port)]}, stale=[WEB]))
        async with await it.dial() as client:
            await client.send_all(HELLO)
            assert await answer(client, 5) == b"known"
        async with await it.dial() as client:
            await client.send_all(hello_for(f"wbe.default.dc1.internal.{TRUST_DOMAIN}"))
            assert await refusal(client) == UNRECOGNIZED_NAME
        await until_over(it)
        # An answer that comes too late finds nobody.
        await it.relay.lookup_done(WEB)
        assert it.counters().connections == {(RouteKind.SERVICE, "web"): 1}


async def test_question_that_was_not_answered_is_put_again_by_a_later_stream() -> None:
    asked: list[str] = []
    async with backend(echo) as port, running({}, ask=asked.append, patience=0.2) as it:
        it.relay.install(table_of({WEB: [endpoint(port)]}, stale=[WEB]))
        for count in range(1, 4):
            async with await it.dial() as client:
                await client.send_all(HELLO)
                assert await answer(client, len(HELLO)) == HELLO
            assert asked == [WEB] * count
        await until_over(it)


async def test_answer_that_comes_after_the_question_was_put_again_is_for_all_who_wait() -> None:
    asked: list[str] = []
    async with backend(echo) as port, running({}, ask=asked.append) as it:
        it.relay.install(table_of({WEB: [endpoint(port)]}, stale=[WEB]))
        clients = [await waiter(it)]
        it.relay.context.on_demand._questions[WEB].asked -= 61  # As after a minute.
        clients.append(await waiter(it))
        assert asked == [WEB, WEB]
        await it.relay.lookup_done(WEB)
        for client in clients:
            assert await answer(client, len(HELLO)) == HELLO
            await client.aclose()
        await until_over(it)


async def test_one_question_serves_many_streams_and_is_not_put_again_at_once() -> None:
    asked: list[str] = []
    async with backend(echo) as port, running({}, ask=asked.append) as it:
        it.relay.install(table_of({WEB: [endpoint(port)]}, stale=[WEB]))
        clients = [await waiter(it) for _ in range(30)]
        assert asked == [WEB]
        await it.relay.lookup_done(WEB)
        # It is cold still: the lookup was of no use, but is as good as the next one would be.
        clients.append(await it.dial())
        await clients[-1].send_all(HELLO)
        for client in clients:
            assert await answer(client, len(HELLO)) == HELLO
            await client.aclose()
        assert asked == [WEB]
        it.relay.context.on_demand.again = 0.0
        late = await waiter(it)
        assert asked == [WEB, WEB]
        await late.aclose()
        await it.relay.lookup_done(WEB)
        await until_over(it)


async def test_stream_that_may_not_ask_is_served_as_soon_as_the_table_has_its_route(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(on_demand_module, "OF_A_CLIENT", (1e-6, 3))
    made_up = [f"made-up-{number}.default.dc1.internal.{TRUST_DOMAIN}" for number in range(10)]
    asked: list[str] = []
    async with backend(echo) as port, running({}, ask=asked.append) as it:
        strangers = [await waiter(it, hello_for(name)) for name in made_up]
        client = await waiter(it)
        assert asked == made_up[:3]
        it.relay.install(table_of({WEB: [endpoint(port)]}))
        await it.relay.appeared([WEB, "another"])
        assert await answer(client, len(HELLO)) == HELLO
        assert it.refused == []
        for name in asked:
            await it.relay.lookup_done(name)
        for stranger in strangers[:3]:
            assert await refusal(stranger) == UNRECOGNIZED_NAME
        for each in (client, *strangers):
            await each.aclose()
        await it.relay.ask_nobody()
        await until_over(it)


async def test_route_that_appears_is_no_answer_to_who_waits_for_newer_endpoints() -> None:
    async with (
        backend(named(b"old")) as old,
        backend(named(b"new")) as new,
        running({}, ask=lambda _: None) as it,
    ):
        it.relay.install(table_of({WEB: [endpoint(old)]}, stale=[WEB]))
        async with await waiter(it) as client:
            await it.relay.appeared([WEB])
            it.relay.install(table_of({WEB: [endpoint(new)]}))
            await it.relay.lookup_done(WEB)
            assert await answer(client, 3) == b"new"
        await until_over(it)


async def test_streams_of_names_that_nobody_knows_go_first_when_slots_are_short() -> None:
    limits = Limits(max_connections=4)
    async with backend(echo) as port, running({WEB: [endpoint(port)]}, limits, ask=lambda _: None) as it:
        names = [f"made-up-{number}.default.dc1.internal.{TRUST_DOMAIN}" for number in range(4)]
        strangers = [await waiter(it, hello_for(name)) for name in names]
        async with await it.dial() as client:
            await client.send_all(HELLO)
            assert await answer(client, len(HELLO)) == HELLO
        assert [(refused.reason, refused.server_name) for refused in it.refused] == [(Reason.MAX_CONNECTIONS, names[0])]
        for stranger in strangers:
            await stranger.aclose()
        await it.relay.ask_nobody()
        await until_over(it)


async def test_when_nobody_can_be_asked_any_more_who_waits_is_placed_and_nobody_waits() -> None:
    asked: list[str] = []
    unknown = f"wbe.default.dc1.internal.{TRUST_DOMAIN}"
    async with backend(echo) as port, running({}, ask=asked.append) as it:
        it.relay.install(table_of({WEB: [endpoint(port)]}, stale=[WEB]))
        async with await waiter(it) as served, await waiter(it, hello_for(unknown)) as refused:
            await it.relay.ask_nobody()
            assert await answer(served, len(HELLO)) == HELLO
            assert await refusal(refused) == UNRECOGNIZED_NAME
        it.relay.context.on_demand._done.clear()
        async with await it.dial() as client:
            await client.send_all(HELLO)
            assert await answer(client, len(HELLO)) == HELLO
        assert asked == [WEB, unknown]
        await until_over(it)
