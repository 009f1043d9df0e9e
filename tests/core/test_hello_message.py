"""The fields of the ClientHello, its list of extensions, and what must hold between them."""

import pytest

from tests.core.hellos import (
    NAME,
    Body,
    accepted,
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

TOO_FAR = "a length that reaches too far"
NOTHING_NEW = "it offers nothing from TLS 1.2 up"


def body(fields: Body | bytes) -> bytes:
    return record(message(fields))


# --- fields ---


def test_tls_1_2_without_extensions_is_a_hello_without_a_name() -> None:
    found = accepted(body(Body()))
    assert (found.server_name, found.raw_name, found.alpn, found.versions) == (None, None, (), (0x0303,))
    assert accepted(body(Body(extensions=b""))).server_name is None


def test_every_shorter_message_is_malformed() -> None:
    fields = bytes(Body(session_id=bytes(32), extensions=server_name(NAME)))
    assert accepted(body(fields)).server_name == NAME.decode()
    for end in range(len(fields)):
        # Cut right behind the compression methods it is whole: a hello may have no extensions.
        if end == len(bytes(Body(session_id=bytes(32)))):
            assert accepted(body(fields[:end])).server_name is None
        else:
            malformed(body(fields[:end]))


@pytest.mark.parametrize("more", [b"\0", b"\0\0", bytes(9)])
def test_bytes_behind_the_extensions_are_malformed(more: bytes) -> None:
    assert malformed(body(bytes(Body(extensions=server_name(NAME))) + more)) == "bytes behind its extensions"


def test_session_id_has_32_bytes_at_most() -> None:
    accepted(body(Body(session_id=bytes(32))))
    assert malformed(body(Body(session_id=bytes(33)))) == "a session id longer than 32 bytes"


def test_cipher_suites_are_at_least_one_and_whole() -> None:
    problem = "a list of cipher suites of an empty or odd length"
    assert malformed(body(Body(suites=()))) == problem
    fields = bytes(Body())
    odd = fields[:35] + vector(2, b"\xc0\x2f\0") + b"\1\0"
    assert malformed(body(odd)) == problem


@pytest.mark.parametrize(("methods", "good"), [(b"\0", True), (b"\1\0", True), (b"", False), (b"\1", False)])
def test_null_compression_must_be_offered(methods: bytes, good: bool) -> None:
    stream = body(Body(compression=methods))
    if good:
        accepted(stream)
    else:
        assert malformed(stream) == "no null compression method"


# --- versions ---


@pytest.mark.parametrize("version", [0x0303, 0x0304, 0x0305, 0x0403, 0xFFFF])
def test_legacy_version_is_an_upper_limit(version: int) -> None:
    assert accepted(body(Body(version=version))).versions == (version,)


@pytest.mark.parametrize("version", [0x0000, 0x0002, 0x0200, 0x0300, 0x0301, 0x0302])
def test_hello_of_less_than_tls_1_2_is_refused(version: int) -> None:
    assert malformed(hello(server_name(NAME), body=Body(version=version))) == NOTHING_NEW


@pytest.mark.parametrize(
    "versions", [(0x0304,), (0x0303,), (0x0304, 0x0303, 0x0302, 0x0301), (0x7A7A, 0x0304), (0x0305, 0x0303)]
)
def test_listed_versions_are_told_as_offered(versions: tuple[int, ...]) -> None:
    assert accepted(hello(supported_versions(*versions))).versions == versions


@pytest.mark.parametrize("versions", [(0x0302, 0x0301), (0x0300,), (0x7A7A,), (0x0305,), (0x7F1C,)])
def test_list_without_tls_1_2_and_1_3_is_refused(versions: tuple[int, ...]) -> None:
    assert malformed(hello(server_name(NAME), supported_versions(*versions))) == NOTHING_NEW


def test_list_counts_whatever_the_legacy_version_says_but_ssl_3() -> None:
    listed = supported_versions(0x0304)
    accepted(hello(listed, body=Body(version=0x0301)))
    for version in (0x0300, 0x0002):
        assert malformed(hello(listed, body=Body(version=version))) == "a version of SSL 3 or older"


def test_tls_1_3_needs_a_cipher_suite_of_its_own() -> None:
    for suites in ((0x1301,), (0x0A0A, 0x1303, 0xC02F), (0xC02F, 0x1302)):
        accepted(hello_1_3(suites=suites))
    for suites in ((0xC02F,), (0x1304, 0x1305), (0x0113, 0x0213)):
        assert malformed(hello_1_3(suites=suites)) == "it offers TLS 1.3 without a cipher suite for it"
    accepted(hello(supported_versions(0x0303), body=Body(suites=(0xC02F,))))


def test_fallback_from_a_better_version_is_refused() -> None:
    assert malformed(body(Body(suites=(0xC02F, 0x5600)))) == "a fallback from a version that failed"
    assert malformed(hello(supported_versions(0x0303), body=Body(suites=(0x5600,)))).startswith("a fallback")
    accepted(hello_1_3(suites=(0x1301, 0x5600)))
    accepted(body(Body(suites=(0x0056, 0x0000, 0x1256))))


# --- the list of extensions ---


def test_unknown_extensions_are_passed_over() -> None:
    unknown = [extension(kind, bytes(range(size))) for kind, size in ((0x0A0A, 0), (0xFAFA, 1), (12345, 40))]
    assert accepted(hello(*unknown, server_name(NAME), extension(0xFE0D, b"?"))).server_name == NAME.decode()


@pytest.mark.parametrize("kind", [0, 10, 16, 0x0A0A, 12345])
def test_extension_that_comes_twice_is_refused(kind: int) -> None:
    content = {0: server_name(NAME)[4:], 10: vector(2, b"\0\x1d"), 16: vector(2, b"\2h2")}.get(kind, b"")
    one = extension(kind, content)
    accepted(hello(one))
    assert malformed(hello(one, extension(77), one)) == f"extension {kind} twice"


def test_two_server_names_are_refused_whichever_comes_first() -> None:
    assert malformed(hello(server_name(NAME), server_name(b"other"))) == "extension 0 twice"


@pytest.mark.parametrize("end", range(1, 4))
def test_extension_header_that_is_cut_short_is_refused(end: int) -> None:
    assert malformed(hello(server_name(NAME), extension(7)[:end])) == "an extension that is cut short"


def test_extension_that_reaches_behind_the_list_is_refused() -> None:
    assert malformed(hello(server_name(NAME), numbers(77, 1))) == "extension 77 reaches too far"
    assert malformed(hello(server_name(NAME)[:-1])) == "extension 0 reaches too far"


def test_list_that_reaches_behind_the_message_is_refused() -> None:
    fields = bytes(Body())
    assert malformed(body(fields + numbers(5) + bytes(4))) == TOO_FAR
    assert malformed(body(fields + b"\0")) == "a length that is cut short"


def test_pre_shared_key_must_be_last() -> None:
    pre_shared_key = extension(41, vector(2, vector(2, b"id") + bytes(4)) + vector(2, vector(1, bytes(32))))
    accepted(hello(server_name(NAME), pre_shared_key))
    assert malformed(hello(pre_shared_key, server_name(NAME))) == "pre_shared_key is not the last extension"


# --- what must hold between extensions ---


def test_key_share_needs_its_group_among_the_supported_ones() -> None:
    share = key_share((0x001D, bytes(32)))
    accepted(hello_1_3(supported_groups(0x0017, 0x001D), share))
    accepted(hello_1_3(share, supported_groups(0x001D)))
    assert malformed(hello_1_3(share)) == "key_share without supported_groups"
    assert malformed(hello_1_3(share, supported_groups(0x0017))).endswith("that supported_groups does not list")


def test_hello_without_shares_asks_for_a_retry() -> None:
    accepted(hello_1_3(supported_groups(0x001D), key_share()))


def test_key_share_is_not_held_against_a_hello_of_tls_1_2() -> None:
    accepted(hello(key_share((0x001D, bytes(32)))))


def test_post_quantum_share_and_reserved_values_are_understood() -> None:
    grease = 0x1A1A
    found = accepted(
        hello(
            extension(grease),
            server_name(NAME),
            supported_versions(grease, 0x0304, 0x0303),
            supported_groups(grease, 0x11EC, 0x001D),
            key_share((grease, b"\0"), (0x11EC, bytes(range(256)) * 4 + bytes(192)), (0x001D, bytes(32))),
            extension(0xAAAA, b"\0"),
            body=Body(suites=(grease, 0x1301)),
        )
    )
    assert (found.server_name, found.versions) == (NAME.decode(), (grease, 0x0304, 0x0303))


def test_outer_name_is_told_of_an_encrypted_client_hello() -> None:
    inner = message(Body(extensions=server_name(b"secret.example")))
    encrypted = extension(0xFE0D, b"\0" + numbers(1, 1) + b"\7" + vector(2, bytes(32)) + vector(2, inner))
    for order in ((encrypted, server_name(b"public.example")), (server_name(b"public.example"), encrypted)):
        assert accepted(hello_1_3(*order)).server_name == "public.example"
