"""The memory of hellos says what the parser says, whatever was read before."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshgate.core.hello import Hello, parse_hello
from meshgate.core.hello_memory import HelloMemory
from tests.core.hellos import (
    NAME,
    Body,
    clients,
    extension,
    hello,
    key_share,
    message,
    openssl_hello,
    record,
    records,
    server_name,
    supported_groups,
    supported_versions,
    vector,
)

X25519, P256 = 29, 23
RANDOM = slice(11, 43)
SESSION_ID = slice(44, 76)
P256_KEY = bytes.fromhex(
    "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
    "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
)
TICKET = vector(2, vector(2, b"ticket") + bytes(4)) + vector(2, vector(1, bytes(32)))

quick = settings(derandomize=True, database=None, deadline=None, max_examples=400)


def secret_hello(*more: bytes, fill: int = 1, name: bytes = NAME, shares: tuple[tuple[int, bytes], ...] = ()) -> bytes:
    """A hello of TLS 1.3 with these extensions at its end, in which every secret byte is `fill`."""
    shares = shares or ((X25519, bytes([fill] * 32)),)
    stream = hello(
        supported_versions(0x0304),
        server_name(name),
        supported_groups(X25519, P256),
        key_share(*shares),
        *more,
        body=Body(session_id=bytes([fill] * 32)),
    )
    return stream[: RANDOM.start] + bytes([fill] * 32) + stream[RANDOM.stop :]


def share_of(stream: bytes) -> slice:
    """Where the key of the hello's one share lies."""
    verdict = parse_hello(stream)
    assert isinstance(verdict, Hello)
    assert verdict.share is not None
    return slice(9 + verdict.share, 9 + verdict.share + 32)


def remembers(first: bytes, second: bytes, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the second hello takes no parser, when the first has been read."""
    memory = HelloMemory()
    assert memory.parse(first, 16384) == parse_hello(first)
    with monkeypatch.context() as patch:
        patch.setattr("meshgate.core.hello_memory.parse_hello", lambda *_: None)
        verdict = memory.parse(second, 16384)
    assert verdict in (None, parse_hello(second))
    return verdict is not None


def test_a_hello_that_differs_in_its_secrets_alone_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert remembers(secret_hello(fill=1), secret_hello(fill=2), monkeypatch)


@pytest.mark.parametrize("change", [1, 0x80, 0xFF])
def test_every_other_byte_counts(change: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = secret_hello(extension(16, vector(2, vector(1, b"h2"))))
    share = share_of(stream)
    for at in range(len(stream)):
        changed = bytearray(stream)
        changed[at] ^= change
        secret = any(place.start <= at < place.stop for place in (RANDOM, SESSION_ID, share))
        assert remembers(stream, bytes(changed), monkeypatch) == secret, at


def test_two_hellos_of_openssl_with_one_share_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = openssl_hello(), openssl_hello()
    verdict = parse_hello(first)
    assert isinstance(verdict, Hello)
    # Newer versions of OpenSSL send a hybrid share too, which is too long for the memory.
    assert remembers(first, second, monkeypatch) == (verdict.share is not None)
    assert first != second


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(secret_hello(), secret_hello(name=NAME.replace(b"web", b"api")), id="another name"),
        pytest.param(secret_hello(extension(41, TICKET)), secret_hello(extension(41, TICKET)), id="a session"),
        pytest.param(
            secret_hello(shares=((X25519, bytes(32)), (P256, P256_KEY))),
            secret_hello(shares=((X25519, bytes(32)), (P256, P256_KEY))),
            id="two shares",
        ),
        pytest.param(
            secret_hello(shares=((P256, P256_KEY),)), secret_hello(shares=((P256, P256_KEY),)), id="another curve"
        ),
        pytest.param(hello(server_name(NAME)), hello(server_name(NAME)), id="no share"),
        pytest.param(secret_hello() + b"more", secret_hello() + b"more", id="something behind it"),
        pytest.param(records(secret_hello()[5:], [200]), records(secret_hello()[5:], [200]), id="several records"),
        pytest.param(
            secret_hello(extension(21, bytes(800))), secret_hello(extension(21, bytes(800))), id="longer than 1 kB"
        ),
        pytest.param(secret_hello()[:-1], secret_hello()[:-1], id="cut short"),
        pytest.param(secret_hello(name=b"a..b"), secret_hello(name=b"a..b"), id="refused"),
    ],
)
def test_other_hellos_are_not_remembered(first: bytes, second: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not remembers(first, second, monkeypatch)


def test_a_lower_limit_counts_for_a_known_hello_too() -> None:
    memory, stream = HelloMemory(), secret_hello()
    for most in (len(stream), len(stream) - 1, len(stream)):
        assert memory.parse(stream, most) == parse_hello(stream, most)


def test_hellos_of_one_length_whose_shares_lie_elsewhere_do_not_mix() -> None:
    memory = HelloMemory()
    early = secret_hello(extension(21, bytes(4)))
    late = hello(
        extension(21, bytes(4)),
        supported_versions(0x0304),
        server_name(NAME.replace(b"web", b"api")),
        supported_groups(X25519, P256),
        key_share((X25519, bytes(32))),
        body=Body(session_id=bytes(32)),
    )
    assert len(early) == len(late)
    # All of the later one but its key, with another hole where the earlier one has its own.
    hybrid = bytearray(late)
    del hybrid[share_of(late)]
    hybrid[share_of(early).start : share_of(early).start] = bytes(32)
    for stream in (early, late, bytes(hybrid), early, late, bytes(hybrid)):
        assert memory.parse(stream, 16384) == parse_hello(stream)


def test_it_starts_anew_when_it_is_full() -> None:
    memory = HelloMemory()
    for number in range(600):
        stream = secret_hello(name=b"s%d.default.dc1.internal.x.consul" % (number * 997))
        assert memory.parse(stream, 16384) == memory.parse(stream, 16384) == parse_hello(stream)
        assert sum(len(verdicts) for _, verdicts in memory._known.values()) <= 256


def seeds() -> list[bytes]:
    made = [
        secret_hello(),
        secret_hello(fill=9, name=NAME.replace(b"web", b"api")),
        secret_hello(extension(41, TICKET)),
        secret_hello(shares=((X25519, bytes(32)), (P256, P256_KEY))),
        secret_hello(extension(16, vector(2, vector(1, b"h2")))),
        records(secret_hello()[5:], [150]),
        records(secret_hello()[5:], [len(secret_hello()) - 6]),
        # The bytes of a key share where there is none: in the padding, and in a name of its own.
        secret_hello(extension(21, key_share((X25519, server_name(NAME)[:32])))),
        record(message(Body(extensions=server_name(NAME) + extension(43, b"\x02\x03\x04")))),
        openssl_hello(),
    ]
    return made + [client.stream for client in clients()]


SEEDS = seeds()


@st.composite
def edits(draw: st.DrawFn) -> bytes:
    """One of the seeds with a few of its bytes changed, cut out or doubled, or just its secrets drawn anew."""
    stream = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(stream) - 1))
        kind = draw(st.sampled_from(("change", "change", "change", "cut", "double", "secrets", "swap")))
        if kind == "change":
            stream[at] = draw(st.one_of(st.integers(0, 255), st.sampled_from((0, 1, 29, 32, 41, 51))))
        elif kind == "cut":
            del stream[at : at + draw(st.integers(1, 8))]
        elif kind == "double":
            stream[at:at] = stream[at : at + draw(st.integers(1, 8))]
        elif kind == "swap":
            stream[at : at + 2] = stream[at : at + 2][::-1]
        else:
            stream[RANDOM] = draw(st.binary(min_size=32, max_size=32))
            stream[SESSION_ID] = draw(st.binary(min_size=32, max_size=32))
        if not stream:
            break
    return bytes(stream)


@quick
@given(st.lists(edits(), min_size=1, max_size=12), st.sampled_from((16384, 600, 200)))
def test_the_memory_says_what_the_parser_says(streams: list[bytes], most: int) -> None:
    memory = HelloMemory()
    # Twice, so that each comes also when all are known; and where it was learnt with another limit.
    for limit in (16384, most):
        for stream in SEEDS[:4] + streams:
            remembered, read = memory.parse(stream, limit), parse_hello(stream, limit)
            assert remembered == read
            assert not isinstance(read, Hello) or getattr(remembered, "share", None) == read.share


def with_one_share(stream: bytes) -> bool:
    verdict = parse_hello(stream)
    return isinstance(verdict, Hello) and verdict.share is not None and len(stream) == int.from_bytes(stream[3:5]) + 5


@quick
@given(st.data())
def test_the_parser_reads_nothing_where_the_memory_does_not_look(data: st.DataObject) -> None:
    """What the memory rests on: in these places any bytes lead to the same verdict."""
    stream = bytearray(data.draw(st.sampled_from(list(filter(with_one_share, SEEDS)))))
    before, share = parse_hello(bytes(stream)), share_of(bytes(stream))
    session_id = slice(SESSION_ID.start, SESSION_ID.start + stream[SESSION_ID.start - 1])
    for place in (RANDOM, session_id, share):
        size = place.stop - place.start
        stream[place] = data.draw(st.binary(min_size=size, max_size=size))
    assert parse_hello(bytes(stream)) == before
    assert share_of(bytes(stream)) == share
