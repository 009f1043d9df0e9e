"""`meshgate demo`."""

import sys
from importlib import import_module
from pathlib import Path

import click

import meshgate
from meshgate.app.cli.setting_options import Command
from meshgate.app.errors import CommandError


@click.command(cls=Command, short_help="Show two datacenters and their gateways at work.")
@click.option("--once", is_flag=True, help="Check that all of it works, print a summary and stop.")
def demo(*, once: bool) -> int | None:
    """Start two Consul datacenters with a gateway each on this machine and show traffic between them.

    Needs a consul binary: $CONSUL_BIN, or consul on the PATH. Runs until Ctrl-C and cleans up after itself.
    """
    checkout = Path(meshgate.__file__).resolve().parents[2]
    if not (checkout / "tests" / "harness" / "show.py").is_file():
        raise CommandError("the demo is not part of an installed meshgate: clone its repository and run scripts/demo")
    sys.path.insert(0, str(checkout))
    # By name: the harness is no part of the package, and types nothing that is.
    code: int | None = import_module("tests.harness.show").run_demo(once=once)
    return code
