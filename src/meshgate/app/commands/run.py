"""`meshgate run`."""

import click

from meshgate.app.settings import Settings

from .options import Command, with_settings


@click.command(cls=Command, short_help="Run the gateway in the foreground.")
@with_settings()
def run(settings: Settings) -> int | None:
    """Register the gateway with the local agent, watch Consul and relay streams.

    Runs in the foreground until SIGTERM or Ctrl-C, which let open streams end first.
    """
    from meshgate.app.run import run_gateway  # noqa: PLC0415 - heavy, and only needed here

    return run_gateway(settings)
