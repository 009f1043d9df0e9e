"""Flags as users of Consul write them: `-http-addr=x`, `-token x`, `--expose-servers=true`."""

import re
from collections.abc import Iterable, Mapping
from itertools import islice

import click

from meshgate.core.weak_decode import parse_bool

_GO_FLAG = re.compile(r"-[A-Za-z][A-Za-z0-9-]+")


def options_of(group: click.Group) -> dict[str, click.Option]:
    """All options of a group's commands, by their names with dashes."""
    options = [
        param
        for command in (group, *group.commands.values())
        for param in command.params
        if isinstance(param, click.Option)
    ]
    return {name: option for option in options for name in (*option.opts, *option.secondary_opts)}


def normalised(arguments: Iterable[str], options: Mapping[str, click.Option]) -> list[str]:
    """The arguments in click's way: long flags with two dashes, booleans without a value.

    The value of a flag is never changed, whatever it looks like.

    Raises:
        click.UsageError: a boolean flag has a value that is neither true nor false.
    """
    result: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            return [*result, argument, *rest]
        name, equals, value = argument.partition("=")
        if _GO_FLAG.fullmatch(name):
            name = f"-{name}"
        option = options.get(name)
        if option and option.is_flag and equals:
            result += _boolean(name, option, value)
        else:
            result.append(f"{name}{equals}{value}")
        if option and not option.is_flag and not equals:
            result += islice(rest, 1)
    return result


def _boolean(name: str, option: click.Option, value: str) -> list[str]:
    try:
        on = parse_bool(value) == (name in option.opts)
    except ValueError as error:
        raise click.UsageError(f"{name} {error}") from None
    return option.opts[:1] if on else option.secondary_opts[:1]
