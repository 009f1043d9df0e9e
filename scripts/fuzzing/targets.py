"""The targets: each takes any bytes, and raises only where a promise is broken."""

import hashlib
import json
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import msgspec

from meshgate.adapters.consul.api import InvalidAnswerError, records
from meshgate.adapters.state import StateFileError, decode
from meshgate.core.addresses import LOCAL_CLASSES, DeniedAddresses, OwnAddresses
from meshgate.core.hello import Hello, HelloParser, parse_hello
from meshgate.core.planner import Planner
from meshgate.core.routes import RouteTable, difference

Target: TypeAlias = Callable[[bytes], None]

_LIMITS: Final = (512, 16384, 1 << 16)
_ALL_CUTS: Final = 700
_STEPS: Final = 600


def hello(data: bytes) -> None:
    """One verdict however the stream is cut, as early as it may be, kept for good, in memory within the bound."""
    for limit in _LIMITS:
        verdict = parse_hello(data, limit)
        step = 1 if len(data) <= _ALL_CUTS else 1 + sum(data) % 97
        parser, seen = HelloParser(limit), None
        for at in range(0, len(data), step):
            seen = parser.feed(data[at : at + step])
            if seen is not None:
                break
        assert seen == verdict, (limit, seen, verdict)
        assert verdict is None or parser.feed(b"\x16\x03\x01\x00\x05") == verdict
        if isinstance(verdict, Hello):
            assert verdict.length <= min(len(data), limit)
            assert parse_hello(data[: verdict.length], limit) == verdict
            assert parse_hello(data[: verdict.length - 1], limit) is None
            name = verdict.server_name
            assert name is None or (name.isascii() and name.isprintable() and name == name.lower())


def hello_openssl(data: bytes) -> None:
    """Never another name than the OpenSSL of this machine reads."""
    from tests.core.test_hello_against_openssl import assert_rule_here  # noqa: PLC0415 (takes what only tests need)

    if len(data) < 1 << 16:
        assert_rule_here(data)


def stream(data: bytes) -> None:
    """The relay's stream keeps its promises in a long order of steps, many of them between two system calls."""
    from tests.adapters.relay.stream_model import SCENES, run_through  # noqa: PLC0415 (takes what only tests need)

    if data:
        run_through(SCENES[data[0] % len(SCENES)], data[1:_STEPS])


def _decoder(decode_answer: Callable[[Any], object], errors: type[Exception] = InvalidAnswerError) -> Target:
    """A target for a decoder: a result, twice the same, or the one error in one line."""

    def target(data: bytes) -> None:
        try:
            first = decode_answer(data)
        except errors as error:
            text = str(error)
            assert text
            assert "\n" not in text, text
            return
        assert decode_answer(data) == first or "nan" in repr(first)

    return target


def _sealed(data: bytes) -> object:
    """The state file whose lines these are, with a checksum that is right, so that what is behind it is reached."""
    lines = data if data.endswith(b"\n") else data + b"\n"
    kept = decode(lines + json.dumps({"sha256": hashlib.sha256(lines).hexdigest()}).encode() + b"\n")
    # What a start makes of it, and sends to its workers.
    denied, own = DeniedAddresses(frozenset(LOCAL_CLASSES)), OwnAddresses(frozenset({("0.0.0.0", 8443)}))
    table = Planner().plan(kept.snapshot, addresses=kept.addresses, denied=denied, own=own, panic_threshold=50)
    msgspec.msgpack.encode(difference(RouteTable.of("", "", "default", iter(())), table))
    return kept


def _decoders() -> dict[str, Target]:
    return {
        name.removeprefix("decode_"): _decoder(each)
        for name, each in vars(records).items()
        if name.startswith("decode_")
    }


TARGETS: Final[dict[str, Target]] = {
    "hello": hello,
    "hello_openssl": hello_openssl,
    "stream": stream,
    **_decoders(),
    "state_file": _decoder(decode, StateFileError),
    "state_sealed": _decoder(_sealed, StateFileError),
}


def broken_by(name: str, data: bytes) -> str | None:
    """What promise of a target this input breaks, None where it keeps all."""
    try:
        TARGETS[name](data)
    except Exception as error:  # noqa: BLE001 (any is a finding)
        return repr(error)
    return None
