"""From the table of settings to the flags of a command, and from its flags to `Settings`."""

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import click

from meshgate.app.settings.setting_table import CONSUL, TABLE, Setting
from meshgate.app.settings.settings import Settings

Function = Callable[..., Any]

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

CONSUL_SETTINGS: Final = frozenset(setting.name for setting in TABLE if setting.section == CONSUL)
"""For commands that ask Consul."""


@dataclass(slots=True)
class Session:
    """What `main` wants to know about the command when it failed."""

    settings: Settings | None = None


class Command(click.Command):
    """A command that does not repeat arguments it did not expect: one of them may be a token."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, with an error of its own for surplus arguments."""
        ctx.allow_extra_args = True
        rest = super().parse_args(ctx, args)
        if ctx.args:
            ctx.fail("unexpected argument; flags are written --name=value or --name value")
        return rest


def with_settings(names: Collection[str] | None = None) -> Callable[[Function], Function]:
    """Give a command the flags of the settings `names` (all by default), `--env-file`, and `settings` for them."""
    wanted = None if names is None else {*names, "MESHGATE_ENV_FILE"}
    chosen = [setting for setting in TABLE if setting.flag and (wanted is None or setting.name in wanted)]

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def command(**params: Any) -> Any:  # noqa: ANN401 - click's own signature
            given = {setting.name: _text(params.pop(_parameter(setting))) for setting in chosen}
            flags = {name: text for name, text in given.items() if text is not None}
            session = click.get_current_context().ensure_object(Session)
            session.settings = Settings.load(flags)
            return function(settings=session.settings, **params)

        result: Function = command
        for setting in reversed(chosen):
            result = _option(setting)(result)
        return result

    return decorate


def _option(setting: Setting) -> Callable[[Function], Function]:
    default = setting.default_note or setting.default_text()
    notes = [f"env: {setting.name}", *([f"default: {default}"] if default else [])]
    help_ = f"{setting.help}  [{'; '.join(notes)}]"
    if setting.is_boolean:
        declaration = f"{setting.flag}/--no-{setting.flag[2:]}"
        return click.option(declaration, _parameter(setting), default=None, help=help_)
    return click.option(
        setting.flag, _parameter(setting), metavar=setting.metavar, multiple=setting.is_repeatable, help=help_
    )


def _parameter(setting: Setting) -> str:
    return setting.name.lower()


def _text(value: str | bool | Sequence[str] | None) -> str | None:
    """The value of a flag as it would stand in the environment; None where it was not given."""
    match value:
        case None | str():
            return value
        case bool():
            return str(value).lower()
        case _:
            return ",".join(value) or None
