"""`meshgate routes`."""

import click
import msgspec

from meshgate.app.admin_client import ask, decoded
from meshgate.app.cli.admin_answers import Route, Routes
from meshgate.app.cli.output import Printer
from meshgate.app.cli.setting_options import Command, with_settings
from meshgate.app.settings.settings import Settings
from meshgate.core.text import printable


@click.command(cls=Command, short_help="Print the route table of the running gateway.")
@click.argument("text", default="", metavar="[TEXT]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@with_settings({"MESHGATE_ADMIN_BIND"})
def routes(settings: Settings, text: str, *, as_json: bool) -> None:
    """Print the route table of the running gateway, or the routes in which TEXT occurs.

    TEXT is looked for in names, kinds, addresses, nodes and instances, in any case.
    """
    answer = decoded(ask(settings.admin_bind, "/routes"), Routes)
    answer.routes = [route for route in answer.routes if _mentions(route, text.lower())]
    answer.unroutable = [each for each in answer.unroutable if text.lower() in each.sni]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(answer), indent=2))
    else:
        _show(answer, Printer(), f" in which {text} occurs" if text else "")


def _mentions(route: Route, text: str) -> bool:
    words = [route.sni, route.kind]
    for endpoint in route.endpoints:
        words += [str(endpoint), endpoint.node, endpoint.instance]
    return any(text in word.lower() for word in words)


def _show(answer: Routes, printer: Printer, wanted: str) -> None:
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
