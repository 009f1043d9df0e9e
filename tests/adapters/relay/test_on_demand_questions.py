"""Whatever streams come, go and are told: how often a name is asked for, who waits for it, and what is remembered."""

from hypothesis import example, given, strategies as st

from meshgate.adapters.relay.on_demand import (
    _REMEMBERED,
    AGAIN_SECONDS,
    OF_A_CLIENT,
    OF_A_WORKER,
    WAIT_SECONDS,
    OnDemand,
)

from .streams import TRUST_DOMAIN, WEB, table_of

UNKNOWN = [f"{name}.default.dc1.internal.{TRUST_DOMAIN}" for name in ("a", "b")]
TABLE = table_of({WEB: []}, stale=[WEB])
CLIENTS = ("192.0.2.1", "192.0.2.2")

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["comes", "leaves", "told", "appears", "time"]),
        st.sampled_from([WEB, *UNKNOWN]),
        st.sampled_from(CLIENTS),
        st.floats(0, 2),
    ),
    max_size=200,
)


def stream() -> object:
    return object()


_BOTH_COME = [("comes", UNKNOWN[0], client, 0.0) for client in CLIENTS]


@given(STEPS)
@example([*_BOTH_COME, ("time", WEB, "", 2.0), *_BOTH_COME])
def test_a_name_is_asked_for_once_for_each_client_and_its_streams_are_told_together(
    steps: list[tuple[str, str, str, float]],
) -> None:
    now = 100.0
    asked: dict[tuple[str, str], float] = {}
    told: dict[tuple[str, str], float] = {}
    waiting: dict[str, dict[object, str]] = {name: {} for name in (WEB, *UNKNOWN)}

    def ask(name: str, client: str) -> None:
        assert bool(client) == (name != WEB)
        # No answer came in time to this client's question; another one's may be younger, if it was asked again since.
        assert now - asked.get((name, client), float("-inf")) > WAIT_SECONDS
        asked[name, client] = now

    lookups = OnDemand[object](ask)
    for step, name, whose, seconds in steps:
        client = "" if name == WEB else whose
        if step == "comes":
            wanted = lookups.wants(name, TABLE.find(name), TABLE, client, now)
            if not wanted:
                assert now - told[name, client] < AGAIN_SECONDS
                continue
            it = stream()
            waiting[name][it] = client
            lookups.wait(it, name, client, now)
        elif step == "leaves" and waiting[name]:
            it = next(iter(waiting[name]))
            lookups.leave(it, name)
            if waiting[name].pop(it) and not waiting[name]:
                asked = {key: when for key, when in asked.items() if key[0] != name}
        elif step == "told":
            assert lookups.lookup_done(name, now) == list(waiting[name])
            told |= {(name, each): now for each in ("", *waiting[name].values())}
            asked = {key: when for key, when in asked.items() if key[0] != name}
            waiting[name] = {}
        elif step == "appears":
            appeared = [it for it, each in waiting[name].items() if each]
            assert lookups.appeared(name) == appeared
            if appeared:
                asked = {key: when for key, when in asked.items() if key[0] != name}
                waiting[name] = {}
        elif step == "time":
            now += seconds
    assert {name for name, streams in waiting.items() if streams} <= set(lookups.end())
    assert not any(lookups.wants(name, TABLE.find(name), TABLE, CLIENTS[0], now + 10) for name in (WEB, *UNKNOWN))


def test_made_up_names_are_few_questions_however_many_they_are_and_leave_nothing_behind() -> None:
    asked: list[str] = []
    lookups = OnDemand[object](lambda name, _: asked.append(name))
    seconds, each = 4, 1000
    for number in range(seconds * each):
        name, now = f"made-up-{number}.default.dc1.internal.{TRUST_DOMAIN}", number / each
        assert lookups.wants(name, None, TABLE, CLIENTS[0], now)
        it = stream()
        lookups.wait(it, name, CLIENTS[0], now)
        lookups.leave(it, name)
    rate, burst = OF_A_CLIENT
    assert burst < len(asked) <= burst + rate * seconds
    assert lookups._questions == {}


def test_a_stranger_uses_up_nothing_that_another_client_may_ask() -> None:
    asked: list[str] = []
    lookups = OnDemand[object](lambda _, client: asked.append(client))
    for number in range(1000):
        name = f"made-up-{number}.default.dc1.internal.{TRUST_DOMAIN}"
        lookups.wait(stream(), name, CLIENTS[0], 0.0)
    # Also for a name that the stranger waits for and was not let ask for, and for one that he did ask for.
    for number in (999, 1000, 0):
        lookups.wait(stream(), f"made-up-{number}.default.dc1.internal.{TRUST_DOMAIN}", CLIENTS[1], 0.0)
    assert asked == [CLIENTS[0]] * OF_A_CLIENT[1] + [CLIENTS[1]] * 3


def test_clients_of_many_addresses_together_ask_for_no_more_than_a_worker_may() -> None:
    asked: list[str] = []
    lookups = OnDemand[object](lambda name, _: asked.append(name))
    for number in range(1000):
        name = f"made-up-{number}.default.dc1.internal.{TRUST_DOMAIN}"
        lookups.wait(stream(), name, f"192.0.{number // 250}.{number % 250}", 0.0)
    assert len(asked) == OF_A_WORKER[1]


def test_what_one_client_was_told_is_not_held_against_another_one() -> None:
    lookups = OnDemand[object](lambda _name, _client: None)
    lookups.wait(stream(), UNKNOWN[0], CLIENTS[0], 0.0)
    lookups.lookup_done(UNKNOWN[0], 0.1)
    assert not lookups.wants(UNKNOWN[0], None, TABLE, CLIENTS[0], 0.2)
    assert lookups.wants(UNKNOWN[0], None, TABLE, CLIENTS[1], 0.2)
    assert lookups.wants(UNKNOWN[0], None, TABLE, CLIENTS[0], 0.1 + AGAIN_SECONDS)


def test_what_is_remembered_is_bounded() -> None:
    lookups = OnDemand[object](lambda _name, _client: None)
    for number in range(3 * _REMEMBERED):
        lookups.lookup_done(f"{number}", number / 1e6)
    assert len(lookups._done) == _REMEMBERED
    assert lookups._questions == {}


def test_clients_are_answered_apart() -> None:
    asked: list[str] = []
    lookups = OnDemand[object](lambda _, client: asked.append(client))
    streams = [stream(), stream(), stream()]
    for it, client in zip(streams, (CLIENTS[0], CLIENTS[1], CLIENTS[0]), strict=True):
        lookups.wait(it, UNKNOWN[0], client, 0.0)
    assert lookups.lookup_done(UNKNOWN[0], 0.1, [CLIENTS[0], "192.0.2.9"]) == [streams[0], streams[2]]
    lookups.wait(it := stream(), UNKNOWN[0], CLIENTS[0], 0.2)
    assert asked == [CLIENTS[0], CLIENTS[1], CLIENTS[0]]
    assert lookups.lookup_done(UNKNOWN[0], 0.3, CLIENTS) == [streams[1], it]
    assert lookups._questions == {}
