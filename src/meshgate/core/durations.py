"""Durations as Consul writes them: Go's duration strings (`500ms`, `1m30s`, `6h`), here in seconds.

The grammar is that of Go's `time.ParseDuration`, without negative durations: nothing the gateway waits for is negative.
"""

import re

_SECONDS = {
    "ns": 1e-9,
    "us": 1e-6,
    "\N{MICRO SIGN}s": 1e-6,
    "\N{GREEK SMALL LETTER MU}s": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(" + "|".join(sorted(_SECONDS, key=len, reverse=True)) + ")")
# Go counts nanoseconds in 63 bits.
_LONGEST = (2**63 - 1) / 1e9


def parse_duration(text: str) -> float:
    """Seconds of a Go duration string: `parse_duration("1m30s") == 90.0`.

    Raises:
        ValueError: it is no duration, is negative, or is longer than Go can hold (292 years). The message is one line.
    """
    body = text.removeprefix("+")
    if body.startswith("-"):
        raise ValueError(f"{text!r} is a negative duration")
    if body == "0":
        return 0.0
    seconds, position = 0.0, 0
    while found := _PART.match(body, position):
        seconds += float(found[1]) * _SECONDS[found[2]]
        position = found.end()
    if not body or position < len(body):
        raise ValueError(f"{text!r} is no duration such as 500ms, 15s or 1h30m")
    if seconds > _LONGEST:
        raise ValueError(f"{text!r} is too long a duration")
    return seconds


def format_duration(seconds: float) -> str:
    """A Go duration string without parts that are zero, exact to the nanosecond: `format_duration(90.0) == "1m30s"`.

    Raises:
        ValueError: `seconds` is negative or not finite.
    """
    if not 0 <= seconds <= _LONGEST:
        raise ValueError(f"{seconds} is no duration in seconds")
    nanoseconds = round(seconds * 1e9)
    for unit, size in (("ms", 10**6), ("us", 10**3), ("ns", 1)):
        if 0 < nanoseconds < 10**9 and nanoseconds % size == 0:
            return f"{nanoseconds // size}{unit}"
    whole, fraction = divmod(nanoseconds, 10**9)
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    tail = f"{rest}.{fraction:09d}".rstrip("0").rstrip(".") if fraction else str(rest)
    parts = [f"{hours}h" if hours else "", f"{minutes}m" if minutes else "", f"{tail}s" if tail != "0" else ""]
    return "".join(parts) or "0s"
