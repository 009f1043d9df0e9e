"""The real stream in every order of what its ends and the kernel may do, to a stated depth. See `stream_model`."""

from dataclasses import replace

import pytest

from meshgate.adapters.relay import pump
from meshgate.adapters.relay.stream import Stream

from .stream_model import SCENES, BrokenPromiseError, Choices, Scene, World, explore, play

DEPTH = 3
DEPTH_WITH_INTERRUPTIONS = 2  # A peer acts between any two system calls of a step, too.


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_in_every_order_of_steps_no_byte_end_or_count_is_lost_and_nothing_waits_for_ever(scene: Scene) -> None:
    explored = explore(replace(scene, interruptions=0), DEPTH)
    assert explored.states > 200
    explored = explore(scene, DEPTH_WITH_INTERRUPTIONS)
    assert explored.states > 100


def test_a_stream_that_is_carried_to_its_end_is_seen_to_be() -> None:
    world = World(SCENES[2], Choices(()))
    play(world)
    assert world.upstream is not None
    assert world.upstream.delivered > 0
    assert (world.stream.relaying, world.context.counters.active) == (True, 1)
    world.settle()
    world.end()
    assert world.stream.closed


def _forgets(*_: object) -> None: ...


@pytest.mark.parametrize(
    ("scene", "where", "name", "wrong", "told"),
    [
        ("light", pump, "_NOT_ALL_BYTES", pump.BROKEN, "bytes of .* wait for ever|the end of .* was not passed on"),
        ("much held", pump, "_dropped", lambda _source, count: count, "got other bytes"),
        ("heavy", pump.PipePool, "give", _forgets, "a pipe is not given back"),
        ("dialled", pump.Leg, "watch_writable", _forgets, "bytes are held for nobody"),
        ("light", Stream, "on_broken", _forgets, "the reset of .* was not passed on"),
        ("drain", Stream, "_is_empty", lambda _: True, "told of an end before all bytes that were read"),
    ],
)
def test_a_stream_that_breaks_a_promise_is_found_out(
    monkeypatch: pytest.MonkeyPatch, scene: str, where: object, name: str, wrong: object, told: str
) -> None:
    monkeypatch.setattr(where, name, wrong)
    with pytest.raises(BrokenPromiseError, match=told):
        explore(next(each for each in SCENES if each.name == scene), 3)
