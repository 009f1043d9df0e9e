"""A small, strict HTTP/1.1 server on trio, for the admin address.

h11 reads and writes the protocol; this module adds limits, timeouts and the table of routes. Every connection is one
task that answers one request after the other. Nothing a client sends can stop the server, take more memory than the
limits allow, or hold a connection longer than the timeouts. Clients that say nothing or read nothing keep nobody out:
at the limit the one that has been silent longest makes room for a new one.

A browser on an operator's machine runs pages that can send requests to 127.0.0.1. Two things stop them:

- DNS rebinding: a page's own name is made to resolve to the admin address, so that the page may read what it answers.
  Such a request carries that name in `Host`. Only IP addresses (a rebound request cannot carry one, the browser sends
  the name), `localhost`, and names this machine is known by are answered.
- Cross-site requests: no answer allows another origin, but each costs the gateway time. They are refused when `Origin`
  or `Sec-Fetch-Site` (W3C Fetch Metadata) says that another site's page sent them. A link that somebody follows to a
  page is none of them.

Whoever asks, and however often: one request is begun in a turn of the loop, and pages that take time to make are made
one at a time and seldom (`Lane`, `Shared`), so that what the gateway lives for is not kept waiting.
"""

import email.utils
import errno
import inspect
import os
import re
import socket
import stat
import struct
import time
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

import h11
import msgspec
import structlog
import trio

from meshgate.adapters.error_words import words_of
from meshgate.core.addresses import host_port, is_numeric
from meshgate.core.text import ascii_json
from meshgate.core.token_bucket import TokenBucket

_log = structlog.get_logger(module="meshgate.admin")

Bind = tuple[str, int] | Path
"""An IP address (without brackets) and a port, 0 for a free one; or the path of a unix socket."""

JSON: Final = "application/json"
TEXT: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Request:
    """A request that was read to its end. No page takes a body, so one is not kept.

    `path` is as sent, without the query. `query` is decoded; of a repeated name the last value counts. Header names
    are lower case. `peer` says who asks: an address, or the process at the other end of a unix socket.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    peer: str = ""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer. `headers` are added to the server's own ones, or replace those of the same name.

    `then` is called when it is sent, or cannot be.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = TEXT
    headers: tuple[tuple[str, str], ...] = ()
    then: Callable[[], None] | None = None


def json_response(data: object, status: int = 200) -> Response:
    """`data` as JSON, by msgspec's rules, in printable ASCII: it may be read on a terminal."""
    try:
        body = msgspec.json.encode(data)
    except UnicodeEncodeError:
        body = msgspec.json.encode(_carried(msgspec.to_builtins(data)))
    if not body.isascii() or b"\x7f" in body:
        body = ascii_json(body.decode()).encode()
    return Response(status, body + b"\n", JSON)


def _carried(data: object) -> object:
    """The same with what UTF-8 cannot carry (half a surrogate pair, in a text from outside) escaped."""
    match data:
        case str():
            return data.encode("utf-8", "backslashreplace").decode()
        case dict():
            return {_carried(key): _carried(value) for key, value in data.items()}
        case list() | tuple():
            return [_carried(each) for each in data]
    return data


def error_response(status: int, message: str = "", headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """`{"error": ...}` with `message`, or with the name of the status."""
    return replace(json_response({"error": message or HTTPStatus(status).phrase}, status), headers=headers)


T = TypeVar("T")
Handler = Callable[[Request], Response | Awaitable[Response]]
Routes = Mapping[tuple[str, str], Handler]

# Seconds of processor time from which on work is dear. Behind dear work comes a rest of so many times what it took, and
# of so many seconds at most.
_DEAR: Final = 0.005
_REST: Final = 20
_LONGEST_REST: Final = 1.0


class Lane:
    """Work that takes time, one piece after the other; what is dear gets a twentieth of a processor at most.

    `spent` gives the seconds of processor time that this process has used.
    """

    def __init__(self, spent: Callable[[], float] = time.process_time) -> None:
        self._spent = spent
        self._one = trio.Lock()
        self._rests_until = float("-inf")
        # By key: when it was begun, and what came of it.
        self._made: dict[Hashable, tuple[float, Any]] = {}

    async def share(self, key: Hashable, make: Callable[[], Awaitable[T]]) -> T:
        """What `make` makes when it is its turn; whoever waits under the same `key` meanwhile gets the same.

        No result is older than the call.
        """
        asked = trio.current_time()
        async with self._one:
            # Who waits behind this call came later, so what was begun before it is for nobody any more.
            self._made = {known: made for known, made in self._made.items() if made[0] >= asked}
            if key in self._made:
                shared: T = self._made[key][1]
                return shared
            await trio.sleep_until(self._rests_until)
            begun, before = trio.current_time(), self._spent()
            try:
                result = await make()
            finally:
                spent = self._spent() - before
                if spent >= _DEAR:
                    self._rests_until = trio.current_time() + min(_LONGEST_REST, _REST * spent)
            if self._one.statistics().tasks_waiting:
                self._made[key] = begun, result
            else:
                self._made.clear()
            return result


def shared(make: Callable[[Request], Awaitable[Response]], *query: str) -> Handler:
    """A page that takes time to make. One that takes a twentieth of a second is made once a second at most.

    It depends on these fields of the query alone, so that nobody queues up others by asking for more.
    """
    lane = Lane()

    async def answer(request: Request) -> Response:
        key = (*map(request.query.get, query), request.headers.get("accept"))
        return await lane.share(key, partial(make, request))

    return answer


_LOOKS_AT_ONCE: Final = 2
_REFUSALS_TOLD: Final = 0.1  # A second.
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


# What a client may take. Sizes are in bytes, times in seconds.
HEADER_BYTES: Final = 16 * 1024
BODY_BYTES: Final = 64 * 1024
# From the first byte of a request to its last; between two requests; while an answer is sent.
REQUEST_TIMEOUT: Final = 10.0
IDLE_TIMEOUT: Final = 60.0
WRITE_TIMEOUT: Final = 30.0
# Of more than these the one that has been longest without a whole request is closed, else the one that takes longest to
# read its answer; where an answer is being made for each of them, the new one gets a 503.
MAX_CONNECTIONS: Final = 128
# What passes before the next try where the machine has no descriptor or memory for a connection.
ACCEPT_PAUSE: Final = 1.0


class AdminServer:
    """Serves a table of routes.

    Args:
        routes: handlers by method and path; `HEAD` comes with `GET`. A handler is a function of the request that
            returns a `Response`, or an awaitable of one. If it raises, the client gets a bare 500 and the log the rest.
            A `GET` handler must change nothing.
        refuses: whether to refuse who is at the other end of a TCP connection; called in a thread.
        for_anybody: paths that are answered to those, too.
    """

    def __init__(
        self,
        routes: Routes,
        *,
        refuses: Callable[[socket.socket], bool] | None = None,
        for_anybody: Collection[str] = (),
    ) -> None:
        self._refuses = refuses
        self._for_anybody = for_anybody
        self._looks = trio.CapacityLimiter(_LOOKS_AT_ONCE)
        self._refusals = TokenBucket(_REFUSALS_TOLD, 1)
        self._names = {"localhost", socket.gethostname().lower()}
        self._routes: dict[str, dict[str, Handler]] = {}
        for (method, path), handler in routes.items():
            self._routes.setdefault(path, {})[method] = handler
        for handlers in self._routes.values():
            if "GET" in handlers:
                handlers.setdefault("HEAD", handlers["GET"])
        self.descriptor = -1
        """That of the listening socket, once there is one."""
        self._begins = trio.Lock()
        self._open = 0
        # Who has not sent a whole request yet, and who has not read its answer yet; the longest first.
        self._asking: dict[_Connection, trio.CancelScope] = {}
        self._reading: dict[_Connection, trio.CancelScope] = {}

    async def serve(
        self, bind: Bind, inherited: int = -1, *, task_status: trio.TaskStatus[Bind] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve at `bind` until cancelled; `nursery.start` gives the address with the real port.

        With an `inherited` descriptor that listens there already, who waits at it is served.

        Raises:
            OSError: it cannot listen there.
        """
        with listening(bind, inherited) as (listener, bound):
            self.descriptor = listener.socket.fileno()
            names = self._names if isinstance(bound, tuple) else None
            async with trio.open_nursery() as nursery:
                task_status.started(bound)
                while True:
                    try:
                        stream = await listener.accept()
                    except OSError as error:
                        if error.errno not in _EXHAUSTED:
                            raise
                        _log.warning("cannot accept a connection to the admin address", error=words_of(error))
                        await trio.sleep(ACCEPT_PAUSE)
                    else:
                        nursery.start_soon(self._serve_connection, stream, names)

    async def _serve_connection(self, stream: trio.SocketStream, names: Collection[str] | None) -> None:
        connection = _Connection(stream)
        self._open += 1
        try:
            async with stream:
                if self._open > MAX_CONNECTIONS and not self._make_room():
                    await connection.refuse(error_response(503, "too many connections to the admin address"))
                    return
                known = names is None
                while request := await self._next_request(connection):
                    # Looked at with its first request: one that is silent can still be closed to make room.
                    if not known and request.path not in self._for_anybody:
                        if await self._is_refused(stream):
                            await connection.refuse(
                                error_response(403, "not for relay workers, nor for what looks like one")
                            )
                            return
                        known = True
                    response = refusal(request, names) or await self._handle(request)
                    if not await self._answer(connection, response, head=request.method == "HEAD"):
                        return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has gone
        except Exception as error:  # noqa: BLE001 - one connection must never take the server down
            _log.error("a connection failed", exc_info=error)
        finally:
            self._open -= 1

    async def _is_refused(self, stream: trio.SocketStream) -> bool:
        if self._refuses is None:
            return False
        with socket.socket(fileno=os.dup(stream.socket.fileno())) as sock:
            refused = await trio.to_thread.run_sync(self._refuses, sock, limiter=self._looks)
        if refused and self._refusals.take(trio.current_time()):
            _log.error("refused what may be a relay worker that somebody took over: it asked the admin address")
        return refused

    async def _next_request(self, connection: "_Connection") -> Request | None:
        with trio.CancelScope() as scope, _listed(connection, scope, self._asking):
            return await connection.read_request()
        return None

    async def _answer(self, connection: "_Connection", response: Response, *, head: bool) -> bool:
        try:
            with trio.CancelScope() as scope, _listed(connection, scope, self._reading):
                return await connection.send(response, head=head)
            return False
        finally:
            if response.then is not None:
                response.then()

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
            # One a turn of the loop, so that no turn is long, however many ask.
            async with self._begins:
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
    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_BYTES)

    async def read_request(self) -> Request | None:
        """The next request. None when there will be none; a client that did wrong has been told so."""
        if not await self._has_bytes():
            return None
        try:
            with trio.fail_after(REQUEST_TIMEOUT):
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
        reason = HTTPStatus(response.status).phrase
        head_of_answer = h11.Response(
            status_code=response.status, headers=list(headers.items()), reason=reason.encode()
        )
        data = self._http.send(head_of_answer) or b""
        if not head:
            data += self._http.send(h11.Data(data=response.body)) or b""
        data += self._http.send(h11.EndOfMessage()) or b""
        with trio.move_on_after(WRITE_TIMEOUT) as writing:
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
        if self._http.trailing_data[0]:
            return True
        with trio.move_on_after(IDLE_TIMEOUT):
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
        if len(head.target) + sum(len(name) + len(value) for name, value in head.headers) > HEADER_BYTES:
            raise _BadRequestError(431)
        if "transfer-encoding" in headers and ("content-length" in headers or head.http_version == b"1.0"):
            # Two readers could disagree about where it ends (RFC 9112 section 6.1).
            raise _BadRequestError(400, "a request has a Content-Length or a Transfer-Encoding")
        if int(headers.get("content-length", "0")) > BODY_BYTES:
            raise _BadRequestError(413)
        if self._http.they_are_waiting_for_100_continue:
            await self._stream.send_all(self._http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        length = 0
        while isinstance(event := await self._next_event(), h11.Data):
            length += len(event.data)
            if length > BODY_BYTES:
                raise _BadRequestError(413)
        path, query = _path_and_query(head.target.decode("ascii"))
        return Request(head.method.decode("ascii"), path, query, headers, _peer_of(self._stream.socket))

    async def _next_event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            await self._receive()
        return event


class _BadRequestError(Exception):
    """A request that h11 finds correct and this server does not serve."""

    def __init__(self, status: int, message: str = "") -> None:
        super().__init__(status)
        self.response = error_response(status, message)


def _path_and_query(target: str) -> tuple[str, Mapping[str, str]]:
    # Only the origin form: an absolute target would carry a second host, past the check of the first.
    if not target.startswith("/"):
        raise _BadRequestError(400, "the target must be a path")
    path, _, query = target.partition("?")
    try:
        return path, dict(parse_qsl(query, keep_blank_values=True, max_num_fields=_MAX_QUERY_FIELDS))
    except ValueError:
        raise _BadRequestError(400, "too many fields in the query") from None


def _peer_of(sock: trio.socket.SocketType) -> str:
    """Who is at the other end of a connection; "" where the system does not say."""
    try:
        if sock.family != socket.AF_UNIX:
            return host_port(*sock.getpeername()[:2])
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    except (OSError, AttributeError):  # the latter where this is no Linux
        return ""
    return f"process {pid} of user {uid}"


_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


def refusal(request: Request, names: Collection[str] | None) -> Response | None:
    """The answer to a request that a stranger's page may have sent; None for all others.

    `names` are host names, lower case, that may be in `Host`; None on a unix socket, which no page can reach.
    """
    host = request.headers.get("host", "")
    # A client of HTTP/1.0 may send no Host; browsers always send one.
    if names is not None and host and not _is_known(host, names):
        return error_response(421, "unknown name in the Host header; use the IP address or localhost")
    if not _is_same_site(request, host):
        return error_response(403, "cross-origin request")
    return None


# An IP address in brackets or none, or a name; and a port.
_HOST: Final = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]+))(?::\d*)?")


def _is_known(host: str, names: Collection[str]) -> bool:
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    name = found[1] or found[2]
    return is_numeric(name) or name.lower().removesuffix(".") in names


def _is_same_site(request: Request, host: str) -> bool:
    headers, safe = request.headers, request.method in _SAFE_METHODS
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        # A link to a page, followed in a tab of its own: what comes of it stays in that tab.
        followed = headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")
        return safe and followed == ("navigate", "document")
    origin = headers.get("origin")
    return safe or origin is None or origin.lower() == f"http://{host.lower()}"


_BACKLOG: Final = 128
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


@contextmanager
def listening(bind: Bind, inherited: int = -1) -> Iterator[tuple[trio.SocketListener, Bind]]:
    """Listen for the length of the block; gives the listener and the address with the real port.

    With an `inherited` descriptor that is bound there already, go on with that.

    A unix socket has mode 0600 and is removed at the end. A socket file that is there already is replaced if nobody
    answers it any more.

    Raises:
        OSError: the address cannot be bound, somebody else answers at the path, or it is not a socket.
    """
    with _unix_socket(bind, inherited) if isinstance(bind, Path) else _tcp_socket(bind, inherited) as sock:
        bound: Bind = bind if isinstance(bind, Path) else sock.getsockname()[:2]
        sock.listen(_BACKLOG)
        yield trio.SocketListener(trio.socket.from_stdlib_socket(sock)), bound


def _tcp_socket(address: tuple[str, int], inherited: int) -> socket.socket:
    if inherited >= 0:
        return socket.socket(fileno=inherited)
    if ":" not in address[0]:
        return socket.create_server(address)
    # Where IPv6 is switched off, binding says so.
    dualstack = socket.has_dualstack_ipv6()
    return socket.create_server(address, family=socket.AF_INET6, dualstack_ipv6=dualstack)


@contextmanager
def _unix_socket(path: Path, inherited: int) -> Iterator[socket.socket]:
    if inherited < 0:
        _remove_stale(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=inherited if inherited >= 0 else None) as sock:
        if inherited < 0:
            sock.bind(os.fspath(path))
            # Nobody can connect before listen(), so there is no moment in which the mode is wrong.
            path.chmod(0o600)
        ours = path.stat()
        try:
            yield sock
        finally:
            # Another process may have put its own socket there meanwhile.
            with suppress(OSError):
                if os.path.samestat(ours, path.lstat()):
                    path.unlink()


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "exists and is not a socket", str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(errno.EADDRINUSE, "another process answers there", str(path))
