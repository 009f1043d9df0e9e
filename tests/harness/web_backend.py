"""A small HTTP/1.1 service behind a sidecar, whose answers take their time or never end.

`GET /` says who answers; `/slow` does so after `SLOW_SECONDS`; `/endless` sends a line each 20 ms for as long as
anybody reads; a request with `Upgrade: websocket` is answered with 101, and then every byte comes back as it came.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import h11
import trio

from tests.harness.backend import echo, serving

SLOW_SECONDS: Final = 0.2
_TICK_SECONDS: Final = 0.02
_CHUNK: Final = 65536


@asynccontextmanager
async def web_backend(name: str) -> AsyncIterator[int]:
    """The service for the length of the block, which calls itself `name`; its port on 127.0.0.1."""

    async def serve(stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        request: h11.Request | None = None
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(_CHUNK))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.EndOfMessage) and request is not None:
                if dict(request.headers).get(b"upgrade", b"").lower() == b"websocket":
                    await _upgrade(stream, connection)
                    return
                await _answer(stream, connection, request.target, name)
                if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                    return
                connection.start_next_cycle()
            elif event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                return

    async with serving(serve) as port:
        yield port


async def _answer(stream: trio.SocketStream, connection: h11.Connection, target: bytes, name: str) -> None:
    async def send(*events: h11.Event) -> None:
        # In one piece: as servers write an answer that is short.
        await stream.send_all(b"".join(connection.send(event) or b"" for event in events))

    if target == b"/slow":
        await trio.sleep(SLOW_SECONDS)
    if target == b"/endless":
        await send(h11.Response(status_code=200, headers=[("Transfer-Encoding", "chunked")]))
        number = 0
        while True:
            await send(h11.Data(data=b"%d\n" % number))
            number += 1
            await trio.sleep(_TICK_SECONDS)
    body = name.encode()
    head = h11.Response(status_code=200, headers=[("Content-Length", str(len(body)))])
    await send(head, h11.Data(data=body), h11.EndOfMessage())


async def _upgrade(stream: trio.SocketStream, connection: h11.Connection) -> None:
    data = connection.send(
        h11.InformationalResponse(status_code=101, headers=[("Connection", "upgrade"), ("Upgrade", "websocket")])
    )
    assert data is not None
    await stream.send_all(data)
    await echo(stream, connection.trailing_data[0])
