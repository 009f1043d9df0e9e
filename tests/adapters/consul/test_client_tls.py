"""The client over TLS and over a Unix socket."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from meshgate.adapters.consul.api import ConsulAddress, ConsulClient, ConsulConfigError, ConsulUnreachableError
from meshgate.adapters.consul.api.credentials import tls_context

from .certificates import Authority
from .fake_consul import FakeConsul, fake_consul

SERVER = "server.dc1.consul"


@asynccontextmanager
async def agent(authority: Authority, *, wants_client: bool = False) -> AsyncIterator[FakeConsul]:
    async with fake_consul(tls=authority.server_context(SERVER, wants_client=wants_client)) as double:
        double.set("/v1/catalog/datacenters", ["dc1"], index=None)
        yield double


async def ask(double: FakeConsul, **values: str) -> tuple[str, ...]:
    settings = {"CONSUL_HTTP_ADDR": f"https://127.0.0.1:{double.port}"}
    settings |= {f"CONSUL_{name}": value for name, value in values.items()}
    async with ConsulClient(ConsulAddress.from_settings(settings)) as client:
        return (await client.datacenters()).value


async def test_a_ca_file_and_a_server_name_verify_the_agent(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with agent(authority) as double:
        assert await ask(double, CACERT=str(authority.file), TLS_SERVER_NAME=f"{SERVER}:8501") == ("dc1",)


async def test_every_file_in_a_ca_path_counts(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "cas").mkdir()
    authority = Authority(tmp_path)
    for name, source in (("a-first.crt", Authority(tmp_path / "other").file), ("zz", authority.file)):
        (tmp_path / "cas" / name).write_bytes(source.read_bytes())
    (tmp_path / "cas" / "folder").mkdir()
    async with agent(authority) as double:
        assert await ask(double, CAPATH=str(tmp_path / "cas"), TLS_SERVER_NAME=SERVER) == ("dc1",)


async def test_an_agent_of_another_name_or_authority_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    authority, other = Authority(tmp_path), Authority(tmp_path / "other")
    async with agent(authority) as double:
        with pytest.raises(ConsulUnreachableError, match="; --tls-server-name says which name"):
            await ask(double, CACERT=str(authority.file))
        with pytest.raises(ConsulUnreachableError, match=r"certificate is not trusted \(.*\); --ca-file names the CA"):
            await ask(double, CACERT=str(other.file), TLS_SERVER_NAME=SERVER)
        with pytest.raises(ConsulUnreachableError, match=r"certificate is not trusted \(.*\); --ca-file names the CA"):
            await ask(double, TLS_SERVER_NAME=SERVER)


async def test_verification_can_be_switched_off(tmp_path: Path) -> None:
    async with agent(Authority(tmp_path)) as double:
        assert await ask(double, HTTP_SSL_VERIFY="false") == ("dc1",)


async def test_a_client_certificate_is_shown(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("gateway")
    async with agent(authority, wants_client=True) as double:
        common = {"CACERT": str(authority.file), "TLS_SERVER_NAME": SERVER}
        assert await ask(double, **common, CLIENT_CERT=str(cert), CLIENT_KEY=str(key)) == ("dc1",)
        with pytest.raises(ConsulUnreachableError, match="it hung up without an answer"):
            await ask(double, **common)


async def test_an_agent_that_speaks_no_tls_is_said_to_speak_none() -> None:
    async def answer(stream: trio.SocketStream) -> None:
        # As Go's server does.
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n400 Bad Request")
        await stream.receive_some()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
        address = {"CONSUL_HTTP_ADDR": f"https://127.0.0.1:{listener.socket.getsockname()[1]}"}
        async with ConsulClient(ConsulAddress.from_settings(address)) as client:
            with pytest.raises(ConsulUnreachableError, match=r"no TLS; CONSUL_HTTP_ADDR should begin with http://"):
                await client.datacenters()
        nursery.cancel_scope.cancel()


async def test_a_name_that_does_not_resolve_is_said_to_be_one() -> None:
    async with ConsulClient(ConsulAddress.from_settings({"CONSUL_HTTP_ADDR": "nosuch.invalid:8500"})) as client:
        with pytest.raises(ConsulUnreachableError, match=r"nosuch\.invalid:8500: the name does not resolve$"):
            await client.datacenters()


async def test_ssl_asked_for_beside_a_bare_address_is_used(tmp_path: Path) -> None:
    async with agent(Authority(tmp_path)) as double:
        address = f"127.0.0.1:{double.port}"
        assert await ask(double, HTTP_ADDR=address, HTTP_SSL="true", HTTP_SSL_VERIFY="0") == ("dc1",)


async def test_dedicated_clients_share_the_context(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with agent(authority) as double:
        address = ConsulAddress.from_settings(
            {
                "CONSUL_HTTP_ADDR": f"https://127.0.0.1:{double.port}",
                "CONSUL_CACERT": str(authority.file),
                "CONSUL_TLS_SERVER_NAME": SERVER,
            }
        )
        client = ConsulClient(address)
        authority.file.unlink()
        async with client, client.dedicated() as reader:
            assert (await reader.datacenters()).value == ("dc1",)


async def test_a_unix_socket_is_spoken_to(tmp_path: Path) -> None:
    path = tmp_path / "consul.sock"
    async with fake_consul(unix=path) as double:
        double.set("/v1/catalog/datacenters", ["dc1"], index=None)
        async with ConsulClient(ConsulAddress.from_settings({"CONSUL_HTTP_ADDR": f"unix://{path}"})) as client:
            assert (await client.datacenters()).value == ("dc1",)
            assert double.seen[0].headers["host"] == "localhost"
    async with ConsulClient(ConsulAddress.from_settings({"CONSUL_HTTP_ADDR": f"unix://{path}x"})) as client:
        with pytest.raises(ConsulUnreachableError, match=f"cannot reach Consul at unix://{path}x"):
            await client.datacenters()


@pytest.mark.parametrize(
    ("name", "text"),
    [("CACERT", "CA file"), ("CAPATH", "CA path"), ("CLIENT", "client certificate and key")],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_file_that_cannot_be_used_is_an_error_at_once(tmp_path: Path, name: str, text: str, scheme: str) -> None:
    missing = str(tmp_path / "none")
    files = {"CONSUL_CLIENT_CERT": missing, "CONSUL_CLIENT_KEY": missing} if name == "CLIENT" else {}
    settings = {"CONSUL_HTTP_ADDR": f"{scheme}://h:1"} | (files or {f"CONSUL_{name}": missing})
    with pytest.raises(ConsulConfigError, match=f"{text} {missing} cannot be read: No such file"):
        tls_context(ConsulAddress.from_settings(settings))


def test_a_file_without_a_certificate_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "junk").write_text("junk")
    settings = {"CONSUL_HTTP_SSL": "true", "CONSUL_CACERT": str(tmp_path / "junk")}
    with pytest.raises(ConsulConfigError, match=r"CA file .*junk cannot be used"):
        tls_context(ConsulAddress.from_settings(settings))


def test_a_key_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, _ = authority.issue("one")
    _, key = authority.issue("two")
    settings = {"CONSUL_CLIENT_CERT": str(cert), "CONSUL_CLIENT_KEY": str(key)}
    with pytest.raises(ConsulConfigError, match=r"client certificate and key .*one.pem cannot be used"):
        tls_context(ConsulAddress.from_settings(settings))
