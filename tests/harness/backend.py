"""The small TCP service that is called: it echoes until the other side ends sending, then ends sending too."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

_CHUNK: Final = 65536


async def echo(stream: trio.abc.HalfCloseableStream, greeting: bytes = b"") -> None:
    """Serves one connection: `greeting` first, then everything back as it came.

    Raises:
        trio.BrokenResourceError: the other side is gone.
    """
    if greeting:
        await stream.send_all(greeting)
    while data := await stream.receive_some(_CHUNK):
        await stream.send_all(data)
    await stream.send_eof()


@asynccontextmanager
async def serving(handler: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[int]:
    """A listener on 127.0.0.1 for the length of the block; its port. Each connection is closed after `handler`.

    An exception of the block comes out as itself, not in a group. A connection that breaks under `handler` ends
    quietly, any other exception of it ends the block.
    """

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                await handler(stream)
            except trio.BrokenResourceError:
                return

    raised: BaseException | None = None
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        try:
            yield listeners[0].socket.getsockname()[1]
        except BaseException as error:  # noqa: BLE001 (raised again below, outside of the nursery that would wrap it)
            raised = error
        nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised


@asynccontextmanager
async def backend(greeting: bytes = b"") -> AsyncIterator[int]:
    """`echo` with `greeting` as a plain TCP service for the length of the block; its port on 127.0.0.1."""

    async def handler(stream: trio.SocketStream) -> None:
        await echo(stream, greeting)

    async with serving(handler) as port:
        yield port
