"""The effective settings: flag > environment > `.env` file > default, and where each came from.

The `.env` file is read only where `--env-file` or `MESHGATE_ENV_FILE` names it: a file that merely lies in the current
folder must not decide where a token goes. An empty value counts as not set, as with Consul's own variables. `Settings`
is complete and checked: whatever reads it later needs no second look. A secret is in `consul` alone and in no repr,
error or listing.
"""

import difflib
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from dotenv.parser import parse_stream

from meshgate.adapters.error_words import words_of
from meshgate.app.errors import ConfigError
from meshgate.app.settings.setting_table import AT_SIGHUP, BY_NAME, PREFIX, TABLE, Setting
from meshgate.core.addresses import DeniedAddresses, HostPort
from meshgate.core.proxy_config import BindAddress
from meshgate.core.text import printable

MASK: Final = "********"
_ENV_FILE: Final = "MESHGATE_ENV_FILE"
_TOKEN: Final = "CONSUL_HTTP_TOKEN"  # noqa: S105 - the name of a variable
_TOKEN_FILE: Final = "CONSUL_HTTP_TOKEN_FILE"  # noqa: S105 - the name of a variable
# By what names a token or its file stands in `Settings.consul`.
_TOKENS: Final = frozenset((_TOKEN, _TOKEN_FILE, "token", "token-file"))
# What Kubernetes puts into every container of a namespace that has a Service called meshgate or meshgate-*. A port's
# value starts with a scheme, which no setting's does.
_SERVICE_LINK: Final = re.compile(
    r"MESHGATE_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)_(ADDR|PORT|PROTO))"
)
_SERVICE_LINK_URL: Final = re.compile(r"MESHGATE_(\w+_)?PORT(_\d+_(TCP|UDP|SCTP))?=(tcp|udp|sctp)://.*")
# How alike a name is to one that may have been meant, as difflib has it.
_NEAR: Final = 0.6
_USER_INFO: Final = re.compile(r"(^|//)[^/@]+@")


class Origin(StrEnum):
    FLAG = "flag"
    ENVIRONMENT = "environment"
    ENV_FILE = ".env"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Found:
    """The text of a setting and its origin. `source` says the origin in words; `text` is "" where there is none."""

    setting: Setting
    text: str = field(repr=False)
    origin: Origin
    source: str

    @property
    def shown(self) -> str:
        """The text as users may see it: secrets masked, control characters escaped."""
        if self.setting.secret and self.text:
            return MASK
        return printable(_USER_INFO.sub(rf"\1{MASK}@", self.text) if not self.setting.field else self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One field for each `MESHGATE_` variable; times are in seconds. What may be left out has a default.

    `consul` holds Consul's own variables that are set, as written. A token or token file given by a flag stands under
    `token` or `token-file` there, because Consul's precedence tells them from the environment's: flag `-token-file`,
    then `-token`, then `CONSUL_HTTP_TOKEN_FILE`, then `CONSUL_HTTP_TOKEN`. `admin_bind` is a path for a unix socket and
    None when off.
    """

    service: str
    proxy_id: str
    address: HostPort
    wan_address: HostPort | None = None
    bind_address: tuple[BindAddress, ...] = ()
    expose_servers: bool
    register: bool
    login_auth_method: str = ""
    login_bearer_token_file: Path | None = None
    node_name: str = ""
    deregister_after_critical: float
    admin_bind: HostPort | Path | None
    workers: int
    worker_memory: int
    state_dir: Path | None = None
    hello_timeout: float
    connect_timeout: float
    per_try_timeout: float
    handshake_timeout: float
    idle_timeout: float
    half_close_timeout: float
    keepalive: float
    tcp_user_timeout: float
    drain_timeout: float
    drain_quiet: float
    max_connections: int
    max_connections_per_client: int | None = None
    max_connection_rate_per_client: int
    exempt_clients: tuple[str, ...] = ()
    max_pending_per_endpoint: int
    max_hello_bytes: int
    catalog_watches: int
    panic_threshold: int
    deny_endpoints: DeniedAddresses
    enforce_exports: bool
    pass_http_exports: bool
    sandbox: str
    access_log: str
    access_log_dir: Path | None = None
    env_file: Path | None = None
    log_level: str
    log_json: bool
    consul: Mapping[str, str] = field(repr=False)
    found: Mapping[str, Found] = field(repr=False)
    # What the command line and the environment said, for `read_again`.
    _given: tuple[Mapping[str, str], Mapping[str, str]] = field(repr=False, compare=False)

    @classmethod
    def load(
        cls,
        flags: Mapping[str, str] = MappingProxyType({}),
        *,
        environ: Mapping[str, str] | None = None,
    ) -> "Settings":
        """Find, check and combine all settings. `flags` are what the command line says, by the names of the variables.

        Raises:
            ConfigError: values are not allowed, `MESHGATE_` names are not settings, or the file cannot be read; all of
                that at once.
        """
        # The environment is copied: names in it are erased later, so that no other process finds a token there.
        given = dict(flags), dict(os.environ if environ is None else environ)
        problems: list[str] = []
        found = _resolve(*given, problems)
        given_texts = (each for each in found.values() if each.setting.field and each.text)
        values: dict[str, Any] = {each.setting.field: _parsed(each, problems) for each in given_texts}
        if problems:
            raise ConfigError(*problems)
        values.setdefault("proxy_id", values["service"])
        consul = MappingProxyType(_consul_values(found))
        settings = cls(**values, consul=consul, found=MappingProxyType(found), _given=given)
        if contradictions := list(_contradictions(settings)):
            raise ConfigError(*contradictions)
        return settings

    def read_again(self) -> "Settings":
        """What the same command line, the same environment and the `.env` file of now say; errors as of `load`."""
        flags, environ = self._given
        return Settings.load(flags, environ=environ)

    @property
    def namespace(self) -> str:
        return self.consul.get("CONSUL_NAMESPACE", "")

    @property
    def partition(self) -> str:
        return self.consul.get("CONSUL_PARTITION", "")

    def origin(self, name: str) -> Origin:
        return self.found[name].origin

    def shown(self, name: str) -> str:
        """The value of the variable `name` as users may see it; "" where there is none."""
        if name == "MESHGATE_PROXY_ID":
            return self.proxy_id
        return self.found[name].shown

    def secrets(self) -> tuple[str, ...]:
        """Texts that no output may contain."""
        return tuple(found.text for found in self.found.values() if found.setting.secret and found.text)


@dataclass(frozen=True, slots=True)
class Reload:
    """Settings that were read again at a SIGHUP: which of them take effect at once, and which wait.

    The command line and the environment of a process stay what they were, so it is the `.env` file that is read again.
    Settings that cannot all be used change nothing.

    `in_force` are those to go by, `taken` the names of what changed in them, `waiting` those that need a restart.
    """

    in_force: Settings
    taken: tuple[str, ...]
    waiting: tuple[str, ...]

    @classmethod
    def of(cls, now: Settings) -> "Reload":
        """Read the settings again that are in force now; ConfigError where they cannot be used."""
        wanted = now.read_again()
        changed = sorted(name for name in BY_NAME if _changed(now, wanted, name))
        taken = tuple(name for name in changed if name in AT_SIGHUP)
        fields = {BY_NAME[name].field for name in taken} - {""}
        found = {**now.found, **{name: wanted.found[name] for name in taken}}
        consul = MappingProxyType(_consul_values(found))
        in_force = replace(now, **{field: getattr(wanted, field) for field in fields}, found=found, consul=consul)
        return cls(in_force, taken, tuple(name for name in changed if name not in AT_SIGHUP))


def _changed(now: Settings, wanted: Settings, name: str) -> bool:
    before, after = now.found[name], wanted.found[name]
    # A default may depend on the machine, which is looked at once, at the start.
    by_default = before.origin is after.origin is Origin.DEFAULT
    return not by_default and before.text != after.text


def _parsed(found: Found, problems: list[str]) -> object:
    try:
        return found.setting.parse(found.text)
    except ValueError as error:
        problems.append(f"{found.setting.name}={found.shown!r} ({found.source}): {error}")
        return None


def _contradictions(settings: Settings) -> Iterator[str]:
    if settings.expose_servers and not settings.register:
        yield "MESHGATE_EXPOSE_SERVERS needs MESHGATE_REGISTER: only a registration can carry it"
    if settings.node_name and settings.register:
        yield "MESHGATE_NODE_NAME needs MESHGATE_REGISTER=false: an agent registers on its own node"
    if bool(settings.login_auth_method) != bool(settings.login_bearer_token_file):
        yield "MESHGATE_LOGIN_AUTH_METHOD and MESHGATE_LOGIN_BEARER_TOKEN_FILE need each other"
    if settings.login_auth_method and not _TOKENS.isdisjoint(settings.consul):
        yield "a token is given and MESHGATE_LOGIN_AUTH_METHOD too: leave one of them out"


def _consul_values(found: Mapping[str, Found]) -> dict[str, str]:
    given = {name: each for name, each in found.items() if not each.setting.field and each.origin is not Origin.DEFAULT}
    token, token_file = given.get(_TOKEN), given.get(_TOKEN_FILE)
    if token and token_file and token.origin is Origin.ENVIRONMENT and token_file.origin is Origin.ENV_FILE:
        # A file beats a token of the same source; it must not beat one of a higher source.
        del given[_TOKEN_FILE]
    return {_consul_key(each): each.text for each in given.values()}


def _consul_key(found: Found) -> str:
    if found.origin is Origin.FLAG and found.setting.name in (_TOKEN, _TOKEN_FILE):
        return found.setting.flag.removeprefix("--")
    return found.setting.name


def _resolve(flags: Mapping[str, str], environ: Mapping[str, str], problems: list[str]) -> dict[str, Found]:
    """The text of every setting of the table, by name."""
    problems += _unknown((name for name in environ if not _is_service_link(name, environ[name])), "the environment")
    sources = [(Origin.FLAG, flags, ""), (Origin.ENVIRONMENT, environ, "from the environment")]
    named = _find(BY_NAME[_ENV_FILE], sources)
    if named.text:
        file = Path(os.path.expanduser(named.text))  # noqa: PTH111 - it leaves what has no home as it is
        from_file = _read_env_file(file, named.source)
        problems += _unknown(from_file, named.text)
        if _ENV_FILE in from_file:
            problems.append(f"{_ENV_FILE} cannot stand in a file that it would name ({named.shown})")
        sources.append((Origin.ENV_FILE, from_file, f"from {named.text}"))
    return {setting.name: _find(setting, sources) for setting in TABLE}


def _find(setting: Setting, sources: Iterable[tuple[Origin, Mapping[str, str], str]]) -> Found:
    for origin, values, source in sources:
        text = values.get(setting.name)
        if text:
            return Found(setting, text, origin, source or f"from {setting.flag}")
    return Found(setting, setting.default_text(), Origin.DEFAULT, "the default")


def _read_env_file(path: Path, named: str) -> dict[str, str]:
    """What a `.env` file says, a dollar sign in a password as a dollar sign. `named` says who named the file."""
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"the file {path} ({named}) does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {words_of(error)}") from None
    found: dict[str, str] = {}
    for binding in parse_stream(io.StringIO(text)):
        # A binding takes the empty lines in front of it along.
        text_before = binding.original.string
        line = binding.original.line + text_before[: len(text_before) - len(text_before.lstrip())].count("\n")
        if binding.error:
            raise ConfigError(f"{path} line {line} is not NAME=value")
        if binding.key and binding.value is not None:
            found[binding.key] = binding.value
        elif binding.key and (binding.key.startswith(PREFIX) or binding.key in BY_NAME):
            raise ConfigError(f"{path} line {line}: {binding.key} has no value")
    return found


def _is_service_link(name: str, value: str) -> bool:
    return bool(_SERVICE_LINK.fullmatch(name) or _SERVICE_LINK_URL.fullmatch(f"{name}={value}"))


def _unknown(names: Iterable[str], source: str) -> Iterator[str]:
    # The prefix is common to all, and would make any of them look near.
    ours = [known.removeprefix(PREFIX) for known in BY_NAME if known.startswith(PREFIX)]
    for name in names:
        if name.startswith(PREFIX) and name not in BY_NAME:
            asked = name.removeprefix(PREFIX)
            nearest = difflib.get_close_matches(asked, ours, n=1, cutoff=0.0)[0]
            near = difflib.SequenceMatcher(None, nearest, asked).ratio() >= _NEAR
            known = f"{PREFIX}{nearest}"
            hint = f"did you mean {known}?" if near else f"the nearest is {known}, `meshgate config` lists all"
            yield f"{printable(name)} (from {source}) is not a setting; {hint}"
