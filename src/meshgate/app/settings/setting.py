"""One setting: what is said of it once, for flags, files, listings and the reference page."""

from collections.abc import Callable
from dataclasses import dataclass

from meshgate.app.settings import setting_types


@dataclass(frozen=True, slots=True)
class Setting:
    """A row.

    Attributes:
        name: the environment variable.
        flag: its twin on the command line; "" where there is none.
        section: under which heading users find it.
        help: what it does, one sentence.
        default: its default as a user would write it, or a function that finds it on this machine; "" for none.
        default_note: the default in words, where it depends on something.
        parse: from text to value; raises ValueError with what is allowed.
        metavar: the shape of the value.
        secret: never to be shown.
    """

    name: str
    flag: str
    section: str
    help: str
    default: str | Callable[[], str] = ""
    default_note: str = ""
    parse: Callable[[str], object] = str
    metavar: str = "TEXT"
    secret: bool = False

    @property
    def is_boolean(self) -> bool:
        """Whether its flag takes no value: `--name`, `--no-name`, `--name=true`."""
        return self.parse is setting_types.boolean

    @property
    def is_repeatable(self) -> bool:
        """Whether its flag may come several times."""
        return self.parse is setting_types.bind_addresses

    @property
    def field(self) -> str:
        """Its field in `Settings`; "" for Consul's own variables."""
        return self.name.removeprefix("MESHGATE_").lower() if self.name.startswith("MESHGATE_") else ""

    def default_text(self) -> str:
        """The default on this machine, as a user would write it."""
        return self.default if isinstance(self.default, str) else self.default()


def boolean(name: str, flag: str, section: str, help_: str, default: str) -> Setting:
    """A setting that is true or false."""
    return Setting(name, flag, section, help_, default, parse=setting_types.boolean, metavar="BOOL")


def duration(name: str, section: str, help_: str, default: str, parse: Callable[[str], float]) -> Setting:
    """A setting in seconds, written as Consul writes durations; `name` is without the prefix."""
    return Setting(f"MESHGATE_{name}", flag_of(name), section, help_, default, parse=parse, metavar="DURATION")


def flag_of(name: str) -> str:
    """The flag of a setting by its name without the prefix."""
    return "--" + name.lower().replace("_", "-")
