from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from meshgate.adapters.consul.lookups import Explainer

from .model import Model, sidecar, unreachable

WEB = sidecar("web")


async def test_a_service_that_is_there_is_not_missing(autojump_clock: MockClock) -> None:
    assert await Explainer(Model(connect={"web": (WEB,)})).why_missing("web") is None


async def test_a_service_that_the_token_may_not_read_names_the_rule(autojump_clock: MockClock) -> None:
    model = Model(connect={"web": (WEB,)}, denied={"web"})
    answer = await Explainer(model).why_missing("web")
    assert answer is not None
    assert answer.startswith('the token may not read service "web": add service "web" { policy = "read" }')


async def test_a_service_that_does_not_exist(autojump_clock: MockClock) -> None:
    assert await Explainer(Model()).why_missing("nope") == "no such service registered"


async def test_a_service_outside_the_mesh(autojump_clock: MockClock) -> None:
    model = Model(plain={"web": (sidecar("web", kind=""),)})
    assert await Explainer(model).why_missing("web") == "registered but without a sidecar or native instance"


async def test_a_service_whose_sidecars_the_token_may_not_read(autojump_clock: MockClock) -> None:
    plain = replace(WEB, service="web", kind="")
    model = Model(connect={"web": (WEB,)}, plain={"web": (plain,)}, denied={"web-sidecar-proxy"})
    answer = await Explainer(model).why_missing("web")
    assert answer is not None
    assert 'service "web-sidecar-proxy" { policy = "read" }' in answer


async def test_a_service_whose_sidecars_consul_hides_for_another_reason(autojump_clock: MockClock) -> None:
    plain, odd = replace(WEB, service="web", kind=""), replace(WEB, service="odd-name")
    model = Model(connect={"web": (odd,)}, plain={"web": (plain,)}, denied={"odd-name"}, reports_filtering=True)
    assert "Consul hides its sidecars" in (await Explainer(model).why_missing("web") or "")


async def test_a_consul_that_fails_or_hangs_leaves_the_question_open(autojump_clock: MockClock) -> None:
    assert await Explainer(Model(down=unreachable())).why_missing("web") == "not known: cannot reach Consul"
    start = trio.current_time()
    hanging = Explainer(Model(hanging={"readable:web"}))
    assert await hanging.why_missing("web") == "not known: Consul does not answer"
    assert trio.current_time() - start == pytest.approx(5)


@pytest.mark.parametrize("name", ["", "x" * 256])
async def test_what_can_be_no_name_is_not_asked_for(autojump_clock: MockClock, name: str) -> None:
    model = Model()
    assert await Explainer(model).why_missing(name) == "no such service registered"
    assert model.calls == []


async def test_an_answer_is_repeated_for_a_while_instead_of_asking_again(autojump_clock: MockClock) -> None:
    model = Model()
    explainer = Explainer(model)
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(explainer.why_missing, "web")
    asked = len(model.calls)
    assert asked == 3
    await trio.sleep(5.1)
    model.connect["web"] = (WEB,)
    assert await explainer.why_missing("web") is None


async def test_the_memory_is_bounded(autojump_clock: MockClock) -> None:
    explainer = Explainer(Model())
    for number in range(100):
        await explainer.why_missing(f"s{number}")
    assert len(explainer._questions._answers) == 64
