"""The settings as documents, made from their table."""

import textwrap
from itertools import groupby

from meshgate.app.settings.setting_table import AT_SIGHUP, TABLE, Setting

_INTRODUCTION = """\
# Settings of meshgate. Copy this file, remove the # from each line that you change, and name your copy with --env-file
# or MESHGATE_ENV_FILE: no file is read unless you name it. A flag beats the environment, the environment beats this
# file, this file beats the default. An empty value counts as not set. Durations are written as in Consul: 500ms, 15s,
# 1h.
"""

_REFERENCE = """\
# Settings

Made from the program's own table of settings (`meshgate config --reference`); a test compares.

A flag beats the environment, which beats the `.env` file, which beats the default. The file is read only if
`--env-file` or `MESHGATE_ENV_FILE` names it; a `.env` in the current folder is not. An empty value counts as not set.
Durations are written as in Consul: `500ms`, `15s`, `1h`. An unknown `MESHGATE_` name is an error that names its
nearest neighbor. `meshgate config` shows the effective value of each setting and where it came from, with secrets
masked.

A change in the `.env` file to a setting marked * takes effect on SIGHUP (`systemctl reload`). The log and `/readyz`
list other changes, which wait for `meshgate upgrade` or a restart. The environment and the command line of a process
never change.
"""


def env_example() -> str:
    """The text of `.env.example`: every setting but the file's own name, commented out, with its default."""
    parts = [_INTRODUCTION]
    for section, settings in groupby(TABLE, key=lambda setting: setting.section):
        parts.append(f"\n# {section}\n")
        parts.extend(f"\n{_example(setting)}" for setting in settings if setting.name != "MESHGATE_ENV_FILE")
    return "".join(parts)


def _example(setting: Setting) -> str:
    words = setting.help
    if setting.default_note:
        words += f" Default: {setting.default_note}."
    # A default that depends on the machine is not written down: the file is the same everywhere.
    default = setting.default if isinstance(setting.default, str) else ""
    comment = textwrap.fill(words, 118, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    return f"{comment}\n#{setting.name}={default}\n"


def reference() -> str:
    parts = [_REFERENCE]
    for section, settings in groupby(TABLE, key=lambda setting: setting.section):
        parts.append(f"\n## {section}\n\n| variable | flag | default | |\n| --- | --- | --- | --- |\n")
        parts.extend(map(_row, settings))
    return "".join(parts)


def _row(setting: Setting) -> str:
    flag = f"`{setting.flag}`" if setting.flag else ""
    default = setting.default_note or (f"`{setting.default}`" if setting.default else "")
    words = setting.help.replace("|", "\\|").replace("<", "&lt;")
    mark = " *" if setting.name in AT_SIGHUP else ""
    return f"| `{setting.name}`{mark} | {flag} | {default} | {words} |\n"
