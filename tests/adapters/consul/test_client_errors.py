"""What the client makes of answers that are none, and that the token shows in none of it."""

import logging
from typing import Any

import pytest
import structlog
import trio

from meshgate.adapters.consul.api import (
    BadRequestError,
    ConsulAddress,
    ConsulClient,
    ConsulError,
    ConsulUnreachableError,
    Cursor,
    InvalidAnswerError,
    NotFoundError,
    NotReadyError,
    PermissionDeniedError,
    RateLimitedError,
    Rule,
    ServerError,
    UnexpectedStatusError,
    transport,
)

from .connected import TOKEN, WEB, Call, ask_web, connected
from .fake_consul import row


@pytest.mark.parametrize(
    ("status", "body", "error", "text"),
    [
        (301, b"moved", UnexpectedStatusError, "status 301"),
        (400, b"Invalid index", BadRequestError, "refuses the request: Invalid index"),
        (401, b"ACL support disabled", UnexpectedStatusError, "answered 401: ACL support disabled"),
        (403, b"Permission denied", PermissionDeniedError, 'add service "web" { policy = "read" }'),
        (403, b"ACL not found", PermissionDeniedError, "does not know the token"),
        (404, b"", NotFoundError, "404 to /v1/health/connect/web: no such endpoint"),
        (404, b"<!DOCTYPE HTML>\n<html>", NotFoundError, "what answers at CONSUL_HTTP_ADDR may not be Consul"),
        (400, b"Client sent an HTTP request to an HTTPS server.", BadRequestError, "should begin with https://"),
        (405, b"method", UnexpectedStatusError, "answered 405"),
        (429, b"Your IP is issuing too many concurrent connections", RateLimitedError, "too many concurrent"),
        (500, b"No path to datacenter", ServerError, "500 No path to datacenter"),
        (500, b"Failed to create boolean expression evaluator: 1:2", BadRequestError, "does not understand the filter"),
        (500, b"Federation states are currently disabled until all", ServerError, "500 Federation states are"),
        (503, b"rate limit", ServerError, "503 rate limit"),
        (200, b"<html>proxy</html>", InvalidAnswerError, "cannot be read"),
        (200, b'[{"Node": {', InvalidAnswerError, "cannot be read"),
    ],
)
async def test_each_answer_that_is_none_has_its_error(
    status: int, body: bytes, error: type[ConsulError], text: str
) -> None:
    async with connected() as (double, client):
        double.set(WEB, body, status=status)
        with pytest.raises(error) as raised:
            await ask_web(client)
        assert text in str(raised.value)
        assert type(raised.value) is error
        disabled = "disabled" if b"currently disabled" in body else str(status)
        assert raised.value.status == ("invalid" if status == 200 else disabled)
        assert client.errors == {raised.value.status: 1}
        double.set(WEB, [])
        await ask_web(client)


@pytest.mark.parametrize(
    ("path", "ask"),
    [
        ("/v1/catalog/services", lambda client: client.service_names(Cursor())),
        ("/v1/catalog/datacenters", lambda client: client.datacenters()),
        ("/v1/agent/self", lambda client: client.agent_facts()),
        ("/v1/internal/ui/services?dc=dc2", lambda client: client.gateway_names("dc2")),
        ("/v1/agent/service/gw", lambda client: client.agent_service("gw", Cursor())),
        ("/v1/internal/federation-states/mesh-gateways", lambda client: client.federated_gateways(Cursor())),
    ],
)
@pytest.mark.parametrize("body", [b"", b"{", b"7", b'"text"', b"[" * 50_000, b"\xff"])
async def test_garbage_is_an_invalid_answer_at_every_endpoint(path: str, ask: Call, body: bytes) -> None:
    async with connected() as (double, client):
        double.set(path, body)
        with pytest.raises(InvalidAnswerError) as raised:
            await ask(client)
        assert str(raised.value).startswith("Consul's answer cannot be read: ")
        assert str(raised.value).endswith(f" ({path.partition('?')[0]})")
        assert client.errors == {"invalid": 1}


@pytest.mark.parametrize(
    ("path", "body", "ask"),
    [
        (WEB, [], ask_web),
        ("/v1/catalog/services", {}, lambda client: client.service_names(Cursor())),
        ("/v1/connect/ca/roots", {"TrustDomain": "td"}, lambda client: client.ca_roots(Cursor())),
    ],
)
async def test_an_answer_without_an_index_is_invalid_where_it_is_needed(path: str, body: Any, ask: Call) -> None:
    async with connected() as (double, client):
        double.set(path, body, index=None)
        with pytest.raises(InvalidAnswerError):
            await ask(client)


async def test_an_empty_list_that_consul_never_looked_up_is_a_refusal() -> None:
    """Consul 1.8 answers a connect query for a service that the token may not read with index 1 and no leader."""
    async with connected() as (double, client):
        double.set(WEB, [], index=1, headers={"X-Consul-KnownLeader": "false"})
        with pytest.raises(PermissionDeniedError) as raised:
            await ask_web(client)
        assert raised.value.missing_rule == Rule("service", "web")
        double.set(WEB, [], index=20, headers={"X-Consul-KnownLeader": "true"})
        assert (await ask_web(client)).value == ()


async def test_roots_without_a_trust_domain_are_not_ready() -> None:
    async with connected() as (double, client):
        double.set("/v1/connect/ca/roots", {"ActiveRootID": "", "TrustDomain": "", "Roots": None})
        with pytest.raises(NotReadyError):
            await client.ca_roots(Cursor())


async def test_a_body_that_is_cut_off_is_an_agent_out_of_reach() -> None:
    async with connected() as (double, client):
        double.set(WEB, [row("web-sidecar-proxy")], cut=True)
        with pytest.raises(ConsulUnreachableError, match=r"incomplete|closed"):
            await ask_web(client)


async def test_compression_is_not_asked_for_and_not_understood() -> None:
    async with connected() as (double, client):
        double.set(WEB, b"\x1f\x8bgzip", headers={"Content-Encoding": "gzip"})
        with pytest.raises(InvalidAnswerError):
            await ask_web(client)
        assert double.seen[0].headers["accept-encoding"] == "identity"


async def test_a_refused_connection_says_where_and_why() -> None:
    async with ConsulClient(ConsulAddress.from_settings({"CONSUL_HTTP_ADDR": "127.0.0.1:1"})) as client:
        with pytest.raises(ConsulUnreachableError) as raised:
            await client.datacenters()
        assert str(raised.value).startswith("cannot reach Consul at http://127.0.0.1:1: connection refused")
        assert client.errors == {"unreachable": 1}


async def test_silence_ends_in_a_timeout_that_allows_for_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "READ_TIMEOUT", 0.1)
    async with connected() as (double, client):
        double.set(WEB, [], hang=True)
        before = trio.current_time()
        with pytest.raises(ConsulUnreachableError, match="no answer in time") as raised:
            await ask_web(client)
        assert raised.value.status == "timeout"
        assert 0.1 <= trio.current_time() - before < 5
        before = trio.current_time()
        with pytest.raises(ConsulUnreachableError, match="no answer in time"):
            await client.connect_instances("web", Cursor(5, wait=0.8))
        assert 0.95 <= trio.current_time() - before < 5


async def test_no_log_line_error_or_repr_ever_holds_the_token(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    texts: list[str] = []
    with structlog.testing.capture_logs() as logs:
        async with connected() as (double, client):
            texts += [repr(client), repr(client.token), repr(client.address), repr(client.errors)]
            double.set(WEB, f"the token {TOKEN} may not".encode(), status=403)
            double.set("/v1/catalog/services", f"oops {TOKEN}".encode(), status=500)
            double.set("/v1/catalog/datacenters", f"[{TOKEN}".encode())
            double.set("/v1/agent/self", b"", status=200, cut=True)
            calls: list[Call] = [
                ask_web,
                lambda it: it.service_names(Cursor()),
                lambda it: it.datacenters(),
                lambda it: it.agent_facts(),
                lambda it: it.gateway_names("dc2"),
            ]
            for call in calls:
                with pytest.raises(ConsulError) as raised:
                    await call(client)
                texts += [str(raised.value), repr(raised.value), repr(vars(raised.value)), str(raised.getrepr())]
            double.set(WEB, [])
            texts.append(repr(await ask_web(client)))
            assert len(double.seen) == 6
            texts += [seen.target for seen in double.seen]
            assert all(TOKEN in seen.headers["authorization"] for seen in double.seen)
    texts += [repr(logs), caplog.text]
    for text in texts:
        assert TOKEN not in text
