"""`meshgate completion`."""

import click
from click.shell_completion import get_completion_class

from meshgate.app.cli.setting_options import Command

SHELLS = ("bash", "zsh", "fish")


@click.command(cls=Command, short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes meshgate's commands and flags in a shell.

    For example: source <(meshgate completion bash), or meshgate completion fish | source
    """
    kind = get_completion_class(shell)
    assert kind is not None
    # click itself looks for this variable before it runs a command.
    complete = kind(context.find_root().command, {}, "meshgate", "_MESHGATE_COMPLETE")
    click.echo(complete.source())
