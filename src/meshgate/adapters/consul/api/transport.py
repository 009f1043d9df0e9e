"""How a request travels to Consul and an answer back, by httpx on trio: the one module that knows httpx.

What always holds: a name that Consul's catalog holds cannot lead a request to another path, and whatever answers can
neither fill this process nor keep a request busy: an answer has a largest size and a time in which it must be whole.
Every failure becomes an error of `consul_errors`.
"""

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Self, cast
from urllib.parse import quote, unquote, urlencode

import httpx
import trio

from meshgate import __version__
from meshgate.core.durations import parse_duration

from .address import ConsulAddress
from .consul_errors import BadRequestError, ConsulUnreachableError, InvalidAnswerError, error_of, reason_of
from .credentials import TlsContext, TokenSource
from .endpoints import Request, askable

_INDEX_DIGITS: Final = 20  # Of a number of 64 bits.
_HEADERS: Final = {"Accept-Encoding": "identity", "User-Agent": f"meshgate/{__version__}"}
CONNECT_TIMEOUT: Final = 5.0
# Seconds without a byte of an answer, and for all of it; those for which Consul may hold the query come on top.
READ_TIMEOUT: Final = 10.0
TOTAL_TIMEOUT: Final = 60.0
# Bytes of an answer: room for a list of 50,000 services with their nodes, or for 50,000 instances of one service.
LARGEST: Final = 64 << 20
_LONGEST_QUOTE: Final = 300


@dataclass(frozen=True, slots=True)
class Answer:
    content: bytes
    headers: Mapping[str, str]

    @property
    def index(self) -> int | None:
        """Where a query may wait for the next answer; None where there is no such place."""
        text = self.headers.get("X-Consul-Index", "")
        return int(text) if text.isascii() and text.isdigit() and len(text) <= _INDEX_DIGITS else None

    @property
    def filtered(self) -> bool:
        """Whether Consul (1.11 and later) says that it left out what the token may not see."""
        return self.headers.get("X-Consul-Results-Filtered-By-ACLs", "") == "true"

    @property
    def looked_up(self) -> bool:
        """False for what Consul 1.8 says without a look at its catalog: without a leader and at the first index."""
        return self.headers.get("X-Consul-KnownLeader", "true") == "true" or (self.index or 0) > 1


class _Body(httpx.AsyncByteStream):
    """A request's body in one piece.

    httpx's own is a generator, and one that a broken connection leaves half-read warns when it is collected.
    """

    def __init__(self, content: bytes) -> None:
        self._rest = [content] if content else []

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._rest:
            raise StopAsyncIteration
        return self._rest.pop()


class Transport:
    """Connections to one agent; `tls` is shared by all transports of the process.

    A query that is held needs a transport with one connection of its own: httpcore searches a shared pool anew for each
    request that ends, in cubic time.
    """

    def __init__(self, address: ConsulAddress, token: TokenSource, tls: TlsContext, *, connections: int) -> None:
        self._address = address
        self._token = token
        self._extensions: dict[str, Any] = {"sni_hostname": name} if (name := address.tls_server_name) else {}
        # Requests wait here in their order, so httpx's own queue with its timeout is never used.
        self._turn = trio.Semaphore(connections)
        # At INFO httpx logs each URL, and its headers show at lower levels.
        for name in ("httpx", "httpcore"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._tls = tls
        self._number = connections
        self._pool = self._connect()

    def _connect(self) -> "_Pool":
        return _Pool(
            # Without httpx's client around it: that would keep cookies, and takes a third of a request's time.
            httpx.AsyncHTTPTransport(
                verify=self._tls.context,
                trust_env=False,
                limits=httpx.Limits(max_connections=self._number, max_keepalive_connections=self._number),
                uds=self._address.unix_path or None,
            ),
            self._tls.version,
        )

    async def aclose(self) -> None:
        """Close the connections within a second, cancelled or not."""
        await self._pool.aclose()

    @asynccontextmanager
    async def _connections(self) -> AsyncIterator[httpx.AsyncHTTPTransport]:
        """Connections by the certificates of now; those by older ones are closed when the last request on them ends."""
        self._tls.refresh(at_once=False)
        if self._pool.version != self._tls.version:
            before, self._pool = self._pool, self._connect()
            if not before.users:
                await before.aclose()
        pool = self._pool
        pool.users += 1
        try:
            yield pool.connections
        finally:
            pool.users -= 1
            if pool is not self._pool and not pool.users:
                await pool.aclose()

    async def send(self, request: Request) -> Answer:
        """Send a request when its turn comes, or raise a ConsulError; cancelling it closes its connection."""
        uri = self._uri(request)
        try:
            async with self._turn, self._connections() as connections:
                status, answer = await self._exchange(connections, request, uri)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # The exception of httpx holds the request with its headers, so it does not travel on.
            label = "timeout" if isinstance(error, httpx.TimeoutException) else "unreachable"
            raise self._failed(reason_of(error), label) from None
        if 200 <= status < 300:
            return answer
        raise error_of(status, self._quote(answer.content.decode("utf-8", "replace")), request.path)

    def _uri(self, request: Request) -> str:
        """The address of a request, whose names need no quotes or have them (`segment`)."""
        if not askable(unquote(request.path).removeprefix("/")):
            raise BadRequestError(f"{request.path!r} is not asked for: it would be read as another path", "invalid")
        query = f"?{urlencode(request.params)}" if request.params else ""
        return self._address.base_url + quote(request.path, safe="/:%") + query

    async def _exchange(self, connections: httpx.AsyncHTTPTransport, request: Request, uri: str) -> tuple[int, Answer]:
        # Seconds for which Consul may hold the query: `wait` and up to a sixteenth of it.
        held = parse_duration(dict(request.params).get("wait", "0")) * 17 / 16
        sent = httpx.Request(
            request.method,
            uri,
            headers={**_HEADERS, **self._token.header(), **request.headers},
            content=request.body or None,
            extensions=self._extensions
            | {"timeout": httpx.Timeout(CONNECT_TIMEOUT, read=held + READ_TIMEOUT).as_dict()},
        )
        sent.stream = _Body(request.body)
        content = bytearray()
        with trio.move_on_after(held + TOTAL_TIMEOUT) as scope:
            response = await connections.handle_async_request(sent)
            try:
                async for chunk in cast("httpx.AsyncByteStream", response.stream):
                    content += chunk
                    if len(content) > LARGEST:
                        # Not by leaving: the generators of httpcore come to a good end only where they wait.
                        scope.cancel()
            finally:
                await response.aclose()
        if len(content) > LARGEST:
            raise InvalidAnswerError(f"Consul's answer is larger than {LARGEST} bytes", "invalid")
        if scope.cancelled_caught:
            raise self._failed(f"no whole answer within {held + TOTAL_TIMEOUT:g} s", "timeout")
        return response.status_code, Answer(bytes(content), response.headers)

    def _failed(self, reason: str, status: str) -> ConsulUnreachableError:
        return ConsulUnreachableError(f"cannot reach Consul at {self._address.url}: {self._quote(reason)}", status)

    def _quote(self, text: str) -> str:
        """One line of bounded length, without a token that somebody repeated."""
        return " ".join(self._token.redact(text[: 4 * _LONGEST_QUOTE]).split())[:_LONGEST_QUOTE]


@dataclass(slots=True)
class _Pool:
    """Connections that were made with one version of the TLS context, and how many requests use them now."""

    connections: httpx.AsyncHTTPTransport
    version: int
    users: int = 0

    async def aclose(self) -> None:
        # Closing says goodbye over TLS; it must not hang on an agent that is gone.
        with trio.move_on_after(1, shield=True):
            await self.connections.aclose()
