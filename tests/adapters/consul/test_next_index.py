"""The index of the next blocking query."""

import pytest
from hypothesis import given, strategies as st

from meshgate.adapters.consul.watch import next_index


@pytest.mark.parametrize(
    ("asked", "answered", "following"),
    [
        pytest.param(0, 7, 7, id="the first answer"),
        pytest.param(7, 9, 9, id="a change"),
        pytest.param(7, 7, 7, id="the wait ended without a change"),
        pytest.param(9, 7, 0, id="backwards: start over"),
        pytest.param(0, 0, 1, id="0 would not block"),
        pytest.param(1, 0, 1, id="0 again"),
        pytest.param(7, 0, 0, id="0 is backwards too"),
        pytest.param(0, -3, 1, id="below 0"),
    ],
)
def test_next_index(asked: int, answered: int, following: int) -> None:
    assert next_index(asked, answered) == following


INDEX = st.integers(0, 2**64 - 1)


@given(INDEX, INDEX)
def test_it_follows_the_answer_or_starts_over(asked: int, answered: int) -> None:
    following = next_index(asked, answered)
    assert following in (0, max(answered, 1))
    assert (following == 0) == (max(answered, 1) < asked)


@given(st.lists(INDEX, min_size=1))
def test_it_never_starts_over_twice_in_a_row(answers: list[int]) -> None:
    asked = 0
    for answered in answers:
        before, asked = asked, next_index(asked, answered)
        assert asked or before
