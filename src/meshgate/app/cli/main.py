"""The command line. `main` is the entry point of the command `meshgate`.

Flags may be written as users of Consul write them: `-http-addr=x`, `-token x`, `--expose-servers=true`.

Exit codes: 0 fine, 1 failed at run time, 2 wrong usage or configuration, 130 after Ctrl-C, 143 after a second SIGTERM.
An error is one line on stderr. A traceback is only shown with the log level debug or trace, and no secret in either.
"""

import os
import re
import sys
import traceback
from collections import UserDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import islice
from typing import Any, NoReturn

import click
from click.shell_completion import add_completion_class, get_completion_class

from meshgate import __version__
from meshgate.adapters.error_words import words_of
from meshgate.app.cli.setting_options import Session
from meshgate.app.errors import CommandError, ConfigError
from meshgate.app.settings.settings import MASK
from meshgate.core.text import printable
from meshgate.core.weak_decode import parse_bool

_INTERRUPTED = 130
# click looks for this variable before it runs a command.
COMPLETE = "_MESHGATE_COMPLETE"
SHELLS = ("bash", "zsh", "fish")
# An upgrade names by this what there is to go on with (`app.gateway.upgrade_record`, which knows more).
_HAND_OVER = "_MESHGATE_HAND_OVER"
_LOCAL, _GATEWAY, _CONSUL = "local_commands", "gateway_commands", "consul_commands"
# As the help lists them; each is the attribute of its name in a module of this package.
_COMMANDS = {
    "Run the gateway": {"run": _LOCAL, "drain": _GATEWAY, "upgrade": _GATEWAY, "demo": _LOCAL},
    "Ask the running gateway": {
        "top": "top_command",
        "connections": _GATEWAY,
        "explain": _GATEWAY,
        "routes": _GATEWAY,
        "whatif": _GATEWAY,
    },
    "Ask Consul": {"doctor": _CONSUL, "modes": _CONSUL, "probe": _CONSUL},
    "Set up": {"config": _LOCAL, "policy": _LOCAL, "completion": _LOCAL, "help": _LOCAL},
}


class OnDemand(UserDict[str, click.Command]):
    """Commands by their names, imported when asked for: `run` stays for months and holds nothing of the others."""

    def __init__(self, modules: Mapping[str, str]) -> None:
        super().__init__({name: click.Command(name) for name in modules})
        self._modules = modules

    def __getitem__(self, name: str) -> click.Command:
        module = import_module(f"{__package__}.{self._modules[name]}")
        # `help` is a name of Python's own.
        found: click.Command = getattr(module, f"{name}_" if name == "help" else name)
        return found


def chosen(group: click.Group, arguments: Sequence[str]) -> click.Group:
    """A group of the one command that the arguments name, or of none: no other is imported for its options."""
    command = group.commands.get(arguments[0]) if arguments else None
    return click.Group(commands=[command] if command else [], params=group.params)


class Commands(click.Group):
    """The commands, by what they are for; none of them is imported to list the others' names."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, names in _COMMANDS.items():
            with formatter.section(heading):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(limit=80)) for name in names])


@click.group(
    cls=Commands,
    commands=OnDemand({name: module for names in _COMMANDS.values() for name, module in names.items()}),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 fine; 1 failed at run time, or refused; 2 wrong usage or settings; 130 after Ctrl-C; "
    "143 after a second SIGTERM.",
)
@click.version_option(__version__, prog_name="meshgate", message="%(prog)s %(version)s")
def cli() -> None:
    """A Consul mesh gateway: forwards mTLS streams by SNI and never terminates them.

    Flags come after the command, with one dash or two: -token=... or --token ...
    """


def main() -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character must not turn output into an error.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(execute(sys.argv[1:]))


def execute(arguments: Sequence[str]) -> int:
    """Run a command line; gives its exit code."""
    session = Session()
    if COMPLETE in os.environ:
        _complete_go_flags()
    try:
        if _HAND_OVER in os.environ:
            arguments = _take(session)
        result = cli.main(
            normalized(arguments, options_of(chosen(cli, arguments))),
            prog_name="meshgate",
            standalone_mode=False,
            obj=session,
        )
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        return _usage_error(error)
    except click.Abort:
        return _INTERRUPTED
    except BaseException as error:  # noqa: BLE001 - the last line of defence against tracebacks
        if session.taken is not None:
            session.taken.give_back(_words(_first(error)))
        return _failure(error, session)
    return result if isinstance(result, int) else 0


def _take(session: Session) -> list[str]:
    """Go on as what the version before was started with; gives its command line."""
    with colorless():
        from meshgate.app.gateway.upgrade_record import Taken  # noqa: PLC0415 - heavy, and only needed at an upgrade

    session.taken = Taken()
    return sys.argv[1:]


@contextmanager
def colorless() -> Iterator[None]:
    """Let no library find the ones for colors, as if they were not installed.

    httpx and structlog import them for commands and consoles of their own, 4 MB that a gateway has no use for.
    """
    # As the import system documents it: a name that stands for None is one that is not found.
    hidden: dict[str, Any] = dict.fromkeys({"rich", "pygments"} - sys.modules.keys())
    sys.modules.update(hidden)
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


def _usage_error(error: click.ClickException) -> int:
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context else "meshgate"
    # click lists choices on lines of their own.
    message = " ".join(error.format_message().split())
    click.echo(f"{command}: {printable(message)}", err=True)
    click.echo(f"Try '{command} --help'.", err=True)
    return error.exit_code


def _failure(error: BaseException, session: Session) -> int:
    """Tell the user; gives the exit code. What is not an error of any kind goes on its way."""
    errors = _leaves(error)
    if any(isinstance(each, KeyboardInterrupt) for each in errors):
        return _INTERRUPTED
    for each in errors:
        if not isinstance(each, Exception):
            raise each
    first = _first(error)
    if isinstance(first, CommandError):
        for line in first.lines if isinstance(first, ConfigError) else (str(first),):
            _complain(f"meshgate: {printable(line)}", session)
        return first.exit_code
    level = session.settings.log_level if session.settings else os.environ.get("MESHGATE_LOG_LEVEL", "")
    if level.lower() in ("debug", "trace"):
        _complain("".join(traceback.format_exception(error)).rstrip("\n"), session)
    _complain(f"meshgate: {printable(_words(first))}", session)
    return 1


def _first(error: BaseException) -> BaseException:
    """The error to tell of: a wrong setting before others, which it may have caused."""
    return min(_leaves(error), key=lambda it: (not isinstance(it, ConfigError), not isinstance(it, CommandError)))


def _leaves(error: BaseException) -> list[BaseException]:
    """The errors in an exception group, as nurseries raise them; the error itself where it is none."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in _leaves(each)]
    return [error]


def _words(error: BaseException) -> str:
    if isinstance(error, CommandError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{words_of(error)}{f': {error.filename}' if error.filename else ''}"
    return f"unexpected {type(error).__name__}: {error}; MESHGATE_LOG_LEVEL=debug shows where"


def _complain(text: str, session: Session) -> None:
    for secret in session.settings.secrets() if session.settings else ():
        text = text.replace(secret, MASK)
    click.echo(text, err=True)


def _complete_go_flags() -> None:
    """Have the words before the one that a shell completes read as those of a command line are."""
    for shell in SHELLS:
        base = get_completion_class(shell)
        assert base is not None

        class Reader(base):  # type: ignore[misc, valid-type]  # one of click's three
            def get_completion_args(self) -> tuple[list[str], str]:
                words, incomplete = super().get_completion_args()
                return normalized(words, options_of(chosen(cli, words))), incomplete

        add_completion_class(Reader, shell)


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


def normalized(arguments: Iterable[str], options: Mapping[str, click.Option]) -> list[str]:
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
