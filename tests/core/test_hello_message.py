"""The ClientHello message: its fields, its list of extensions, the server name and the protocols in it."""

import json
from pathlib import Path

import pytest

from meshgate.core.hello import host_name_fault
from tests.core.hellos import (
    NAME,
    Body,
    accepted,
    ask_openssl,
    extension,
    hello,
    hello_1_3,
    key_share,
    malformed,
    message,
    numbers,
    record,
    server_name,
    supported_groups,
    supported_versions,
    vector,
)

MISFIT = "lengths that do not fit each other"
ONE_NAME = "server_name: not a list of one host name"


def body(fields: Body | bytes) -> bytes:
    return record(message(fields))


def resumed() -> list[tuple[str, bytes]]:
    """The recorded second hellos of Envoy, OpenSSL and Go."""
    recorded = Path(__file__).parents[1] / "data" / "hellos" / "resumed.jsonl"
    rows = map(json.loads, recorded.read_text(encoding="ascii").splitlines())
    return [(row["client"], bytes.fromhex(row["hex"])) for row in rows]


# --- fields ---


@pytest.mark.parametrize(
    ("stream", "version", "resumption"),
    [
        (body(Body()), "TLSv1.2", False),
        (body(Body(version=0x0301)), "TLSv1", False),
        (body(Body(version=0x0302)), "TLSv1.1", False),
        (body(Body(version=0x0300)), "other", False),
        (body(Body(version=0x7F12, session_id=bytes(32))), "other", False),
        (hello(supported_versions(0x0A0A, 0x0304, 0x0303)), "TLSv1.3", False),
        (hello(supported_versions(0x0304), body=Body(session_id=bytes(32))), "TLSv1.3", False),
        # Go says which versions it speaks also where it is told to speak none newer than 1.2.
        (hello(supported_versions(0x0303, 0x0302)), "TLSv1.2", False),
        (hello(extension(43), server_name(NAME)), "TLSv1.2", False),
        (hello(extension(43, b"\xff\3"), server_name(NAME)), "TLSv1.2", False),
        (body(Body(session_id=bytes(32))), "TLSv1.2", True),
        (hello(extension(35)), "TLSv1.2", False),
        (hello(extension(35, b"ticket")), "TLSv1.2", True),
        (hello(extension(35, bytes(256))), "TLSv1.2", True),
        (hello_1_3(extension(35), extension(41, b"key")), "TLSv1.3", True),
    ],
)
def test_version_and_resumption_that_are_offered_are_told(stream: bytes, version: str, resumption: bool) -> None:
    assert accepted(stream).offer == (version, resumption)


@pytest.mark.parametrize("row", resumed(), ids=lambda row: str(row[0]))
def test_clients_that_resume_are_seen_to(row: tuple[str, bytes]) -> None:
    assert accepted(row[1]).offer.resumption


def test_tls_1_2_without_extensions_is_a_hello_without_a_name() -> None:
    for extensions in (None, b""):
        found = accepted(body(Body(extensions=extensions)))
        assert (found.server_name, found.alpn) == (None, ())


def test_every_shorter_message_is_malformed() -> None:
    fields = bytes(Body(session_id=bytes(32), extensions=server_name(NAME)))
    assert accepted(body(fields)).server_name == NAME.decode()
    for end in range(len(fields)):
        # Cut right behind the compression methods it is whole: a hello may have no extensions.
        if end == len(bytes(Body(session_id=bytes(32)))):
            assert accepted(body(fields[:end])).server_name is None
        else:
            assert malformed(body(fields[:end])) == malformed(body(fields[:end]) + bytes(80)) == MISFIT


@pytest.mark.parametrize("more", [b"\0", b"\0\0", bytes(9)])
def test_bytes_behind_the_extensions_are_malformed(more: bytes) -> None:
    assert malformed(body(bytes(Body(extensions=server_name(NAME))) + more)) == MISFIT


def test_session_id_has_32_bytes_at_most() -> None:
    accepted(body(Body(session_id=bytes(32))))
    assert malformed(body(Body(session_id=bytes(33)))) == MISFIT


@pytest.mark.parametrize(
    "fields",
    [
        Body(version=0x0301),
        Body(version=0x0302),
        Body(version=0x0300),
        Body(version=0x0002),
        Body(version=0xFFFF),
        Body(suites=()),
        Body(suites=(0xC02F, 0x5600)),
        Body(compression=b""),
        Body(compression=b"\1"),
    ],
)
def test_what_has_no_bearing_on_the_name_is_left_to_the_destination(fields: Body) -> None:
    fields = Body(fields.version, fields.session_id, fields.suites, fields.compression, server_name(NAME))
    assert accepted(body(fields)).server_name == NAME.decode()


# --- the list of extensions ---


@pytest.mark.parametrize(
    "other",
    [
        extension(0x0A0A),
        extension(0xFE0D, b"?"),
        supported_versions(),
        supported_versions(0x0301),
        supported_versions(0x7A7A),
        supported_groups(),
        key_share((0x17, b"\4" + bytes(64))),
        extension(5, b"\1\0\1\0\0"),
        extension(14, b"\0\2\0\1\0"),
        extension(41, b"no sense"),
        extension(47, b"\0\2\0\0"),
        extension(0xFF01, b"\1\0"),
    ],
)
def test_contents_of_other_extensions_are_between_client_and_destination(other: bytes) -> None:
    for order in ((other, server_name(NAME)), (server_name(NAME), other)):
        assert accepted(hello(*order)).server_name == accepted(hello_1_3_without(other, *order)).server_name


def hello_1_3_without(other: bytes, *extensions: bytes) -> bytes:
    """A hello of TLS 1.3, if it is not said already which versions it is of."""
    return hello(*extensions) if other[:2] == numbers(43) else hello_1_3(*extensions)


@pytest.mark.parametrize("kind", [0, 10, 16, 0x0A0A, 12345])
def test_extension_that_comes_twice_is_refused(kind: int) -> None:
    one = server_name(NAME) if kind == 0 else extension(kind, vector(2, b"\2h2"))
    accepted(hello(one))
    assert malformed(hello(one, extension(77), one)) == "an extension that comes twice"


def test_two_server_names_are_refused_whichever_comes_first() -> None:
    assert malformed(hello(server_name(NAME), server_name(b"other"))) == "an extension that comes twice"


@pytest.mark.parametrize(
    "stream",
    [
        *(hello(server_name(NAME), extension(7)[:end]) for end in range(1, 4)),
        hello(server_name(NAME), numbers(77, 1)),
        hello(server_name(NAME)[:-1]),
        body(bytes(Body()) + numbers(5) + bytes(4)),
        body(bytes(Body()) + b"\0"),
    ],
)
def test_list_that_does_not_fit_is_refused_whatever_comes_behind_it(stream: bytes) -> None:
    assert malformed(stream) == malformed(stream + bytes(9)) == malformed(stream + b"\xff" * 9) == MISFIT


def test_post_quantum_share_and_reserved_values_are_passed_over() -> None:
    grease = 0x1A1A
    found = accepted(
        hello(
            extension(grease),
            supported_versions(grease, 0x0304, 0x0303),
            supported_groups(grease, 0x11EC, 0x001D),
            key_share((grease, b"\0"), (0x11EC, bytes(1216)), (0x001D, bytes(32))),
            server_name(NAME),
            extension(0xAAAA, b"\0"),
            body=Body(suites=(grease, 0x1301)),
        )
    )
    assert found.server_name == NAME.decode()


def test_outer_name_is_told_of_an_encrypted_client_hello() -> None:
    inner = message(Body(extensions=server_name(b"secret.example")))
    encrypted = extension(0xFE0D, b"\0" + numbers(1, 1) + b"\7" + vector(2, bytes(32)) + vector(2, inner))
    for order in ((encrypted, server_name(b"public.example")), (server_name(b"public.example"), encrypted)):
        assert accepted(hello_1_3(*order)).server_name == "public.example"


# --- server_name ---


def names(*entries: tuple[int, bytes]) -> bytes:
    return extension(0, vector(2, b"".join(bytes((kind,)) + vector(2, name) for kind, name in entries)))


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
def test_host_name_is_told_in_lower_case(raw: bytes, name: str) -> None:
    assert accepted(hello(server_name(raw))).server_name == name
    assert ask_openssl(hello(server_name(raw))).name == raw.decode()
    assert not host_name_fault(raw)


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
    "server_names",
    [
        extension(0),
        extension(0, b"\0"),
        names(),
        names((0, b"one"), (0, b"two")),
        names((0, b"one"), (1, b"two")),
        names((1, b"two"), (0, b"one")),
        names((255, b"one")),
        extension(0, vector(2, b"\0" + vector(2, b"one")) + b"\0"),
        extension(0, vector(2, b"\0" + vector(2, b"one"))[:-1]),
        extension(0, vector(2, b"\0" + numbers(4) + b"one")),
        extension(0, vector(2, b"\0" + numbers(2) + b"one")),
        extension(0, vector(2, b"\0")),
        extension(0, vector(2, b"\0\0")),
    ],
)
def test_list_of_anything_but_one_host_name_is_refused(server_names: bytes) -> None:
    assert malformed(hello(server_names)) == ONE_NAME


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


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (vector(2, b"".join(vector(1, b"%d" % at) for at in range(20))), tuple("01234567")),
        (vector(2, vector(1, b"h2") + b"\0" + vector(1, b"x")), ("h2",)),
        (vector(2, vector(1, b"h2") + b"\5x"), ("h2",)),
        (b"\0\0", ()),
        (b"\0", ()),
        (b"", ()),
        (b"\xff\xff\2h2", ("h2",)),
    ],
)
def test_as_many_protocols_are_told_as_can_be_read_eight_at_most(content: bytes, told: tuple[str, ...]) -> None:
    found = accepted(hello(extension(16, content), server_name(NAME)))
    assert (found.server_name, found.alpn) == (NAME.decode(), told)
