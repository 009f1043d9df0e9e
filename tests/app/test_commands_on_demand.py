"""Commands are imported when they are asked for."""

import sys

import click

from meshgate.app.cli.main import OnDemand, chosen, cli

PACKAGE = "meshgate.app.cli"


def test_a_command_is_imported_by_its_name_and_no_other_is() -> None:
    commands = OnDemand({"routes": "gateway_commands", "top": "top_command"})
    assert list(commands) == ["routes", "top"]
    sys.modules.pop(f"{PACKAGE}.gateway_commands", None)
    kept = sys.modules.pop(f"{PACKAGE}.top_command", None)
    assert commands["routes"].params
    assert f"{PACKAGE}.gateway_commands" in sys.modules
    assert f"{PACKAGE}.top_command" not in sys.modules
    assert commands["routes"] is commands.get("routes")
    assert commands.get("nonsense") is None
    if kept is not None:
        sys.modules[f"{PACKAGE}.top_command"] = kept


def test_every_command_has_the_name_under_which_it_is_found() -> None:
    assert all(command.name == name for name, command in cli.commands.items())
    assert len(list(cli.commands.values())) == len(cli.commands)


def test_of_a_command_line_only_the_named_command_is_asked_for() -> None:
    group = click.Group(commands=[click.Command("one"), click.Command("two")])
    assert list(chosen(group, ["two", "--flag", "one"]).commands) == ["two"]
    assert not chosen(group, ["--help"]).commands
    assert not chosen(group, []).commands
