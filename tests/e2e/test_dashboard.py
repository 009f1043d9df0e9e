"""The dashboard in a real Chromium, of real gateways beside real Consul."""

import re
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, suppress

import pytest
import trio
from playwright.sync_api import Page, expect

from meshgate.adapters.mesh_tls import RefusedError
from tests.harness.gateway import GatewayProcess, gateway_beside
from tests.harness.native import native_service

from .browser import Chromium, chromium, destination, opened, place, tile
from .world import World

pytestmark = pytest.mark.consul


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with chromium() as running:
        yield running


@asynccontextmanager
async def traffic(world: World, gateway: GatewayProcess, *names: str) -> AsyncIterator[None]:
    """Calls by these names, one after the other, for the length of the block."""
    caller = await world.caller()

    async def call(name: str) -> None:
        while True:
            with suppress(RefusedError):
                await caller.call(gateway.address, name, b"x" * 2000)
            await trio.sleep(0.05)

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(call, name)
        yield
        nursery.cancel_scope.cancel()


MOVING = re.compile(r"^[0-9.]*[1-9][0-9.]*k?/s")


async def test_page_follows_a_gateway_under_traffic(world: World, browser: Chromium) -> None:
    dc1 = world.federation.dc1
    with closing(socket.create_server(("127.0.0.1", 0))) as alive:
        port = alive.getsockname()[1]
        check = {"TCP": f"127.0.0.1:{port}", "Interval": "200ms", "Timeout": "2s", "Status": "passing"}
        async with (
            native_service(world.federation.dc2, "web", world.federation.folder),
            native_service(dc1, "orders", world.federation.folder),
            native_service(dc1, "orders", world.federation.folder, instance="orders-2", Check=check),
            world.gateways(MESHGATE_WORKERS="2") as (local, _),
            opened(browser, local.admin) as watched,
        ):
            orders = world.sni("orders", "dc1")
            names = (world.sni(), orders, world.sni("nosuch", "dc1"))

            def shows_the_gateway(page: Page) -> None:
                expect(page.get_by_role("heading", level=1)).to_have_text("mesh-gateway")
                expect(page.locator("#place")).to_contain_text("dc1 / default")
                expect(page.locator("#state")).to_have_text("ready")
                expect(page.locator("#live")).to_have_text("live")
                expect(page.locator("#listeners")).to_contain_text(f"127.0.0.1:{local.address[1]}")
                expect(page.locator("#workers li")).to_have_count(2)
                expect(page.locator("#workers li").first).to_contain_text("process")
                expect(place(page, "dc2")).to_contain_text("1 of 1 gateway healthy")
                expect(place(page, "Services of dc1")).to_contain_text("2 of 2 endpoints healthy")
                expect(destination(page, "orders")).to_contain_text("2 of 2")
                expect(page.locator("#watches tr").filter(has_text="roots")).to_contain_text(re.compile(r"\d s"))
                expect(page.locator("#authority")).to_contain_text(re.compile(r"CA root.*ends in .*\d{4}-\d\d-\d\d"))

            await browser.do(shows_the_gateway, watched.page)

            def rates_move(page: Page) -> None:
                expect(tile(page, "New streams")).to_have_text(MOVING)
                expect(tile(page, "From callers")).to_have_text(re.compile(r"[1-9].*B/s$"))
                expect(tile(page, "Connect time")).to_have_text(re.compile(r"≤ [0-9.]+(ms| s|s)$"))
                for name in ("Services of dc1", "dc2", "Refused"):
                    expect(place(page, name).locator("strong")).to_have_text(MOVING)
                expect(destination(page, "orders").locator("td").nth(4)).to_have_text(MOVING)
                # One moving line to each of the three, and the one from the callers.
                expect(page.locator("#links .stream")).to_have_count(4)
                assert (
                    page.locator("#links .stream").first.evaluate("e => getComputedStyle(e).animationName") == "stream"
                )

            def refusals_appear(page: Page) -> None:
                expect(page.locator("#reasons li").filter(has_text="unknown_sni")).to_contain_text(
                    "name without a route"
                )
                line = page.locator("#recent li").filter(has_text=world.sni("nosuch", "dc1")).first
                expect(line).to_contain_text("unknown_sni")
                expect(line).to_contain_text("from 127.0.0.1")

            async with traffic(world, local, *names):
                await browser.do(rates_move, watched.page)
                await browser.do(refusals_appear, watched.page)

            def explains(page: Page) -> None:
                box, answer = page.get_by_label("Server name (SNI)"), page.locator("#explanation")
                box.fill(orders)
                box.press("Enter")
                expect(answer.locator(".pill")).to_have_text("✓ routed")
                expect(answer.get_by_role("listitem").filter(has_text="exact match").first).to_contain_text(
                    "service orders"
                )
                box.fill(world.sni("odrers", "dc1"))
                page.get_by_role("button", name="Explain", exact=True).click()
                expect(answer.locator(".pill")).to_have_text("✕ refused: unknown_sni")
                expect(answer).to_contain_text("orders")

            await browser.do(explains, watched.page)
            alive.close()

            def health_changes(page: Page) -> None:
                expect(destination(page, "orders").locator(".badge").first).to_have_text("! 1 of 2")
                expect(place(page, "Services of dc1")).to_contain_text("1 of 2 endpoints healthy")
                page.get_by_role("button", name=re.compile("orders")).click()
                row = destination(page, "orders").get_by_role("listitem").first
                expect(row).to_contain_text("✕ unhealthy")
                expect(row).to_contain_text("orders-2 on")
                expect(row).to_contain_text("critical")

            await browser.do(health_changes, watched.page)


async def test_page_says_since_when_there_is_no_answer_and_lives_on_after_a_restart(
    world: World, browser: Chromium
) -> None:
    async with gateway_beside(world.federation.dc2, world.token) as gateway:
        watched = await browser.open(gateway.admin)
        try:
            await browser.do(lambda page: expect(page.locator("#live")).to_have_text("live"), watched.page)
            first = (await gateway.ask("/dashboard/state"))["gateway"]["started"]
            await gateway.stop()

            def is_lost(page: Page) -> None:
                expect(page.locator("#live")).to_have_text(re.compile(r"^no answer since \d\d:\d\d:\d\d$"))
                expect(page.get_by_role("status")).to_have_text(re.compile("no answer since"))
                expect(page.locator("#state")).to_have_class("pill")

            await browser.do(is_lost, watched.page)
            await gateway.start()
            await browser.do(lambda page: expect(page.locator("#live")).to_have_text("live"), watched.page)
            assert (await gateway.ask("/dashboard/state"))["gateway"]["started"] > first
            assert watched.strangers() == []
        finally:
            await browser.close(watched)


async def test_hostile_service_name_in_consul_is_text(world: World, browser: Chromium) -> None:
    hostile = "<b>x<img/src=x/onerror=alert(1)>"
    dc1 = world.federation.dc1
    await dc1.register({"ID": "hostile", "Name": hostile, "Port": 1, "Connect": {"Native": True}})
    try:
        async with gateway_beside(dc1, world.token) as gateway, opened(browser, gateway.admin) as watched:

            def shown_as_text(page: Page) -> None:
                expect(page.locator("#destinations .title").filter(has_text=hostile)).to_have_text(hostile)
                assert page.locator("#main img, #main b").count() == 0

            await browser.do(shown_as_text, watched.page)
    finally:
        await dc1.deregister("hostile")
