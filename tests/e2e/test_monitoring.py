"""A real gateway's numbers against what the alerts, the dashboard and Prometheus itself make of them."""

import re
import socket
from collections import defaultdict
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import httpx
import pytest
import trio
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from meshgate.adapters.mesh_tls import RefusedError
from meshgate.app.admin.metrics import Metrics
from tests.app.test_metrics import full_gateway
from tests.harness.gateway import GatewayProcess, gateway_beside
from tests.harness.native import native_service
from tests.promtool import faults, promtool, queries

from .world import World, until_equal

pytestmark = pytest.mark.consul
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


async def page(gateway: GatewayProcess, accept: str = "", path: str = "/metrics") -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        return await client.get(f"http://{gateway.admin}{path}", headers={"accept": accept})


async def routed(gateway: GatewayProcess, sni: str) -> bool:
    return any((await gateway.endpoints(sni)).values())


async def test_the_real_page_is_what_prometheus_the_alerts_and_the_dashboard_expect(world: World) -> None:
    async with (
        native_service(world.federation.dc2, "web", world.federation.folder),
        world.gateways(MESHGATE_WORKERS="2") as (local, remote),
    ):
        caller = await world.caller()
        await until_equal("web in dc2", partial(routed, remote, world.sni()), wanted=True, seconds=20)
        await caller.call(local.address, world.sni(), expect=world.spiffe())
        with pytest.raises(RefusedError):
            await caller.call(local.address, world.sni("nope", "dc9"))
        text = await page(local)
        metrics = await page(local, OPENMETRICS)
        envoys = await page(local, path="/stats/prometheus")

    assert envoys.headers["content-type"] == text.headers["content-type"]
    assert metrics.headers["content-type"].startswith(OPENMETRICS)
    # The strict reader of the OpenMetrics format, which refuses what the format does not allow.
    parse: Any = parse_openmetrics
    strict = {family.name: family for family in parse(metrics.text)}
    families = {family.name: family for family in parse_text(text.text)}
    assert strict.keys() == families.keys()

    series: dict[str, set[str]] = defaultdict(set)
    for family in families.values():
        series[family.name] |= set()
        for sample in family.samples:
            series[sample.name] |= sample.labels.keys()
    assert {"kind", "destination", "direction"} == series["meshgate_destination_bytes_total"]
    assert {sample.labels["worker"] for sample in families["meshgate_worker_open_fds"].samples} == {"0", "1"}
    # What has not happened yet has no sample: its labels are those of the page that has everything.
    series |= {name: labels for name, labels in (await full_series()).items() if name not in series}
    assert {title: found for title, query in queries() if (found := faults(query, series))} == {}

    linted = promtool("check", "metrics", input=text.text)
    assert linted.returncode == 0, linted.stdout + linted.stderr


async def full_series() -> dict[str, set[str]]:
    series: dict[str, set[str]] = defaultdict(set)
    for family in await Metrics(full_gateway()).families():
        for sample in family.samples:
            series[sample.name] |= sample.labels.keys()
    return series


async def test_silent_connections_do_not_keep_probes_from_the_admin_address(world: World) -> None:
    async with gateway_beside(world.federation.dc2, world.token) as gateway, AsyncExitStack() as stack:
        host, _, port = gateway.admin.rpartition(":")
        for _ in range(300):
            await stack.enter_async_context(await trio.open_tcp_stream(host, int(port)))
        for _ in range(3):
            assert (await page(gateway, path="/readyz")).status_code == 200


async def test_the_numbers_go_to_the_dogstatsd_that_proxy_defaults_names(world: World) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as reader:
        reader.bind(("127.0.0.1", 0))
        reader.setblocking(False)
        sock = trio.socket.from_stdlib_socket(reader)
        config = {
            "envoy_dogstatsd_url": f"udp://$HOST_IP:{reader.getsockname()[1]}",
            "envoy_stats_flush_interval": "200ms",
            "envoy_stats_tags": ["env=test"],
        }
        await world.federation.write_config_entry({"Kind": "proxy-defaults", "Name": "global", "Config": config})
        try:
            async with gateway_beside(world.federation.dc2, world.token, HOST_IP="127.0.0.1") as gateway:
                caller = await world.caller()
                await until_said(sock, "meshgate.ready:1|g|#env:test")
                with pytest.raises(RefusedError):
                    await caller.call(gateway.address, world.sni("nope"))
                await until_said(sock, "meshgate.refused:1|c|#env:test,reason:unknown_sni")
        finally:
            await world.federation.delete_config_entry("proxy-defaults", "global")


async def until_said(sock: trio.socket.SocketType, line: str) -> None:
    with trio.fail_after(60):
        while line not in (await sock.recv(65536)).decode().splitlines():
            pass


async def test_explain_says_which_check_fails_what_it_says_and_whom_to_ask_next(world: World) -> None:
    async with (
        native_service(world.federation.dc2, "web", world.federation.folder) as web,
        world.gateways() as (local, remote),
    ):
        await until_equal("web in dc2", partial(routed, remote, world.sni()), wanted=True, seconds=20)
        await web.set_health("critical")
        await until_equal("web in dc2", partial(routed, remote, world.sni()), wanted=False, seconds=20)
        explained = await remote.ask(f"/explain?sni={world.sni()}")
        assert (explained["decision"], explained["reason"]) == ("refused", "no_healthy_endpoint")
        steps = {step["rule"]: step["outcome"] for step in explained["steps"]}
        why = steps["why unhealthy"]
        assert 'check web-health (set by hand) is critical, it says "set to critical"' in why
        assert re.match(r"web on \S+ for \d+s: ", why)
        assert re.match(r"\d+s; a blocking query is open", steps["data age"])

        here = {step["rule"]: step["outcome"] for step in (await local.ask(f"/explain?sni={world.sni()}"))["steps"]}
        assert "ask a gateway of datacenter dc2" in here["next"]
        assert re.match(r"\d+s; a blocking query is open", here["data age"])

        malformed = await remote.ask("/explain?sni=10.0.0.7")
        assert (malformed["decision"], malformed["reason"]) == ("refused", "hello_malformed")
