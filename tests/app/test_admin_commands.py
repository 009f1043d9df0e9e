import json
import socket
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from rich.console import Console

from meshgate.adapters.admin.http_server import AdminServer, Response, error_response, json_response
from meshgate.app.admin.answers import Explanation, Routes
from meshgate.app.admin.views import explain_view, routes_view
from meshgate.app.admin_client import SlowGatewayError, response_to
from meshgate.app.cli import gateway_commands
from meshgate.app.cli.main import execute
from meshgate.app.cli.output import Printer
from meshgate.core.explain import explain
from meshgate.core.routes import Endpoint, Route, RouteKind, RouteTable

DOMAIN = "11111111-2222-3333-4444-555555555555.consul"
WEB = f"web.default.dc1.internal.{DOMAIN}"
TABLE = RouteTable.of(
    "dc1",
    DOMAIN,
    "default",
    iter(
        [
            Route(
                WEB,
                RouteKind.SERVICE,
                "web",
                (
                    Endpoint("10.0.0.7", 21000, True, 1, "n1", "web-1"),
                    Endpoint("2001:db8::8", 21000, False, 1, "n2", "web-2", "check x is critical"),
                ),
            ),
            Route(
                f"api.default.dc1.internal.{DOMAIN}",
                RouteKind.SERVICE,
                "api",
                (Endpoint("10.0.0.9", 21001, False, 1, "n3", "api-1", "check y is critical"),),
            ),
            Route(
                f"dc2.internal.{DOMAIN}",
                RouteKind.DATACENTER,
                "dc2",
                (Endpoint("198.51.100.7", 443, True, 1, "gw-2", "mesh-gateway"),),
                suffix=True,
            ),
        ]
    ),
)
ROUTES = {
    ("GET", "/routes"): lambda request: json_response(routes_view(TABLE)),
    ("GET", "/explain/name"): lambda request: json_response(explain_view(explain(TABLE, request.query["name"]))),
}


@contextmanager
def serving(bind: Any, routes: Any = ROUTES) -> Any:
    """A gateway's admin address in a thread; gives the address as MESHGATE_ADMIN_BIND has it."""
    started, bound, scope, token = threading.Event(), [], trio.CancelScope(), []

    async def main() -> None:
        token.append(trio.lowlevel.current_trio_token())
        with scope:
            async with trio.open_nursery() as nursery:
                bound.append(await nursery.start(AdminServer(routes).serve, bind))
                started.set()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    assert started.wait(5)
    try:
        yield f"{bound[0][0]}:{bound[0][1]}" if isinstance(bound[0], tuple) else f"unix://{bound[0]}"
    finally:
        token[0].run_sync_soon(scope.cancel)
        thread.join(5)


@pytest.fixture(autouse=True)
def clean_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")


@pytest.fixture(params=["tcp", "unix"])
def gateway(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    bind = ("127.0.0.1", 0) if request.param == "tcp" else tmp_path / "admin.sock"
    with serving(bind) as address:
        monkeypatch.setenv("MESHGATE_ADMIN_BIND", address)
        yield address


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A gateway that gives one answer to everything."""
    stack = []

    def start(response: Any) -> None:
        context = serving(
            ("127.0.0.1", 0), {("GET", path): lambda request: response for path in ("/routes", "/explain/name")}
        )
        monkeypatch.setenv("MESHGATE_ADMIN_BIND", context.__enter__())
        stack.append(context)

    yield start
    for context in stack:
        context.__exit__(None, None, None)


def test_routes_prints_a_line_a_route_with_whole_names(gateway: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["routes"]) == 0
    head, api, web, dc2 = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head == ["SNI", "KIND", "HEALTHY", "ENDPOINTS"]
    assert api == [f"api.default.dc1.internal.{DOMAIN}", "service", "0/1", "10.0.0.9:21001", "unhealthy"]
    assert web == [WEB, "service", "1/2", "10.0.0.7:21000,[2001:db8::8]:21000", "unhealthy"]
    assert dc2 == [f"*.dc2.internal.{DOMAIN}", "datacenter", "1/1", "198.51.100.7:443"]


def test_routes_says_on_the_side_that_there_are_none(gateway: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["routes", "no-such-name"]) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "no route in which no-such-name occurs in datacenter dc1\n")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("WEB.def", ["web"]),
        ("datacenter", ["*"]),
        ("21000", ["web"]),
        ("gw-2", ["*"]),
        ("api-1", ["api"]),
        ("none", []),
    ],
)
def test_routes_can_be_filtered(gateway: Any, capsys: pytest.CaptureFixture[str], text: str, found: Any) -> None:
    assert execute(["routes", text]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(".")[0] for line in lines[1:]] == found


def test_routes_as_json_have_the_shape_of_the_admin_address(gateway: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["routes", "-json"]) == 0
    view = msgspec.json.decode(msgspec.json.encode(routes_view(TABLE)))
    assert json.loads(capsys.readouterr().out) == view
    assert execute(["routes", "--json", "dc2"]) == 0
    assert json.loads(capsys.readouterr().out) == view | {"routes": view["routes"][2:]}


def test_routes_says_on_the_side_what_has_none_although_consul_wants_it(
    answering: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = "shop.default.default.east.external.td.consul"
    table = RouteTable.of("dc1", "td.consul", "default", iter(()), {shop: "exported with protocol http"})
    answering(json_response(routes_view(table)))
    assert execute(["routes", "Shop"]) == 0
    assert capsys.readouterr().err.startswith(f"no route for {shop}: exported with protocol http\n")
    assert execute(["routes", "web"]) == 0
    assert "no route for" not in capsys.readouterr().err


def test_routes_of_a_gateway_that_knows_no_catalog_say_so(answering: Any, capsys: pytest.CaptureFixture[str]) -> None:
    answering(json_response(routes_view(RouteTable.of("", "", "default", iter(())))))
    assert execute(["routes"]) == 0
    assert capsys.readouterr().err == "the gateway has no route yet: Consul has not told it any\n"


def test_explain_of_a_routed_name_exits_with_0(gateway: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["explain", WEB.upper()]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"routed: service\nroute: {WEB}\n")
    assert "exact match" in out
    assert "[2001:db8::8]:21000 unhealthy" in out


def test_explain_of_a_refused_name_exits_with_1(gateway: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["explain", "nobody.example"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("refused: unknown_sni\n")
    assert err == ""
    assert execute(["explain", f"api.default.dc1.internal.{DOMAIN}", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["decision"], answer["reason"], answer["kind"]) == ("refused", "no_healthy_endpoint", "service")
    assert list(answer) == ["sni", "decision", "reason", "route", "kind", "endpoints", "steps"]


def test_explain_passes_any_name_on_unchanged(gateway: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("", "a b&sni=c#d%20+é", "*.example"):
        assert execute(["explain", "--json", "--", name]) == 1
        assert json.loads(capsys.readouterr().out)["sni"] == name


def test_explain_needs_one_printable_name(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["explain"], ["explain", "a", "b"], ["explain", "a\x1b"], ["explain", "a\udcff"]):
        assert execute(arguments) == 2
        assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_gateway_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{sock.getsockname()[1]}"
        for bind, where in (
            (address, address),
            (f"0.0.0.0:{address.partition(':')[2]}", address),
            (f"unix://{tmp_path}/none", f"unix://{tmp_path}/none"),
        ):
            for arguments in (["routes"], ["explain", "x"]):
                assert execute([*arguments, f"-admin-bind={bind}"]) == 1
                out, err = capsys.readouterr()
                assert out == ""
                assert err.startswith(f"meshgate: no gateway answers at {where} (")
                assert err.count("\n") == 1


def test_a_gateway_that_does_not_answer_is_given_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshgate.app.admin_client._PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = f"127.0.0.1:{sock.getsockname()[1]}"
        assert execute(["routes", f"--admin-bind={address}"]) == 1
    assert capsys.readouterr().err.startswith(f"meshgate: no gateway answers at {address} (timeout); ")


def test_a_unix_socket_whose_backlog_is_full_has_somebody_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as sock, socket.socket(socket.AF_UNIX) as first:
        sock.bind(str(path))
        sock.listen(0)
        first.connect(str(path))
        with pytest.raises(SlowGatewayError, match="timeout"):
            response_to(path, "/livez")


def test_an_admin_address_that_is_off_cannot_be_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["routes", "--admin-bind=off"]) == 1
    assert "MESHGATE_ADMIN_BIND=off" in capsys.readouterr().err


def test_the_gateways_own_error_is_shown(answering: Any, capsys: pytest.CaptureFixture[str]) -> None:
    answering(error_response(503, "no catalog\nyet"))
    assert execute(["routes"]) == 1
    assert capsys.readouterr().err.endswith(" answered 503: no catalog\\nyet\n")


@pytest.mark.parametrize(
    "response",
    [
        Response(body=b"<html>\n"),
        json_response({"routes": []}),
        json_response([1]),
        Response(200, b"\xff\xfe"),
        Response(302, b"", headers=(("location", "http://example.com/"),)),
        Response(500, b"[]"),
        json_response({"error": 5}, 404),
    ],
)
def test_something_else_at_the_address_is_one_line(
    answering: Any, capsys: pytest.CaptureFixture[str], response: Any
) -> None:
    answering(response)
    for arguments in (["routes"], ["explain", "x", "--json"]):
        assert execute(arguments) == 1
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert "unexpected" not in err


def test_a_server_that_speaks_no_http_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:

        def answer() -> None:
            connection, _ = sock.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-x\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert execute(["routes", f"--admin-bind=127.0.0.1:{sock.getsockname()[1]}"]) == 1
        thread.join()
    assert capsys.readouterr().err.startswith("meshgate: no gateway answers at 127.0.0.1:")


@pytest.fixture
def terminal() -> Any:
    console = Console(force_terminal=True, width=80, record=True, file=open("/dev/null", "w"), highlight=False)  # noqa: SIM115
    yield Printer(console), console
    console.file.close()


def test_the_route_table_fits_a_terminal_of_80_columns(terminal: Any) -> None:
    printer, console = terminal
    gateway_commands._show_routes(msgspec.convert(msgspec.to_builtins(routes_view(TABLE)), Routes), printer, "")
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[:2] == ["3 routes of datacenter dc1, partition default", f"every name ends in .{DOMAIN}"]
    assert any(line.split()[:3] == ["web.default.dc1.internal", "service", "1/2"] for line in lines)


def test_an_explanation_fits_a_terminal_of_80_columns(terminal: Any) -> None:
    printer, console = terminal
    view = msgspec.to_builtins(explain_view(explain(TABLE, "wen.default.dc1.internal." + DOMAIN)))
    gateway_commands._show_explanation(msgspec.convert(view, Explanation), printer)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "refused: unknown_sni"
