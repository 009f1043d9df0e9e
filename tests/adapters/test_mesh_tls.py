"""A caller's identity, handshake and verdict, with a CA and servers of our own. Consul's are met in the e2e tests."""

import errno
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path

import pytest
import trio

from meshgate.adapters.mesh_tls import (
    Peer,
    RefusedError,
    WrongPeerError,
    connect,
    listen,
    mesh_context,
    peer_of,
    shake_hands,
    spiffe_id,
)
from tests.cuts import needs_cuts
from tests.harness.backend import serving
from tests.harness.ports import free_ports
from tests.harness.tls import TlsStream

from .mesh_ca import Signer, mesh_root, serving_context

WEB = "spiffe://td.consul/ns/default/dc/dc2/svc/web"
ROOT = mesh_root()
CALLER = ROOT.leaf("spiffe://td.consul/ns/default/dc/dc1/svc/shop")


@asynccontextmanager
async def called(
    server: Signer,
    chain: str = "",
    talk: Callable[[TlsStream], Awaitable[object]] = TlsStream.receive_some,
    *,
    trusts: Signer = ROOT,
    roots: Signer = ROOT,
) -> AsyncIterator[trio.SSLStream[trio.SocketStream]]:
    """A caller's stream to a server that shows `chain`, before its handshake."""
    context = serving_context(server, server.pem + chain, [trusts.pem])

    async def serve(transport: trio.SocketStream) -> None:
        stream = TlsStream(transport, context, server=True)
        with suppress(RefusedError):
            await stream.do_handshake()
            await talk(stream)

    async with serving(serve) as port:
        transport = await connect("127.0.0.1", port, seconds=5)
        own = mesh_context(CALLER.pem, CALLER.key_pem, [roots.pem])
        async with trio.SSLStream(transport, own, server_hostname="web.dc2") as stream:
            yield stream


async def met(server: Signer, chain: str = "") -> Peer:
    async with called(server, chain) as stream:
        await shake_hands(stream, seconds=5)
        return peer_of(stream)


async def test_the_peer_is_whom_its_certificate_names() -> None:
    server = ROOT.leaf(WEB)
    peer = await met(server)
    assert (peer.spiffe_id, peer.tls_version) == (WEB, "TLSv1.3")
    assert peer.expires == server.certificate.not_valid_after_utc


@pytest.mark.parametrize("name", ["dc2", ""], ids=["named", "without a name"])
async def test_the_intermediate_of_a_secondary_datacenter_is_followed(name: str) -> None:
    between = ROOT.authority(name, path_length=0)
    assert (await met(between.leaf(WEB), between.pem)).spiffe_id == WEB


BETWEEN = ROOT.authority("")
LAST = ROOT.authority("last", path_length=0)
BEYOND = LAST.authority("beyond")
NO_AUTHORITY = ROOT.leaf(WEB)


@pytest.mark.parametrize(
    ("server", "chain"),
    [
        pytest.param(mesh_root().leaf(WEB), "", id="another root of the same name"),
        pytest.param(BETWEEN.leaf(WEB), "", id="its intermediate is missing"),
        pytest.param(BETWEEN.leaf(WEB), LAST.pem, id="the intermediate of somebody else"),
        pytest.param(BEYOND.leaf(WEB), BEYOND.pem + LAST.pem, id="a chain longer than the path length"),
        pytest.param(NO_AUTHORITY.leaf(WEB), NO_AUTHORITY.pem, id="signed by a leaf"),
        pytest.param(ROOT.leaf(WEB, hours=-0.5), "", id="expired"),
    ],
)
async def test_what_does_not_lead_to_the_roots_is_refused(server: Signer, chain: str) -> None:
    with pytest.raises(RefusedError, match="does not lead to the roots of the mesh") as refused:
        await met(server, chain)
    assert (refused.value.stage, refused.value.alert) == ("handshake", None)


async def test_an_intermediate_that_consul_names_as_a_root_is_one() -> None:
    company = ROOT.authority("company")
    async with called(company.leaf(WEB), company.pem, roots=company) as stream:
        await shake_hands(stream, seconds=5)
        assert peer_of(stream).spiffe_id == WEB


async def test_a_peer_without_a_spiffe_id_is_not_one_of_the_mesh() -> None:
    with pytest.raises(WrongPeerError):
        await met(ROOT.leaf("https://example.com/"))


@pytest.mark.parametrize(
    ("uris", "problem"),
    [
        (("https://example.com/",), "0 SPIFFE IDs among 1 URIs"),
        ((WEB, WEB + "2"), "2 SPIFFE IDs among 2 URIs"),
        (("https://example.com/", WEB), "1 SPIFFE IDs among 2 URIs"),
    ],
)
def test_a_certificate_with_no_or_several_names_is_nobody(uris: tuple[str, ...], problem: str) -> None:
    with pytest.raises(WrongPeerError, match=problem):
        spiffe_id(ROOT.leaf(*uris).certificate)


def test_a_certificate_without_names_or_of_an_authority_is_nobody() -> None:
    with pytest.raises(WrongPeerError, match="names no SPIFFE ID"):
        spiffe_id(ROOT.leaf(san=False).certificate)
    with pytest.raises(WrongPeerError, match="one of an authority"):
        spiffe_id(ROOT.authority("dc2", uri=WEB).certificate)


async def test_nobody_listening_is_said_in_the_systems_words() -> None:
    with pytest.raises(RefusedError, match="connect: Connection refused") as refused:
        await connect("127.0.0.1", free_ports(1)[0], seconds=5)
    assert (refused.value.stage, refused.value.alert) == ("connect", None)


async def test_several_addresses_that_refuse_are_one_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    async def two(*_: object) -> object:
        refused = ConnectionRefusedError(errno.ECONNREFUSED, "Error connecting to ('::1', 1): Connection refused")
        raise OSError("all attempts failed") from ExceptionGroup("", [refused, OSError("x")])

    monkeypatch.setattr(trio, "open_tcp_stream", two)
    with pytest.raises(RefusedError, match="connect: Connection refused"):
        await connect("gw.example.com", 1, seconds=5)


async def test_an_unknown_name_is_said_in_the_resolvers_words() -> None:
    with pytest.raises(RefusedError, match=r"connect: .*[Nn]ame") as refused:
        await connect("no-such-name.invalid", 1, seconds=5)
    assert "Errno" not in str(refused.value)


async def test_an_address_that_never_answers_is_given_up(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    async def never(*_: object) -> object:
        return await trio.sleep_forever()

    monkeypatch.setattr(trio, "open_tcp_stream", never)
    with pytest.raises(RefusedError, match="connect: nothing within 3 s"):
        await connect("192.0.2.1", 1, seconds=3)


async def test_a_server_that_says_nothing_is_given_up() -> None:
    async def silent(_: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with serving(silent) as port:
        transport = await connect("127.0.0.1", port, seconds=5)
        context = mesh_context(CALLER.pem, CALLER.key_pem, [ROOT.pem])
        async with trio.SSLStream(transport, context) as stream:
            with pytest.raises(RefusedError, match=r"handshake: nothing within 0\.05 s"):
                await shake_hands(stream, seconds=0.05)


async def test_what_a_destination_has_against_the_caller_comes_after_the_handshake() -> None:
    async with called(ROOT.leaf(WEB), trusts=mesh_root("other")) as stream:
        await shake_hands(stream, seconds=5)
        with pytest.raises(RefusedError) as refused:
            await listen(stream, seconds=5)
        assert (refused.value.stage, refused.value.alert) == ("stream", "unknown_ca")


@needs_cuts
async def test_an_end_is_told_from_a_cut_and_from_silence() -> None:
    async def speak(stream: TlsStream) -> None:
        await stream.send_all(b"220 hello\r\n")
        await stream.receive_some()

    async def cut(stream: TlsStream) -> None:
        await stream.aclose()

    async with called(ROOT.leaf(WEB), talk=speak) as stream:
        await shake_hands(stream, seconds=5)
        assert await listen(stream, seconds=5) == b"220 hello\r\n"
    async with called(ROOT.leaf(WEB), talk=TlsStream.send_eof) as stream:
        await shake_hands(stream, seconds=5)
        assert await listen(stream, seconds=5) == b""
    async with called(ROOT.leaf(WEB)) as stream:
        await shake_hands(stream, seconds=5)
        assert await listen(stream, seconds=0.05) is None
    async with called(ROOT.leaf(WEB), talk=cut) as stream:
        await shake_hands(stream, seconds=5)
        with pytest.raises(RefusedError, match=r"stream: (closed without close_notify|connection reset)"):
            await listen(stream, seconds=5)


@pytest.mark.parametrize("key", [CALLER.key_pem, ROOT.key_pem], ids=["its own", "another one's"])
def test_the_key_is_on_no_disk_and_nowhere_to_be_found_afterwards(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen: list[str] = []
    load = ssl.SSLContext.load_cert_chain

    def watched(self: ssl.SSLContext, name: str) -> None:
        seen.append(os.readlink(name))
        assert list(tmp_path.iterdir()) == []
        load(self, name)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", watched)
    with nullcontext() if key == CALLER.key_pem else pytest.raises(ssl.SSLError):
        mesh_context(CALLER.pem, key, [ROOT.pem])
    assert seen == ["/memfd:leaf (deleted)"]
    assert seen[0] not in [os.readlink(it) for it in Path("/proc/self/fd").iterdir() if it.is_symlink()]
