"""`python -m picturing FOLDER [SECONDS]`: traffic for so long (default 60 s), then the pictures."""

import os
import re
import sys
from pathlib import Path

import trio
from playwright.sync_api import Browser, sync_playwright
from tests.harness.cluster import find_consul

from .stage import Stage, stage
from .terminal import picture_of_top

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--font-render-hinting=none",
)
MOST_BYTES = 150_000


async def main(folder: Path, seconds: float) -> None:
    async with stage(find_consul()) as there:
        print(f"traffic for {seconds:g} s, seen at http://{there.gateway.admin}/")
        await trio.to_thread.run_sync(_pictures, there, folder, seconds)
        await trio.to_thread.run_sync(picture_of_top, there, folder / "top.svg")


def _pictures(there: Stage, folder: Path, seconds: float) -> None:
    with sync_playwright() as library:
        browser = library.chromium.launch(executable_path=os.environ["CHROMIUM_BIN"], args=list(FLAGS))
        sni = there.sni("orders")
        light = {"viewport": {"width": 1200, "height": 940}}
        dark = {"viewport": {"width": 1200, "height": 780}}
        phone = {"viewport": {"width": 360, "height": 760}, "device_scale_factor": 1.5}
        # All at once, so that each page has its own history of the same minute.
        pages = {
            "dashboard-light": _open(browser, there, color_scheme="light", **light),
            "dashboard-dark": _open(browser, there, color_scheme="dark", **dark),
            "dashboard-phone": _open(browser, there, color_scheme="light", **phone),
        }
        for name in ("dashboard-dark", "dashboard-phone"):
            page = pages[name]
            page.get_by_label("Server name (SNI)").fill(sni)
            page.get_by_label("Server name (SNI)").press("Enter")
            page.locator("#explanation .pill").wait_for()
            page.evaluate("document.activeElement.blur()")
            page.evaluate("scrollTo(0, 0)")
        pages["dashboard-light"].get_by_role("button", name=re.compile("^orders")).click()
        pages["dashboard-light"].evaluate("document.activeElement.blur()")
        pages["dashboard-light"].evaluate("scrollTo(0, 0)")
        next(iter(pages.values())).wait_for_timeout(seconds * 1000)
        for name, page in pages.items():
            page.screenshot(path=folder / f"{name}.png")
        browser.close()


def _open(browser: Browser, there: Stage, **context: object):  # noqa: ANN202 (a Page)
    page = browser.new_context(**context).new_page()
    page.goto(f"http://{there.gateway.admin}/")
    page.locator("#live.ok").wait_for()
    return page


def tell(folder: Path) -> None:
    for path in (*sorted(folder.glob("dashboard-*.png")), folder / "top.svg"):
        size = path.stat().st_size
        print(f"{path.name:<24} {size / 1000:.0f} kB{'  TOO LARGE' if size > MOST_BYTES else ''}")


target = Path(sys.argv[1])
target.mkdir(parents=True, exist_ok=True)
trio.run(main, target, float(sys.argv[2]) if len(sys.argv) > 2 else 60.0)
tell(target)
