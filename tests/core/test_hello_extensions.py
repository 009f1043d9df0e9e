"""What the contents of each extension may be, starting with the server name."""

import pytest

from tests.core.hellos import (
    Body,
    accepted,
    ask_openssl,
    extension,
    hello,
    key_share,
    malformed,
    numbers,
    server_name,
    supported_groups,
    supported_versions,
    vector,
)


def names(*entries: tuple[int, bytes]) -> bytes:
    return extension(0, vector(2, b"".join(bytes((kind,)) + vector(2, name) for kind, name in entries)))


# --- server_name ---


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"web.default.dc1.internal.td.consul", "web.default.dc1.internal.td.consul"),
        (b"WEB.Default.dc1.Internal.td.CONSUL", "web.default.dc1.internal.td.consul"),
        (b"localhost", "localhost"),
        (b"under_score.x-1", "under_score.x-1"),
        (b"xn--bcher-kva.example", "xn--bcher-kva.example"),
        (b"1.2.3.4.example", "1.2.3.4.example"),
        (b"1.2.3.x4", "1.2.3.x4"),
        (b"-", "-"),
        (b"a" * 255, "a" * 255),
        (b"a." * 127 + b"b", "a." * 127 + "b"),
    ],
)
def test_host_name_is_told_in_lower_case_and_as_sent(raw: bytes, name: str) -> None:
    found = accepted(hello(server_name(raw)))
    assert (found.server_name, found.raw_name) == (name, raw)
    assert ask_openssl(hello(server_name(raw))).name == raw.decode()


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"", "an empty name"),
        (b"a" * 256, "a name longer than 255 bytes"),
        (b"a" * 8000, "a name longer than 255 bytes"),
        (b"\0", "a name with a NUL byte"),
        (b"web.consul\0.evil", "a name with a NUL byte"),
        (b"web.consul\0", "a name with a NUL byte"),
        ("bücher.example".encode(), "a name that is not ASCII"),
        ("bücher.example".encode("latin-1"), "a name that is not ASCII"),
        (b"\xff", "a name that is not ASCII"),
        (b"192.0.2.1", "an IP address"),
        (b"1.2.3.4.", "an IP address"),
        (b"0000", "an IP address"),
        (b"127.1", "an IP address"),
        (b"::1", "an IP address"),
        (b"[2001:db8::1]", "an IP address"),
        (b"web.consul.", "a name with a final dot"),
        (b".", "a name with a final dot"),
        (b"a..", "a name with a final dot"),
        (b".web.consul", "a name that is no host name"),
        (b"web..consul", "a name that is no host name"),
        (b"web consul", "a name that is no host name"),
        (b"web.consul\n", "a name that is no host name"),
        (b"*.consul", "a name that is no host name"),
        (b"a/b", "a name that is no host name"),
        (b"a\x7f", "a name that is no host name"),
        (b"a" * 254 + b"!", "a name that is no host name"),
        (b'"', "a name that is no host name"),
    ],
)
def test_what_is_no_host_name_is_refused(raw: bytes, problem: str) -> None:
    assert malformed(hello(server_name(raw))) == f"server_name: {problem}"


@pytest.mark.parametrize(
    ("server_names", "problem"),
    [
        (extension(0), "a length that does not fit"),
        (extension(0, b"\0"), "a length that does not fit"),
        (names(), "an empty list"),
        (names((0, b"one"), (0, b"two")), "more than one name"),
        (names((0, b"one"), (1, b"two")), "more than one name"),
        (names((1, b"two"), (0, b"one")), "a name of type 1 instead of host_name"),
        (names((255, b"one")), "a name of type 255 instead of host_name"),
        (extension(0, vector(2, b"\0" + vector(2, b"one")) + b"\0"), "a length that does not fit"),
        (extension(0, vector(2, b"\0" + vector(2, b"one"))[:-1]), "a length that does not fit"),
        (extension(0, vector(2, b"\0" + numbers(4) + b"one")), "a length that reaches too far"),
        (extension(0, vector(2, b"\0" + numbers(2) + b"one")), "more than one name"),
        (extension(0, vector(2, b"\0")), "a length that is cut short"),
        (extension(0, vector(2, b"\0\0")), "a length that is cut short"),
    ],
)
def test_list_of_anything_but_one_host_name_is_refused(server_names: bytes, problem: str) -> None:
    assert malformed(hello(server_names)) == f"server_name: {problem}"


# --- application_layer_protocol_negotiation ---


@pytest.mark.parametrize(
    ("raw", "escaped"),
    [
        (b"h2", "h2"),
        (b"consul/rpc-multi", "consul/rpc-multi"),
        (b"\x0a\x0a", "\\n\\n"),
        (b"\x00\x1b[2J", "\\x00\\x1b[2J"),
        (b"\xea\xff\x7f", "\\xea\\xff\\x7f"),
        (b"a\\x41", "a\\\\x41"),
        (b"\r\nSet: x", "\\r\\nSet: x"),
    ],
)
def test_protocols_are_told_so_that_any_log_can_show_them(raw: bytes, escaped: str) -> None:
    found = accepted(hello(extension(16, vector(2, vector(1, raw) + vector(1, b"http/1.1")))))
    assert found.alpn == (escaped, "http/1.1")
    assert all(protocol.isascii() and protocol.isprintable() for protocol in found.alpn)


# --- all others ---

PSK = vector(2, vector(2, b"id") + bytes(4))
BINDER = vector(1, bytes(32))
CN = bytes.fromhex("310c300a06035504030c03617061")
DN = b"\x30" + vector(1, CN)

GOOD: dict[int, tuple[bytes, ...]] = {
    1: (b"\1", b"\4"),
    5: (b"\1\0\0\0\0", b"\2", b"\2whatever"),
    10: (vector(2, b"\0\x1d"), vector(2, bytes(40))),
    11: (b"\1\0", b"\3\0\1\2"),
    12: (b"\4user",),
    13: (vector(2, b"\4\3"),),
    16: (vector(2, b"\1x"), vector(2, b"\xff" + bytes(255))),
    18: (b"", b"anything"),
    22: (b"", b"anything"),
    23: (b"",),
    27: (b"\2\0\2", b"\4\0\1\0\2"),
    28: (b"\0\x40", b"\x40\1"),
    35: (b"", bytes(300)),
    41: (PSK + vector(2, BINDER), vector(2, PSK[2:] * 2) + vector(2, BINDER + vector(1, bytes(255)))),
    42: (b"",),
    43: (b"\2\3\3",),
    45: (b"\1\1", b"\2\0\1"),
    47: (b"\0\0", vector(2, vector(2, DN)), vector(2, vector(2, DN) + vector(2, b"\x30\0"))),
    49: (b"",),
    50: (vector(2, b"\4\3\5\3"),),
    51: (vector(2, b""), vector(2, numbers(0x1D) + vector(2, bytes(32))), vector(2, b"\x2a\x2a\0\1\0")),
    0xFF01: (b"\0",),
}

BAD: dict[int, tuple[bytes, ...]] = {
    1: (b"", b"\0", b"\5", b"\1\1"),
    5: (b"", b"\1", b"\1\0\0\0", b"\1\0\0\0\0\0", b"\1\0\1\0\0", b"\1\0\0\0\2\x30\0"),
    10: (b"", b"\0", b"\0\0", b"\0\1\0", b"\0\3\0\x1d\0", b"\0\4\0\x1d", b"\0\2\0\x1d\0"),
    11: (b"", b"\0", b"\2\0", b"\1\0\0"),
    12: (b"", b"\0", b"\5user", b"\4\0sr?", b"\4us\0r", b"\4user\0"),
    13: (b"", b"\0\0", b"\0\1\0", b"\0\4\4\3"),
    14: (b"", b"\0\2\0\1\0"),
    16: (b"", b"\0\0", b"\0\1\0", b"\0\2\2x", b"\0\2\1x\0", b"\0\3\1x\0", b"\0\3\1x\1"),
    23: (b"\0",),
    27: (b"", b"\0", b"\1\0", b"\2\0\2\0"),
    28: (b"", b"\x40", b"\0\x3f", b"\0\x40\0"),
    41: (
        b"",
        b"\0\0\0\0",
        PSK,
        PSK + b"\0\0",
        PSK + vector(2, vector(1, bytes(31))),
        PSK + vector(2, BINDER + BINDER),
        PSK + vector(2, BINDER) + b"\0",
        PSK + vector(2, BINDER + b"\x21"),
        vector(2, vector(2, b"") + bytes(4)) + vector(2, BINDER),
        vector(2, vector(2, b"id") + bytes(3)) + vector(2, BINDER),
        vector(2, PSK[2:] + b"\0") + vector(2, BINDER),
    ),
    42: (b"\0",),
    43: (b"", b"\0", b"\1\3", b"\3\3\3\3", b"\2\3\3\3"),
    45: (b"", b"\0", b"\2\1", b"\1\1\1"),
    47: (b"", b"\0\2\0\0", b"\0\1\0", b"\0\3\0\1\x30", vector(2, vector(2, DN)) + b"\0"),
    49: (b"\0",),
    50: (b"", b"\0\0", b"\0\3\4\3\5"),
    51: (
        b"",
        b"\0",
        b"\0\1\0",
        vector(2, numbers(0x1D, 0)),
        vector(2, numbers(0x1D) + vector(2, bytes(32))[:-1]),
        vector(2, (numbers(0x1D) + vector(2, bytes(32))) * 2),
        vector(2, numbers(0x1D) + vector(2, bytes(32))) + b"\0",
        vector(2, numbers(0x1D) + vector(2, bytes(32)) + b"\0\x17"),
    ),
    0xFF01: (b"", b"\1\0", b"\0\0", b"\1"),
}


def cases(table: dict[int, tuple[bytes, ...]]) -> list[tuple[int, bytes]]:
    return [(kind, content) for kind, contents in table.items() for content in contents]


@pytest.mark.parametrize(("kind", "content"), cases(GOOD))
def test_contents_that_the_rfcs_allow_are_taken(kind: int, content: bytes) -> None:
    found = accepted(hello(server_name(b"web"), extension(kind, content)))
    assert found.server_name == "web"


@pytest.mark.parametrize(("kind", "content"), cases(BAD))
def test_contents_that_the_rfcs_rule_out_are_refused(kind: int, content: bytes) -> None:
    assert malformed(hello(server_name(b"web"), extension(kind, content))).count(": ") == 1


@pytest.mark.parametrize(("kind", "content"), [*cases(GOOD), *cases(BAD)])
def test_openssl_takes_nothing_for_good_that_is_refused_for_harm(kind: int, content: bytes) -> None:
    """Where OpenSSL refuses contents in a hello of TLS 1.2 or of 1.3, they are among the bad ones here."""
    versions = (0x0304,) if kind != 43 else ()
    parts = [server_name(b"web"), extension(kind, content)]
    if kind != 10:
        parts.insert(0, supported_groups(0x1D, 0x2A2A))
    streams = [hello(*parts)]
    if versions:
        streams.append(hello(supported_versions(*versions), *parts, body=Body(suites=(0x1301,))))
    for stream in streams:
        if not ask_openssl(stream).called:
            malformed(stream)


# --- key shares of the NIST curves, through the whole parser ---


def test_share_that_is_no_public_key_is_refused() -> None:
    share = key_share((0x17, b"\4" + bytes(64)))
    assert malformed(hello(supported_groups(0x17), share)) == "key_share: a share that is no public key of group 23"
