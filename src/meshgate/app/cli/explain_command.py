"""`meshgate explain SNI`."""

import click
import msgspec

from meshgate.app.admin_client import ask, decoded
from meshgate.app.cli.admin_answers import Explanation
from meshgate.app.cli.output import Printer
from meshgate.app.cli.setting_options import Command, with_settings
from meshgate.app.settings.settings import Settings


@click.command(cls=Command, short_help="Explain the decision for a server name.")
@click.argument("sni")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@with_settings({"MESHGATE_ADMIN_BIND"})
def explain(settings: Settings, sni: str, *, as_json: bool) -> int:
    """Explain what the running gateway does with a stream that asks for SNI, step by step.

    Exits with 0 if it is routed, with 1 if it is refused.
    """
    if not sni.isprintable():
        raise click.UsageError("SNI has characters that no server name can have")
    answer = decoded(ask(settings.admin_bind, "/explain", sni=sni), Explanation)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(answer), indent=2))
    else:
        _show(answer, Printer())
    return 0 if answer.decision == "routed" else 1


def _show(answer: Explanation, printer: Printer) -> None:
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
