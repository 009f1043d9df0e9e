"""Names that mean something in a path, and an agent that answers without end: neither leads the client astray."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from meshgate.adapters.consul.api import (
    BadRequestError,
    ConsulAddress,
    ConsulClient,
    ConsulUnreachableError,
    Cursor,
    InvalidAnswerError,
    transport,
)

from .connected import WEB, Call, ask_web, connected
from .fake_consul import row

NAMED: dict[str, Callable[[ConsulClient, str], Awaitable[object]]] = {
    "/v1/health/connect/": lambda client, name: client.connect_instances(name, Cursor()),
    "/v1/health/service/": lambda client, name: client.instances(name, Cursor()),
    "/v1/discovery-chain/": lambda client, name: client.confirm_readable(name),
    "/v1/agent/service/": lambda client, name: client.agent_service(name, Cursor()),
    "/v1/agent/service/deregister/": lambda client, name: client.deregister(name),
}


@pytest.mark.parametrize("path", NAMED)
async def test_a_slash_in_a_name_begins_no_new_part_of_the_path(path: str) -> None:
    async with connected() as (double, client):
        double.set(f"{path}a%2Fb", [])
        double.set("/v1/agent/service/a%2Fb", {"ID": "a/b"}, hash="1")
        await NAMED[path](client, "a/b")
        assert [seen.target for seen in double.seen] == [f"{path}a%2Fb"]


@pytest.mark.parametrize("path", NAMED)
@pytest.mark.parametrize("name", [".", "..", "web/../../agent/self", "../service/web", "a//b", "web/.", ""])
async def test_a_name_that_would_be_read_as_another_path_is_not_asked_for(path: str, name: str) -> None:
    async with connected() as (double, client):
        with pytest.raises(BadRequestError, match="another path") as raised:
            await NAMED[path](client, name)
        assert raised.value.status == "invalid"
        assert client.errors == {"invalid": 1}
        assert double.seen == []


async def test_a_percent_sign_in_a_name_is_no_quote() -> None:
    async with connected() as (double, client):
        double.set("/v1/health/connect/%252e%252e", [])
        await client.connect_instances("%2e%2e", Cursor())
        assert double.seen[0].target == "/v1/health/connect/%252e%252e"


async def test_the_commands_quote_names_too() -> None:
    async with connected() as (double, client):
        double.set("/v1/config/service-defaults/a%2Fb", {"Name": "a/b"})
        await client.service_defaults("a/b")
        assert [seen.target for seen in double.seen] == ["/v1/config/service-defaults/a%2Fb"]


async def test_an_answer_has_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "LARGEST", 5_000)
    async with connected() as (double, client):
        double.set(WEB, [row("web-sidecar-proxy")])
        await ask_web(client)
        double.set(WEB, [row("web-sidecar-proxy")] * 20)
        with pytest.raises(InvalidAnswerError, match="larger than 5000 bytes"):
            await ask_web(client)
        assert client.errors == {"invalid": 1}
        double.set(WEB, [row("web-sidecar-proxy")])
        await ask_web(client)


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nX-Consul-Index: 5\r\nTransfer-Encoding: chunked\r\n\r\n"])
@pytest.mark.parametrize(
    ("ask", "seconds"),
    [(ask_web, "0.5"), (lambda client: client.connect_instances("web", Cursor(5, wait=0.16)), "0.67")],
)
async def test_an_answer_that_drips_without_end_is_given_up(
    monkeypatch: pytest.MonkeyPatch, head: bytes, ask: Call, seconds: str
) -> None:
    monkeypatch.setattr(transport, "TOTAL_TIMEOUT", 0.5)
    async with dripping(head) as client:
        with trio.fail_after(20), pytest.raises(ConsulUnreachableError) as raised:
            await ask(client)
        assert str(raised.value).endswith(f"no whole answer within {seconds} s")
        assert raised.value.status == "timeout"


@asynccontextmanager
async def dripping(head: bytes) -> AsyncIterator[ConsulClient]:
    """A client of an agent that sends something now and then, and never comes to an end."""

    async def serve(stream: trio.SocketStream) -> None:
        try:
            await stream.receive_some()
            await stream.send_all(head or b"HTTP/1.1 200 OK\r\n")
            while True:
                await trio.sleep(0.02)
                await stream.send_all(b"1\r\n \r\n" if head else b"X-More: 1\r\n")
        except trio.BrokenResourceError:
            await stream.aclose()

    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        address = ConsulAddress.from_settings({"CONSUL_HTTP_ADDR": f"127.0.0.1:{port}"})
        async with ConsulClient(address) as client:
            yield client
        nursery.cancel_scope.cancel()


async def test_a_refused_connection_is_told_once() -> None:
    async with ConsulClient(ConsulAddress.from_settings({"CONSUL_HTTP_ADDR": "127.0.0.1:1"})) as client:
        with pytest.raises(ConsulUnreachableError) as raised:
            await client.datacenters()
    told = "cannot reach Consul at http://127.0.0.1:1: connection refused"
    assert str(raised.value) == told
