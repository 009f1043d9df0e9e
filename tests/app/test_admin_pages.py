import json
import os
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx
import msgspec
import pytest
import structlog
import trio

from meshgate import __version__
from meshgate.adapters.admin.http_server import AdminServer, Request, Response
from meshgate.adapters.consul import WatchKey, WatchState
from meshgate.adapters.relay.counters import OpenStream
from meshgate.adapters.relay.pool import OpenStreams
from meshgate.app.admin import answers, explain_page
from meshgate.app.admin.admin_pages import admin_routes
from meshgate.app.admin.metrics import Metrics
from meshgate.app.admin.openapi import PAGES
from meshgate.app.admin.views import routes_view
from meshgate.app.composition_root import _serve_admin
from meshgate.app.logs import logs
from meshgate.app.settings.settings import Settings
from meshgate.core.explain import Explanation, explain
from meshgate.core.reasons import Reason
from meshgate.core.routes import Endpoint, Route, RouteKind, RouteTable

from .gateway_double import TRUST_DOMAIN, GatewayDouble, refused
from .stream_records import RECORD

WEB = f"web.default.dc1.internal.{TRUST_DOMAIN}"
ROUTES = [
    Route(WEB, RouteKind.SERVICE, "web", (Endpoint("10.0.0.7", 21000, True, 1, "n1", "web-1"),)),
    Route(f"dc2.internal.{TRUST_DOMAIN}", RouteKind.DATACENTER, "dc2", (), suffix=True),
]
STREAMS = [
    OpenStream(7, "192.0.2.1:4000", WEB, WEB, "10.0.0.7:21000", "relaying", 1.23456, 10, 20, 0),
    OpenStream(8, "192.0.2.2:4000", None, None, None, "hello", 0.0, 0, 0, 1),
    OpenStream(9, "192.0.2.3:4000", "a\udcff", None, None, "refused", 0.5, 300, 7, 1),
]
PROBLEM = 'add service "web" { policy = "read" }'
SECRETS = {
    "CONSUL_HTTP_TOKEN": "11111111-aaaa-bbbb-cccc-environment1",
    "CONSUL_HTTP_AUTH": "admin:hunter2-hunter2",
}
FLAG_TOKEN = "22222222-aaaa-bbbb-cccc-000flagtoken"
FILE_TOKEN = "33333333-aaaa-bbbb-cccc-000filetoken"
KEY = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC"
PASSWORD = "pass-in-the-address"


def settings_of(environ: Mapping[str, str] = {}, flags: Mapping[str, str] = {}) -> Settings:
    return Settings.load(flags, environ=environ)


def watch_states() -> list[WatchState]:
    now = trio.current_time()
    return [
        WatchState(WatchKey("services", "services"), now - 100, last_success=now - 2.5, index=42),
        WatchState(
            WatchKey("connect", "web"), now - 10, error='lacks "web"', status="403", failures=3, failing_since=now - 9
        ),
    ]


@pytest.fixture
def gateway() -> GatewayDouble:
    return GatewayDouble(*ROUTES, ready=False, streams=list(STREAMS))


@pytest.fixture
async def admin(gateway: GatewayDouble, nursery: trio.Nursery) -> AsyncIterator[httpx.AsyncClient]:
    host, port = await nursery.start(AdminServer(admin_routes(gateway, Metrics(gateway))).serve, ("127.0.0.1", 0))
    async with httpx.AsyncClient(base_url=f"http://{host}:{port}", trust_env=False, timeout=10) as client:
        yield client


@pytest.fixture
def level() -> Any:
    reading, writing = os.pipe()
    logs.configure("info", json=True, fd=writing)
    yield lambda: [json.loads(line) for line in os.read(reading, 1 << 16).splitlines()]
    logs.shutdown()
    logs.set_level("info")
    structlog.reset_defaults()
    os.close(reading)
    os.close(writing)


async def test_connections_have_the_contracts_shape(admin: httpx.AsyncClient) -> None:
    relaying, hello, refused = (await admin.get("/connections")).json()
    assert relaying == {
        "id": 7,
        "client": "192.0.2.1:4000",
        "caller": None,
        "sni": WEB,
        "route": WEB,
        "endpoint": "10.0.0.7:21000",
        "state": "relaying",
        "age_seconds": 1.235,
        "bytes_received": 10,
        "bytes_sent": 20,
        "worker": 0,
    }
    assert list(hello) == list(relaying)
    assert (hello["sni"], hello["route"], hello["endpoint"], hello["state"]) == (None, None, None, "hello")
    assert refused["sni"] == "a\\udcff"


async def test_connections_name_the_workers_whose_streams_are_missing(
    gateway: GatewayDouble, admin: httpx.AsyncClient
) -> None:
    assert answers.WORKERS_SILENT not in (await admin.get("/connections")).headers
    gateway.silent = [0, 2]
    response = await admin.get("/connections")
    assert (response.headers[answers.WORKERS_SILENT], len(response.json())) == ("0,2", len(STREAMS))
    documented = (await admin.get("/openapi.json")).json()["paths"]["/connections"]["get"]["responses"]["200"]
    assert list(documented["headers"]) == [answers.WORKERS_SILENT]


async def test_thousands_of_connections_are_all_listed(gateway: GatewayDouble, admin: httpx.AsyncClient) -> None:
    gateway.streams = STREAMS[:1] * 20_000
    assert len((await admin.get("/connections")).json()) == 20_000


async def test_clusters_are_envoys_text_or_json(admin: httpx.AsyncClient) -> None:
    text = await admin.get("/clusters")
    assert text.headers["content-type"].startswith("text/plain")
    assert f"{WEB}::10.0.0.7:21000::cx_active::1\n" in text.text
    assert f"{WEB}::10.0.0.7:21000::health_flags::healthy\n" in text.text
    answer = (await admin.get("/clusters?format=json")).json()
    assert [each["name"] for each in answer["cluster_statuses"]] == [WEB, f"dc2.internal.{TRUST_DOMAIN}"]
    assert (await admin.get("/clusters?format=xml")).status_code == 400


async def test_the_state_is_envoys_word(gateway: GatewayDouble, admin: httpx.AsyncClient) -> None:
    async def state() -> object:
        return (await admin.get("/server_info")).json()["state"]

    assert await state() == "PRE_INITIALIZING"
    gateway.ready = True
    assert await state() == "LIVE"
    gateway.ready, gateway.draining = False, True
    assert await state() == "DRAINING"


async def test_server_info_says_version_and_uptime(gateway: GatewayDouble, admin: httpx.AsyncClient) -> None:
    gateway._since = gateway._began = time.monotonic() - 0.7
    first = (await admin.get("/server_info")).json()
    assert first["version"] == __version__
    assert first["node"] == {"id": "mesh-gateway", "cluster": "mesh-gateway"}
    await trio.sleep(0.01)
    second = (await admin.get("/server_info")).json()
    assert second["uptime_seconds"] > first["uptime_seconds"] >= 0
    for name in ("uptime_current_epoch", "uptime_all_epochs"):
        assert 0 <= int(first[name].removesuffix("s")) <= second["uptime_seconds"]  # Whole seconds that are over.
    assert first["command_line_options"] == {}


async def test_drain_is_a_post_and_may_come_twice(gateway: GatewayDouble, admin: httpx.AsyncClient) -> None:
    assert (await admin.get("/drain")).status_code == 405
    assert not gateway.draining
    for _ in range(2):
        response = await admin.post("/drain")
        assert response.status_code == 200
        assert response.json() == {"state": "DRAINING", "timeout_seconds": 30.0}
        assert gateway.draining


async def test_a_strangers_page_cannot_drain_or_change_the_level(
    gateway: GatewayDouble, admin: httpx.AsyncClient
) -> None:
    for path in ("/drain", "/logging?level=error"):
        assert (await admin.post(path, headers={"origin": "http://evil.example"})).status_code == 403
    assert not gateway.draining


async def test_the_log_level_changes_while_running_and_says_so(
    gateway: GatewayDouble, admin: httpx.AsyncClient, level: Any
) -> None:
    assert (await admin.get("/logging")).json() == {"level": "info"}
    for wanted, now in (("error", "error"), ("DEBUG", "debug"), ("warning", "warn"), ("trace", "trace")):
        response = await admin.post("/logging", params={"level": wanted})
        assert response.json() == {"level": now}
        assert logs.level() == now
        assert (await admin.get("/logging")).json() == {"level": now}
    assert (await admin.post("/logging")).json() == {"level": "trace"}
    # The relay is told each time, for at level debug it tells of each stream.
    assert gateway.levels == ["error", "debug", "warn", "trace"]
    logs.shutdown()
    entries = level()
    assert [entry["level"] for entry in entries] == ["error", "debug", "warn", "trace"]
    assert {entry["peer"].rpartition(":")[0] for entry in entries} == {"127.0.0.1"}


async def test_who_drains_over_a_unix_socket_is_in_the_log(
    gateway: GatewayDouble, nursery: trio.Nursery, tmp_path: Path
) -> None:
    with structlog.testing.capture_logs() as entries:
        await gateway.serve(nursery, tmp_path / "admin.sock")
        transport = httpx.AsyncHTTPTransport(uds=str(tmp_path / "admin.sock"))
        async with httpx.AsyncClient(transport=transport) as client:
            assert (await client.post("http://localhost/drain")).status_code == 200
    (told,) = [entry["peer"] for entry in entries if entry["event"] == "asked to drain through the admin address"]
    assert told == f"process {os.getpid()} of user {os.getuid()}"


async def test_who_upgrades_is_passed_on_for_the_log(gateway: GatewayDouble, admin: httpx.AsyncClient) -> None:
    for refuses, status in (("", 200), ("no", 409)):
        gateway.refuses_upgrades, gateway.asked_by = refuses, ""
        assert (await admin.post("/upgrade")).status_code == status
        assert gateway.asked_by.rpartition(":")[0] == "127.0.0.1"


@pytest.mark.parametrize("query", ["level=loud", "level=", "level=off", "relay=debug"])
async def test_a_level_that_is_none_is_refused(admin: httpx.AsyncClient, level: Any, query: str) -> None:
    response = await admin.post(f"/logging?{query}")
    assert response.status_code == 400
    assert response.json() == {"error": "level is one of trace, debug, info, warn, error"}
    assert logs.level() == "info"


async def test_config_dump_shows_all_that_the_gateway_goes_by(gateway: GatewayDouble, admin: httpx.AsyncClient) -> None:
    gateway.states, gateway.catalog_stale, gateway.wrong = watch_states(), True, [PROBLEM]
    gateway.settings = settings_of({"MESHGATE_WAN_ADDRESS": "198.51.100.7:443"}, {"MESHGATE_SERVICE": "gw"})
    dump = (await admin.get("/config_dump")).json()
    assert dump["settings"]["MESHGATE_SERVICE"] == {"value": "gw", "origin": "flag"}
    assert dump["settings"]["MESHGATE_WAN_ADDRESS"] == {"value": "198.51.100.7:443", "origin": "environment"}
    assert dump["settings"]["CONSUL_HTTP_TOKEN"] == {"value": None, "origin": "default"}
    assert dump["registration"]["service"] == "gw"
    assert (dump["registration"]["wan_address"], dump["registration"]["wan_port"]) == ("198.51.100.7", 443)
    assert dump["registration"]["register"] is True
    assert dump["table"] == msgspec.to_builtins(routes_view(gateway.table())) | {"conflicts": []}
    assert dump["catalog_stale"] is True
    assert dump["problems"] == [PROBLEM]
    services, web = dump["watches"]
    assert 2.5 <= services["age_seconds"] < 10
    assert (services["kind"], services["index"], services["error"], services["answered"]) == (
        "services",
        42,
        None,
        True,
    )
    assert (web["error"], web["status"], web["failures"], web["answered"]) == ('lacks "web"', "403", 3, False)
    assert 9 <= web["failing_seconds"] < 20


async def test_config_dump_before_the_agent_is_found(admin: httpx.AsyncClient) -> None:
    dump = (await admin.get("/config_dump")).json()
    assert (dump["watches"], dump["problems"], dump["catalog_stale"]) == ([], [], False)


async def test_no_answer_holds_a_secret(gateway: GatewayDouble, admin: httpx.AsyncClient, tmp_path: Path) -> None:
    for name, text in (("token", FILE_TOKEN), ("key.pem", KEY), ("cert.pem", "certificate")):
        (tmp_path / name).write_text(text)
    gateway.settings = settings_of(
        SECRETS
        | {
            "CONSUL_HTTP_ADDR": f"https://user:{PASSWORD}@consul.example:8501",
            "CONSUL_HTTP_TOKEN_FILE": str(tmp_path / "token"),
            "CONSUL_CLIENT_KEY": str(tmp_path / "key.pem"),
            "CONSUL_CLIENT_CERT": str(tmp_path / "cert.pem"),
        },
        {"CONSUL_HTTP_TOKEN": FLAG_TOKEN, "MESHGATE_SERVICE": "gw"},
    )
    gateway.states, gateway.ready = watch_states(), True
    hidden = [*SECRETS.values(), "hunter2-hunter2", FLAG_TOKEN, FILE_TOKEN, KEY, PASSWORD]
    for method, path in admin_routes(gateway, Metrics(gateway)):
        response = await admin.request(method, path)
        assert response.status_code == (400 if path.startswith("/explain") else 200)
        for secret in hidden:
            assert secret not in response.text, path
            assert secret not in str(response.headers)
    info = (await admin.get("/server_info")).json()
    assert info["command_line_options"] == {"token": "********", "service": "gw"}
    settings = (await admin.get("/config_dump")).json()["settings"]
    assert settings["CONSUL_CLIENT_KEY"]["value"] == str(tmp_path / "key.pem")
    assert settings["CONSUL_HTTP_ADDR"]["value"] == "https://********@consul.example:8501"


class CountingGateway(GatewayDouble):
    """Counts how often a page looks at what there is much of."""

    looks = 0

    def table(self) -> RouteTable:
        self.looks += 1
        return super().table()

    def problems(self) -> list[str]:
        self.looks += 1
        return super().problems()

    async def connections(self) -> OpenStreams:
        self.looks += 1
        return await super().connections()


@pytest.mark.parametrize(
    "path",
    [
        "/routes",
        "/clusters",
        "/connections",
        "/config_dump",
        "/metrics",
        "/dashboard/state",
        "/names?text=x",
        "/whatif",
        "/readyz",
        "/server_info",
    ],
)
async def test_a_page_that_grows_with_the_gateway_is_made_once_for_all_who_wait_for_it(path: str) -> None:
    gateway = CountingGateway()
    path, _, query = path.partition("?")
    answer = admin_routes(gateway, Metrics(gateway))["GET", path]
    answers: list[Response] = []

    async def ask(number: int) -> None:
        # What no page depends on makes none of its own.
        response = answer(Request("GET", path, {**dict(parse_qsl(query)), "_": str(number)}, {}))
        assert not isinstance(response, Response)
        answers.append(await response)

    await ask(0)
    once, gateway.looks = gateway.looks, 0
    async with trio.open_nursery() as nursery:
        for number in range(60):
            nursery.start_soon(ask, number)
    assert once > 0
    assert gateway.looks <= 2 * once
    assert len({response.status for response in answers}) == 1
    assert len(answers) == 61


async def test_names_that_are_alike_are_looked_for_once_for_all_who_ask_for_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateway, explained = GatewayDouble(), []

    def counted(*arguments: Any, **more: Any) -> Explanation:
        explained.append(arguments)
        return explain(*arguments, **more)

    monkeypatch.setattr(explain_page, "explain", counted)
    page = explain_page.ExplainPage(gateway)
    async with trio.open_nursery() as nursery:
        for _ in range(60):
            nursery.start_soon(page.of_sni, Request("GET", "/explain", {"sni": "x"}, {}))
    assert len(explained) <= 2


async def test_each_answer_has_the_shape_that_is_declared_for_it(
    gateway: GatewayDouble, admin: httpx.AsyncClient
) -> None:
    gateway.states, gateway.ended, gateway.recent = watch_states(), [RECORD], [(1e9, refused("web.new"))]
    await gateway.try_upgrade("", "")
    shapes = {place.split()[1]: page.answer for place, page in PAGES.items() if page.answer and place.startswith("GET")}
    query = {"/explain": {"sni": WEB}, "/explain/name": {"name": "web"}, "/clusters": {"format": "json"}}
    for path, shape in shapes.items():
        answer = await admin.get(path, params=query.get(path))
        found = msgspec.json.decode(answer.content, type=shape)
        # What is not declared would be lost on the way.
        assert json.loads(msgspec.json.encode(found)) == answer.json(), path


async def test_the_description_is_made_from_the_shapes(admin: httpx.AsyncClient) -> None:
    schemas = (await admin.get("/openapi.json")).json()["components"]["schemas"]
    assert schemas["Upgrade"]["required"] == [*answers.Upgrade.__struct_fields__]
    assert "age_seconds" not in schemas["Readiness"]["required"]
    assert all(schema["additionalProperties"] is False for schema in schemas.values() if "properties" in schema)
    assert schemas["Reason"]["enum"] == sorted(Reason)


async def test_the_description_has_what_the_server_itself_answers(admin: httpx.AsyncClient) -> None:
    documented = (await admin.get("/openapi.json")).json()["paths"]["/routes"]["get"]["responses"]
    assert documented.keys() >= {"400", "403", "408", "413", "421", "431", "500", "501", "503", "505"}


async def test_an_ipv6_admin_address_is_logged_as_it_is_set(nursery: trio.Nursery) -> None:
    settings = Settings.load(environ={"MESHGATE_ADMIN_BIND": "[::1]:0"})
    with structlog.testing.capture_logs() as entries:
        bound = await _serve_admin(nursery, AdminServer({}), settings, -1)
    assert isinstance(bound, tuple)
    assert [entry["address"] for entry in entries] == [f"[::1]:{bound[1]}"]
