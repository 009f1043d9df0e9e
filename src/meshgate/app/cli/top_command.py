"""`meshgate top`: what the dashboard shows, in a terminal. The gateway itself computes it all, rates too."""

import os
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
import msgspec
from rich.console import Console
from rich.live import Live

from meshgate.app.admin_client import ask, decoded
from meshgate.app.cli.admin_answers import DashboardState
from meshgate.app.cli.output import Printer
from meshgate.app.cli.setting_options import Command, with_settings
from meshgate.app.cli.top_view import print_once, screen
from meshgate.app.errors import CommandError
from meshgate.app.settings.settings import Settings
from meshgate.core.addresses import HostPort

STATE: Final = "/dashboard/state"


@click.command(
    cls=Command,
    short_help="Show the running gateway live.",
    examples=("meshgate top", "meshgate top --once", "meshgate top -admin-bind 10.0.0.5:19000 --interval 1"),
)
@click.option("--once", is_flag=True, help="Print one snapshot and exit (the default when stdout is not a terminal).")
@click.option("--json", "as_json", is_flag=True, help="Print one snapshot as JSON and exit.")
@click.option(
    "--interval",
    # The gateway looks at itself twice a second at most, and compares with the last seconds only.
    type=click.FloatRange(0.5, 10),
    default=2.0,
    metavar="SECONDS",
    help="Time between two questions to the gateway, 0.5 to 10.  [default: 2]",
)
@with_settings({"MESHGATE_ADMIN_BIND"})
def top(settings: Settings, *, once: bool, as_json: bool, interval: float) -> None:
    """Show the running gateway live: destinations, streams, rates, refusals, endpoints' health, news from Consul.

    q or Ctrl-C ends it.
    """
    bind, printer = settings.admin_bind, Printer()
    if not (once or as_json) and printer.is_terminal:
        _live(bind, interval)
        return
    # Rates need two answers.
    ask(bind, STATE)
    time.sleep(min(interval, 1.0))
    answer = ask(bind, STATE)
    state = decoded(answer, DashboardState)
    if as_json:
        click.echo(msgspec.json.format(answer, indent=2))
    else:
        print_once(state, printer)


def _live(bind: HostPort | Path | None, interval: float) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    # A gateway that is not there from the start is an error, one that vanishes later may come back.
    state, trouble = decoded(ask(bind, STATE), DashboardState), ""
    try:
        with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(screen(state, trouble, console.width, console.height), refresh=True)
                if pressed(interval) in ("q", "Q"):
                    return
                try:
                    state, trouble = decoded(ask(bind, STATE), DashboardState), ""
                except CommandError as error:
                    trouble = str(error)
    except KeyboardInterrupt:
        return


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """A function that waits for a key for so many seconds and gives it, or ""."""
    if not sys.stdin.isatty():
        yield _no_key
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)

    def pressed(seconds: float) -> str:
        if not select.select([sys.stdin], [], [], seconds)[0]:
            return ""
        # A terminal that is gone has nothing more to say: end, as if by key.
        return os.read(sys.stdin.fileno(), 64).decode(errors="replace")[:1] or "q"

    try:
        yield pressed
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _no_key(seconds: float) -> str:
    time.sleep(seconds)
    return ""
