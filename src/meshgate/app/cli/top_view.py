"""How `meshgate top` draws the dashboard's state: readable at 80 columns, and no longer than the terminal is high."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from meshgate.app.cli.admin_answers import DashboardState, Destination
from meshgate.app.cli.output import Printer
from meshgate.core.addresses import host_port
from meshgate.core.text import printable

_HEAD: Final = ("DESTINATION", "KIND", "OPEN", "NEW/S", "IN/S", "OUT/S", "HEALTHY")
_WIDTHS: Final = {"KIND": 10, "NEW/S": 5, "IN/S": 6, "OUT/S": 6}
# Columns that a narrower terminal does without.
_NEEDED: Final = {"IN/S": 66, "OUT/S": 66, "KIND": 48}
_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")
_SHOWN_UNHEALTHY: Final = 3
_SHOWN_PROBLEMS: Final = 3
_SOON_SECONDS: Final = 30 * 86400.0
_NOT_READY: Final = {"draining": "the gateway drains: no new streams", "starting": "not ready: no streams yet"}
# What is always there: two blank lines, the head of the table, the last line.
_FIXED_LINES: Final = 4
_FEWEST_ROWS: Final = 2
_PRINTED_WIDTH: Final = 80
_NO_BREAK: Final = "\u00a0"


def print_once(state: DashboardState, printer: Printer) -> None:
    rows = state.destinations.rows
    for text, style in _top_lines(state):
        printer.line(text, style)
    printer.line()
    if rows:
        printer.table(_HEAD, [_cells(row) for row in rows], [_style(row) for row in rows])
        printer.line()
    for title, items in _bottom_lines(state):
        for line in _wrapped(title, items, _PRINTED_WIDTH):
            printer.line(line)


def screen(state: DashboardState, trouble: str, width: int, height: int) -> RenderableType:
    """What fits a terminal, with what went wrong since."""
    above = [_line(text, style) for text, style in _top_lines(state)]
    if trouble:
        above.insert(2, _line(trouble, "bold red"))
    above = above[: max(2, height - _FIXED_LINES - _FEWEST_ROWS)]
    below = [_line(line) for title, items in _bottom_lines(state) for line in _wrapped(title, items, width)]
    room = height - len(above) - _FIXED_LINES
    # On a low terminal destinations come first.
    below = below[: max(0, room - _FEWEST_ROWS)]
    room = max(_FEWEST_ROWS, room - len(below))
    blank = Text()
    return Group(*above, blank, _table(state, room, width), blank, *below, _line("q quits", "dim"))


def _top_lines(state: DashboardState) -> Iterator[tuple[str, str]]:
    gateway, totals = state.gateway, state.totals
    place = f"{gateway.datacenter}/{gateway.partition}" if gateway.datacenter else "no datacenter yet"
    style = "bold green" if gateway.state == "ready" else "bold yellow"
    yield f"meshgate {gateway.version}  {place}  {gateway.state}  up {duration(gateway.uptime_seconds)}", style
    yield (
        (
            f"{totals.open} open  {rate(totals.streams_rate)} new/s  {rate(totals.refused_rate)} refused/s  "
            f"in {size(totals.received_rate)}/s  out {size(totals.sent_rate)}/s"
        ),
        "",
    )
    for alert in _alerts(state):
        yield f"! {alert}", "bold yellow"


def _alerts(state: DashboardState) -> Iterator[str]:
    gateway, consul = state.gateway, state.consul
    if gateway.state in _NOT_READY:
        yield _NOT_READY[gateway.state]
    if gateway.stale:
        yield "the catalog is stale: Consul does not answer, the last known good one is served"
    for expiry, what in ((consul.ca_root_expiry, "CA root"), (consul.ca_intermediate_expiry, "CA intermediate")):
        if expiry is not None and expiry - gateway.now < _SOON_SECONDS:
            days = (expiry - gateway.now) / 86400
            yield f"the {what} has expired" if days <= 0 else f"the {what} expires in {days:.1f} days"
    yield from state.problems[:_SHOWN_PROBLEMS]
    if len(state.problems) > _SHOWN_PROBLEMS:
        yield "there are more problems, see /readyz"


def _bottom_lines(state: DashboardState) -> Iterator[tuple[str, list[str]]]:
    if state.refused.reasons:
        yield "refused", [f"{row.reason} {row.total} ({rate(row.rate)}/s)" for row in state.refused.reasons]
    unhealthy = [
        f"{row.name} {host_port(endpoint.address, endpoint.port)} on {endpoint.node}"
        for row in state.destinations.rows
        for endpoint in row.listed
        if not endpoint.healthy
    ]
    if unhealthy:
        more = len(unhealthy) - _SHOWN_UNHEALTHY
        yield "unhealthy", unhealthy[:_SHOWN_UNHEALTHY] + ([f"and {more} more"] if more > 0 else [])
    if state.consul.watches:
        yield "last news from Consul", [f"{it.kind} {duration(it.age_seconds)}" for it in state.consul.watches]


def _wrapped(title: str, items: Sequence[str], width: int) -> list[str]:
    """Items on as few lines as they need, never broken inside an item unless it is longer than a line."""
    # A no-break space is no place to wrap at.
    text = f"{title}: {', '.join(printable(item).replace(' ', _NO_BREAK) for item in items)}"
    lines = textwrap.wrap(text, width, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)
    return [line.replace(_NO_BREAK, " ") for line in lines]


def _table(state: DashboardState, room: int, width: int) -> RenderableType:
    rows, total = state.destinations.rows, state.destinations.total
    if not rows:
        return _line("no routes", "dim")
    shown = rows if total <= room else rows[: room - 1]
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
    if len(shown) < total:
        return Group(table, _line(f"and {total - len(shown)} more", "dim"))
    return table


def _cells(row: Destination) -> tuple[str, ...]:
    return (
        row.name,
        row.kind,
        "-" if row.open is None else str(row.open),
        rate(row.rate),
        size(row.received_rate),
        size(row.sent_rate),
        f"{row.healthy}/{row.endpoints}",
    )


def _style(row: Destination) -> str:
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
