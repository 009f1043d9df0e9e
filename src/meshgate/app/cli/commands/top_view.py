"""How `meshgate top` draws a frame: readable at 80 columns, and no longer than the terminal is high."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from meshgate.app.cli.commands.output import Printer
from meshgate.app.cli.commands.top_frame import DestinationRow, Frame
from meshgate.app.text import printable

_HEAD: Final = ("DESTINATION", "KIND", "OPEN", "NEW/S", "IN/S", "OUT/S", "HEALTHY")
_WIDTHS: Final = {"KIND": 10, "NEW/S": 5, "IN/S": 6, "OUT/S": 6}
# Columns that a narrower terminal does without.
_NEEDED: Final = {"IN/S": 66, "OUT/S": 66, "KIND": 48}
_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")
_SHOWN_UNHEALTHY: Final = 3
_STATE_STYLES: Final = {"LIVE": "bold green", "DRAINING": "bold yellow", "PRE_INITIALIZING": "bold yellow"}
# What is always there: two blank lines, the head of the table, the last line.
_FIXED_LINES: Final = 4
_FEWEST_ROWS: Final = 2
_PRINTED_WIDTH: Final = 80
_NO_BREAK: Final = "\u00a0"


def print_frame(frame: Frame, printer: Printer) -> None:
    """Print a whole frame once."""
    for text, style in _top_lines(frame):
        printer.line(text, style)
    printer.line()
    if frame.destinations:
        rows = [_cells(row) for row in frame.destinations]
        printer.table(_HEAD, rows, [_style(row) for row in frame.destinations])
        printer.line()
    for title, items in _bottom_lines(frame):
        for line in _wrapped(title, items, _PRINTED_WIDTH):
            printer.line(line)


def screen(frame: Frame | None, trouble: str, width: int, height: int) -> RenderableType:
    """A frame that fits a terminal, with what went wrong since; `frame` is None while there was no answer yet."""
    if frame is None:
        return _line(trouble or "asking the gateway", "bold red" if trouble else "dim")
    above = [_line(text, style) for text, style in _top_lines(frame)]
    if trouble:
        above.append(_line(trouble, "bold red"))
    below = [_line(line) for title, items in _bottom_lines(frame) for line in _wrapped(title, items, width)]
    room = height - len(above) - _FIXED_LINES
    # On a low terminal destinations come first.
    below = below[: max(0, room - _FEWEST_ROWS)]
    room = max(_FEWEST_ROWS, room - len(below))
    blank = Text()
    return Group(*above, blank, _table(frame.destinations, room, width), blank, *below, _line("q quits", "dim"))


def _top_lines(frame: Frame) -> Iterator[tuple[str, str]]:
    place = f"{frame.datacenter}/{frame.partition}" if frame.datacenter else "no datacenter yet"
    state_style = _STATE_STYLES.get(frame.state, "bold")
    yield f"meshgate {frame.version}  {place}  {frame.state}  up {duration(frame.uptime)}", state_style
    yield (
        (
            f"{frame.open} open  {rate(frame.new)} new/s  {rate(frame.refused_rate)} refused/s  "
            f"in {size(frame.received)}/s  out {size(frame.sent)}/s"
        ),
        "",
    )
    for alert in frame.alerts:
        yield f"! {alert}", "bold yellow"


def _bottom_lines(frame: Frame) -> Iterator[tuple[str, list[str]]]:
    if frame.refused:
        yield "refused", [f"{row.reason} {row.total} ({rate(row.rate)}/s)" for row in frame.refused]
    if frame.unhealthy:
        shown = [f"{destination} {endpoint} on {node}" for destination, endpoint, node in frame.unhealthy]
        more = len(shown) - _SHOWN_UNHEALTHY
        yield "unhealthy", shown[:_SHOWN_UNHEALTHY] + ([f"and {more} more"] if more > 0 else [])
    if frame.watches:
        yield "last news from Consul", [f"{watch} {duration(age)}" for watch, age in frame.watches.items()]


def _wrapped(title: str, items: Sequence[str], width: int) -> list[str]:
    """Items on as few lines as they need, never broken inside an item unless it is longer than a line."""
    # A no-break space is no place to wrap at.
    text = f"{title}: {', '.join(printable(item).replace(' ', _NO_BREAK) for item in items)}"
    lines = textwrap.wrap(text, width, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)
    return [line.replace(_NO_BREAK, " ") for line in lines]


def _table(rows: Sequence[DestinationRow], room: int, width: int) -> RenderableType:
    if not rows:
        return _line("no routes", "dim")
    shown = rows if len(rows) <= room else rows[: room - 1]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    columns = [title for title in _HEAD if width >= _NEEDED.get(title, 0)]
    for title in columns:
        words = title in ("DESTINATION", "KIND")
        # Numbers are never cut, a long name is.
        least = None if title == "DESTINATION" else _WIDTHS.get(title, len(title))
        table.add_column(
            title, justify="left" if words else "right", min_width=least, no_wrap=True, overflow="ellipsis"
        )
    for row in shown:
        cells = dict(zip(_HEAD, _cells(row), strict=True))
        table.add_row(*(Text(printable(cells[title])) for title in columns), style=_style(row))
    if len(shown) < len(rows):
        return Group(table, _line(f"and {len(rows) - len(shown)} more", "dim"))
    return table


def _cells(row: DestinationRow) -> tuple[str, ...]:
    return (
        row.name,
        row.kind,
        "-" if row.open is None else str(row.open),
        rate(row.new),
        size(row.received),
        size(row.sent),
        f"{row.healthy}/{row.endpoints}",
    )


def _style(row: DestinationRow) -> str:
    if not row.healthy:
        return "red"
    return "yellow" if row.healthy < row.endpoints else ""


def _line(text: str, style: str = "") -> Text:
    return Text(printable(text), style, no_wrap=True, overflow="ellipsis")


def rate(per_second: float | None) -> str:
    """A rate in at most five characters."""
    if per_second is None:
        return "-"
    return f"{per_second:.1f}" if per_second < 1000 else f"{per_second / 1000:.0f}k"


def size(count: float | None) -> str:
    """An amount of bytes in three digits and a unit; decimal, as networks are."""
    if count is None:
        return "-"
    amount, unit = count, 0
    # What rounds to four digits belongs to the next unit.
    while amount >= 999.5 and unit + 1 < len(_UNITS):
        amount, unit = amount / 1000, unit + 1
    return f"{amount:.1f} {_UNITS[unit]}" if unit and amount < 99.95 else f"{amount:.0f} {_UNITS[unit]}"


def duration(seconds: float) -> str:
    """A time in its two largest units."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
