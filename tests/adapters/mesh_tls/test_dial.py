"""The steps of a call, against servers of our own."""

import ssl

import pytest
import trio

from meshgate.adapters.mesh_tls import (
    Peer,
    RefusedError,
    TlsStream,
    WrongPeerError,
    connect,
    mesh_context,
    peer_of,
    shake_hands,
)
from tests.harness.backend import serving
from tests.harness.ports import free_ports

from .mesh_ca import Signer, mesh_root

WEB = "spiffe://td.consul/ns/default/dc/dc2/svc/web"
ROOT = mesh_root()


def context_of(signer: Signer, *, server: bool = False) -> ssl.SSLContext:
    return mesh_context(signer.pem, signer.key_pem, [ROOT.pem], server=server)


async def met(server: Signer) -> Peer:
    context = context_of(server, server=True)

    async def serve(transport: trio.SocketStream) -> None:
        stream = TlsStream(transport, context, server=True)
        await stream.do_handshake()
        await stream.receive_some()

    async with serving(serve) as port:
        transport = await connect("127.0.0.1", port, seconds=5)
        async with TlsStream(transport, context_of(ROOT.leaf(WEB)), sni="web.dc2") as stream:
            await shake_hands(stream, seconds=5)
            try:
                return peer_of(stream.tls)
            finally:
                await stream.send_eof()


async def test_the_peer_is_whom_its_certificate_names() -> None:
    server = ROOT.leaf(WEB)
    peer = await met(server)
    assert (peer.spiffe_id, peer.tls_version) == (WEB, "TLSv1.3")
    assert peer.certificate == server.certificate


async def test_a_peer_without_a_spiffe_id_is_not_one_of_the_mesh() -> None:
    with pytest.raises(WrongPeerError):
        await met(ROOT.leaf("https://example.com/"))


async def test_nobody_listening_is_said_in_the_systems_words() -> None:
    with pytest.raises(RefusedError, match="connect: Connection refused") as refused:
        await connect("127.0.0.1", free_ports(1)[0], seconds=5)
    assert (refused.value.stage, refused.value.alert) == ("connect", None)


async def test_several_addresses_that_refuse_are_one_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    async def two(*_: object) -> object:
        raise OSError("all attempts failed") from ExceptionGroup("", [ConnectionRefusedError(111, "no"), OSError("x")])

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
        async with TlsStream(transport, context_of(ROOT.leaf(WEB))) as stream:
            with pytest.raises(RefusedError, match=r"handshake: nothing within 0\.05 s"):
                await shake_hands(stream, seconds=0.05)


async def test_a_server_of_another_mesh_is_refused_by_the_caller() -> None:
    other = mesh_root("other")
    stranger = other.leaf(WEB)
    context = mesh_context(stranger.pem, stranger.key_pem, [other.pem], server=True)

    async def serve(transport: trio.SocketStream) -> None:
        with pytest.raises(RefusedError):
            await TlsStream(transport, context, server=True).do_handshake()

    async with serving(serve) as port:
        transport = await connect("127.0.0.1", port, seconds=5)
        async with TlsStream(transport, context_of(ROOT.leaf(WEB))) as stream:
            with pytest.raises(RefusedError, match="certificate verify failed") as refused:
                await shake_hands(stream, seconds=5)
            assert refused.value.alert is None
