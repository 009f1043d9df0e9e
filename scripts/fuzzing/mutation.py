"""Mutations of inputs: bytes for anything, values for JSON. Same generator, same result."""

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

_ODD_VALUES: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1, 65536, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, 1e308, "", "a", "\0", "\ud800",
    "\n", "é" * 300, "1h", "9" * 400 + "h", "0001-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59",
    [], [None], [[]], {}, {"": None}, {"wan": None}, "127.0.0.1", "::1", "web.default.dc1",
)  # fmt: skip
_ODD_BYTES: Final = (0, 1, 2, 3, 4, 0x16, 0x7F, 0x80, 0xFE, 0xFF)
_DEPTH: Final = 5000


def mutated(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """`data` changed in one to four places, with parts of `others` at times."""
    changed = data
    for _ in range(rng.randint(1, 4)):
        change: Callable[[bytes, Sequence[bytes], Random], bytes] = _bytes
        if changed[:1] in (b"{", b"[") and rng.random() < 0.7:
            change = _json
        changed = change(changed, others, rng)
    return changed


def _bytes(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    stream = bytearray(data)
    at = rng.randrange(len(stream) + 1)
    to = min(len(stream), at + rng.choice((1, 2, 3, 4, 8, 40, 300)))
    match rng.randrange(8):
        case 0 if stream:
            stream[at % len(stream)] ^= 1 << rng.randrange(8)
        case 1 if stream:
            stream[at % len(stream)] = rng.choice(_ODD_BYTES)
        case 2 if stream:
            stream[at % len(stream)] = (stream[at % len(stream)] + rng.choice((-4, -2, -1, 1, 2, 4))) % 256
        case 3:
            del stream[at:to]
        case 4:
            stream[at:at] = rng.randbytes(rng.randint(1, 12))
        case 5:
            stream[to:to] = stream[at:to]
        case 6:
            other = rng.choice(others)
            stream[at:to] = other[at : at + rng.choice((1, 8, 40, 300))]
        case _:
            del stream[at:]
    return bytes(stream)


def _json(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """One value somewhere in it is replaced, left out or repeated; a field gets another name or case."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return _bytes(data, others, rng)
    if rng.random() < 0.01:
        return b"[" * _DEPTH + data + b"]" * _DEPTH
    places: list[tuple[Any, Any]] = []
    _collect(value, places)
    if not places:
        return json.dumps(rng.choice(_ODD_VALUES)).encode()
    holder, key = rng.choice(places)
    match rng.randrange(5):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, list):
            holder.append(holder[key])
        case 2 if isinstance(holder, dict):
            holder[rng.choice((key.lower(), key + "x", ""))] = holder.pop(key)
        case _:
            holder[key] = rng.choice(_ODD_VALUES)
    return json.dumps(value, ensure_ascii=rng.random() < 0.8).encode("utf-8", "surrogatepass")


def _collect(value: object, places: list[tuple[Any, Any]], depth: int = 0) -> None:
    if depth > 40:
        return
    keys: Sequence[Any] = ()
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = range(len(value))
    for key in keys:
        places.append((value, key))
        _collect(places[-1][0][key], places, depth + 1)
