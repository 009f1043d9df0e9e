"""`meshgate doctor`."""

import json
from collections import Counter
from typing import Final

import click
import msgspec

from meshgate.app.cli.output import Printer
from meshgate.app.cli.setting_options import Command, with_settings
from meshgate.app.settings.settings import Settings
from meshgate.core.prerequisites import Finding, Status

_STYLES: Final = {Status.OK: "green", Status.WARNING: "yellow", Status.FAILED: "red"}


@click.command(cls=Command, short_help="Check every prerequisite of a gateway.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@with_settings()
def doctor(settings: Settings, *, as_json: bool) -> int:
    """Check every prerequisite of a gateway with these settings against the live agent and this machine.

    Takes the flags of run, and can be used before it and beside it. Nothing is changed. Exits with 1 if a check
    failed.
    """
    from meshgate.app.diagnostics.doctor import examine  # noqa: PLC0415 - heavy
    from meshgate.app.diagnostics.inspection import inspect  # noqa: PLC0415 - heavy

    findings = inspect(settings, lambda client: examine(client, settings))
    failed = any(finding.status is Status.FAILED for finding in findings)
    if as_json:
        click.echo(json.dumps({"ok": not failed, "checks": msgspec.to_builtins(findings)}, indent=2))
    else:
        _show(findings, Printer())
    return 1 if failed else 0


def _show(findings: list[Finding], printer: Printer) -> None:
    for finding in findings:
        printer.line(f"{finding.status:<8}{finding.check}: {finding.detail}", _STYLES[finding.status])
        if finding.advice:
            printer.line(f"{'':8}-> {finding.advice}")
    counts = Counter(finding.status for finding in findings)
    printer.line()
    warnings = counts[Status.WARNING]
    plural = "" if warnings == 1 else "s"
    printer.line(f"{counts[Status.OK]} ok, {warnings} warning{plural}, {counts[Status.FAILED]} failed")
