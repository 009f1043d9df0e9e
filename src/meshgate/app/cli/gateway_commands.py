"""The commands that ask the running gateway at its admin address, or tell it something."""

import json
import time
from pathlib import Path
from typing import Final

import click

from meshgate.app.admin_client import NoGatewayError, ask, decoded
from meshgate.app.cli.admin_answers import DashboardState, Explanation, Names, Route, Routes
from meshgate.app.cli.output import Printer, print_json
from meshgate.app.cli.setting_options import Command, json_option, with_settings
from meshgate.app.errors import CommandError
from meshgate.app.settings.settings import Settings
from meshgate.core.addresses import HostPort
from meshgate.core.text import ascii_json, printable

_INTERVAL: Final = 1.0
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
    """As `known_names`, for datacenters."""
    return [name for name in _names(context, incomplete).datacenters if name.startswith(incomplete)]


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
@click.option(
    "--dc",
    "datacenter",
    default="",
    metavar="NAME",
    help="Datacenter of the service.  [default: the gateway's]",
    shell_complete=known_datacenters,
)
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
    many are left. Ctrl-C ends the waiting, not the drain.
    """
    bind = settings.admin_bind
    before = _look(bind)
    ask(bind, "/drain", method="POST")
    _say(f"draining: {_streams(before)}", {"state": "draining", "streams": before.totals.open}, as_json=as_json)
    told = started = time.monotonic()
    while (now := _still_there(bind, before)) is not None:
        if time.monotonic() - told >= _INTERVAL:
            told = time.monotonic()
            _say(f"{_streams(now)} left", {"state": "draining", "streams": now.totals.open}, as_json=as_json)
        time.sleep(_LOOK)
    seconds = time.monotonic() - started
    _say(
        f"the gateway is gone, after {seconds:.1f} s", {"state": "gone", "seconds": round(seconds, 3)}, as_json=as_json
    )


def _look(bind: HostPort | Path | None) -> DashboardState:
    return decoded(ask(bind, "/dashboard/state", filter=_NOTHING), DashboardState)


def _still_there(bind: HostPort | Path | None, before: DashboardState) -> DashboardState | None:
    """How the gateway is that was asked to drain; None where it is gone, even if another took its place."""
    try:
        now = _look(bind)
    except NoGatewayError:
        return None
    return now if now.gateway.started == before.gateway.started else None


def _streams(state: DashboardState) -> str:
    return f"{state.totals.open} stream{'' if state.totals.open == 1 else 's'}"


def _say(words: str, facts: dict[str, object], *, as_json: bool) -> None:
    click.echo(ascii_json(json.dumps(facts)) if as_json else words)
