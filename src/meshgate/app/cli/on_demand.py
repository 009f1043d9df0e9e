"""Commands that are imported when they are asked for.

`run` stays for months, so it should not hold what the other commands need to show tables or to ask the admin address.
"""

from collections import UserDict
from collections.abc import Iterable
from importlib import import_module

import click


class OnDemand(UserDict[str, click.Command]):
    """Commands by their names; each is the attribute of its name in the module of its name in a package."""

    def __init__(self, package: str, names: Iterable[str]) -> None:
        super().__init__({name: click.Command(name) for name in names})
        self._package = package
        self._missing = set(self.data)

    def __getitem__(self, name: str) -> click.Command:
        if name in self._missing:
            self.data[name] = getattr(import_module(f"{self._package}.{name}"), name)
            self._missing.remove(name)
        return self.data[name]


def chosen(group: click.Group, arguments: list[str]) -> click.Group:
    """A group of the one command that the arguments name; the group itself where they name none."""
    command = group.commands.get(arguments[0]) if arguments else None
    return group if command is None else click.Group(commands=[command], params=group.params)
