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
