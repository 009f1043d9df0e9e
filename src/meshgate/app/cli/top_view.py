"""How `meshgate top` draws what the gateway says: readable at 80 columns, and no longer than the terminal is high.

A page is a table of which as many rows are shown as there is room for. `View` is what keys change.
"""

import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from meshgate.app.admin.answers import (
    MOST_STREAMS,
    DashboardState,
    DestinationFacts,
    EndedStream,
    Met,
    Stream,
    Upgrade,
)
from meshgate.app.cli.output import Printer, duration, rate, size
from meshgate.core.text import counted, printable

PAGES: Final = ("destinations", "endpoints", "callers", "workers", "problems")

_HEAD: Final = ("DESTINATION", "KIND", "OPEN", "NEW/S", "IN/S", "OUT/S", "HEALTHY", "1ST BYTE", "UNANSWERED")
_WIDTHS: Final = {"1ST BYTE": 8, "KIND": 10, "NEW/S": 5, "IN/S": 6, "OUT/S": 6, "IN": 6, "OUT": 6, "OLDEST": 6}
# Columns that a narrower terminal does without.
_NEEDED: Final = {
    "IN/S": 66,
    "OUT/S": 66,
    "KIND": 48,
    "NODE": 70,
    "STATE": 56,
    "OLDEST": 56,
    "CALLER": 66,
    "DESTINATIONS": 92,
    "FAILED": 72,
    "1ST BYTE": 80,
    "STREAMS": 92,
    "LAST OK": 104,
    "UNANSWERED": 92,
}
# Columns of words, which are cut where there is no room; numbers never are.
_WORDS: Final = frozenset(("DESTINATION", "KIND", "ENDPOINT", "NODE", "STATE", "CLIENT", "CALLER", "WHAT", "DETAIL"))
_CUT: Final = _WORDS - {"KIND"}
_SHOWN_UNHEALTHY: Final = 3
_SHOWN_PROBLEMS: Final = 3
_SOON_SECONDS: Final = 30 * 86400.0
_NOT_READY: Final = {"draining": "the gateway drains: no new streams", "starting": "not ready: no streams yet"}
# What is always there: two blank lines, the head of the table, the pages, the keys.
_FIXED_LINES: Final = 5
_FEWEST_ROWS: Final = 2
_PRINTED_WIDTH: Final = 80
_PRINTED: Final = 7  # Columns of a snapshot, which has no width to fit them to.
_NO_BREAK: Final = "\u00a0"


@dataclass(frozen=True, slots=True)
class Seen:
    """What the gateway said. `streams` is None where it was not asked for them, or has too many."""

    state: DashboardState
    streams: Sequence[Stream] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a page, and what each order of the page sorts it by."""

    cells: tuple[str, ...]
    style: str = ""
    keys: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class View:
    """What is looked at: a page, an order for each page, and the first row that is shown."""

    page: str = PAGES[0]
    first: int = 0
    orders: dict[str, int] = field(default_factory=dict)
    _room: int = 1
    _last: int = 0

    @property
    def order(self) -> str:
        orders = _PAGES[self.page].orders
        return orders[self.orders.get(self.page, 0) % len(orders)] if orders else ""

    def press(self, key: str) -> None:
        """Obey a key; one that means nothing changes nothing."""
        if key in ("\t", *"12345"):
            self.page = PAGES[(PAGES.index(self.page) + 1) % len(PAGES) if key == "\t" else int(key) - 1]
            self.first = 0
        elif key == "s":
            self.orders[self.page] = self.orders.get(self.page, 0) + 1
        step = {"UP": -1, "k": -1, "DOWN": 1, "j": 1, "PAGE UP": -self._room, "PAGE DOWN": self._room, " ": self._room}
        far = {"HOME": -self.first, "END": self._last}
        self.first = min(max(0, self.first + (step | far).get(key, 0)), self._last)

    def shown(self, rows: Sequence[Row], room: int) -> Sequence[Row]:
        """The rows that fit, of what may be fewer than before."""
        self._room, self._last = room, max(0, len(rows) - room)
        self.first = min(self.first, self._last)
        return rows[self.first : self.first + room]


def print_once(seen: Seen, name: str, printer: Printer) -> None:
    page, first = _PAGES[name], name == PAGES[0]
    for text, style in _top_lines(seen.state):
        printer.line(text, style)
    printer.line()
    rows, columns = _ordered(page.rows(seen), View(name).order), _PRINTED if first else len(page.head)
    if rows:
        printer.table(page.head[:columns], [row.cells[:columns] for row in rows], [row.style for row in rows])
    else:
        printer.line(page.empty(seen))
    if first:
        printer.line()
        for title, items in _bottom_lines(seen.state):
            for line in _wrapped(title, items, _PRINTED_WIDTH):
                printer.line(line)


def _ordered(rows: list[Row], order: str) -> list[Row]:
    return sorted(rows, key=lambda row: row.keys.get(order, 0)) if order else rows


def screen(seen: Seen, view: View, trouble: str, width: int, height: int) -> RenderableType:
    """What fits a terminal, with what went wrong since."""
    state, page = seen.state, _PAGES[view.page]
    above = [_line(text, style) for text, style in _top_lines(state)]
    if trouble:
        above.insert(2, _line(trouble, "bold red"))
    above = above[: max(2, height - _FIXED_LINES - _FEWEST_ROWS)]
    below: list[Text] = []
    if view.page == "destinations":
        below = [_line(line) for title, items in _bottom_lines(state) for line in _wrapped(title, items, width)]
    room = height - len(above) - _FIXED_LINES
    # On a low terminal the table comes first.
    below = below[: max(0, room - _FEWEST_ROWS)]
    room = max(_FEWEST_ROWS, room - len(below))
    pages = "  ".join(f"{number} {name}" for number, name in enumerate(PAGES, 1))
    keys = f"q quits  arrows scroll  s sorts{f': {view.order}' if view.order else ''}"
    table = _table(page.head, page.rows(seen), page.empty(seen), view, room, width)
    tabs = _line(pages, "dim")
    tabs.highlight_words([view.page], "bold not dim")
    return Group(*above, Text(), table, Text(), *below, tabs, _line(keys, "dim"))


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
    for alert in _alerts(state, state.problems):
        yield f"! {alert}", "bold yellow"


def _alerts(state: DashboardState, problems: Sequence[str]) -> Iterator[str]:
    gateway, consul = state.gateway, state.consul
    if gateway.state in _NOT_READY:
        yield _NOT_READY[gateway.state]
    if gateway.stale:
        yield "the catalog is stale: Consul does not answer, the last known good one is served"
    for expiry, what in ((consul.ca_root_expiry, "CA root"), (consul.ca_intermediate_expiry, "CA intermediate")):
        if expiry is not None and expiry - gateway.now < _SOON_SECONDS:
            days = (expiry - gateway.now) / 86400
            yield f"the {what} has expired" if days <= 0 else f"the {what} expires in {days:.1f} days"
    yield from problems[:_SHOWN_PROBLEMS]
    if len(problems) > _SHOWN_PROBLEMS:
        yield "there are more problems: key 5, or /readyz"


def _bottom_lines(state: DashboardState) -> Iterator[tuple[str, list[str]]]:
    if state.refused.reasons:
        yield "refused", [f"{row.reason} {row.total} ({rate(row.rate)}/s)" for row in state.refused.reasons]
    unhealthy = [
        f"{row.name} {endpoint.where} on {endpoint.node}"
        for row in state.destinations.rows
        for endpoint in row.listed
        if not endpoint.healthy
    ]
    if unhealthy:
        more = len(unhealthy) - _SHOWN_UNHEALTHY
        yield "unhealthy", unhealthy[:_SHOWN_UNHEALTHY] + ([f"and {more} more"] if more > 0 else [])
    if (last := state.gateway.last_upgrade) is not None:
        yield "last upgrade", _upgrade(last)
    if state.consul.watches:
        yield "last news from Consul", [f"{it.kind} {duration(it.age_seconds)}" for it in state.consul.watches]


def _upgrade(last: Upgrade) -> list[str]:
    """When, from which version to which, and what came of it."""
    said = [f"{_clock(last.started)} from {last.version_before} to {last.version_after or 'a version not known'}"]
    said.append(last.result.replace("_", " ") + (f": {last.reason}" if last.reason else ""))
    if last.result == "done":
        said.append(
            f"{last.handed_over} of {counted(last.streams, 'stream')} handed over, {last.kept} kept, {last.lost} lost"
        )
    return said


def _wrapped(title: str, items: Sequence[str], width: int) -> list[str]:
    """Items on as few lines as they need, never broken inside an item unless it is longer than a line."""
    # A no-break space is no place to wrap at.
    text = f"{title}: {', '.join(printable(item).replace(' ', _NO_BREAK) for item in items)}"
    lines = textwrap.wrap(text, width, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)
    return [line.replace(_NO_BREAK, " ") for line in lines]


def _table(head: Sequence[str], rows: list[Row], empty: str, view: View, room: int, width: int) -> RenderableType:
    if not rows:
        return _line(empty, "dim")
    rows = _ordered(rows, view.order)
    fits = len(rows) <= room
    shown = view.shown(rows, room if fits else room - 1)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    columns = [title for title in head if width >= _NEEDED.get(title, 0)]
    for title in columns:
        least = None if title in _CUT else _WIDTHS.get(title, len(title))
        side: Any = "left" if title in _WORDS else "right"
        table.add_column(title, justify=side, min_width=least, no_wrap=True, overflow="ellipsis")
    for row in shown:
        cells = dict(zip(head, row.cells, strict=True))
        table.add_row(*(Text(printable(cells[title])) for title in columns), style=row.style)
    if fits:
        return table
    return Group(table, _line(f"rows {view.first + 1} to {view.first + len(shown)} of {len(rows)}", "dim"))


def _answers(became: DestinationFacts) -> tuple[str, str]:
    """Within what time half of the streams had their first byte, and the share of those that never had one."""
    ended = became.answered + became.unanswered
    if not ended:
        return "-", "-"
    half = _brief(became.first_byte_p50)
    return "-" if half == "-" else f"<{half}", f"{100 * became.unanswered / ended:.3g}%"


# --- the pages -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Page:
    head: tuple[str, ...]
    rows: Callable[[Seen], list[Row]]
    orders: tuple[str, ...] = ()
    nothing: str = "nothing"

    def empty(self, seen: Seen) -> str:
        many = seen.state.totals.open > MOST_STREAMS and seen.streams is None and "OPEN" in self.head
        return f"more than {MOST_STREAMS} open streams: too many for a list" if many else self.nothing


def _destinations(seen: Seen) -> list[Row]:
    found = []
    for row in seen.state.destinations.rows:
        cells = (
            row.name,
            row.kind,
            str(row.open),
            rate(row.rate),
            size(row.received_rate),
            size(row.sent_rate),
            f"{row.healthy}/{row.endpoints}",
            *_answers(row.facts),
        )
        keys = {"open": -row.open, "in": -(row.received_rate or 0), "out": -(row.sent_rate or 0), "name": row.name}
        style = "red" if not row.healthy else "yellow" if row.healthy < row.endpoints else ""
        found.append(Row(cells, style, keys))
    return found


def _endpoints(seen: Seen) -> list[Row]:
    open_ = Counter((each.route, each.endpoint) for each in seen.streams or ())
    found, now = [], seen.state.gateway.now
    for row in seen.state.destinations.rows:
        for each in row.listed:
            met, streams = each.met, open_[row.sni, each.where]
            cells = (
                each.where,
                row.name,
                each.node,
                _state(each, now),
                "-" if seen.streams is None else str(streams),
                str(met.streams + met.unanswered),
                str(met.failures),
                _brief(met.first_byte_seconds),
                str(met.unanswered),
                "-" if met.last_success is None else f"{duration(max(0.0, now - met.last_success))} ago",
            )
            keys = {
                "health": (each.healthy, met.ejected is None, -met.failures - met.unanswered, -streams),
                "open": -streams,
                "failed": (-met.failures, -met.unanswered),
                "slow": -(met.first_byte_seconds or 0),
                "name": row.name,
                "node": each.node,
            }
            style = "" if each.healthy and met.ejected is None else "yellow" if each.healthy else "red"
            found.append(Row(cells, style, keys))
    return found


def _state(endpoint: Met, now: float) -> str:
    if not endpoint.healthy:
        return endpoint.cause or "unhealthy"
    out = endpoint.met.ejected
    if out is None:
        return "healthy"
    return f"ejected {duration(max(0.0, now - out.since))}{f': {out.why}' if out.why else ''}"


def _brief(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def _callers(seen: Seen) -> list[Row]:
    clients: dict[str, list[Stream]] = defaultdict(list)
    for stream in seen.streams or ():
        clients[stream.client_host].append(stream)
    found = []
    for client, streams in clients.items():
        received, sent = sum(each.bytes_received for each in streams), sum(each.bytes_sent for each in streams)
        oldest, places = max(each.age_seconds for each in streams), len({each.route for each in streams} - {None})
        caller = next((each.caller for each in streams if each.caller), "-")
        cells = (client, caller, str(len(streams)), str(places), size(received), size(sent), duration(oldest))
        keys = {
            "open": -len(streams),
            "in": -received,
            "out": -sent,
            "oldest": -oldest,
            "name": client,
            "caller": caller,
        }
        found.append(Row(cells, "", keys))
    return found


def _who(stream: EndedStream) -> str:
    return f"{stream.client} ({stream.caller})" if stream.caller else stream.client


def _workers(seen: Seen) -> list[Row]:
    return [
        Row((str(number), "gone" if it.pid is None else str(it.pid), str(it.open)), "" if it.pid else "red")
        for number, it in enumerate(seen.state.gateway.workers)
    ]


def _problems(seen: Seen) -> list[Row]:
    state = seen.state
    found = [Row(("now", "problem", alert), "yellow") for alert in (*_alerts(state, []), *state.problems)]
    found += [
        Row((duration(watch.age_seconds), f"watch {watch.kind}", watch.error), "yellow")
        for watch in state.consul.watches
        if watch.error
    ]
    found += [
        Row(("now", f"{row.name} unhealthy", f"{it.where} on {it.node}: {it.cause or ''}"), "red")
        for row in state.destinations.rows
        for it in row.listed
        if not it.healthy
    ]
    last = state.gateway.last_upgrade
    if last is not None and last.result in ("failed", "refused"):
        found.append(Row((_clock(last.started), f"upgrade {last.result}", ", ".join(_upgrade(last))), "yellow"))
    lately: list[tuple[str, str, str, str]] = [
        (it.end_time, it.reason or it.end, f"{it.sni or '(no name)'} from {_who(it)}: {it.detail}", "")
        for it in state.refused.recent
    ]
    for lost in state.ended.workers_lost:
        what = f"relay process {lost.worker} ended ({lost.reason}), and {counted(lost.streams, 'stream')} with it"
        lately.append((lost.time, "worker_lost", what, "red"))
    for ended in state.ended.streams:
        what = f"{ended.sni or '(no name)'} from {_who(ended)} to {ended.endpoint or '-'}"
        lately.append((ended.end_time, ended.end, what, ""))
    lately.sort(key=lambda each: each[0], reverse=True)
    return [*found, *(Row((_clock(at), word, what), style) for at, word, what, style in lately)]


def _clock(time_: str) -> str:
    return f"{datetime.fromisoformat(time_).astimezone():%H:%M:%S}"


_PAGES: Final = {
    "destinations": _Page(_HEAD, _destinations, ("busy", "open", "in", "out", "health", "name"), "no routes"),
    "endpoints": _Page(
        ("ENDPOINT", "DESTINATION", "NODE", "STATE", "OPEN", "STREAMS", "FAILED", "1ST BYTE", "UNANSWERED", "LAST OK"),
        _endpoints,
        ("health", "open", "failed", "slow", "name", "node"),
    ),
    "callers": _Page(
        ("CLIENT", "CALLER", "OPEN", "DESTINATIONS", "IN", "OUT", "OLDEST"),
        _callers,
        ("open", "in", "out", "oldest", "caller", "name"),
        "no open streams",
    ),
    "workers": _Page(("WORKER", "PID", "OPEN"), _workers),
    "problems": _Page(("SINCE", "WHAT", "DETAIL"), _problems, (), "no problems, and all streams ended in order lately"),
}


def _line(text: str, style: str = "") -> Text:
    return Text(printable(text), style, no_wrap=True, overflow="ellipsis")
