"""Where the text of each setting comes from: flag > environment > `.env` file > default."""

import difflib
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from meshgate.app.errors import ConfigError
from meshgate.app.settings.setting import Setting
from meshgate.app.settings.setting_table import BY_NAME, TABLE
from meshgate.app.text import printable

DEFAULT_ENV_FILE: Final = Path(".env")
MASK: Final = "********"

_PREFIX: Final = "MESHGATE_"
# What Kubernetes puts into every container of a namespace that has a Service called meshgate or meshgate-*. A port's
# value starts with a scheme, which no setting's does.
_SERVICE_LINK: Final = re.compile(
    r"MESHGATE_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)_(ADDR|PORT|PROTO))"
)
_SERVICE_LINK_URL: Final = re.compile(r"MESHGATE_(\w+_)?PORT(_\d+_(TCP|UDP|SCTP))?=(tcp|udp|sctp)://.*")
_USER_INFO: Final = re.compile(r"(^|//)[^/@]+@")


class Origin(StrEnum):
    """Where a value came from."""

    FLAG = "flag"
    ENVIRONMENT = "environment"
    ENV_FILE = ".env"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Found:
    """The text of a setting and its origin. `source` says the origin in words; `text` is "" where there is none."""

    setting: Setting
    text: str
    origin: Origin
    source: str

    def __repr__(self) -> str:
        return f"Found({self.setting.name}={self.shown!r}, {self.origin.value})"

    @property
    def shown(self) -> str:
        """The text as users may see it: secrets masked, control characters escaped."""
        if self.setting.secret and self.text:
            return MASK
        return printable(_USER_INFO.sub(rf"\1{MASK}@", self.text) if not self.setting.field else self.text)


def resolve(flags: Mapping[str, str], environ: Mapping[str, str], env_file: str | Path | None) -> dict[str, Found]:
    """The text of every setting of the table, by name.

    Raises:
        ConfigError: the file cannot be read, or a `MESHGATE_` name in it or in the environment is not a setting.
    """
    path = DEFAULT_ENV_FILE if env_file is None else Path(env_file)
    from_file = _read_env_file(path, must_exist=env_file is not None)
    _refuse_unknown((name for name in environ if not _is_service_link(name, environ[name])), "the environment")
    _refuse_unknown(from_file, str(path))
    sources = (
        (Origin.FLAG, flags, ""),
        (Origin.ENVIRONMENT, environ, "from the environment"),
        (Origin.ENV_FILE, from_file, f"from {path}"),
    )
    return {setting.name: _find(setting, sources) for setting in TABLE}


def _find(setting: Setting, sources: Iterable[tuple[Origin, Mapping[str, str], str]]) -> Found:
    for origin, values, source in sources:
        text = values.get(setting.name)
        if text:
            return Found(setting, text, origin, source or f"from {setting.flag}")
    return Found(setting, setting.default_text(), Origin.DEFAULT, "the default")


def _read_env_file(path: Path, *, must_exist: bool) -> dict[str, str]:
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        if must_exist:
            raise ConfigError(f"the file {path} (--env-file) does not exist") from None
        return {}
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"cannot read {path}: {reason}") from None
    for binding in parse_stream(io.StringIO(text)):
        # A binding takes the empty lines in front of it along.
        text_before = binding.original.string
        line = binding.original.line + text_before[: len(text_before) - len(text_before.lstrip())].count("\n")
        if binding.error:
            raise ConfigError(f"{path} line {line} is not NAME=value")
        if binding.key and binding.key.startswith(_PREFIX) and binding.value is None:
            raise ConfigError(f"{path} line {line}: {binding.key} has no value")
    # Without interpolation, so that a dollar sign in a password is a dollar sign.
    found = dotenv_values(stream=io.StringIO(text), interpolate=False)
    return {name: value for name, value in found.items() if value is not None}


def _is_service_link(name: str, value: str) -> bool:
    return bool(_SERVICE_LINK.fullmatch(name) or _SERVICE_LINK_URL.fullmatch(f"{name}={value}"))


def _refuse_unknown(names: Iterable[str], source: str) -> None:
    for name in names:
        if name.startswith(_PREFIX) and name not in BY_NAME:
            ours = [known for known in BY_NAME if known.startswith(_PREFIX)]
            nearest = difflib.get_close_matches(name, ours, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{printable(name)} (from {source}) is not a setting; did you mean {nearest}?")
