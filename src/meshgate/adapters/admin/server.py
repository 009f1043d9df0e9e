"""A small, strict HTTP/1.1 server on trio, for the admin address.

h11 reads and writes the protocol; this module adds limits, timeouts and the table of routes. Every connection is one
task that answers one request after the other. Nothing a client sends can stop the server, take more memory than the
limits allow, or hold a connection longer than the timeouts. Clients that say nothing or read nothing keep nobody out:
at the limit the one that has been silent longest makes room for a new one.
"""

import email.utils
import http
import inspect
import socket
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl

import h11
import structlog
import trio

from .guard import refusal
from .listener import Bind, accept, listening
from .messages import Request, Response, error_response

Handler = Callable[[Request], Response | Awaitable[Response]]
Routes = Mapping[tuple[str, str], Handler]

_log = structlog.get_logger(module="meshgate.admin")

_CHUNK: Final = 16 * 1024
_MAX_QUERY_FIELDS: Final = 32
_LINGER_SECONDS: Final = 1.0
_LINGER_BYTES: Final = 1 << 20

_HEADERS: Final = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may take. Sizes are in bytes, times in seconds.

    `request_timeout` runs from the first byte of a request to its last, `idle_timeout` between two requests,
    `write_timeout` while an answer is sent. Of more than `max_connections` the one that has been longest without a
    whole request is closed, else the one that takes longest to read its answer; where an answer is being made for each
    of them, the new one gets a 503. `accept_pause` passes before the next try where the machine has no descriptor.
    """

    header_bytes: int = 16 * 1024
    body_bytes: int = 64 * 1024
    request_timeout: float = 10.0
    idle_timeout: float = 60.0
    write_timeout: float = 30.0
    max_connections: int = 128
    accept_pause: float = 1.0


class AdminServer:
    """Serves a table of routes.

    Args:
        routes: handlers by method and path; `HEAD` comes with `GET`. A handler is a function of the request that
            returns a `Response`, or an awaitable of one. If it raises, the client gets a bare 500 and the log the rest.
            A `GET` handler must change nothing.
        allowed_hosts: names, besides `localhost` and this machine's, that clients may use for the server.
        limits: what a client may take.
    """

    def __init__(self, routes: Routes, *, allowed_hosts: Collection[str] = (), limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._names = {"localhost", socket.gethostname().lower(), *(name.lower() for name in allowed_hosts)}
        self._routes: dict[str, dict[str, Handler]] = {}
        for (method, path), handler in routes.items():
            self._routes.setdefault(path, {})[method] = handler
        for handlers in self._routes.values():
            if "GET" in handlers:
                handlers.setdefault("HEAD", handlers["GET"])
        self._open = 0
        # Who has not sent a whole request yet, and who has not read its answer yet; the longest first.
        self._asking: dict[_Connection, trio.CancelScope] = {}
        self._reading: dict[_Connection, trio.CancelScope] = {}

    async def serve(self, bind: Bind, *, task_status: trio.TaskStatus[Bind] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve at `bind` until cancelled; `nursery.start` gives the address with the real port.

        Raises:
            OSError: it cannot listen there.
        """
        with listening(bind) as (listener, bound):
            names = self._names if isinstance(bound, tuple) else None
            async with trio.open_nursery() as nursery:
                task_status.started(bound)
                while True:
                    stream = await accept(listener, self._limits.accept_pause)
                    nursery.start_soon(self._serve_connection, stream, names)

    async def _serve_connection(self, stream: trio.SocketStream, names: Collection[str] | None) -> None:
        connection = _Connection(stream, self._limits)
        self._open += 1
        try:
            async with stream:
                if self._open > self._limits.max_connections and not self._make_room():
                    await connection.refuse(error_response(503, "too many connections to the admin address"))
                    return
                while request := await self._next_request(connection):
                    response = refusal(request, names) or await self._handle(request)
                    if not await self._answer(connection, response, head=request.method == "HEAD"):
                        return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has gone
        except Exception as error:  # noqa: BLE001 - one connection must never take the server down
            _log.error("a connection failed", exc_info=error)
        finally:
            self._open -= 1

    async def _next_request(self, connection: "_Connection") -> Request | None:
        with trio.CancelScope() as scope, _listed(connection, scope, self._asking):
            return await connection.read_request()
        return None

    async def _answer(self, connection: "_Connection", response: Response, *, head: bool) -> bool:
        with trio.CancelScope() as scope, _listed(connection, scope, self._reading):
            return await connection.send(response, head=head)
        return False

    def _make_room(self) -> bool:
        """Close the connection that the client has left waiting longest; says whether there was one."""
        for listed in (self._asking, self._reading):
            for connection, scope in listed.items():
                del listed[connection]
                scope.cancel()
                return True
        return False

    async def _handle(self, request: Request) -> Response:
        handlers = self._routes.get(request.path)
        if handlers is None:
            return error_response(404)
        handler = handlers.get(request.method)
        if handler is None:
            return error_response(405, headers=(("allow", ", ".join(sorted(handlers))),))
        try:
            response = handler(request)
            return await response if inspect.isawaitable(response) else response
        except Exception as error:  # noqa: BLE001 - whatever it is, the client learns nothing of it
            _log.error("a request failed", method=request.method, path=request.path, exc_info=error)
            return error_response(500)


@contextmanager
def _listed(
    connection: "_Connection", scope: trio.CancelScope, among: "dict[_Connection, trio.CancelScope]"
) -> Iterator[None]:
    """For the length of the block; whoever cancels the scope takes the connection off the list."""
    among[connection] = scope
    try:
        yield
    finally:
        among.pop(connection, None)


class _Connection:
    """One client: reads requests, writes answers."""

    def __init__(self, stream: trio.SocketStream, limits: Limits) -> None:
        self._stream = stream
        self._limits = limits
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.header_bytes)

    async def read_request(self) -> Request | None:
        """The next request. None when there will be none; a client that did wrong has been told so."""
        if not await self._has_bytes():
            return None
        try:
            with trio.fail_after(self._limits.request_timeout):
                return await self._read()
        except trio.TooSlowError:
            await self.refuse(error_response(408))
        except h11.RemoteProtocolError as error:
            await self.refuse(error_response(error.error_status_hint))
        except _BadRequestError as error:
            await self.refuse(error.response)
        return None

    async def send(self, response: Response, *, head: bool = False, close: bool = False) -> bool:
        """Send an answer; says whether the connection can take another request."""
        headers = _HEADERS | {
            "content-type": response.content_type,
            "content-length": str(len(response.body)),
            "date": email.utils.formatdate(usegmt=True),
            **({"connection": "close"} if close else {}),
            **{name.lower(): value for name, value in response.headers},
        }
        reason = http.HTTPStatus(response.status).phrase
        head_of_answer = h11.Response(
            status_code=response.status, headers=list(headers.items()), reason=reason.encode()
        )
        data = self._http.send(head_of_answer) or b""
        if not head:
            data += self._http.send(h11.Data(data=response.body)) or b""
        data += self._http.send(h11.EndOfMessage()) or b""
        with trio.move_on_after(self._limits.write_timeout) as writing:
            await self._stream.send_all(data)
        if writing.cancelled_caught:
            return False
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            return True
        await self._linger()
        return False

    async def refuse(self, response: Response) -> None:
        """Answer what cannot be served, and end the connection."""
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            await self.send(response, close=True)

    async def _linger(self) -> None:
        # Closing with unread bytes would reset the connection, and the client might lose the answer.
        await self._stream.send_eof()
        with trio.move_on_after(_LINGER_SECONDS):
            left = _LINGER_BYTES
            while left > 0 and (data := await self._stream.receive_some(_CHUNK)):
                left -= len(data)

    async def _has_bytes(self) -> bool:
        """Wait for the first byte of a request."""
        if self._http.trailing_data[0]:
            return True
        with trio.move_on_after(self._limits.idle_timeout):
            return await self._receive()
        return False

    async def _receive(self) -> bool:
        data = await self._stream.receive_some(_CHUNK)
        self._http.receive_data(data)
        return bool(data)

    async def _read(self) -> Request | None:
        head = await self._next_event()
        if not isinstance(head, h11.Request):
            return None
        if head.http_version not in (b"1.0", b"1.1"):
            raise _BadRequestError(505)
        headers = {name.decode("ascii"): value.decode("latin-1") for name, value in head.headers}
        # h11 limits only what is incomplete, and the last chunk read may complete up to twice as much.
        if len(head.target) + sum(len(name) + len(value) for name, value in head.headers) > self._limits.header_bytes:
            raise _BadRequestError(431)
        if int(headers.get("content-length", "0")) > self._limits.body_bytes:
            raise _BadRequestError(413)
        if self._http.they_are_waiting_for_100_continue:
            await self._stream.send_all(self._http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        body = bytearray()
        while isinstance(event := await self._next_event(), h11.Data):
            body += event.data
            if len(body) > self._limits.body_bytes:
                raise _BadRequestError(413)
        return _request(head.method.decode("ascii"), head.target.decode("ascii"), headers, bytes(body))

    async def _next_event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            await self._receive()
        return event


class _BadRequestError(Exception):
    """A request that h11 finds correct and this server does not serve."""

    def __init__(self, status: int, message: str = "") -> None:
        super().__init__(status)
        self.response = error_response(status, message)


def _request(method: str, target: str, headers: Mapping[str, str], body: bytes) -> Request:
    # Only the origin form: an absolute target would carry a second host, past the check of the first.
    if not target.startswith("/"):
        raise _BadRequestError(400, "the target must be a path")
    path, _, query = target.partition("?")
    try:
        fields = parse_qsl(query, keep_blank_values=True, max_num_fields=_MAX_QUERY_FIELDS)
    except ValueError:
        raise _BadRequestError(400, "too many fields in the query") from None
    return Request(method, path, dict(fields), headers, body)
