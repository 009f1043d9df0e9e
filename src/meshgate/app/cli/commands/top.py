"""`meshgate top`."""

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.live import Live

from meshgate.app.cli.commands.options import Command, with_settings
from meshgate.app.cli.commands.output import Printer
from meshgate.app.cli.commands.top_frame import Frame, Look, frame
from meshgate.app.cli.commands.top_view import print_frame, screen
from meshgate.app.errors import CommandError
from meshgate.app.settings.setting_types import HostPort
from meshgate.app.settings.settings import Settings


@click.command(cls=Command, short_help="Show the running gateway live.")
@click.option("--once", is_flag=True, help="Print one picture and stop; so it is where the output is no terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print one picture as JSON and stop.")
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 3600),
    default=2.0,
    metavar="SECONDS",
    help="Time between two looks, over which rates are taken.  [default: 2]",
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
    picture = _picture(bind, min(interval, 1.0))
    if as_json:
        click.echo(picture.to_json())
    else:
        print_frame(picture, printer)


def _look(bind: HostPort | Path | None) -> Look:
    return Look.take(bind, time.monotonic(), time.time())


def _picture(bind: HostPort | Path | None, seconds: float) -> Frame:
    before = _look(bind)
    time.sleep(seconds)
    return frame(before, _look(bind))


def _live(bind: HostPort | Path | None, interval: float) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    # A gateway that is not there from the start is an error, one that vanishes later may come back.
    before: Look | None = None
    latest = _look(bind)
    trouble = ""
    try:
        with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(screen(frame(before, latest), trouble, console.width, console.height), refresh=True)
                if pressed(interval) in ("q", "Q"):
                    return
                try:
                    before, latest, trouble = latest, _look(bind), ""
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
