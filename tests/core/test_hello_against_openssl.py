"""Changed and made-up hellos, judged by the OpenSSL of this machine and by us. The rule is `hellos.assert_rule`."""

import datetime as dt
import ssl
from functools import cache
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings, strategies as st

from meshgate.core.hello import Hello
from tests.core.hellos import (
    NAME,
    Body,
    accepted,
    ask_openssl,
    assert_rule,
    client_context,
    clients,
    corpus,
    extension,
    hello,
    judge,
    key_share,
    openssl_hello,
    record,
    records,
    server_name,
    supported_groups,
    supported_versions,
    vector,
)

EXTENSIONS = (0, 1, 5, 10, 11, 12, 13, 14, 16, 18, 22, 23, 27, 28, 35, 41, 42, 43, 45, 47, 49, 50, 51, 0xFE0D, 0xFF01)


def examples(count: int) -> settings:
    checks = list(HealthCheck)
    return settings(max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=checks)


def assert_rule_here(stream: bytes) -> None:
    verdict, openssl = judge(stream), ask_openssl(stream)
    if openssl.reason == "want" and isinstance(verdict, Hello):
        # OpenSSL waits for the end of the record, we only for the end of the hello in it.
        openssl = ask_openssl(stream + bytes(1 << 14))
    assert_rule(stream, verdict, openssl)


@cache
def made_hellos() -> tuple[bytes, ...]:
    """Hellos that make sense: those of real clients, and what OpenSSL sends here and now."""
    older, newer, nist = client_context(), client_context(["h2", "http/1.1"]), client_context()
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    newer.minimum_version = ssl.TLSVersion.TLSv1_3
    nist.set_ecdh_curve("prime256v1")
    mine = [openssl_hello(context=context) for context in (client_context(), older, newer, nist)]
    return (*mine, openssl_hello(None), *(client.stream for client in clients()))


@cache
def base_hellos() -> tuple[bytes, ...]:
    return (*made_hellos(), *(row.stream for row in corpus() if len(row.stream) < 4000))


@pytest.mark.parametrize("shard", range(4))
def test_no_single_changed_byte_opens_a_gap(shard: int) -> None:
    for base in made_hellos()[shard::4]:
        for at in range(min(len(base), 600)):
            for value in {base[at] ^ 1, base[at] + 1 & 0xFF, 0} - {base[at]}:
                assert_rule_here(base[:at] + bytes((value,)) + base[at + 1 :])


def test_no_truncation_with_mended_lengths_opens_a_gap() -> None:
    for base in made_hellos():
        for end in range(9, min(len(base), 600)):
            assert_rule_here(record(base[5:end]))
            assert_rule_here(record(base[5:6] + vector(3, base[9:end])))


@st.composite
def changed_hellos(draw: st.DrawFn) -> bytes:
    """A hello with bytes changed, taken out or put in, parts of it repeated or taken from another one."""
    stream = bytearray(draw(st.sampled_from(base_hellos())))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(len(stream), 1000)))
        to = at + draw(st.integers(0, 40))
        match draw(st.sampled_from(("change", "remove", "insert", "repeat", "splice", "count"))):
            case "change":
                stream[at : at + 1] = draw(st.binary(min_size=1, max_size=2))
            case "remove":
                del stream[at:to]
            case "insert":
                stream[at:at] = draw(st.binary(max_size=8))
            case "repeat":
                stream[to:to] = stream[at:to]
            case "splice":
                stream[at:to] = draw(st.sampled_from(base_hellos()))[at : to + draw(st.integers(0, 40))]
            case "count" if at < len(stream):
                stream[at] = (stream[at] + draw(st.sampled_from((-4, -2, -1, 1, 2, 4)))) % 256
    if len(stream) > 9 and draw(st.booleans()):
        stream[:9] = record(bytes(stream[5:6]) + vector(3, bytes(stream[9:])))[:9]
    if draw(st.integers(0, 3)) == 0:
        sizes = draw(st.lists(st.sampled_from((1, 2, 3, 4, 5, 40, 300)), min_size=1, max_size=4))
        return records(bytes(stream[5:]), sizes)
    return bytes(stream)


@examples(400)
@given(changed_hellos())
def test_no_mutation_opens_a_gap(stream: bytes) -> None:
    assert_rule_here(stream)


contents = st.one_of(
    st.binary(max_size=6),
    st.binary(max_size=8).map(lambda content: vector(1, content)),
    st.binary(max_size=8).map(lambda content: vector(2, content)),
    st.lists(st.binary(max_size=4), max_size=3).map(
        lambda items: vector(2, b"".join(vector(1, item) for item in items))
    ),
    st.lists(st.binary(max_size=4), max_size=3).map(
        lambda items: vector(2, b"".join(vector(2, item) for item in items))
    ),
)


@st.composite
def made_up_hellos(draw: st.DrawFn) -> bytes:
    """A hello whose frame is right, and whose fields and extensions hold what they may or may not."""
    list_of_versions = st.lists(st.sampled_from((0x0304, 0x0303, 0x0302, 0x7A7A)), max_size=3)
    parts = draw(st.lists(st.builds(extension, st.sampled_from(EXTENSIONS), contents), max_size=3))
    parts.append(server_name(draw(st.sampled_from((NAME, b"Test", b"a..b", b"1.2.3.4", b"a.", b"", b"x" * 256)))))
    if draw(st.booleans()):
        parts.append(supported_versions(*draw(list_of_versions)))
    if draw(st.booleans()):
        parts += [supported_groups(0x1D, 0x17), key_share((0x1D, bytes(range(32))))]
    body = Body(
        version=draw(st.sampled_from((0x0303, 0x0303, 0x0303, 0x0301, 0x0300, 0x0305, 0x0203))),
        session_id=bytes(draw(st.sampled_from((0, 32, 32, 33)))),
        suites=tuple(draw(st.lists(st.sampled_from((0x1301, 0x1304, 0xC02F, 0x5600)), max_size=3))),
        compression=draw(st.sampled_from((b"\0", b"\0", b"\0", b"\1\0", b"\1", b""))),
    )
    return hello(*draw(st.permutations(parts)), body=body)


@examples(400)
@given(made_up_hellos())
def test_no_made_up_hello_opens_a_gap(stream: bytes) -> None:
    assert_rule_here(stream)


def test_resuming_client_is_understood(tmp_path: Path) -> None:
    """It sends a ticket, and so a pre_shared_key with a binder."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(self_signed(tmp_path))
    context = client_context()
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(to_client, to_server, server_hostname=NAME.decode())
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    for end in (client, server, client, server):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    with pytest.raises(ssl.SSLWantReadError):  # takes the tickets
        client.read()
    stream = resumed_hello(context, client.session)
    found = accepted(stream)
    assert (found.server_name, found.length) == (NAME.decode(), len(stream))
    # The last extension, and so one whose length is that of the rest.
    rests = (len(stream) - at - 4 for at in range(len(stream) - 4) if stream[at : at + 2] == b"\0\x29")
    assert any(rest > 100 and stream[-rest - 2 : -rest] == rest.to_bytes(2, "big") for rest in rests)


def resumed_hello(context: ssl.SSLContext, session: ssl.SSLSession | None) -> bytes:
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=NAME.decode(), session=session)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def self_signed(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "server")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    pem = serialization.Encoding.PEM
    none = serialization.NoEncryption()
    path.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, none) + certificate.public_bytes(pem))
    return path
