"""The commands that ask the running gateway at its admin address, or tell it something."""

import time
from pathlib import Path
from typing import Final

import click

from meshgate.app.admin_client import NoGatewayError, ask, decoded
from meshgate.app.cli.admin_answers import DashboardState, Draining, Explanation, Names, Route, Routes, Stream
from meshgate.app.cli.output import Printer, print_json
from meshgate.app.cli.setting_options import Command, json_option, with_settings
from meshgate.app.errors import CommandError
from meshgate.app.settings.settings import Settings
from meshgate.core.addresses import HostPort
from meshgate.core.text import printable

_INTERVAL: Final = 1.0
# Streams of a drain that are named; with more than so many open ones the gateway is not asked for a list.
_SHOWN: Final = 3
_MOST_LISTED: Final = 1000
# A gateway without streams is gone a second after it deregistered: look more often, so as not to wait for nothing.
_LOOK: Final = 0.2
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
        return decoded(ask(Settings.load(flags).admin_bind, "/names", text=text), Names)
    except CommandError:
        return Names([], [], [], [])


@click.command(
    cls=Command,
    short_help="Print the route table of the running gateway.",
    examples=("meshgate routes", "meshgate routes web", "meshgate routes -json dc2"),
)
@click.argument("text", default="", metavar="[TEXT]", shell_complete=known_names)
@json_option
@with_settings({"MESHGATE_ADMIN_BIND"})
def routes(settings: Settings, text: str, *, as_json: bool) -> None:
    """Print the route table of the running gateway, or the routes in which TEXT occurs.

    TEXT is looked for in names, kinds, addresses, nodes and instances, in any case.
    """
    answer = decoded(ask(settings.admin_bind, "/routes"), Routes)
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
        count = f"{len(answer.routes)} route{'' if len(answer.routes) == 1 else 's'}"
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


@click.command(
    cls=Command,
    short_help="Explain the decision for a service or server name.",
    examples=(
        "meshgate explain web",
        "meshgate explain web --dc dc2",
        "meshgate explain web.default.dc2.internal.11111111-2222-3333-4444-555555555555.consul",
    ),
)
@click.argument("name", shell_complete=known_names)
@datacenter_option
@json_option
@with_settings({"MESHGATE_ADMIN_BIND"})
def explain(settings: Settings, name: str, datacenter: str, *, as_json: bool) -> int:
    """Explain what the running gateway does with a stream that asks for NAME, step by step.

    NAME is a service, or a server name (SNI) as a client sends it. Exits with 0 if it is routed, with 1 if it is
    refused.
    """
    if not name.isprintable():
        raise click.UsageError("NAME has characters that no server name can have")
    query = {"name": name, "dc": datacenter} if datacenter else {"name": name}
    answer = decoded(ask(settings.admin_bind, "/explain/name", **query), Explanation)
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


@click.command(
    cls=Command,
    short_help="Stop the running gateway gracefully.",
    examples=("meshgate drain", "meshgate drain -admin-bind unix:///run/meshgate/admin.sock"),
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
@with_settings({"MESHGATE_ADMIN_BIND"})
def drain(settings: Settings, *, as_json: bool) -> None:
    """Stop the running gateway gracefully, and wait until it is gone.

    It deregisters, takes no new clients, and lets open streams end until its drain timeout. Prints each second how
    many are left, and the oldest of them; at the end those that were cut. Ctrl-C ends the waiting, not the drain.
    """
    bind = settings.admin_bind
    before = _look(bind)
    now: DashboardState | None = before
    timeout = decoded(ask(bind, "/drain", method="POST"), Draining).timeout_seconds
    started, told, words, left = time.monotonic(), 0.0, "draining: {}", list[Stream]()
    while now is not None:
        left = _open_streams(bind, now, left)
        if time.monotonic() - told >= _INTERVAL:
            told = time.monotonic()
            count = now.totals.open
            said = words.format(f"{count} stream{'' if count == 1 else 's'}") + _shown(left, count)
            _say(said, {"state": "draining", "streams": count, "oldest": left[:_SHOWN]}, as_json=as_json)
            words = "{} left"
        time.sleep(_LOOK)
        now = _still_there(bind, before)
    seconds = time.monotonic() - started
    cut = left if seconds >= timeout else []
    said = f"the gateway is gone, after {seconds:.1f} s"
    if cut:
        said += f"; at its drain timeout it cut {len(cut)} stream{'' if len(cut) == 1 else 's'}{_shown(cut, len(cut))}"
    _say(said, {"state": "gone", "seconds": round(seconds, 3), "cut": cut}, as_json=as_json)


def _look(bind: HostPort | Path | None) -> DashboardState:
    return decoded(ask(bind, "/dashboard/state", filter=_NOTHING), DashboardState)


def _still_there(bind: HostPort | Path | None, before: DashboardState) -> DashboardState | None:
    """How the gateway is that was asked to drain; None where it is gone, even if another took its place."""
    try:
        now = _look(bind)
    except NoGatewayError:
        return None
    return now if now.gateway.started == before.gateway.started else None


def _open_streams(bind: HostPort | Path | None, now: DashboardState, before: list[Stream]) -> list[Stream]:
    """The open streams, the oldest first; none where they are too many for a list, those of before if it is gone."""
    if now.totals.open > _MOST_LISTED:
        return []
    try:
        return sorted(decoded(ask(bind, "/connections"), list[Stream]), key=lambda stream: -stream.age_seconds)
    except NoGatewayError:
        return before


def _shown(streams: list[Stream], count: int) -> str:
    if not streams:
        return ""
    # Where it goes without the part that all names of the mesh have in common.
    names = [f"{each.client} to {(each.route or each.state).partition('.internal.')[0]}" for each in streams[:_SHOWN]]
    more = f" and {count - len(names)} more" if count > len(names) else ""
    return f": {', '.join(names)}{more}"


def _say(words: str, facts: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        print_json(facts, indent=None)
    else:
        click.echo(printable(words))
