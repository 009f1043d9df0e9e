"""Commands are imported when they are asked for."""

import subprocess
import sys

import click

from meshgate.app.cli.main import chosen, cli


def test_a_command_is_imported_by_its_name_and_no_other_is() -> None:
    # In a Python of its own: a module that is imported anew here is not the one that other tests have, and patch.
    code = """
import sys
from meshgate.app.cli.main import OnDemand
commands = OnDemand({"routes": "gateway_commands", "top": "top_command"})
assert list(commands) == ["routes", "top"]
assert "meshgate.app.cli.gateway_commands" not in sys.modules
assert commands["routes"].params
assert "meshgate.app.cli.gateway_commands" in sys.modules
assert "meshgate.app.cli.top_command" not in sys.modules
assert commands["routes"] is commands.get("routes")
assert commands.get("nonsense") is None
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_every_command_has_the_name_under_which_it_is_found() -> None:
    assert all(command.name == name for name, command in cli.commands.items())
    assert len(list(cli.commands.values())) == len(cli.commands)


def test_of_a_command_line_only_the_named_command_is_asked_for() -> None:
    group = click.Group(commands=[click.Command("one"), click.Command("two")])
    assert list(chosen(group, ["two", "--flag", "one"]).commands) == ["two"]
    assert not chosen(group, ["--help"]).commands
    assert not chosen(group, []).commands
