"""A real Chromium for tests that run under trio: it lives on a thread of its own, where its library wants to be."""

import os
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

T = TypeVar("T")

# Nothing but the page is to be asked of anybody.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SECONDS = 20
expect.set_options(timeout=SECONDS * 1000)


def chromium_binary() -> str:
    """The Chromium of the tests. Without one they fail, unless there is no apt that could fetch one."""
    kept = Path(__file__).parents[2] / ".cache" / "chromium" / "chromium"
    for name in (os.environ.get("CHROMIUM_BIN"), "chromium", "chromium-browser", "google-chrome", str(kept)):
        if name and (found := shutil.which(name)):
            return found
    if shutil.which("apt-get") is None:
        pytest.skip("no Chromium and no apt to fetch one: put a chromium on the PATH or name it in CHROMIUM_BIN")
    pytest.fail("no Chromium here; scripts/test fetches one (scripts/get-chromium)", pytrace=False)


@dataclass
class Watched:
    """A page, and what it complained of and asked for since it was opened."""

    page: Page
    base: str
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def strangers(self) -> list[str]:
        """Requests to anybody but the admin address."""
        return [url for url in self.asked if not url.startswith((self.base, "data:", "blob:"))]


class Chromium:
    """The browser; each method is called from trio and waits without stopping it."""

    def __init__(self, browser: Browser, thread: ThreadPoolExecutor) -> None:
        self._browser = browser
        self._thread = thread

    async def do(self, work: Callable[..., T], *arguments: object) -> T:
        """Do something with a page, on the browser's thread."""
        return await trio.to_thread.run_sync(lambda: self._thread.submit(work, *arguments).result())

    async def open(self, admin: str, *, width: int = 1280, height: int = 900, **context: Any) -> Watched:
        """The dashboard of the gateway at `admin`, in a fresh context."""
        return await self.do(
            self._open, f"http://{admin}/", {"viewport": {"width": width, "height": height}, **context}
        )

    async def close(self, watched: Watched) -> None:
        """Close a page with its context."""
        await self.do(watched.page.context.close)

    def _open(self, base: str, options: dict[str, Any]) -> Watched:
        context: BrowserContext = self._browser.new_context(**options)
        context.set_default_timeout(SECONDS * 1000)
        watched = Watched(context.new_page(), base)
        page = watched.page
        page.on("console", lambda message: _complain(watched, message))
        page.on("pageerror", lambda error: watched.complaints.append(str(error)))
        page.on("request", lambda request: watched.asked.append(request.url))
        page.goto(base)
        return watched


def _complain(watched: Watched, message: Any) -> None:
    if message.type in ("error", "warning"):
        watched.complaints.append(f"{message.text} ({message.location.get('url', '')})")


@contextmanager
def chromium() -> Iterator[Chromium]:
    """A running browser with an empty profile, for the length of the block."""
    binary = chromium_binary()
    with ThreadPoolExecutor(1) as thread:
        library = thread.submit(lambda: sync_playwright().start()).result()
        try:
            browser = thread.submit(lambda: library.chromium.launch(executable_path=binary, args=list(FLAGS))).result()
            try:
                yield Chromium(browser, thread)
            finally:
                thread.submit(browser.close).result()
        finally:
            thread.submit(library.stop).result()


@asynccontextmanager
async def opened(browser: Chromium, admin: str, **options: Any) -> AsyncIterator[Watched]:
    """The page, which in the end has complained of nothing and asked nobody else."""
    watched = await browser.open(admin, **options)
    try:
        yield watched
        assert watched.complaints == []
        assert watched.strangers() == []
    finally:
        await browser.close(watched)


def tile(page: Page, title: str) -> Locator:
    """The number in the tile of that title."""
    return page.locator(".tile").filter(has_text=title).locator("dd").first


def place(page: Page, text: str) -> Locator:
    return page.get_by_role("listitem").filter(has_text=text).and_(page.locator(".place"))


def destination(page: Page, name: str) -> Locator:
    return page.locator("#destinations tbody").filter(has=page.get_by_role("button", name=re.compile(rf"^\W*{name}\b")))
