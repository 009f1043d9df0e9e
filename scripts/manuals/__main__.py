"""`python -m manuals FOLDER`: a page of section 1 for meshgate and one for each of its commands."""

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click

from meshgate.app.cli.main import cli
from meshgate.app.cli.setting_options import Command

EXIT_CODES = {
    "0": "fine",
    "1": "failed at run time; of explain, probe and doctor: refused, or a check failed",
    "2": "wrong usage or settings",
    "130": "after Ctrl-C",
    "143": "of run: after a second SIGTERM",
}
FILES = (
    "No file is read unless --env-file or MESHGATE_ENV_FILE names it. A flag beats the environment, the environment "
    "beats the file, the file beats the default."
)


def main(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.1"):
        old.unlink()
    context = click.Context(cli, info_name="meshgate", **cli.context_settings)
    names = cli.list_commands(context)
    (folder / "meshgate.1").write_text(page("meshgate", summary(context), context, names))
    for name in names:
        command = cli.commands[name]
        inner = click.Context(command, context, name)
        (folder / f"meshgate-{name}.1").write_text(page(f"meshgate-{name}", command.get_short_help_str(80), inner, ()))


def page(name: str, title: str, context: click.Context, commands: Sequence[str]) -> str:
    """A page; that of meshgate itself lists its commands."""
    return "".join(f"{line}\n" for line in _lines(name, title, context, commands))


def summary(context: click.Context) -> str:
    """The first paragraph of a command's help."""
    return inspect.cleandoc(context.command.help or "").partition("\n\n")[0].replace("\n", " ")


def _lines(name: str, title: str, context: click.Context, commands: Sequence[str]) -> Iterator[str]:
    command = context.command
    yield f'.TH {name.upper()} 1 "" "meshgate" "meshgate manual"'
    yield ".SH NAME"
    yield f"{_text(name)} \\- {_text(title.rstrip('.'))}"
    yield ".SH SYNOPSIS"
    yield f".B {_text(context.command_path)}"
    yield _text(" ".join(command.collect_usage_pieces(context)))
    yield ".SH DESCRIPTION"
    for number, paragraph in enumerate(inspect.cleandoc(command.help or "").split("\n\n")):
        yield from [".PP"] * (number > 0)
        yield _text(paragraph.replace("\n", " "))
    if commands:
        yield ".SH COMMANDS"
        yield from _list({each: cli.commands[each].get_short_help_str(80) for each in commands})
    yield ".SH OPTIONS"
    for heading, records in _options(command, context).items():
        if heading != "Options":
            yield f".SS {_text(heading)}"
        yield from _list(dict(records))
    if isinstance(command, Command) and command.examples:
        yield ".SH EXAMPLES"
        yield from (".nf", *map(_text, command.examples), ".fi")
    yield ".SH FILES"
    yield _text(FILES)
    yield ".SH EXIT STATUS"
    yield from _list(EXIT_CODES)
    yield ".SH SEE ALSO"
    others = [_text(f"meshgate-{each}") for each in commands] or ["meshgate"]
    yield from (f".BR {each} (1){',' if each != others[-1] else ''}" for each in others)


def _options(command: click.Command, context: click.Context) -> Mapping[str, Sequence[tuple[str, str]]]:
    if isinstance(command, Command):
        return command.options_by_heading(context)
    options = (param for param in command.get_params(context) if isinstance(param, click.Option))
    return {"Options": [record for option in options if (record := option.get_help_record(context))]}


def _list(terms: Mapping[str, str]) -> Iterator[str]:
    for term, words in terms.items():
        yield from (".TP", f".B {_text(term)}", _text(" ".join(words.split())) or "\\&")


def _text(words: str) -> str:
    """Words as roff prints them: dashes that can be copied, and no line that would be a request."""
    escaped = words.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


if __name__ == "__main__":
    main(Path(sys.argv[1]))
