"""The dashboard in a real Chromium, of a gateway with what Consul rarely has: hostile names, thousands of names."""

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from playwright.sync_api import Page, expect

from meshgate.adapters.consul.watch import WatchKey, WatchState
from meshgate.adapters.relay import Counters, OpenStream
from meshgate.adapters.relay.pool import WorkerLoss
from meshgate.adapters.relay.worker_process import WorkerEnd
from meshgate.app.admin.answers import Ejection, EndpointFacts
from meshgate.app.gateway.upgrade_record import Upgrade
from meshgate.core.hello import Offer
from meshgate.core.reasons import Alert, Reason, StreamEnd
from meshgate.core.routes import RouteKind
from tests.app.gateway_double import GatewayDouble, refused, route
from tests.app.stream_records import RECORD

from .browser import Chromium, chromium, opened, place

HOSTILE = (
    "<img src=x onerror=document.title='injected'>",
    "</script><script>document.title='injected'</script>",
    "'\"><svg/onload=document.title='injected'>",
    "{{constructor.constructor('document.title=1')()}}",
    "javascript:document.title='injected'",
    "\u202egnp.exe\u2066",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with chromium() as running:
        yield running


def note_hour(double: GatewayDouble) -> None:
    """An hour of streams to orders and dc2, some of which failed a quarter of an hour ago."""
    orders, dc2, totals = (RouteKind.SERVICE, "orders"), (RouteKind.DATACENTER, "dc2"), Counters()
    for minute in range(60):
        totals.connections[orders] = totals.connections.get(orders, 0) + 100
        totals.connections[dc2] = totals.connections.get(dc2, 0) + 10
        for _ in range(20 if 45 <= minute < 48 else 0):
            totals.count_refused(Reason.CONNECT_FAILED)
            totals.count_failed(orders, Reason.CONNECT_FAILED)
        totals.first_bytes[orders] = [0, 0, 98 * (minute + 1), 0, 0, 0, 0, 2 * (minute + 1), 0, 0, 0, 0]
        double.history.note(totals, time.time() - 60 * (59 - minute))


def full_double() -> GatewayDouble:
    """Something of everything, with long names."""
    double = GatewayDouble(
        route("orders", healthy=2, unhealthy=1),
        route("mail", healthy=0, unhealthy=1),
        route("a-service-with-a-name-that-is-as-long-as-a-label-of-dns-may-be-1", healthy=3),
        route("dc2", RouteKind.DATACENTER, healthy=2),
        route("europe-west-with-a-long-name", RouteKind.DATACENTER, healthy=0, unhealthy=2),
        wrong=['the token lacks service_prefix "" read', "x" * 200],
        recent=[
            (time.time(), refused("no." * 60 + "such", detail="d" * 150)),
            (time.time(), refused(None, Reason.NOT_TLS)),
        ],
        catalog_stale=True,
    )
    double.numbers.refused = {Reason.UNKNOWN_SNI: 12, Reason.MAX_CONNECTIONS_PER_CLIENT: 4}
    double.numbers.ends = {StreamEnd.CLOSED: 1_234_000, StreamEnd.WORKER_LOST: 12}
    double.ended = [replace(RECORD, end=StreamEnd.WORKER_LOST, sni="long." * 40 + "such")]
    double.losses = [WorkerLoss(time.time(), 1, WorkerEnd.KILLED, 12, 1)]
    note_hour(double)
    double.numbers.connections = {(RouteKind.SERVICE, "orders"): 1_234_567, (RouteKind.DATACENTER, "dc2"): 88}
    return double


async def test_hostile_names_are_text_and_the_policy_lets_nothing_else_run(
    nursery: trio.Nursery, browser: Chromium
) -> None:
    double = GatewayDouble(*map(route, HOSTILE), wrong=list(HOSTILE))
    double.recent += [(time.time() + number, refused(name, detail=name)) for number, name in enumerate(HOSTILE)]
    double.numbers.refused = {Reason.UNKNOWN_SNI: 1}
    admin = await double.serve(nursery)
    async with opened(browser, admin) as watched:

        def all_is_text(page: Page) -> None:
            for where in ("#destinations .title", "#problem-list li", "#recent .mono"):
                expect(page.locator(where)).to_have_count(len(HOSTILE))
                assert set(page.locator(where).all_text_contents()) == set(HOSTILE)
            for name in HOSTILE:
                page.get_by_label("Server name (SNI)").fill(name)
                page.get_by_label("Server name (SNI)").press("Enter")
                expect(page.locator("#explanation .verdict .mono")).to_have_text(name.strip())
            assert page.locator("#main :is(img, script, b, iframe), #main svg:not(.spark, .hour, #links)").count() == 0
            assert page.title() == "mesh-gateway dc1 ready"

        await browser.do(all_is_text, watched.page)

    watched = await browser.open(admin)
    try:

        def nothing_runs(page: Page) -> None:
            expect(page.locator("#live")).to_have_text("live")
            page.evaluate(
                """() => {
                    window.violated = [];
                    addEventListener('securitypolicyviolation', (event) => violated.push(event.effectiveDirective));
                }"""
            )
            assert (
                page.evaluate(
                    """() => { try { document.body.innerHTML = '<p>'; return 'markup' } catch (e) { return e.name } }"""
                )
                == "TypeError"
            )
            page.evaluate(
                """() => {
                    const style = document.createElement('style');
                    style.textContent = 'body { display: none }';
                    document.head.append(style);
                    document.body.setAttribute('style', 'display: none');
                    const image = new Image();
                    image.src = 'http://127.0.0.1:9/x.png';
                    fetch('http://127.0.0.1:9/').catch(() => {});
                }"""
            )
            page.wait_for_function("violated.length >= 5")
            found = set(page.evaluate("violated"))
            assert {"require-trusted-types-for", "style-src-elem", "style-src-attr", "img-src", "connect-src"} <= found
            assert page.locator("h1").is_visible()

        await browser.do(nothing_runs, watched.page)
    finally:
        await browser.close(watched)


async def test_thousands_of_destinations_are_filtered_by_the_gateway(nursery: trio.Nursery, browser: Chromium) -> None:
    double = GatewayDouble(*(route(f"service-{number:04}") for number in range(5000)))
    double.numbers.connections = {(RouteKind.SERVICE, "service-4321"): 7}
    async with opened(browser, await double.serve(nursery)) as watched:

        def shows_some(page: Page) -> None:
            expect(page.locator("#shown")).to_have_text("5,000 routes")
            expect(page.locator("#destinations .title")).to_have_count(200)
            expect(page.locator("#destinations .title").first).to_have_text("service-4321")
            expect(page.locator("#more")).to_have_text("and 4,800 more: narrow them down with the filter")
            expect(place(page, "Services of dc1")).to_contain_text("5,000 services")
            page.get_by_label("Filter").fill("SERVICE-007")
            expect(page.locator("#destinations .title")).to_have_count(10)
            expect(page.locator("#shown")).to_have_text("10 of 5,000 match")
            expect(page.locator("#more")).to_be_hidden()
            page.get_by_label("Filter").fill("nothing of the kind")
            expect(page.locator("#more")).to_have_text("No destination matches the filter.")
            page.get_by_label("Filter").fill("")
            page.get_by_label("Order").select_option("by name")
            expect(page.locator("#destinations .title").first).to_have_text("service-0000")

        await browser.do(shows_some, watched.page)


CONTRAST = (Path(__file__).parent / "contrast.js").read_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
async def test_page_is_readable_at_any_width_in_both_schemes(
    nursery: trio.Nursery, browser: Chromium, width: int, scheme: Any
) -> None:
    double = full_double()
    async with opened(browser, await double.serve(nursery), width=width, color_scheme=scheme) as watched:

        def is_readable(page: Page) -> None:
            expect(page.locator("#live")).to_have_text("live")
            page.get_by_label("Server name (SNI)").fill(route("orders").sni)
            page.get_by_label("Server name (SNI)").press("Enter")
            expect(page.locator("#explanation .pill")).to_be_visible()
            for button in page.locator("#destinations .name").all():
                button.click()
            page.get_by_text("What if something goes away").click()
            expect(page.locator("#whatif-list")).to_contain_text("Without Consul")
            heights = "all => all.filter(e => e.offsetHeight > 60).map(e => e.textContent)"
            assert page.get_by_role("button").evaluate_all(heights) == []
            expect(page.locator("#destinations .detail").first).to_be_visible()
            # A page that scrolls sideways has something wider than the window.
            assert page.evaluate("document.documentElement.scrollWidth") == width
            beyond = "filter(e => e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML)"
            assert page.evaluate(f"[...document.querySelectorAll('main *')].{beyond}") == []
            seen, weak = page.evaluate(CONTRAST)
            assert seen > 100
            assert weak == []
            dark = page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(14, 19, 24)"
            assert dark == (scheme == "dark")

        await browser.do(is_readable, watched.page)


async def test_what_was_met_of_an_endpoint_is_in_its_line(nursery: trio.Nursery, browser: Chromium) -> None:
    now, double = time.time(), full_double()
    double.facts = {
        ("10.0.0.7", 20000): EndpointFacts(
            streams=12344, unanswered=1, first_byte_seconds=0.003127, last_success=now - 5
        ),
        ("10.0.0.7", 20001): EndpointFacts(
            failures=7,
            last_failure=now - 65,
            last_error="<b>refused</b>",
            ejected=Ejection(7, now - 125, "connection refused"),
        ),
    }
    double.streams = [
        OpenStream(number, f"192.0.2.{number % 5}:{number}", None, None, None, "relaying", 1.0, 10, 10, 0)
        for number in range(9)
    ]
    double.names = {"192.0.2.0": "web on n1", "192.0.2.1": "<b>api</b> on n2"}
    numbers, orders = double.numbers, (RouteKind.SERVICE, "orders")
    numbers.active = 9
    numbers.count_first_byte(orders, ("10.0.0.7", 20000), 0.004)
    numbers.count_unanswered(orders, ("10.0.0.7", 20000))
    numbers.count_hello(orders, Offer("TLSv1.3", resumption=True))
    numbers.count_alert(orders, "client", Alert.UNKNOWN_CA)
    async with opened(browser, await double.serve(nursery)) as watched:

        def tells(page: Page) -> None:
            expect(page.get_by_role("list", name="Clients that send most").locator("li")).to_have_text(
                ["web on n1 · 2 open", "<b>api</b> on n2 · 2 open", "192.0.2.2 · 2 open", "and 2 more clients"]
            )
            page.get_by_role("button", name="orders").click()
            expect(page.locator(".open-row .detail")).to_contain_text(
                "2 streams since the start, 50% ended without a byte from an endpoint, half had their first byte "
                "within 5ms, 99 of 100 within 5ms · clients offer TLSv1.3 100%; 100% offer to resume a session; "
                "alerts in the clear: 1 unknown_ca from clients"
            )
            lines = page.locator(".open-row .endpoints li")
            expect(lines).to_have_count(3)
            expect(lines.nth(0)).to_contain_text("unhealthy")
            expect(lines.nth(1)).to_contain_text("ejected")
            expect(lines.nth(1)).to_contain_text(
                re.compile(r"no stream for 2m\d+s: 7 failed connections in a row, the first: connection refused")
            )
            expect(lines.nth(1)).to_contain_text(
                re.compile(r"0 streams, 7 failed connections, the last 1m\d+s ago: <b>refused</b>")
            )
            expect(lines.nth(2)).to_contain_text("healthy")
            expect(lines.nth(2)).to_contain_text(
                re.compile(r"12345 streams, 1 without a byte from it, first byte in 3.13 ms lately, last answered \d")
            )
            page.set_viewport_size({"width": 320, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= 320

        await browser.do(tells, watched.page)


async def test_the_last_hour_is_there_for_a_page_that_is_new(nursery: trio.Nursery, browser: Chromium) -> None:
    async with opened(browser, await full_double().serve(nursery)) as watched:

        def has_history(page: Page) -> None:
            words = page.locator("#hour-words")
            expect(words).to_contain_text("6,660 streams since")
            expect(words).to_contain_text("60 failed · success 99.1 %")
            expect(page.locator("#hour-top")).to_have_text("130 a minute")
            expect(page.locator("#hour-axis span").first).to_have_text(re.compile("60 min"))
            bars = {look: page.locator(f"#hour .{look}").get_attribute("d") or "" for look in ("good", "bad")}
            assert {look: path.count("M") for look, path in bars.items()} == {"good": 60, "bad": 3}
            row = page.locator("#destinations tbody").filter(has_text="orders")
            expect(row.locator("td").nth(8)).to_have_text("99.0 %")
            row.get_by_role("button").first.click()
            expect(row.locator(".detail p").first).to_have_text(
                "last hour: success 99.0 % · 6,000 streams · 60 failed"
                " · first byte: median at most 5 ms, 99 % at most 250 ms"
            )
            expect(page.locator("#destinations tbody").filter(has_text="dc2").locator("td").nth(8)).to_have_text(
                "100 %"
            )

        await browser.do(has_history, watched.page)


async def test_how_streams_ended_is_seen_and_what_would_break(nursery: trio.Nursery, browser: Chromium) -> None:
    async with opened(browser, await full_double().serve(nursery)) as watched:

        def tells(page: Page) -> None:
            expect(page.locator("#ends li").filter(has_text="worker_lost")).to_contain_text("its relay process ended")
            lines = page.locator("#ended li")
            expect(lines.nth(0)).to_contain_text("relay process 1 ended: killed")
            expect(lines.nth(0)).to_contain_text("12 streams ended with it")
            expect(lines.nth(1)).to_contain_text("from 192.0.2.1:4000 to [2001:db8::7]:8443, after 1 s")
            page.get_by_text("What if something goes away").click()
            expect(page.locator("#whatif-list dt").filter(has_text="Without Consul")).to_be_visible()
            said = [page.locator(f"#whatif-list {tag}").all_inner_texts() for tag in ("dt", "dd")]
            rows = dict(zip(*said, strict=True))
            assert rows["No way now"] == "2 destinations: mail, europe-west-with-a-long-name"
            assert rows["Without the gateways of dc2"] == "1 destination: dc2"
            assert rows["Without this gateway"] == "0 open streams end, and there is no other gateway"
            assert rows["Limit: agent connections"] == "120 of 200"

        await browser.do(tells, watched.page)


async def test_the_last_upgrade_is_told_with_why_it_did_not_work(nursery: trio.Nursery, browser: Chromium) -> None:
    double = full_double()
    double.last_one = Upgrade(number=3, started=1.75e9, python="/opt/new/bin/python", version_before="0.1.0")
    double.last_one.version_after, double.last_one.result = "0.2.0", "refused"
    double.last_one.reason = "MESHGATE_SERVICE changed: that takes a <b>restart</b>"
    async with opened(browser, await double.serve(nursery)) as watched:

        def tells(page: Page) -> None:
            facts = page.locator("#facts")
            expect(facts).to_contain_text("from 0.1.0 to 0.2.0")
            expect(facts).to_contain_text("! refused: MESHGATE_SERVICE changed: that takes a <b>restart</b>")

        await browser.do(tells, watched.page)


async def test_an_outage_is_one_line_with_the_age_of_the_catalog(nursery: trio.Nursery, browser: Chromium) -> None:
    now = trio.current_time()
    kinds = ("roots", "services", "instances", "resolvers", "federation", "registration", "peerings", "nodes", "leaf")
    double = GatewayDouble(
        route("web"),
        catalog_stale=True,
        wrong=["cannot reach Consul: connection refused"],
        states=[
            WatchState(
                WatchKey(kind, kind), now - 900, last_success=now - 750, error="cannot reach Consul: connection refused"
            )
            for kind in kinds
        ],
    )
    async with opened(browser, await double.serve(nursery)) as watched:

        def one_line(page: Page) -> None:
            expect(page.locator("#stale")).to_have_text(re.compile(r"catalog 12 min \d+ s old"))
            expect(page.locator("#watch-errors li")).to_have_text(
                ["✕ 9 queries fail: cannot reach Consul: connection refused"]
            )
            assert page.locator("body").inner_text().count("connection refused") == 2
            expect(page.locator("#watches tr")).to_have_count(len(kinds))

        await browser.do(one_line, watched.page)


async def test_nothing_is_claimed_of_a_catalog_that_is_not_known(nursery: trio.Nursery, browser: Chromium) -> None:
    double = GatewayDouble(catalog_known=False, consul_found=False, ready=False, listening=False)
    async with opened(browser, await double.serve(nursery)) as watched:

        def says_so(page: Page) -> None:
            expect(page.locator("#more")).to_have_text(
                "No routes: nothing is known of the catalog yet, Consul has not answered."
            )
            expect(page.locator("#listeners")).to_contain_text("not open yet")
            expect(page.locator("#state")).to_have_text("not ready")

        await browser.do(says_so, watched.page)
        double.catalog_known = double.consul_found = double.ready = double.listening = True

        def knows(page: Page) -> None:
            expect(page.locator("#more")).to_have_text(
                "No routes: Consul has no mesh services, and no gateway of another datacenter."
            )
            expect(page.locator("#listeners")).not_to_contain_text("not open yet")

        await browser.do(knows, watched.page)


async def test_page_stands_still_for_who_wants_that(nursery: trio.Nursery, browser: Chromium) -> None:
    double = full_double()
    async with opened(browser, await double.serve(nursery), reduced_motion="reduce") as watched:

        def rests(page: Page) -> None:
            expect(page.locator("#live")).to_have_text("live")
            assert page.evaluate("document.getAnimations().length") == 0

        await browser.do(rests, watched.page)


async def test_box_takes_a_service_and_offers_what_was_refused_first(nursery: trio.Nursery, browser: Chromium) -> None:
    double = GatewayDouble(route("web"), route("weather"), recent=[(time.time(), refused("we.example"))])
    async with opened(browser, await double.serve(nursery)) as watched:

        def ask(page: Page) -> None:
            box = page.get_by_label("server name (SNI)")
            box.press_sequentially("we")
            expect(page.locator("#names option")).to_have_count(3)
            offered = page.locator("#names option").evaluate_all("all => all.map(e => [e.value, e.label])")
            assert offered == [["we.example", "refused in the last hour"], ["weather", ""], ["web", ""]]
            box.fill("web")
            box.press("Enter")
            expect(page.locator("#explanation .pill")).to_have_text("✓ routed")
            expect(page.locator("#explanation .verdict .mono")).to_have_text(route("web").sni)

        await browser.do(ask, watched.page)


async def test_page_is_worked_by_keyboard_and_read_by_a_screen_reader(nursery: trio.Nursery, browser: Chromium) -> None:
    double = full_double()
    async with opened(browser, await double.serve(nursery)) as watched:

        def by_keyboard(page: Page) -> None:
            expect(page.locator("#live")).to_have_text("live")
            page.keyboard.press("Tab")
            expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
            expect(page.get_by_role("link", name="Skip to content")).to_be_in_viewport()
            page.keyboard.press("Enter")
            reached = []
            for _ in range(40):
                page.keyboard.press("Tab")
                focused = page.locator(":focus")
                reached.append(focused.evaluate("e => e.id || e.textContent"))
                assert focused.evaluate("e => getComputedStyle(e).outlineStyle") == "solid", reached[-1]
                if "orders" in reached[-1]:
                    break
            assert reached[:4] == ["sni", "Explain", "filter", "sort"]
            page.keyboard.press("Enter")
            expect(page.locator(":focus")).to_have_attribute("aria-expanded", "true")
            page.keyboard.press("Tab")
            page.keyboard.press("Enter")
            expect(page.locator("#explanation .pill")).to_have_text("✓ routed")
            expect(page.locator("#sni")).to_be_focused()

        def by_ear(page: Page) -> None:
            for name in (
                "Where streams go",
                "Explain a name",
                "Destinations",
                "The last hour",
                "Refused",
                "Ended",
                "Consul",
                "This gateway",
            ):
                expect(page.get_by_role("region", name=name, exact=True)).to_be_visible()
            for role in ("banner", "main", "search", "contentinfo"):
                expect(page.get_by_role(role)).to_have_count(1)
            expect(page.get_by_role("table", name="Destinations").get_by_role("columnheader")).to_have_count(9)
            expect(page.get_by_role("status")).to_have_text(
                re.compile("mesh-gateway in dc1 / default is ready, its catalog is stale")
            )
            expect(page.get_by_role("list", name="Places that streams go to")).to_match_aria_snapshot(
                """
                - list "Places that streams go to":
                  - listitem:
                    - text: Services of dc1 3 services ✕ 5 of 7 endpoints healthy, 1 not served
                """
            )
            unnamed = page.evaluate(
                """[...document.querySelectorAll('input, select, button, a')]
                    .filter(e => !(e.labels?.length || e.textContent.trim() || e.ariaLabel)).map(e => e.outerHTML)"""
            )
            assert unnamed == []

        await browser.do(by_keyboard, watched.page)
        await browser.do(by_ear, watched.page)


async def test_focus_stays_on_a_row_that_changes_its_place(nursery: trio.Nursery, browser: Chromium) -> None:
    double = GatewayDouble(route("one"), route("three"), route("two"))
    async with opened(browser, await double.serve(nursery)) as watched:

        def focus(page: Page) -> None:
            page.get_by_role("button", name=re.compile("^two")).focus()

        await browser.do(focus, watched.page)
        double.numbers.connections = {(RouteKind.SERVICE, "two"): 9, (RouteKind.SERVICE, "three"): 5}

        def still_there(page: Page) -> None:
            expect(page.locator("#destinations .title")).to_have_text(["two", "three", "one"])
            expect(page.get_by_role("button", name=re.compile("^two"))).to_be_focused()

        await browser.do(still_there, watched.page)
