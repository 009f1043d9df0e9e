from contextlib import suppress

import pytest
from hypothesis import given, strategies as st

from meshgate.core.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("+0", 0.0),
        ("0s", 0.0),
        ("15s", 15.0),
        ("+15s", 15.0),
        ("1m30s", 90.0),
        ("1h", 3600.0),
        ("6h0m0s", 21600.0),
        ("500ms", 0.5),
        ("1.5s", 1.5),
        (".5s", 0.5),
        ("1.s", 1.0),
        ("3us", 3e-6),
        ("3\N{MICRO SIGN}s", 3e-6),
        ("3\N{GREEK SMALL LETTER MU}s", 3e-6),
        ("7ns", 7e-9),
        ("30s1m", 90.0),
    ],
)
def test_go_durations_are_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", "+", "15", "s", "1", "1d", "15 s", " 15s", "15s ", "1m30", "1..5s", ".s", "1e3s", "00", "1s\n", "\u0661s"],
)
def test_what_go_does_not_read_is_an_error_that_quotes_it(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration such as") as raised:
        parse_duration(text)
    assert repr(text) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["-1s", "-0", "-"])
def test_negative_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="negative duration"):
        parse_duration(text)


def test_durations_longer_than_go_can_hold_are_refused() -> None:
    assert parse_duration("2562047h") == 2562047 * 3600.0
    with pytest.raises(ValueError, match="too long"):
        parse_duration("2562048h")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (15.0, "15s"),
        (60.0, "1m"),
        (90.0, "1m30s"),
        (21600.0, "6h"),
        (3601.0, "1h1s"),
        (0.5, "500ms"),
        (0.0015, "1500us"),
        (7e-9, "7ns"),
        (1.5, "1.5s"),
        (60.25, "1m0.25s"),
        (0.9999999999, "1s"),
        (1e-12, "0s"),
    ],
)
def test_seconds_are_written_as_go_reads_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_what_is_no_duration_is_not_written(seconds: float) -> None:
    with pytest.raises(ValueError, match="is no duration in seconds"):
        format_duration(seconds)


@given(st.floats(min_value=0, max_value=10**8))
def test_what_is_written_is_read_back_to_the_nanosecond(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=1e-9, rel=1e-12)


@given(st.text(max_size=12))
def test_no_text_raises_anything_but_a_value_error(text: str) -> None:
    with suppress(ValueError):
        assert parse_duration(text) >= 0
