"""`meshgate top`: what the dashboard shows, in a terminal. The gateway itself computes it all, rates too."""

import os
import re
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.live import Live

from meshgate.app.admin.answers import MOST_STREAMS, DashboardState, Stream
from meshgate.app.admin_client import ask, response_to
from meshgate.app.cli.output import Printer, print_json
from meshgate.app.cli.setting_options import command, with_settings
from meshgate.app.cli.top_view import PAGES, Seen, View, print_once, screen
from meshgate.app.errors import CommandError
from meshgate.app.settings.settings import Settings
from meshgate.core.addresses import HostPort

STATE: Final = "/dashboard/state"


@command("meshgate top", "meshgate top --once --page endpoints", "meshgate top -admin-bind 10.0.0.5:19000 --interval 1")
@click.option("--page", type=click.Choice(PAGES), default=PAGES[0], help="Page to start with, or to print.")
@click.option("--once", is_flag=True, help="Print one snapshot and exit (the default when stdout is not a terminal).")
@click.option("--json", "as_json", is_flag=True, help="Print one snapshot as JSON and exit.")
@click.option(
    "--interval",
    # The gateway looks at itself twice a second at most, and compares with the last seconds only.
    type=click.FloatRange(0.5, 10),
    default=2.0,
    metavar="SECONDS",
    help="Time between refreshes, 0.5 to 10.  [default: 2]",
)
@with_settings({"MESHGATE_ADMIN_BIND"})
def top(settings: Settings, *, page: str, once: bool, as_json: bool, interval: float) -> None:
    """Show the running gateway live.

    There are pages for destinations, endpoints, callers, workers and problems. 1 to 5 or Tab select a page; arrows,
    Page Up, Page Down, Home and End scroll it; s sorts it by another column; q or Ctrl-C quits.
    """
    bind, printer = settings.admin_bind, Printer()
    if not (once or as_json) and printer.is_terminal:
        _live(bind, interval, View(page), printer.console)
        return
    # Rates need two answers.
    response_to(bind, STATE)
    time.sleep(min(interval, 1.0))
    if as_json:
        print_json(response_to(bind, STATE).json())
    else:
        print_once(look(bind, View(page)), page, printer)


def look(bind: HostPort | Path | None, view: View) -> Seen:
    """What the gateway says now, as far as a page needs it."""
    sort = view.order if view.page == "destinations" and view.order in ("name", "health") else "busy"
    state = ask(bind, STATE, DashboardState, sort=sort)
    if view.page not in ("endpoints", "callers") or state.totals.open > MOST_STREAMS:
        return Seen(state)
    return Seen(state, ask(bind, "/connections", list[Stream]))


def _live(bind: HostPort | Path | None, interval: float, view: View, console: Console) -> None:
    # A gateway that is not there from the start is an error, one that vanishes later may come back.
    seen, trouble, due = look(bind, view), "", time.monotonic() + interval
    try:
        with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(screen(seen, view, trouble, console.width, console.height), refresh=True)
                asked = view.page, view.order
                for key in pressed(max(0.0, due - time.monotonic())):
                    if key in ("q", "Q"):
                        return
                    view.press(key)
                if (view.page, view.order) == asked and time.monotonic() < due:
                    continue
                due = time.monotonic() + interval
                try:
                    seen, trouble = look(bind, view), ""
                except CommandError as error:
                    trouble = str(error)
    except KeyboardInterrupt:
        return


# What a terminal sends for keys that are no character: one way or the other, by its mode.
_NAMED: Final = {
    "[A": "UP", "OA": "UP", "[B": "DOWN", "OB": "DOWN", "[5~": "PAGE UP", "[6~": "PAGE DOWN",
    "[H": "HOME", "OH": "HOME", "[1~": "HOME", "[F": "END", "OF": "END", "[4~": "END",
}  # fmt: skip
_KEY: Final = re.compile(r"\x1b(\[[0-9;]*[A-Za-z~]|O[A-Z])|(.)", re.DOTALL)


@contextmanager
def _keys() -> Iterator[Callable[[float], list[str]]]:
    """A function that waits for keys for so many seconds and gives them: characters, or names such as `UP`."""
    if not sys.stdin.isatty():
        yield _no_key
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)

    def pressed(seconds: float) -> list[str]:
        if not select.select([sys.stdin], [], [], seconds)[0]:
            return []
        # A terminal that is gone has nothing more to say: end, as if by key.
        typed = os.read(sys.stdin.fileno(), 64).decode(errors="replace") or "q"
        return [_NAMED.get(named, "") if named else key for named, key in _KEY.findall(typed)]

    try:
        yield pressed
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _no_key(seconds: float) -> list[str]:
    time.sleep(seconds)
    return []
