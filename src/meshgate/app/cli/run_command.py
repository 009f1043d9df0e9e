"""`meshgate run`."""

import click

from meshgate.app.cli.setting_options import Command, with_settings
from meshgate.app.settings.settings import Settings


def _only_mesh(_: click.Context, _parameter: click.Parameter, kind: str | None) -> None:
    """`-gateway=mesh`, as in `consul connect envoy`, says nothing new; another kind would be a misunderstanding."""
    if kind not in (None, "mesh"):
        raise click.UsageError("meshgate is a mesh gateway and no other: --gateway takes mesh only")


@click.command(cls=Command, short_help="Run the gateway in the foreground.")
@click.option(
    "--gateway", metavar="mesh", callback=_only_mesh, expose_value=False, help="As in consul connect envoy; only mesh."
)
@with_settings()
def run(settings: Settings) -> int | None:
    """Register the gateway with the local agent, watch Consul and relay streams.

    Runs in the foreground until SIGTERM or Ctrl-C, which let open streams end first.
    """
    from meshgate.app.composition_root import run_gateway  # noqa: PLC0415 - heavy, and only needed here

    return run_gateway(settings)
