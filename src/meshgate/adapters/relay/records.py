"""Streams as the access log and the list of open connections tell them."""

import time

from meshgate.core.reasons import envoy_flags

from .connection import Connection
from .counters import OpenStream, StreamRecord
from .sockets import host_port


def ended_stream(connection: Connection) -> StreamRecord:
    """A stream that has just ended."""
    engine, reason = connection.engine, connection.reason
    duration = engine.clock() - connection.started
    return StreamRecord(
        started=time.time() - duration,
        duration=duration,
        client=host_port(*connection.client_address),
        listener=connection.listener,
        sni=connection.server_name,
        alpn=connection.alpn,
        route=_route(connection),
        kind=connection.route.kind.value if connection.route is not None else None,
        endpoint=_endpoint(connection),
        attempts=connection.attempts,
        bytes_received=connection.client.received,
        bytes_sent=_sent(connection),
        reason=reason.value if reason is not None else None,
        flags=envoy_flags(reason) if reason is not None else connection.abort_flag,
        worker=engine.worker,
    )


def open_stream(connection: Connection) -> OpenStream:
    """A stream as it is now."""
    return OpenStream(
        id=id(connection),
        client=host_port(*connection.client_address),
        sni=connection.server_name,
        route=_route(connection),
        endpoint=_endpoint(connection),
        state=_state(connection),
        age=connection.engine.clock() - connection.started,
        bytes_received=connection.client.received,
        bytes_sent=_sent(connection),
        worker=connection.engine.worker,
    )


def _state(connection: Connection) -> str:
    if connection.opening is not None:
        return "connecting" if connection.opening.connecting else "hello"
    return "relaying" if connection.relaying else "refused"


def _route(connection: Connection) -> str | None:
    return connection.route.sni if connection.route is not None else None


def _endpoint(connection: Connection) -> str | None:
    endpoint = connection.endpoint
    return None if endpoint is None else host_port(endpoint.address, endpoint.port)


def _sent(connection: Connection) -> int:
    return connection.upstream.received if connection.upstream is not None else 0
