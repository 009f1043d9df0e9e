"""`meshgate modes`."""

import json
from typing import TYPE_CHECKING, Any

import click
import msgspec

from meshgate.app.cli.output import Printer
from meshgate.app.cli.setting_options import CONSUL_SETTINGS, Command, with_settings
from meshgate.app.settings.settings import Settings

if TYPE_CHECKING:
    from meshgate.app.diagnostics.modes_report import ModesReport, UpstreamReport, Way


@click.command(cls=Command, short_help="Show the mesh gateway mode of each sidecar's upstreams.")
@click.argument("text", default="", metavar="[SIDECAR]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@with_settings(CONSUL_SETTINGS | {"MESHGATE_SERVICE"})
def modes(settings: Settings, text: str, *, as_json: bool) -> None:
    """Show which mesh gateway mode each upstream of each sidecar of the local agent has, and where it was set.

    For each destination: whom the sidecar dials, at which address and with which name, and what cannot work. With
    SIDECAR only those in whose ID or service it occurs. The agent shows registrations merged with central
    configuration: a mode that both set counts as set by the latter.
    """
    from meshgate.app.diagnostics.inspection import inspect  # noqa: PLC0415 - heavy
    from meshgate.app.diagnostics.modes_report import ModesReader  # noqa: PLC0415 - heavy

    report = inspect(settings, lambda client: ModesReader(client, settings.service).read(text))
    if as_json:
        click.echo(json.dumps(_view(report), indent=2))
    else:
        _show(report, Printer())


def _view(report: "ModesReport") -> dict[str, Any]:
    return {
        "datacenter": report.own.datacenter,
        "partition": report.own.partition,
        "central_config": report.central_config,
        "sound": report.sound,
        "notes": report.notes,
        "sidecars": [
            {
                "id": each.sidecar.id,
                "service": each.sidecar.service,
                "namespace": each.sidecar.namespace,
                "partition": each.sidecar.partition,
                "upstreams": [_upstream_view(upstream) for upstream in each.upstreams],
            }
            for each in report.sidecars
        ],
    }


def _upstream_view(report: "UpstreamReport") -> dict[str, Any]:
    effective = report.effective
    return {
        "service": report.upstream.name,
        "listens": report.upstream.listens,
        "prepared_query": report.upstream.prepared_query,
        "mode": effective.mode,
        "set_by": effective.set_by,
        "overruled": [{"place": place, "mode": mode} for place, mode in effective.overruled],
        "notes": report.notes,
        "targets": [
            {
                **msgspec.to_builtins(way.target),
                "path": [{"to": leg.hop.name.lower(), "addresses": list(map(str, leg.addresses))} for leg in way.legs],
                "problems": way.problems,
            }
            for way in report.ways
        ],
    }


def _show(report: "ModesReport", printer: Printer) -> None:
    for note in report.notes:
        printer.line(f"note: {note}", "yellow")
    if report.central_config is False:
        printer.line("note: central configuration is off in this agent", "yellow")
    if not report.sidecars:
        printer.line("the agent holds no such sidecar that the token may see")
    for number, each in enumerate(report.sidecars):
        if number:
            printer.line()
        printer.line(f"{each.sidecar.id} (for {each.sidecar.service})", "bold")
        if not each.upstreams:
            printer.line("  no upstreams")
        for upstream in each.upstreams:
            _show_upstream(upstream, printer)


def _show_upstream(report: "UpstreamReport", printer: Printer) -> None:
    effective, upstream = report.effective, report.upstream
    kind = "prepared query " if upstream.prepared_query else ""
    place = (
        f" of peer {upstream.peer}" if upstream.peer else f" in {upstream.datacenter}" if upstream.datacenter else ""
    )
    printer.line(f"  {kind}{upstream.name}{place}, at {upstream.listens}")
    printer.line(f"    mode   {effective.mode}, {f'set by {effective.set_by}' if effective.set_by else 'set nowhere'}")
    for overruled, mode in reversed(effective.overruled):
        printer.line(f"           overrules {mode} of {overruled}")
    for way in report.ways:
        _show_way(way, printer)
    for note in report.notes:
        printer.line(f"    !      {note}", "yellow")


def _show_way(way: "Way", printer: Printer) -> None:
    printer.line(f"    name   {way.target.sni or 'given by the peer'}")
    for number, leg in enumerate(way.legs):
        printer.line(f"    {'then ' if number else 'dials'}  {leg.hop}")
        if leg.addresses:
            printer.line(f"           {', '.join(map(str, leg.addresses))}")
    for problem in way.problems:
        printer.line(f"    !      {problem}", "red")
