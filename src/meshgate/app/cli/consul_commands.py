"""The commands that ask Consul themselves: `doctor`, `modes` and `probe`."""

import sys
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from meshgate.app.cli.gateway_commands import datacenter_option, known_names
from meshgate.app.cli.output import Printer, duration, print_json
from meshgate.app.cli.setting_options import CONSUL_SETTINGS, command, json_option, with_settings
from meshgate.app.errors import CommandError
from meshgate.app.settings.setting_types import wan_address
from meshgate.app.settings.settings import Settings
from meshgate.core.prerequisites import Finding, Status, gives_keys_away
from meshgate.core.text import counted

if TYPE_CHECKING:
    from meshgate.app.diagnostics.modes_report import ModesReport, UpstreamReport, Way
    from meshgate.app.diagnostics.probe import Probe

_STYLES: Final = {Status.OK: "green", Status.WARNING: "yellow", Status.FAILED: "red"}


@command("meshgate doctor", "meshgate doctor -token-file /etc/meshgate/token -json")
@json_option
@with_settings()
def doctor(settings: Settings, *, as_json: bool) -> int:
    """Check every prerequisite of a gateway.

    Takes the flags of run and checks the live agent and this machine, whether or not a gateway is running. Changes
    nothing. Exits with 1 if a check failed.
    """
    from meshgate.app.diagnostics.doctor import Examination  # noqa: PLC0415 - heavy
    from meshgate.app.diagnostics.inspection import inspect  # noqa: PLC0415 - heavy

    findings = inspect(settings, lambda client: Examination(client, settings).run())
    failed = any(finding.status is Status.FAILED for finding in findings)
    if as_json:
        print_json({"ok": not failed, "checks": msgspec.to_builtins(findings)})
    else:
        _show_findings(findings, Printer())
    return 1 if failed else 0


def _show_findings(findings: list[Finding], printer: Printer) -> None:
    for finding in findings:
        printer.line(f"{finding.status:<8}{finding.check}: {finding.detail}", _STYLES[finding.status])
        if finding.advice:
            printer.line(f"{'':8}-> {finding.advice}")
    counts = Counter(finding.status for finding in findings)
    printer.line()
    warnings = counts[Status.WARNING]
    printer.line(f"{counts[Status.OK]} ok, {counted(warnings, 'warning')}, {counts[Status.FAILED]} failed")


@command("meshgate modes", "meshgate modes web")
@click.argument("text", default="", metavar="[SIDECAR]")
@json_option
@with_settings(CONSUL_SETTINGS | {"MESHGATE_SERVICE"})
def modes(settings: Settings, text: str, *, as_json: bool) -> None:
    """Show the mesh gateway mode of each sidecar's upstreams.

    Also shows where the mode was set and, for each destination, what the sidecar dials, at which address and with which
    name, and what cannot work. Covers the local agent's sidecars; with SIDECAR, only those that contain it in their ID
    or service. The agent merges central configuration into registrations: a mode that is set in both is shown as set
    centrally.
    """
    from meshgate.app.diagnostics.inspection import inspect  # noqa: PLC0415 - heavy
    from meshgate.app.diagnostics.modes_report import ModesReader  # noqa: PLC0415 - heavy

    report = inspect(settings, lambda client: ModesReader(client, settings.service).read(text))
    if as_json:
        print_json(_modes_view(report))
    else:
        _show_modes(report, Printer())


def _modes_view(report: "ModesReport") -> dict[str, Any]:
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


def _show_modes(report: "ModesReport", printer: Printer) -> None:
    for note in report.notes:
        printer.line(f"note: {note}", "yellow")
    if report.central_config is False:
        printer.line("note: central configuration is off in this agent", "yellow")
    if not report.sidecars:
        click.echo("the agent holds no such sidecar that the token may see", err=True)
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


@command("meshgate probe web -as shop", "meshgate probe web --dc dc2 --via wan", "meshgate probe web --http /health")
@click.argument("service", shell_complete=known_names)
@datacenter_option
@click.option(
    "--via",
    default="lan",
    show_default=True,
    metavar="lan|wan|HOST:PORT",
    shell_complete=lambda _context, _param, text: [each for each in ("lan", "wan") if each.startswith(text)],
    help="Through the gateway of this datacenter at its LAN address (mode local), that of the service's datacenter "
    "at its WAN address (mode remote), or whatever is at an address.",
)
@click.option(
    "--as",
    "identity",
    default="",
    metavar="SERVICE",
    help="Service that the call comes from; the token needs service:write on it.  [default: the gateway's service]",
)
@click.option("--peer", default="", metavar="NAME", help="The service is imported from this peer.")
@click.option("--http", default="", metavar="PATH", help="Send GET PATH; for an HTTP service behind an Envoy sidecar.")
@click.option("--yes", is_flag=True, help="Do not ask before a key is left in the agent's cache.")
@json_option
@with_settings(CONSUL_SETTINGS | {"MESHGATE_SERVICE", "MESHGATE_CONNECT_TIMEOUT"})
def probe(  # noqa: PLR0913 - one for each flag
    settings: Settings,
    service: str,
    datacenter: str,
    via: str,
    identity: str,
    peer: str,
    http: str,
    *,
    yes: bool,
    as_json: bool,
) -> int:
    """Call a service through a gateway as a sidecar would.

    Makes a real mTLS handshake with SERVICE, and shows which service answered and how long it took. The caller's
    certificate is a leaf from the local agent; the server name is the one that Consul gives the service. No data is
    sent without --http. Exits with 0 if the right service answered and accepts the caller.

    The agent keeps the leaf and its key in its cache for up to three days. From about Consul 1.16 on, it gives them to
    anyone who asks during that time, whatever the token: there the command asks for confirmation, or needs --yes.
    """
    from meshgate.app.diagnostics.inspection import inspect  # noqa: PLC0415 - heavy
    from meshgate.app.diagnostics.probe import LAN, WAN, Probe, Question  # noqa: PLC0415 - heavy

    try:
        place = via if via in (LAN, WAN) else wan_address(via)
    except ValueError:
        raise click.BadParameter("lan, wan or host:port", param_hint="--via") from None
    if peer and datacenter:
        raise click.UsageError("a service is in a datacenter of this federation (--dc) or at a peer (--peer)")
    if http and not (http.startswith("/") and http.isascii() and http.isprintable() and " " not in http):
        raise click.BadParameter("a path that begins with /", param_hint="--http")
    question = Question(
        service=service,
        identity=identity or settings.service,
        settings=settings,
        datacenter=datacenter,
        via=place,
        peer=peer,
        http=http,
    )
    if not yes:
        _ask_first(inspect(settings, lambda client: client.agent_facts()).version, question.identity)
    result = Probe(question)
    inspect(settings, result.run)
    if as_json:
        print_json(_probe_view(result))
    else:
        _show_probe(result, Printer())
    return 0 if result.ok else 1


def _ask_first(version: str, identity: str) -> None:
    """Before a key is left where others can get it."""
    if not gives_keys_away(version):
        return
    what = (
        f"the agent (Consul {version or 'of an unknown version'}) will keep the certificate and key of {identity} "
        "in its cache for up to three days, and may give them to any token meanwhile"
    )
    if not sys.stdin.isatty():
        raise click.UsageError(f"{what}: give --yes if that is all right")
    if not click.confirm(f"{what[0].upper()}{what[1:]}. Go on?", err=True):
        raise CommandError("nothing was called")


def _probe_view(result: "Probe") -> dict[str, Any]:
    return {
        "ok": result.ok,
        "verdict": result.verdict,
        "service": result.question.service,
        "peer": result.question.peer or None,
        "datacenter": result.datacenter,
        "sni": result.sni,
        "gateway": result.gateway,
        "address": str(result.address) if result.address else None,
        "caller": result.caller or None,
        "met": msgspec.to_builtins(result.met),
        "steps": msgspec.to_builtins(result.steps),
        "failure": msgspec.to_builtins(result.failure),
    }


def _show_probe(result: "Probe", printer: Printer) -> None:
    for name, value in (
        ("name", result.sni),
        ("through", f"{result.gateway} ({result.address})" if result.address else ""),
        ("as", result.caller),
        ("met", result.met.spiffe_id if result.met else ""),
    ):
        if value:
            printer.line(f"{name:8} {value}")
    printer.line()
    rows = [(each.step, _milliseconds(each.seconds), each.detail if each.ok else "failed") for each in result.steps]
    printer.table(("STEP", "TIME", "RESULT"), rows, ["" if each.ok else "red" for each in result.steps])
    printer.line()
    if result.failure:
        printer.line(f"{result.verdict.replace('_', ' ')} (at {result.failure.step}): {result.failure.detail}", "red")
        if result.failure.meaning:
            printer.line(f"  {result.failure.meaning}")
    elif result.met:
        left = duration(max(0.0, (result.met.expires - datetime.now(UTC)).total_seconds()))
        printer.line(f"ok: {result.question.service} answers and accepts the caller", "green")
        printer.line(f"  its certificate is valid until {result.met.expires:%Y-%m-%d %H:%M} UTC ({left} left)")


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"
