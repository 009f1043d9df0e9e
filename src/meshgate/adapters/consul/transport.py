"""The seam to python-consul2 and httpx: the one module that knows either.

python-consul2's endpoint methods return whatever its HTTP client returns, so with a client whose methods are
coroutines they become awaitable under trio. Ours keeps next to each value what python-consul2 drops (the index as a
number, the content hash, whether Consul filtered the answer), gives each request a timeout that suits a held query,
adds the credentials, and turns every failure into an error of `errors`.

What always holds: a name that Consul's catalog holds cannot lead a request to another path, and whatever answers can
neither fill this process nor keep a request busy: an answer has a largest size and a time in which it must be whole.
"""

import logging
import ssl
from collections.abc import Callable, Coroutine, Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar, cast
from urllib.parse import quote, unquote, urlencode

import httpx
import trio
from consul import base

from meshgate import __version__
from meshgate.core.durations import parse_duration

from .address import ConsulAddress
from .errors import (
    BadRequestError,
    ConsulError,
    ConsulUnreachableError,
    InvalidAnswerError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    ServerError,
    UnexpectedStatusError,
    reason_of,
)
from .tokens import TokenSource

_INDEX_DIGITS = 20  # Of a number of 64 bits.
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Params = Mapping[str, str] | Iterable[tuple[str, str]] | None

USER_AGENT: Final = f"meshgate/{__version__}"
CONNECT_TIMEOUT: Final = 5.0
# Seconds of silence after which a request that is not held by Consul has failed; the grace of one that is.
GRACE: Final = 10.0
# Seconds in which a whole answer must have come, besides those for which Consul may hold the query.
ANSWER_SECONDS: Final = 60.0
# Octets of an answer: room for a list of 50,000 services with their nodes, or for 50,000 instances of one service.
LARGEST_ANSWER: Final = 64 << 20
# Parts of a path that servers and proxies take out, so that it becomes another one.
_NO_PARTS: Final = frozenset(("", ".", ".."))
_LONGEST_QUOTE: Final = 300
_NO_FILTER: Final = "boolean expression evaluator"


@dataclass(frozen=True, slots=True)
class Reply(Generic[T_co]):
    """What an endpoint returned, with what its headers say. `index` is None where the answer has none."""

    value: T_co
    index: int | None = None
    content_hash: str = ""
    filtered: bool = False
    known_leader: bool = True


class MeshConsul(base.Consul):
    """python-consul2's client over our HTTP client, with the endpoint groups that are used.

    `base.Consul.__init__` is not called: it lets `CONSUL_HTTP_ADDR`, `CONSUL_HTTP_TOKEN` and others of the environment
    win over explicit arguments, reads them in another way than Consul does, and warns of two parts it deprecates.
    """

    http: "HttpClient"

    def __init__(self, http: "HttpClient") -> None:
        self.http = http
        self.token = None  # the HTTP client adds the credentials: one place, and a rotated token takes effect
        self.dc = None
        self.scheme = "http"
        self.consistency = "default"
        self.agent = base.Consul.Agent(self)
        self.catalog = base.Consul.Catalog(self)
        self.config = base.Consul.Config(self)


class HttpClient(base.HTTPClient):
    """python-consul2's HTTP client on httpx and trio.

    Args:
        address: where the agent is.
        token: the credentials of each request.
        context: shared by all clients of the process; making one is slow.
        connections: how many at most. A query that is held needs a client with one connection of its own: httpcore
            searches a shared pool anew for each request that ends, in cubic time.
    """

    def __init__(
        self, address: ConsulAddress, token: TokenSource, context: ssl.SSLContext, *, connections: int = 1
    ) -> None:
        super().__init__(address.host, address.port, address.scheme)
        self.base_uri = address.base_url
        self._address = address
        self._token = token
        scope = {"ns": address.namespace, "partition": address.partition}
        self._scope = {name: value for name, value in scope.items() if value}
        self._extensions: dict[str, Any] = {"sni_hostname": name} if (name := address.tls_server_name) else {}
        # Requests wait here in their order, so httpx's own queue with its timeout is never used.
        self._turn = trio.Semaphore(connections)
        # At INFO httpx logs each URL, and its headers show at lower levels.
        for name in ("httpx", "httpcore"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # Without httpx's client around it: that would keep cookies, and takes a third of a request's processor time.
        self._connections = httpx.AsyncHTTPTransport(
            verify=context,
            trust_env=False,
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            uds=address.unix_path or None,
        )

    def within(self, **scope: str) -> "HttpClient":
        """The same connections, for requests with these parameters; what is empty stays as it is."""
        view = copy(self)
        view._scope = self._scope | {name: value for name, value in scope.items() if value}  # noqa: SLF001 - its own
        return view

    async def aclose(self) -> None:
        """Close the connections."""
        await self._connections.aclose()

    def get(
        self, callback: Callable[[base.Response], T], path: str, params: Params = None, headers: object = None
    ) -> Coroutine[Any, Any, Reply[T]]:
        """A GET; awaiting it gives what the callback made of the answer. `headers` are not used: see `MeshConsul`."""
        return self._send("GET", callback, path, params)

    def put(
        self,
        callback: Callable[[base.Response], T],
        path: str,
        params: Params = None,
        data: bytes | str = b"",
        headers: object = None,
    ) -> Coroutine[Any, Any, Reply[T]]:
        """A PUT, like `get`."""
        return self._send("PUT", callback, path, params, data)

    def delete(
        self,
        callback: Callable[[base.Response], T],
        path: str,
        params: Params = None,
        data: bytes | str = b"",
        headers: object = None,
    ) -> Coroutine[Any, Any, Reply[T]]:
        """A DELETE, like `get`."""
        return self._send("DELETE", callback, path, params, data)

    def post(
        self,
        callback: Callable[[base.Response], T],
        path: str,
        params: Params = None,
        data: bytes | str = b"",
        headers: object = None,
    ) -> Coroutine[Any, Any, Reply[T]]:
        """A POST, like `get`."""
        return self._send("POST", callback, path, params, data)

    def uri(self, path: str, params: Iterable[tuple[str, str]] | None = None) -> str:
        """The address of a path, whose names need no quotes or have them (`segment`).

        Raises:
            BadRequestError: servers and proxies would read the path as another one.
        """
        if not _NO_PARTS.isdisjoint(unquote(path).split("/")[1:]):
            raise BadRequestError(f"{path!r} is not asked for: it would be read as another path", "invalid")
        return self.base_uri + quote(path, safe="/:%") + (f"?{urlencode(list(params))}" if params else "")

    async def _send(
        self, method: str, callback: Callable[[base.Response], T], path: str, params: Params, data: bytes | str = b""
    ) -> Reply[T]:
        query = list(params.items() if isinstance(params, Mapping) else params or ())
        asked = {name for name, _ in query}
        scope = [(name, value) for name, value in self._scope.items() if name not in asked]
        try:
            async with self._turn:
                answer = await self._exchange(method, self.uri(path, query + scope), data, _held(dict(query)))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # The exception of httpx holds the request with its headers, so it does not travel on.
            raise self._unreachable(error) from None
        return self._reply(answer, callback)

    async def _exchange(self, method: str, uri: str, data: bytes | str, held: float) -> base.Response:
        request = httpx.Request(
            method,
            uri,
            headers=self._token.header() | {"Accept-Encoding": "identity", "User-Agent": USER_AGENT},
            content=data or None,
            extensions=self._extensions | {"timeout": httpx.Timeout(CONNECT_TIMEOUT, read=held + GRACE).as_dict()},
        )
        content = bytearray()
        with trio.move_on_after(held + ANSWER_SECONDS) as patience:
            response = await self._connections.handle_async_request(request)
            try:
                async for chunk in cast("httpx.AsyncByteStream", response.stream):
                    content += chunk
                    if len(content) > LARGEST_ANSWER:
                        # Not by leaving: the generators of httpcore come to a good end only where they wait.
                        patience.cancel()
            finally:
                await response.aclose()
        if len(content) > LARGEST_ANSWER:
            raise InvalidAnswerError(f"Consul's answer is larger than {LARGEST_ANSWER} bytes", "invalid")
        if patience.cancelled_caught:
            raise self._failed(f"no whole answer within {held + ANSWER_SECONDS:g} s", "timeout")
        return base.Response(response.status_code, response.headers, content.decode("utf-8", "replace"), bytes(content))

    def _reply(self, answer: base.Response, callback: Callable[[base.Response], T]) -> Reply[T]:
        text = self._quote(answer.body)
        status = answer.code
        if _NO_FILTER in text and status >= 400:
            raise BadRequestError(f"Consul does not understand the filter: {text}", str(status))
        if status == 404:
            missing = NotFoundError(f"Consul answered 404: {text or 'no such endpoint'}", "404")
            missing.index = _index(answer.headers)
            raise missing
        if not 200 <= status < 300 and not 400 <= status < 600:
            raise UnexpectedStatusError(f"not an answer of Consul: status {status}", str(status))
        try:
            value = callback(answer)
        except base.ConsulException as error:
            raise _translated(error, status, text) from None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidAnswerError(f"{type(error).__name__} in Consul's answer: {text[:80]!r}", "invalid") from None
        headers = answer.headers
        return Reply(
            value,
            index=_index(headers),
            content_hash=headers.get("X-Consul-ContentHash", ""),
            filtered=headers.get("X-Consul-Results-Filtered-By-ACLs", "") == "true",
            known_leader=headers.get("X-Consul-KnownLeader", "true") == "true",
        )

    def _unreachable(self, error: Exception) -> ConsulUnreachableError:
        status = "timeout" if isinstance(error, httpx.TimeoutException) else "unreachable"
        return self._failed(reason_of(error), status)

    def _failed(self, reason: str, status: str) -> ConsulUnreachableError:
        return ConsulUnreachableError(f"cannot reach Consul at {self._address.url}: {self._quote(reason)}", status)

    def _quote(self, text: str) -> str:
        """One line of bounded length, without a token that somebody repeated."""
        return " ".join(self._token.redact(text[: 4 * _LONGEST_QUOTE]).split())[:_LONGEST_QUOTE]


def segment(name: str) -> str:
    """A name as one part of a path: no character of it means anything there."""
    return quote(name, safe="")


def decoded(decode: Callable[[bytes], T]) -> Callable[[base.Response], T]:
    """A callback that has python-consul2 check the status, and decodes the body itself."""
    content = base.CB.binary()
    return lambda response: decode(content(response))


def accepted() -> Callable[[base.Response], bool]:
    """A callback for a request whose answer has no content."""
    return base.CB.bool()


def _index(headers: Mapping[str, str]) -> int | None:
    text = headers.get("X-Consul-Index", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _INDEX_DIGITS else None


def _held(query: Mapping[str, str]) -> float:
    """Seconds for which Consul may hold a query: `wait` and up to a sixteenth of it."""
    return parse_duration(query["wait"]) * 17 / 16 if "wait" in query else 0.0


def _translated(error: base.ConsulException, status: int, text: str) -> ConsulError:
    """Our error for one that python-consul2 made of the status."""
    if isinstance(error, base.ACLPermissionDenied):
        return PermissionDeniedError(text)
    if isinstance(error, base.BadRequest):
        return BadRequestError(f"Consul refuses the request: {text}", str(status))
    if status == 429:
        return RateLimitedError(f"too many requests or connections for Consul: {text}", str(status))
    if isinstance(error, base.ClientError | base.ACLDisabled):
        return UnexpectedStatusError(f"Consul answered {status}: {text}", str(status))
    return ServerError(f"Consul failed: {status} {text}", str(status))
