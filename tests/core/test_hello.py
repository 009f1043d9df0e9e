"""The record layer of the ClientHello parser: packets, records, limits, and how early it decides."""

import sys
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from meshgate.core.hello import Hello, HelloParser, Offer, Refusal, is_cut, parse_hello
from meshgate.core.reasons import Reason
from tests.core.hellos import (
    NAME,
    Body,
    accepted,
    client_context,
    clients,
    extension,
    hello,
    hello_1_3,
    hello_of,
    judge,
    judge_pieces,
    malformed,
    message,
    openssl_hello,
    record,
    records,
    server_name,
)

STREAM = hello(server_name(NAME))
MESSAGE = STREAM[5:]

quick = settings(derandomize=True, database=None, deadline=None, max_examples=200)


def refused(data: bytes, reason: Reason, max_bytes: int = 16384) -> str:
    verdict = judge(data, max_bytes)
    assert isinstance(verdict, Refusal), verdict
    assert verdict.reason is reason, verdict
    return verdict.detail


def decided_after(data: bytes, max_bytes: int = 16384) -> tuple[int, Hello | Refusal]:
    """After how many bytes, fed one by one, the verdict came."""
    parser = HelloParser(max_bytes)
    for at in range(len(data)):
        if (verdict := parser.feed(data[at : at + 1])) is not None:
            return at + 1, verdict
    pytest.fail("no verdict")


# --- a hello and its cuts ---


def test_hello_in_one_record_is_read() -> None:
    stream = openssl_hello(context=client_context(["h2", "http/1.1"]))
    assert judge(stream) == Hello(NAME.decode(), ("h2", "http/1.1"), len(stream), Offer("TLSv1.3", resumption=False))


@pytest.mark.parametrize("stream", [STREAM, STREAM + b"more", record(MESSAGE + bytes(9)), hello_of(16384)])
def test_hello_in_one_record_and_packet_takes_no_parser(stream: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("meshgate.core.hello.HelloParser")
    assert isinstance(parse_hello(stream), Hello)
    assert not is_cut(stream)


def test_hello_is_cut_once_its_first_record_says_less_than_the_message() -> None:
    for size in (1, 3, 4, 5, 40, len(MESSAGE) - 1):
        cut = records(MESSAGE, [size])
        told = 6 if size < 4 else 9
        assert [is_cut(cut[:end]) for end in range(12)] == [end >= told for end in range(12)]
    for stream in (b"", b"GET / HTTP/1.1", STREAM, STREAM[:40], record(MESSAGE + b"more")):
        assert not is_cut(stream)


def test_parser_keeps_what_it_was_fed() -> None:
    parser = HelloParser()
    for piece in (STREAM[:40], b"", STREAM[40:] + b"more"):
        parser.feed(piece)
    assert bytes(parser.stream) == STREAM + b"more"


def test_no_bytes_are_no_verdict() -> None:
    assert judge(b"") is None
    assert judge_pieces([b"", STREAM[:7], b"", STREAM[7:]]) == judge(STREAM)


def test_every_cut_in_two_gives_the_same_verdict() -> None:
    for cut in range(len(STREAM)):
        assert judge(STREAM[:cut]) is None
        assert judge_pieces((STREAM[:cut], STREAM[cut:])) == judge(STREAM)


def test_one_byte_packets_decide_at_the_last_byte_of_the_hello() -> None:
    assert decided_after(STREAM + b"more") == (len(STREAM), judge(STREAM))


@pytest.mark.parametrize("sizes", [(1,), (2,), (3, 1), (4,), (5,), (100, 1)])
def test_hello_over_several_records_is_put_together(sizes: tuple[int, ...]) -> None:
    stream = records(MESSAGE, sizes)
    found = accepted(stream)
    assert (found.server_name, found.length) == (NAME.decode(), len(stream))
    assert decided_after(stream + STREAM)[0] == len(stream)


@quick
@given(
    st.sampled_from([STREAM, *(client.stream for client in clients())]),
    st.lists(st.integers(1, 700), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 9 * len(sizes)),
    st.lists(st.integers(1, 900), min_size=1, max_size=6),
)
def test_no_cut_into_records_and_packets_changes_what_is_read(
    stream: bytes, record_sizes: list[int], packet_sizes: list[int]
) -> None:
    whole = accepted(stream)
    recut = records(stream[5:], record_sizes)
    expected = Hello(whole.server_name, whole.alpn, len(recut), whole.offer)
    pieces, rest = [], recut
    while rest:
        for size in packet_sizes:
            pieces.append(rest[:size])
            rest = rest[size:]
    assert judge(recut) == judge_pieces(pieces) == expected


@quick
@given(st.binary(max_size=64), st.integers(0, 64), st.integers(0, 30))
def test_no_bytes_make_it_raise_and_no_cut_changes_its_mind(data: bytes, cut: int, max_bytes: int) -> None:
    for start in (b"", b"\x16\3\1", STREAM[:5], STREAM[:60]):
        stream = start + data
        verdict = judge(stream, max_bytes)
        assert judge_pieces((stream[:cut], stream[cut:]), max_bytes) == verdict
        assert judge_pieces((stream[at : at + 1] for at in range(len(stream))), max_bytes) == verdict


@pytest.mark.parametrize("stream", [STREAM, b"GET / HTTP/1.1\r\n\r\n", hello(extension(0))])
def test_verdict_stays(stream: bytes) -> None:
    parser = HelloParser()
    verdict = parser.feed(stream)
    assert verdict is not None
    for more in (b"", STREAM, b"\0"):
        assert parser.feed(more) is verdict


# --- what stands behind the hello ---


@pytest.mark.parametrize("behind", [b"\0", b"GET /", STREAM, record(b"\1", kind=20)])
def test_bytes_behind_the_hello_are_ignored(behind: bytes) -> None:
    assert judge(STREAM + behind) == judge(STREAM)


def test_other_message_in_the_record_is_ignored() -> None:
    for stream in (STREAM, hello_1_3(server_name(NAME))):
        found = accepted(record(stream[5:] + b"\xff" * 20))
        assert (found.server_name, found.length) == (NAME.decode(), len(stream))


def test_record_need_not_have_come_to_its_end() -> None:
    found = accepted(record(MESSAGE + bytes(100))[: len(STREAM)])
    assert found.length == len(STREAM)


# --- what is no TLS ---


@pytest.mark.parametrize(
    "stream",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        bytes.fromhex("802e0100020015000000100100800700c0"),  # SSLv2
        bytes.fromhex("00000008 04d2162f"),  # PostgreSQL asks for TLS
        record(b"\1", kind=20),
        record(b"\2\x28", kind=21),
        record(b"data", kind=23),
        b"\0" * 20,
    ],
)
def test_other_protocols_are_refused_at_their_first_byte(stream: bytes) -> None:
    refused(stream, Reason.NOT_TLS)
    assert decided_after(stream)[0] == 1


@pytest.mark.parametrize("major", [0, 1, 2, 4, 0xFE])
def test_other_major_versions_are_refused_at_their_byte(major: int) -> None:
    stream = record(MESSAGE, version=major << 8 | 1)
    assert refused(stream, Reason.NOT_TLS) == f"a record of major version {major} instead of 3"
    assert decided_after(stream)[0] == 2


@pytest.mark.parametrize("minor", [0, 1, 3, 4, 255])
def test_minor_version_of_a_record_means_nothing(minor: int) -> None:
    accepted(record(MESSAGE, version=0x0300 | minor))


# --- records and messages that break the protocol ---


def test_record_without_content_is_refused() -> None:
    assert malformed(record(b"") + STREAM) == "a record without content"
    assert malformed(record(MESSAGE[:9]) + record(b"") + record(MESSAGE[9:])) == "a record without content"
    assert decided_after(record(b""))[0] == 5


def test_record_longer_than_tls_allows_is_refused_at_its_header() -> None:
    long = bytes.fromhex("16 0301 4001")
    assert malformed(long + MESSAGE) == "a record longer than 16384 bytes"
    assert malformed(record(MESSAGE[:4]) + long) == "a record longer than 16384 bytes"
    assert decided_after(long)[0] == 5


@pytest.mark.parametrize("kind", [0, 20, 21, 23, 24])
def test_other_record_in_the_middle_of_the_hello_is_refused(kind: int) -> None:
    stream = record(MESSAGE[:30]) + record(b"\1", kind=kind)
    assert malformed(stream) == f"a record of type {kind} where a TLS handshake (22) was expected"
    assert decided_after(stream)[0] == 36


def test_other_major_version_in_the_middle_of_the_hello_is_refused() -> None:
    assert malformed(record(MESSAGE[:30]) + record(MESSAGE[30:], version=0x0201)).startswith("a record of major")


@pytest.mark.parametrize("kind", [0, 2, 11, 20, 255])
def test_other_handshake_message_is_refused_at_its_first_byte(kind: int) -> None:
    stream = record(message(MESSAGE[4:], kind=kind))
    assert malformed(stream) == f"handshake message {kind} instead of a ClientHello"
    assert decided_after(stream)[0] == 6


# --- limits ---


@pytest.mark.parametrize("sizes", [(1 << 14,), (4096,), (1000, 1)])
def test_limit_is_exact(sizes: tuple[int, ...]) -> None:
    stream = records(hello_of(5000)[5:], sizes)
    assert accepted(stream).length == len(stream)
    for limit, found in ((len(stream) - 1, None), (len(stream), NAME.decode()), (len(stream) + 1, NAME.decode())):
        verdict = judge(stream, limit)
        assert (verdict.server_name if isinstance(verdict, Hello) else None) == found
        if found is None:
            assert verdict == Refusal(Reason.HELLO_TOO_LARGE, f"longer than {limit} bytes")
        assert judge_pieces((stream[at : at + 1] for at in range(len(stream))), limit) == verdict


def test_default_limit_is_16_kib_of_the_stream() -> None:
    assert isinstance(parse_hello(hello_of(16384)), Hello)
    assert isinstance(HelloParser().feed(hello_of(16384)), Hello)
    too_large = Refusal(Reason.HELLO_TOO_LARGE, "longer than 16384 bytes")
    assert parse_hello(hello_of(16385)) == HelloParser().feed(hello_of(16385)) == too_large


def test_bytes_behind_the_hello_do_not_count() -> None:
    assert isinstance(judge(record(MESSAGE + bytes(200)) + bytes(5000), len(STREAM)), Hello)


@pytest.mark.parametrize(
    ("stream", "at"),
    [
        (bytes.fromhex("16 0301 4000 01 ff 00 00"), 9),
        (bytes.fromhex("16 0301 4000 01 00 3f f8"), 9),  # 16,385 bytes with both headers
        (records(bytes.fromhex("01 01 00 00"), [1]), 24),  # the message says its length over four records
        (bytes.fromhex("16 0301 0005 01 00 3f f3 03 16 0301 0001"), 15),  # fits but for the second record's header
    ],
)
def test_too_large_is_said_as_soon_as_it_is_certain(stream: bytes, at: int) -> None:
    length, verdict = decided_after(stream)
    assert (length, verdict.reason if isinstance(verdict, Refusal) else None) == (at, Reason.HELLO_TOO_LARGE)
    for cut in range(at):
        assert judge(stream[:cut]) is None
        assert judge_pieces((stream[:cut], stream[cut:]), 16384) == verdict


def test_small_records_are_too_large_at_the_header_that_makes_it_certain() -> None:
    stream = records(hello_of(250)[5:], [1])
    limit = len(stream) - 200
    length, verdict = decided_after(stream, limit)
    assert isinstance(verdict, Refusal)
    assert verdict.reason is Reason.HELLO_TOO_LARGE
    # Each one-byte record adds a header of 5; certain once that, all in one record from there, passes the limit.
    taken = length // 6
    assert length == 6 * taken + 5
    rest = 245 - taken
    assert length + rest - 5 <= limit < length + rest


@pytest.mark.parametrize("count", [256, 257])
def test_hello_has_256_records_at_most(count: int) -> None:
    stream = records(hello_of(5 + 4 * count)[5:], [4])
    if count == 256:
        assert accepted(stream).server_name == NAME.decode()
    else:
        assert refused(stream, Reason.HELLO_TOO_LARGE) == "more than 256 records"
        assert decided_after(stream)[0] == 9 * 256 + 5


@pytest.mark.parametrize("count", [256, 257])
def test_hello_has_256_extensions_at_most(count: int) -> None:
    stream = hello(server_name(NAME), *(extension(0x3000 + at) for at in range(count - 1)))
    if count == 256:
        assert accepted(stream).server_name == NAME.decode()
    else:
        assert refused(stream, Reason.HELLO_TOO_LARGE) == "more than 256 extensions"
        assert decided_after(stream)[0] == len(stream)


def test_limit_below_the_smallest_hello_is_no_special_case() -> None:
    assert refused(STREAM, Reason.HELLO_TOO_LARGE, max_bytes=0) == "longer than 0 bytes"
    assert refused(b"G", Reason.NOT_TLS, max_bytes=0)


def test_hello_of_several_full_records_is_read_if_the_limit_lets_it() -> None:
    padding = b"".join(extension(0x2A00 + at, bytes(16000)) for at in range(4))
    stream = records(message(Body(extensions=server_name(NAME) + padding)), [1 << 14])
    found = accepted(stream)
    assert (found.server_name, found.length) == (NAME.decode(), len(stream))
    assert len(stream) > 3 * (1 << 14)


# --- the work it takes ---


class Counted(bytearray):
    """Counts how many bytes are taken out of it."""

    taken = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        Counted.taken += len(found) if isinstance(found, bytearray) else 1
        return found


def work(stream: bytes, packet: int) -> tuple[int, int]:
    """The calls that reading a hello in packets of this size makes, and the bytes that it takes out of its buffer."""
    parser, calls, verdict = HelloParser(1 << 16), 0, None
    parser.stream = Counted()
    Counted.taken = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    pieces = [stream[at : at + packet] for at in range(0, len(stream), packet)]
    sys.setprofile(count)
    try:
        for piece in pieces:
            verdict = parser.feed(piece)
    finally:
        sys.setprofile(None)
    assert verdict is not None
    return calls, Counted.taken


@pytest.mark.parametrize("packet", [1, 7, 1460, 1 << 20])
@pytest.mark.parametrize(
    "stream",
    [
        hello_of(16384),
        records(hello_of(250)[5:], [1]),
        records(hello_of(2600)[5:], [1]),
        records(hello_of(6000)[5:], [2, 90]),
        hello(server_name(NAME), *(extension(0x3000 + at) for at in range(3800))),
        hello(server_name(NAME), extension(16, (16000).to_bytes(2) + b"\1\xff" * 8000)),
        records(hello(server_name(NAME), *(extension(0x3000 + at) for at in range(255)))[5:], [5]),
    ],
    ids=["one record", "tiny records", "too many records", "small records", "extensions", "protocols", "all of it"],
)
def test_work_is_linear_in_the_stream_and_little(stream: bytes, packet: int) -> None:
    calls, taken = work(stream, packet)
    assert taken <= 4 * len(stream)
    # Two dozen calls for a packet at most, and what the limits allow for records and extensions.
    assert calls <= 24 * (-(-len(stream) // packet)) + 2 * 256 + 256


def test_parser_keeps_the_stream_and_nothing_else() -> None:
    parser = HelloParser(16384)
    stream = records(hello_of(16379)[5:], [16000])
    assert parser.feed(stream[:16100]) is None
    assert isinstance(parser.feed(stream[16100:]), Hello)
    assert parser.stream == stream
