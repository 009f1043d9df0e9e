"""The commands that ask the running gateway at its admin address, or tell it something."""

import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from meshgate.app.admin.answers import (
    WORKERS_SILENT,
    DashboardState,
    Draining,
    End,
    EndedStream,
    EndedStreams,
    Explanation,
    Gone,
    Limit,
    Listing,
    Names,
    Route,
    Routes,
    Stream,
    Upgrade,
    WhatIf,
)
from meshgate.app.admin_client import NoGatewayError, NotDoneError, SlowGatewayError, ask, decoded, response_to
from meshgate.app.cli.output import Printer, duration, print_json, size
from meshgate.app.cli.setting_options import command, json_option, with_settings
from meshgate.app.errors import CommandError
from meshgate.app.settings.settings import Settings
from meshgate.core.addresses import HostPort
from meshgate.core.durations import format_duration
from meshgate.core.text import counted, printable

_INTERVAL: Final = 1.0
# Streams of a drain that are named; with more than so many open ones the gateway is not asked for a list.
_SHOWN: Final = 3
_MOST_LISTED: Final = 1000
# A gateway without streams is gone a second after it deregistered: look more often, so as not to wait for nothing.
_LOOK: Final = 0.2
# Seconds for which the end of an upgrade is waited for behind its trial; the gateway itself gives up sooner.
_UPGRADE: Final = 180.0
# Seconds without anybody at the admin address, which stays open at an upgrade, until the gateway counts as gone.
_GONE: Final = 5.0
_PROGRESS: Final = 5.0
# No route has this in its name, so the answer has no rows that nobody reads.
_NOTHING: Final = "no route, please"


def known_names(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """What a name may become by what the running gateway knows; what it refused lately comes first."""
    names = _names(context, incomplete)
    # Services only until a dot says that it is to be a whole server name.
    found = [*names.refused, *names.services, *(names.snis if "." in incomplete else ())]
    return [name for name in found if name.lower().startswith(incomplete.lower())]


def known_datacenters(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in _names(context, incomplete).datacenters if name.startswith(incomplete)]


datacenter_option: Final = click.option(
    "--dc",
    "datacenter",
    default="",
    metavar="NAME",
    help="Datacenter of the service.  [default: this one]",
    shell_complete=known_datacenters,
)


def _names(context: click.Context, text: str) -> Names:
    flags = {"MESHGATE_ADMIN_BIND": str(bind)} if (bind := context.params.get("meshgate_admin_bind")) else {}
    try:
        return ask(Settings.load(flags).admin_bind, "/names", Names, text=text)
    except CommandError:
        return Names([], [], [], [])


@command("meshgate routes", "meshgate routes web", "meshgate routes -json dc2")
@click.argument("text", default="", metavar="[TEXT]", shell_complete=known_names)
@json_option
@with_settings({"MESHGATE_ADMIN_BIND"})
def routes(settings: Settings, text: str, *, as_json: bool) -> None:
    """Print the route table of the running gateway.

    With TEXT, prints only routes that contain it in a name, kind, address, node or instance. Case does not matter.
    """
    answer = ask(settings.admin_bind, "/routes", Routes)
    answer.routes = [route for route in answer.routes if _mentions(route, text.lower())]
    answer.unroutable = [each for each in answer.unroutable if text.lower() in each.sni]
    if as_json:
        print_json(answer)
    else:
        _show_routes(answer, Printer(), f" in which {text} occurs" if text else "")


def _mentions(route: Route, text: str) -> bool:
    words = [route.sni, route.kind]
    for endpoint in route.endpoints:
        words += [str(endpoint), endpoint.node, endpoint.instance]
    return any(text in word.lower() for word in words)


def _show_routes(answer: Routes, printer: Printer, wanted: str) -> None:
    ending = f".{answer.trust_domain}"
    if printer.is_terminal:
        count = counted(len(answer.routes), "route")
        printer.line(f"{count} of datacenter {answer.datacenter}, partition {answer.partition}")
        printer.line(f"every name ends in {ending}", "dim")
        printer.line()
    # Not among the output: whoever counts its lines counts routes.
    for each in answer.unroutable:
        click.echo(printable(f"no route for {each.sni}: {each.reason}"), err=True)
    if not answer.datacenter:
        click.echo("the gateway has no route yet: Consul has not told it any", err=True)
        return
    if not answer.routes:
        click.echo(printable(f"no route{wanted} in datacenter {answer.datacenter}"), err=True)
        return
    rows = [
        (
            # On a terminal the line above says the ending, elsewhere a name is whole.
            route.sni.removesuffix(ending) if printer.is_terminal else route.sni,
            route.kind,
            f"{route.healthy}/{len(route.endpoints)}",
            "\n".join(map(str, route.endpoints)) or "-",
        )
        for route in answer.routes
    ]
    printer.table(
        ("SNI", "KIND", "HEALTHY", "ENDPOINTS"), rows, ["" if route.healthy else "red" for route in answer.routes]
    )


@command(
    "meshgate explain web",
    "meshgate explain web --dc dc2",
    "meshgate explain web.default.dc2.internal.11111111-2222-3333-4444-555555555555.consul",
)
@click.argument("name", shell_complete=known_names)
@datacenter_option
@json_option
@with_settings({"MESHGATE_ADMIN_BIND"})
def explain(settings: Settings, name: str, datacenter: str, *, as_json: bool) -> int:
    """Explain the decision for a service or server name.

    Shows step by step what the running gateway does with a stream that asks for NAME: a service, or a server name (SNI)
    as a client sends it. Exits with 0 if it is routed, with 1 if it is refused.
    """
    if not name.isprintable():
        raise click.UsageError("NAME has characters that no server name can have")
    answer = ask(settings.admin_bind, "/explain/name", Explanation, name=name, dc=datacenter)
    if as_json:
        print_json(answer)
    else:
        _show_explanation(answer, Printer())
    return 0 if answer.decision == "routed" else 1


def _show_explanation(answer: Explanation, printer: Printer) -> None:
    style = "green" if answer.decision == "routed" else "red"
    printer.line(f"{answer.decision}: {answer.reason or answer.kind}", style)
    if answer.route:
        printer.line(f"route: {answer.route}")
    printer.line()
    printer.table(("STEP", "OUTCOME"), [(step.rule, step.outcome) for step in answer.steps])
    if answer.endpoints:
        printer.line()
        printer.table(
            ("ENDPOINT", "WEIGHT", "NODE", "INSTANCE"),
            [(str(each), str(each.weight), each.node, each.instance) for each in answer.endpoints],
            ["" if each.healthy else "red" for each in answer.endpoints],
        )


class RatedStream(Stream):
    """A row of `/connections` with what the stream carries in bytes per second."""

    received_rate: float = 0.0
    sent_rate: float = 0.0

    def measure(self, before: "RatedStream | None") -> None:
        """Set the rates by an earlier look at the same stream; where there is none, by its life, of a second at least.

        A stream may have the id of one that ended, but it is younger.
        """
        received, sent, seconds = self.bytes_received, self.bytes_sent, max(1.0, self.age_seconds)
        if before is not None and before.client == self.client and before.age_seconds < self.age_seconds:
            received, sent = received - before.bytes_received, sent - before.bytes_sent
            seconds = self.age_seconds - before.age_seconds
        self.received_rate, self.sent_rate = (round(max(0, each) / seconds, 1) for each in (received, sent))


_ORDERS: Final[dict[str, Callable[[RatedStream], float]]] = {
    "rate": lambda stream: stream.received_rate + stream.sent_rate,
    "bytes": lambda stream: stream.bytes_received + stream.bytes_sent,
    "age": lambda stream: stream.age_seconds,
}
_HEAD: Final = ("CLIENT", "DESTINATION", "IN", "OUT", "RATE", "AGE")
_ROWS_ON_TERMINAL: Final = 20
# What a screen has that is no row: the line above, a blank one, the head of the table, the cursor's line.
_NO_ROWS: Final = 4
_SHORTEST_NAME: Final = 12


def _network(_: click.Context, __: click.Parameter, value: str | None) -> IPv4Network | IPv6Network | None:
    """An address is a network of one."""
    try:
        return None if value is None else ip_network(value, strict=False)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no IP address or network") from None


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which streams are shown."""

    destination: str
    client: IPv4Network | IPv6Network | None
    caller: str
    sni: str

    def among(self, streams: list[RatedStream], sort: str) -> list[RatedStream]:
        order = _ORDERS[sort]
        return sorted(filter(self.has, streams), key=lambda each: (-order(each), -_ORDERS["bytes"](each)))

    def has(self, stream: RatedStream | EndedStream) -> bool:
        # Whole labels: who asks for `web` does not mean `web-admin`. What was refused may have had no route.
        where = stream.sni if isinstance(stream, EndedStream) and not stream.route else stream.route
        return (
            (not self.destination or f".{self.destination}.".lower() in f".{where or ''}.".lower())
            and (self.client is None or ip_address(stream.client_host) in self.client)
            and self.caller.lower() in (stream.caller or "").lower()
            and self.sni.lower() in (stream.sni or "").lower()
        )


@command(
    "meshgate connections",
    "meshgate connections --destination web --sort bytes --watch",
    "meshgate connections --client 10.0.0.0/8 --limit 5 -json",
    "meshgate connections --ended --destination web",
)
@click.option("--ended", is_flag=True, help="List streams that were refused, cut, reset or lost, the newest first.")
@click.option(
    "--sort",
    type=click.Choice(tuple(_ORDERS)),
    help="Highest first: bytes per second, bytes so far, or age.  [default: rate]",
)
@click.option(
    "--destination",
    default="",
    metavar="NAME",
    help="Only streams to a service, a datacenter, a peer or a server name.",
    shell_complete=known_names,
)
@click.option("--client", callback=_network, metavar="IP", help="Only streams from an address or a network (CIDR).")
@click.option(
    "--caller", default="", metavar="TEXT", help="Only streams from callers whose name in Consul contains TEXT."
)
@click.option("--sni", default="", metavar="TEXT", help="Only streams whose SNI contains TEXT.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    metavar="N",
    help=f"Show at most N streams; 0: all.  [default: {_ROWS_ON_TERMINAL} on a terminal, otherwise all]",
)
@click.option("--watch", is_flag=True, help="Refresh until Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(0.5, 3600),
    default=2.0,
    metavar="SECONDS",
    help="Time between refreshes with --watch.  [default: 2]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --watch, one line per refresh.")
@with_settings({"MESHGATE_ADMIN_BIND"})
def connections(
    settings: Settings,
    limit: int | None,
    interval: float,
    sort: str | None,
    *,
    ended: bool,
    watch: bool,
    as_json: bool,
    **wanted: Any,  # noqa: ANN401 - the options that `_Wanted` names
) -> None:
    """List the open streams: who talks to whom, how much.

    IN came from the client, OUT went to it, and RATE is the sum of both, measured over a second. CALLER is what
    Consul's catalog has at the client's address. A stream without a destination shows its state in parentheses. JSON
    has full names and the endpoints.

    With --ended, lists the last streams that did not end in order, and when and how each ended. The gateway keeps the
    last 500 of each kind of end since it started; its access log has them all.
    """
    printer = Printer()
    if limit is None and printer.is_terminal and not as_json:
        limit = _ROWS_ON_TERMINAL
    if ended:
        if watch or sort:
            raise click.UsageError("--ended goes with neither --watch nor --sort")
        answer = ask(settings.admin_bind, "/connections/ended", EndedStreams)
        found = [each for each in answer.streams if _Wanted(**wanted).has(each)]
        answer.streams = found[: limit or None]
        _show_ended(answer, len(found), printer, as_json=as_json)
        return
    screen = watch and printer.is_terminal and not as_json
    try:
        for streams, silent in _looks(settings.admin_bind, interval):
            among = _Wanted(**wanted).among(streams, sort or "rate")
            shown = among[: limit or None]
            if screen:
                click.clear()
                shown = shown[: max(1, shutil.get_terminal_size().lines - _NO_ROWS - bool(silent))]
            if silent:
                click.echo(f"not listed, as they do not tell: the streams of relay worker {silent}", err=not screen)
            if as_json:
                print_json(shown, indent=None if watch else 2)
            else:
                _show_streams(shown, len(among), len(streams), printer, screen=screen)
            if not watch:
                return
    except KeyboardInterrupt:
        if not watch:
            raise


def _looks(bind: HostPort | Path | None, interval: float) -> Iterator[tuple[list[RatedStream], str]]:
    """The open streams with their rates, and the workers whose are missing; the first within a second, then again."""
    (before, _), wait = _look_at_streams(bind), min(interval, 1.0)
    while True:
        time.sleep(wait)
        (now, silent), known = _look_at_streams(bind), {(it.worker, it.id): it for it in before}
        for stream in now:
            stream.measure(known.get((stream.worker, stream.id)))
        yield now, silent
        before, wait = now, interval


def _look_at_streams(bind: HostPort | Path | None) -> tuple[list[RatedStream], str]:
    response = response_to(bind, "/connections")
    silent = printable(response.headers.get(WORKERS_SILENT, "")).replace(",", ", ")
    return decoded(response.content, list[RatedStream]), silent


def _show_streams(shown: list[RatedStream], found: int, count: int, printer: Printer, *, screen: bool) -> None:
    # Not among the output where that is no terminal: whoever counts its lines counts streams.
    if printer.is_terminal or len(shown) < found or not found:
        of_all = f" of {count}" if found < count else ""
        said = f"{found or 'no'}{of_all} open stream{'' if max(found, count) == 1 else 's'}"
        click.echo(said + (f", the first {len(shown)} of them:" if len(shown) < found else ""), err=not screen)
    if not shown:
        return
    rows = [
        (
            each.client,
            _short(each.route) if each.route else f"({each.state})",
            *(_size(count) for count in (each.bytes_received, each.bytes_sent)),
            f"{_size(each.received_rate + each.sent_rate)}/s",
            duration(each.age_seconds),
        )
        for each in shown
    ]
    callers = [each.caller for each in shown]
    if screen:
        printer.line()
        # A row is a line, or the first ones would not be seen.
        taken = sum(max(map(len, column)) + 2 for column in zip(_HEAD, *rows, strict=True) if column[0] != _HEAD[1])
        callers = [_cut(each or "-", _SHORTEST_NAME) for each in callers] if any(callers) else callers
        taken += max((len(each) + 2 for each in callers if each), default=0)
        room = max(_SHORTEST_NAME, shutil.get_terminal_size().columns - taken - 2)
        rows = [(row[0], _cut(row[1], room), *row[2:]) for row in rows]
    _table(printer, _HEAD, rows, callers)


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - 1]}…"


def _table(
    printer: Printer, head: tuple[str, ...], rows: Sequence[tuple[str, ...]], callers: Sequence[str | None]
) -> None:
    """With the callers behind the rows, where Consul knows any of them."""
    if any(callers):
        head, rows = (*head, "CALLER"), [(*row, name or "-") for row, name in zip(rows, callers, strict=True)]
    printer.table(head, rows)


_ENDED_HEAD: Final = ("ENDED", "HOW", "CLIENT", "DESTINATION", "LIVED", "IN", "OUT")
_WHAT_IT_MEANS: Final = {
    "client_reset": "the client, or something on the way to it, reset the connection",
    "endpoint_reset": "the endpoint, or something on the way to it, reset the connection",
    "idle": "no byte for as long as a timeout allows",
    "drain": "the gateway was told to stop, or to drain",
    "worker_lost": "its relay process ended; sizes are of its first seconds",
    "shed": "slots were short, and it was the one that used its slot least",
    "internal_error": "a fault of the gateway; its log has more, please report it",
}


def _show_ended(answer: EndedStreams, found: int, printer: Printer, *, as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    # Not among the output: whoever counts its lines counts streams.
    counts = ", ".join(f"{count} {end}" for end, count in answer.ends.items() if count) or "none"
    click.echo(f"streams that ended since {_when(answer.since)}, when this process started: {counts}", err=True)
    for lost in answer.workers_lost:
        what = f"relay process {lost.worker} ended ({lost.reason}) with {counted(lost.streams, 'stream')}"
        unknown = lost.streams - lost.known
        without = f", {unknown} of them not listed: young, or no access log was on" if unknown > 0 else ""
        click.echo(f"{_when(lost.time)} {what}{without}", err=True)
    if not answer.streams:
        click.echo("none of those that are kept is listed here", err=True)
        return
    if len(answer.streams) < found:
        click.echo(f"the last {len(answer.streams)} of {found}:", err=True)
    rows = [
        (
            _when(each.end_time),
            each.reason or each.end,
            each.client,
            _short(each.route or each.sni or "-"),
            "-" if each.duration_ms is None else duration(each.duration_ms / 1000),
            *("-" if count is None else _size(count) for count in (each.bytes_received, each.bytes_sent)),
        )
        for each in answer.streams
    ]
    _table(printer, _ENDED_HEAD, rows, [each.caller for each in answer.streams])
    listed = {each.end for each in answer.streams}
    for end, meaning in _WHAT_IT_MEANS.items():
        if end in listed:
            click.echo(f"{end}: {meaning}", err=True)
    if "refused" in listed:
        click.echo("refused streams have the reason: `meshgate explain NAME` says more", err=True)


def _when(time_: str) -> str:
    """A time in UTC; with the day where that is not today."""
    at = datetime.fromisoformat(time_)
    return f"{at:%H:%M:%S}Z" if at.date() == datetime.now(UTC).date() else f"{at:%m-%d_%H:%M:%S}Z"


def _size(count: float) -> str:
    """As one word, for `awk` and `sort -h`."""
    return size(count).replace(" ", "")


def _short(name: str) -> str:
    """A server name without the part that all names of the mesh have in common."""
    return re.split(r"\.(?:internal|external)\.", name, maxsplit=1)[0]


@command(
    "meshgate whatif",
    "meshgate whatif --dc dc2",
    "meshgate whatif --node node-7",
    "meshgate whatif --node gw-1 --dc dc2 -json",
)
@click.option("--node", default="", metavar="NODE", help="Ask only about this node and all that runs on it.")
@click.option(
    "--dc",
    "datacenter",
    default="",
    metavar="DC",
    help="Ask only about the gateways of this datacenter; with --node, the datacenter of the node.",
    shell_complete=known_datacenters,
)
@json_option
@with_settings({"MESHGATE_ADMIN_BIND"})
def whatif(settings: Settings, node: str, datacenter: str, *, as_json: bool) -> None:
    """Tell what breaks if a node, a gateway or Consul goes away.

    Covers this gateway, and the gateways of each other datacenter. Also shows when the CA certificates and the token
    expire, and how close limits are. A destination can be reached while it has a healthy endpoint that is not ejected.
    Nothing is tried: the answer comes from the current catalog, so exit code 0 means that there is an answer, not that
    all is well.

    This gateway does not know what gateways elsewhere can reach, whether the remaining ones can carry more, streams
    that bypass it (mode none, or another gateway), nodes of other partitions and peers, or the certificates of
    sidecars, which their agents renew. Lists have at most 100 destinations.
    """
    if not (node + datacenter).isprintable():
        raise click.UsageError("--node or --dc has characters that no name can have")
    answer = ask(settings.admin_bind, "/whatif", WhatIf, node=node, dc=datacenter)
    if as_json:
        print_json(answer)
    else:
        _show_whatif(answer, Printer())


def _show_whatif(answer: WhatIf, printer: Printer) -> None:
    count = counted(answer.destinations, "destination")
    printer.line(f"{count} of datacenter {answer.datacenter or '(not known yet)'}")
    _show_listing(answer.broken, "without a way now", printer, "red")
    _show_listing(answer.single, "with one endpoint and no other way", printer, "yellow")
    for gone in answer.gone:
        printer.line()
        _show_gone(gone, answer.datacenter, printer)
    if answer.nodes:
        printer.line()
        printer.line("destinations that are cut if a node goes away:")
        rows = [(each.node, each.datacenter, str(each.cut)) for each in answer.nodes]
        printer.table(("NODE", "DATACENTER", "CUT"), rows)
    if (gateway := answer.gateway) is not None:
        printer.line()
        printer.line("if this gateway goes away:")
        printer.line(f"  open streams that end: {gateway.streams}")
        if gateway.others is None or gateway.cut is None:
            printer.line("  whether another gateway is left is not known: Consul did not say")
        else:
            others = f"other gateways here that are healthy: {gateway.others.healthy} of {gateway.others.total}"
            printer.line(f"  {others}; destinations that are cut: {gateway.cut}", "red" if gateway.cut else "")
    printer.line()
    _show_without_consul(answer, printer)
    printer.line()
    printer.table(("ENDS", "WHEN", "IN"), [_end(each) for each in answer.ends], [_style(each) for each in answer.ends])
    printer.line()
    printer.table(
        ("LIMIT", "USED", "OF", "SHARE"),
        [_limit(each) for each in answer.limits],
        [_style(each) for each in answer.limits],
    )


def _show_gone(gone: Gone, here: str, printer: Printer) -> None:
    if gone.what == "node":
        printer.line(f"if node {gone.name} of datacenter {gone.datacenter} goes away:")
    elif gone.name.lower() == here.lower():
        printer.line(f"if all gateways of this datacenter, {gone.name}, go away (for streams that go through them):")
    else:
        printer.line(f"if all gateways of datacenter {gone.name} go away:")
    if not gone.cut.total + gone.thinner.total:
        printer.line("  nothing is lost")
    _show_listing(gone.cut, "cut", printer, "red")
    _show_listing(gone.thinner, "with fewer endpoints", printer)


def _show_listing(listing: Listing, what: str, printer: Printer, style: str = "") -> None:
    if not listing.total:
        return
    printer.line(f"  {listing.total} {what}:", style)
    for row in listing.rows:
        left = "" if row.now is None else f", {row.left} of {row.now} left"
        printer.line(f"    {row.destination} ({row.kind}{left})")
    if more := listing.total - len(listing.rows):
        printer.line(f"    and {more} more")


def _show_without_consul(answer: WhatIf, printer: Printer) -> None:
    consul = answer.consul
    printer.line("if Consul goes away:")
    if consul.age_seconds is None:
        printer.line("  nothing can be served: the catalog is not known yet", "red")
    elif consul.stale or consul.age_seconds:
        printer.line(
            f"  it is away, at least in part: the catalog is {format_duration(round(consul.age_seconds))} old", "red"
        )
    if consul.age_seconds is not None:
        printer.line("  all streams go on, and new ones are placed by the last known catalog; nothing new is learned")
    if consul.cold:
        printer.line(f"  what is known of {counted(consul.cold, 'destination')} without traffic may be older")
    if consul.restart is None:
        printer.line("  a restart serves the catalog of the state folder")
    else:
        printer.line(f"  a restart has no catalog and serves nothing: {consul.restart}", "yellow")


def _style(each: End | Limit) -> str:
    return "red" if each.near else ""


def _end(end: End) -> tuple[str, str, str]:
    if end.expires is None or end.seconds is None:
        return end.what, "never" if end.known else "not known", "-"
    days = end.seconds / 86400
    left = f"{days:.{0 if days >= 10 else 1}f} days" if days > 0 else "past"
    left += ", soon" if end.near and days > 0 else ""
    return end.what, f"{datetime.fromtimestamp(end.expires, UTC):%Y-%m-%d %H:%M}Z", left


def _limit(limit: Limit) -> tuple[str, str, str, str]:
    if not limit.limit:
        return limit.what, str(limit.used), "not known", "-"
    return (
        limit.what,
        str(limit.used),
        str(limit.limit),
        f"{limit.used / limit.limit:.0%}{', near' if limit.near else ''}",
    )


@command("meshgate drain", "meshgate drain -admin-bind unix:///run/meshgate/admin.sock")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
@with_settings({"MESHGATE_ADMIN_BIND"})
def drain(settings: Settings, *, as_json: bool) -> None:
    """Stop the running gateway gracefully.

    The gateway deregisters, accepts no new clients, and lets open streams end until its drain timeout. The command
    waits until the gateway is gone. Every second it prints how many streams are left, and the oldest of them; at the
    end, those that were cut. Exits with 0 once the gateway is gone, whether or not streams were cut. Ctrl-C stops the
    waiting, not the drain.
    """
    bind = settings.admin_bind
    now: DashboardState | None = _look(bind)
    timeout = ask(bind, "/drain", Draining, method="POST").timeout_seconds
    started, told, words, left, count = time.monotonic(), 0.0, "draining: {}", list[Stream](), 0
    while now is not None:
        left, count = _open_streams(bind, now, left), now.totals.open
        if time.monotonic() - told >= _INTERVAL:
            told = time.monotonic()
            said = words.format(counted(count, "stream")) + _shown(left, count)
            _say(said, {"state": "draining", "streams": count, "oldest": left[:_SHOWN]}, as_json=as_json)
            words = "{} left"
        time.sleep(_LOOK)
        now = _still_there(bind, now)
    seconds = time.monotonic() - started
    # Too many for a list are counted all the same.
    left, count = (left, len(left) or count) if seconds >= timeout else ([], 0)
    said = f"the gateway is gone, after {seconds:.1f} s"
    if count:
        said += f"; at its drain timeout it cut {counted(count, 'stream')}{_shown(left, count)}"
    facts = {"state": "gone", "seconds": round(seconds, 3), "streams": count, "cut": left}
    _say(said, facts, as_json=as_json)


@command("meshgate upgrade", "meshgate upgrade --python /opt/meshgate-2/bin/python")
@click.option(
    "--python",
    "python",
    default="",
    metavar="PATH",
    type=click.Path(),
    help="Python of the installation to upgrade to.  [default: the gateway's own]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
@with_settings({"MESHGATE_ADMIN_BIND"})
def upgrade(settings: Settings, *, python: str, as_json: bool) -> None:
    """Upgrade the running gateway and keep every open stream.

    The installed version is tried first. If it could not take over, nothing changes, and the command prints the reason.
    Otherwise it replaces the running version in the same process and keeps its listeners, its registration and its
    streams. Waits until that is done.
    """
    bind = settings.admin_bind
    before = ask(bind, "/server_info", _Running)
    _say(f"version {before.version} runs", {"step": "before", "version": before.version}, as_json=as_json)
    python = python and os.path.abspath(python)  # noqa: PTH100 - links are left as they are
    try:
        with _waiting("trial", as_json=as_json):
            found = ask(bind, "/upgrade", Upgrade, method="POST", python=python)
    except NotDoneError as error:
        raise CommandError(f"no upgrade, and nothing has changed: {error}") from None
    words = f"trial: version {found.version_after} can go on, by {found.python}"
    _say(words, {"step": "trial", "version": found.version_after, "python": found.python}, as_json=as_json)
    with _waiting("exec", as_json=as_json):
        after = _until_upgraded(bind, found.number)
    last = after.last_upgrade
    assert last is not None
    if last.result != "done":
        raise CommandError(f"no upgrade, and nothing has changed: {last.reason}")
    words = f"exec: version {after.version} is in charge, {last.seconds:.1f} s after it was asked for"
    _say(words, {"step": "exec", "version": after.version, "seconds": last.seconds}, as_json=as_json)
    words = (
        f"streams: {last.handed_over} of {last.streams} handed over, "
        f"{last.kept} kept by the old workers, {last.lost} lost"
    )
    numbers = {"streams": last.streams, "handed_over": last.handed_over, "kept": last.kept, "lost": last.lost}
    _say(words, {"step": "streams", **numbers}, as_json=as_json)
    words = f"upgraded from version {last.version_before} to version {after.version}"
    versions = {"before": last.version_before, "after": after.version}
    _say(words, {"step": "done", **versions}, as_json=as_json)


class _Running(msgspec.Struct):
    """What an upgrade has to know of `/server_info`, which is another version's before or behind it."""

    version: str
    last_upgrade: Upgrade | None = None


def _until_upgraded(bind: HostPort | Path | None, number: int) -> _Running:
    """What the gateway says once its upgrade of this number has an end.

    Raises:
        CommandError: there is no gateway any more, or no end in time.
    """
    ends, seen = time.monotonic() + _UPGRADE, time.monotonic()
    while True:
        try:
            now = ask(bind, "/server_info", _Running)
        except SlowGatewayError:
            # Who asks while a program starts waits for it, which takes long on a busy machine.
            seen = time.monotonic()
        except NoGatewayError:
            if time.monotonic() - seen > _GONE:
                raise
        else:
            seen, last = time.monotonic(), now.last_upgrade
            if last is None or last.number < number:
                raise CommandError("the gateway ended in the upgrade, and was started again; see its log")
            if last.result != "under_way":
                return now
        if time.monotonic() > ends:
            raise CommandError("the upgrade has no end yet; see the gateway's log, and last_upgrade of /server_info")
        time.sleep(_LOOK)


@contextmanager
def _waiting(step: str, *, as_json: bool) -> Iterator[None]:
    """Say every few seconds of the block that a step is waited for."""
    over, begun = threading.Event(), time.monotonic()

    def tell() -> None:
        while not over.wait(_PROGRESS):
            seconds = round(time.monotonic() - begun)
            facts = {"step": "waiting", "for": step, "seconds": seconds}
            _say(f"{step}: under way for {seconds} s", facts, as_json=as_json)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


def _look(bind: HostPort | Path | None) -> DashboardState:
    return ask(bind, "/dashboard/state", DashboardState, filter=_NOTHING)


def _still_there(bind: HostPort | Path | None, before: DashboardState) -> DashboardState | None:
    """How the gateway is that was asked to drain; None where it is gone, even if another took its place."""
    try:
        now = _look(bind)
    except SlowGatewayError:
        return before
    except NoGatewayError:
        return None
    return now if now.gateway.started == before.gateway.started else None


def _open_streams(bind: HostPort | Path | None, now: DashboardState, before: list[Stream]) -> list[Stream]:
    """The open streams, the oldest first; none where they are too many for a list. No answer: those of before."""
    if now.totals.open > _MOST_LISTED:
        return []
    try:
        return sorted(ask(bind, "/connections", list[Stream]), key=lambda stream: -stream.age_seconds)
    except (NoGatewayError, SlowGatewayError):
        return before


def _shown(streams: list[Stream], count: int) -> str:
    if not streams:
        return ""
    names = [
        f"{each.client}{f' ({each.caller})' if each.caller else ''} to {_short(each.route or each.state)}"
        for each in streams[:_SHOWN]
    ]
    more = f" and {count - len(names)} more" if count > len(names) else ""
    return f": {', '.join(names)}{more}"


def _say(words: str, facts: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        print_json(facts, indent=None)
    else:
        click.echo(printable(words))
