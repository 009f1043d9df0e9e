"""From the table of settings to the flags of a command, and from its flags to `Settings`."""

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import CompletionItem

from meshgate.app.settings.setting_table import CONSUL, TABLE, Setting
from meshgate.app.settings.settings import Settings

if TYPE_CHECKING:
    from meshgate.app.gateway.upgrade_record import Taken

Function = Callable[..., Any]

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

CONSUL_SETTINGS: Final = frozenset(setting.name for setting in TABLE if setting.section == CONSUL)
"""For commands that ask Consul."""


@dataclass(slots=True)
class Session:
    """What `main` wants to know about the command when it failed, and what it was started to go on with."""

    settings: Settings | None = None
    taken: "Taken | None" = None


class Command(click.Command):
    """A command of meshgate.

    It does not repeat arguments that it did not expect: one of them may be a token. Its help has the flags of settings
    under the headings of their table, and `examples` at the end. Its flags are completed with one dash, too.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **options: Any) -> None:  # noqa: ANN401 - click's own
        super().__init__(*args, **options)
        self.examples = examples

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, with an error of its own for surplus arguments."""
        ctx.allow_extra_args = True
        rest = super().parse_args(ctx, args)
        if ctx.args and not ctx.resilient_parsing:
            ctx.fail("unexpected argument; flags are written --name=value or --name value")
        return rest

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, records in self.options_by_heading(ctx).items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def options_by_heading(self, ctx: click.Context) -> dict[str, list[tuple[str, str]]]:
        """Names and help of each option, by heading."""
        found: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                heading = param.setting.section if isinstance(param, SettingOption) else "Options"
                found.setdefault(heading, []).append(record)
        return found

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Examples, each on a line of its own however long it is."""
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{example}\n")
        super().format_epilog(ctx, formatter)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """As click does; `-ad` becomes `-admin-bind`, as `--ad` becomes `--admin-bind`."""
        found = super().shell_complete(ctx, incomplete)
        if len(incomplete) > 1 and incomplete[0] == "-" != incomplete[1]:
            for item in super().shell_complete(ctx, f"-{incomplete}"):
                found.append(CompletionItem(item.value.removeprefix("-"), help=item.help))
        return found


def command(*examples: str, name: str | None = None, cls: type[Command] = Command) -> Callable[[Function], Command]:
    """A command whose help is the docstring; the first sentence, of 80 characters at most, is how lists have it."""
    return click.command(name, cls=cls, examples=examples)


class SettingOption(click.Option):
    def __init__(self, *args: Any, setting: Setting, **options: Any) -> None:  # noqa: ANN401 - click's own
        super().__init__(*args, **options)
        self.setting = setting

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The values of the setting, and files where it wants a path."""
        values = [CompletionItem(value) for value in self.setting.values if value.startswith(incomplete)]
        if not values and self.setting.wants_path:
            return [CompletionItem(incomplete, type="file")]
        return values or super().shell_complete(ctx, incomplete)


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
    option = functools.partial(click.option, cls=SettingOption, setting=setting, help=help_)
    if setting.is_boolean:
        return option(f"{setting.flag}/--no-{setting.flag[2:]}", _parameter(setting), default=None)
    return option(setting.flag, _parameter(setting), metavar=setting.metavar, multiple=setting.is_repeatable)


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
