"""Verdicts on hellos that were read before: those of one client differ in their secrets alone.

To read a hello is the greatest part of what a new stream costs in Python (38 % of its instructions). But a
client that calls the same service again sends the same bytes, but for three places that hold random numbers: the random
itself, the session id, and the public key of an X25519 share. The parser reads none of the three (it checks lengths,
and of other curves that the point lies on the curve), so what it says of one such hello it would say of every other.

What always holds: the verdict is the one that `parse_hello` gives. It is looked up by all bytes of the stream outside
of these places, and by where they are; the parser itself says where it did not look (`Hello.share`), so that no second
reader of the same bytes can see them differently. Only good hellos are remembered, that came whole in one record with
nothing behind them; those that resume a session differ in more than three places and never are.
"""

from typing import Final

from meshgate.core.hello import Hello, Refusal, parse_hello

__all__ = ["HelloMemory"]

_RECORD_HEADER: Final = 5
_MESSAGE: Final = _RECORD_HEADER + 4
_RANDOM: Final = _MESSAGE + 2
_SESSION_ID: Final = _RANDOM + 32
_SHARE_BYTES: Final = 32
_MOST_BYTES: Final = 1024
_MOST_HELLOS: Final = 256


class HelloMemory:
    """Remembers at most 256 hellos of 1 kB each; when they are more it starts anew."""

    def __init__(self) -> None:
        # By the length of the stream and of its session id: where the share lies, and the verdicts by all other bytes.
        self._known: dict[tuple[int, int], tuple[int, dict[bytes, Hello]]] = {}
        self._count = 0

    def parse(self, data: bytes, max_bytes: int) -> Hello | Refusal | None:
        """As `parse_hello`, for a stream whose first bytes are all of `data`."""
        size = len(data)
        if not _SESSION_ID < size <= min(_MOST_BYTES, max_bytes):
            return parse_hello(data, max_bytes)
        place = (size, data[_SESSION_ID])
        known = self._known.get(place)
        if known is not None:
            share, verdicts = known
            verdict = verdicts.get(_fixed_bytes(data, share))
            if verdict is not None:
                return verdict
        fresh = parse_hello(data, max_bytes)
        if isinstance(fresh, Hello) and fresh.share is not None and fresh.length == size == _first_record_end(data):
            self._remember(data, place, _MESSAGE + fresh.share, fresh)
        return fresh

    def _remember(self, data: bytes, place: tuple[int, int], share: int, hello: Hello) -> None:
        if self._count == _MOST_HELLOS:
            self._known.clear()
            self._count = 0
        known_share, verdicts = self._known.setdefault(place, (share, {}))
        # Two kinds of hello that agree in both lengths but not in this are one too many for so simple a memory.
        if share == known_share:
            verdicts[_fixed_bytes(data, share)] = hello
            self._count += 1


def _first_record_end(data: bytes) -> int:
    return _RECORD_HEADER + (data[3] << 8 | data[4])


def _fixed_bytes(data: bytes, share: int) -> bytes:
    """All bytes but those of the random, the session id and the share."""
    suites = _SESSION_ID + 1 + data[_SESSION_ID]
    return data[:_RANDOM] + data[suites:share] + data[share + _SHARE_BYTES :]
