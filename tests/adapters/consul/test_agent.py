from itertools import pairwise

import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from meshgate.adapters.consul import WatchRegistry, wait_for_agent
from meshgate.adapters.consul.api import AgentFacts

from .model import Model, unreachable


async def test_an_agent_that_is_there_is_answered_for_at_once(autojump_clock: MockClock) -> None:
    registry = WatchRegistry()
    assert (await wait_for_agent(Model(), registry)).datacenter == "dc1"
    assert registry.states() == []


async def test_facts_that_are_limited_are_logged(autojump_clock: MockClock) -> None:
    facts = AgentFacts("dc1", limited="token may not read every agent")
    with capture_logs() as logs:
        assert await wait_for_agent(Model(facts=facts), WatchRegistry()) == facts
    assert [(entry["log_level"], entry["problem"]) for entry in logs] == [("warning", facts.limited)]


async def test_the_registry_learns_whether_the_agent_is_streaming(autojump_clock: MockClock) -> None:
    registry = WatchRegistry()
    await wait_for_agent(Model(facts=AgentFacts("dc1", streaming=True)), registry)
    assert registry.streaming
    await wait_for_agent(Model(facts=AgentFacts("dc1")), registry)
    assert not registry.streaming


async def test_an_agent_that_starts_late_is_waited_for(autojump_clock: MockClock) -> None:
    model, registry = Model(down=unreachable()), WatchRegistry()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for_agent, model, registry)
        await trio.sleep(100)
        (state,) = registry.states()
        assert (state.key.kind, state.status) == ("agent", "unreachable")
        model.fail(None)
        with trio.fail_after(31):
            while registry.states():
                await trio.sleep(0.1)


async def test_an_outage_is_told_again_each_minute_and_then_each_ten(autojump_clock: MockClock) -> None:
    model, registry = Model(down=unreachable()), WatchRegistry()
    with capture_logs() as logs, trio.move_on_after(3600):
        await wait_for_agent(model, registry)
    first, *again = logs
    assert (first["event"], first["error"]) == ("cannot read from Consul yet, retrying", str(unreachable()))
    ages = [entry["failing_for"] for entry in again]
    apart = [later - earlier for earlier, later in pairwise([0, *ages])]
    often = sum(age <= 600 for age in ages)
    assert often >= 6
    assert all(60 <= each <= 90 for each in apart[:often])
    assert all(600 <= each <= 630 for each in apart[often:])
    assert len(again) - often >= 4
    assert {entry["error"] for entry in again} == {str(unreachable())}
    assert all(0 <= int(entry["next_try"].split()[1]) <= 30 for entry in again)


async def test_another_outage_begins_anew(autojump_clock: MockClock) -> None:
    model, registry = Model(down=unreachable()), WatchRegistry()
    with capture_logs() as logs:
        for _ in range(2):
            model.fail(unreachable())
            with trio.move_on_after(50):
                await wait_for_agent(model, registry)
    assert [entry["event"] for entry in logs] == ["cannot read from Consul yet, retrying"] * 2
