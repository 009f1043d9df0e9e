"""`meshgate demo`."""

import click

from .options import Command


@click.command(cls=Command, short_help="Show two datacenters and their gateways at work.")
@click.option("--once", is_flag=True, help="Check that all of it works, print a summary and stop.")
def demo(*, once: bool) -> int | None:
    """Start two Consul datacenters with a gateway each on this machine and show traffic between them.

    Needs a consul binary: $CONSUL_BIN, or consul on the PATH. Runs until Ctrl-C and cleans up after itself.
    """
    from meshgate.app.demo.show import run_demo  # noqa: PLC0415 - heavy, and only needed here

    return run_demo(once=once)
