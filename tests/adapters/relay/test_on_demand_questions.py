"""Whatever streams come, go and are told: how often a name is asked for, who waits for it, and what is remembered."""

from hypothesis import given, strategies as st

from meshgate.adapters.relay.on_demand import (
    _REMEMBERED,
    AGAIN_SECONDS,
    LEARN_SECONDS,
    UNKNOWN_AT_ONCE,
    UNKNOWN_PER_SECOND,
    OnDemand,
)

from .streams import TRUST_DOMAIN, WEB, table_of

UNKNOWN = [f"{name}.default.dc1.internal.{TRUST_DOMAIN}" for name in ("a", "b")]
TABLE = table_of({WEB: []}, stale=[WEB])

STEPS = st.lists(
    st.tuples(st.sampled_from(["comes", "leaves", "told", "time"]), st.sampled_from([WEB, *UNKNOWN]), st.floats(0, 2)),
    max_size=200,
)


def stream() -> object:
    return object()


@given(STEPS)
def test_a_name_is_asked_for_once_and_its_streams_are_told_together(steps: list[tuple[str, str, float]]) -> None:
    now = 100.0
    asked: dict[str, float] = {}
    told: dict[str, float] = {}
    waiting: dict[str, list[object]] = {}

    def ask(name: str) -> None:
        if name in asked:
            assert now - asked[name] > LEARN_SECONDS  # No answer came in time.
        assert now - told.get(name, 0.0) >= AGAIN_SECONDS
        asked[name] = now

    learning = OnDemand[object](ask)
    for step, name, seconds in steps:
        if step == "comes" and learning.wants(name, TABLE.find(name), TABLE, now):
            waiting.setdefault(name, []).append(stream())
            learning.wait(waiting[name][-1], name, now)
            assert now - asked[name] <= LEARN_SECONDS
        elif step == "leaves" and waiting.get(name):
            learning.leave(waiting[name].pop(), name)
        elif step == "told":
            assert learning.learned(name, now) == waiting.pop(name, [])
            asked.pop(name, None)
            told[name] = now
        elif step == "time":
            now += seconds
    assert set(learning.end()) == asked.keys()
    assert not any(learning.wants(name, TABLE.find(name), TABLE, now + 10) for name in (WEB, *UNKNOWN))


def test_made_up_names_are_few_questions_however_many_they_are() -> None:
    asked: list[str] = []
    learning = OnDemand[object](asked.append)
    seconds, each = 4, 1000
    for number in range(seconds * each):
        name, now = f"made-up-{number}.default.dc1.internal.{TRUST_DOMAIN}", number / each
        if learning.wants(name, None, TABLE, now):
            learning.wait(stream(), name, now)
    assert UNKNOWN_AT_ONCE < len(asked) <= UNKNOWN_AT_ONCE + UNKNOWN_PER_SECOND * seconds


def test_what_was_learned_long_ago_is_not_remembered() -> None:
    learning = OnDemand[object](lambda _: None)
    for number in range(20 * _REMEMBERED):
        learning.learned(f"{number}", number / 1000)
    assert len(learning._learned) <= 2 * _REMEMBERED
    assert learning._questions == {}
