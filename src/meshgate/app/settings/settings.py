"""The effective settings: flag > environment > `.env` file > default, and where each came from.

An empty value counts as not set, as with Consul's own variables. `Settings` is complete and checked: whatever reads it
later needs no second look. A secret is in `consul` alone and in no repr, error or listing.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from meshgate.app.errors import ConfigError
from meshgate.app.settings.setting_sources import Found, Origin, resolve
from meshgate.app.settings.setting_table import TABLE
from meshgate.core.host_port import HostPort
from meshgate.core.listeners import BindAddress

_TOKEN = "CONSUL_HTTP_TOKEN"  # noqa: S105 - the name of a variable
_TOKEN_FILE = "CONSUL_HTTP_TOKEN_FILE"  # noqa: S105 - the name of a variable


@dataclass(frozen=True, slots=True)
class Settings:
    """One field for each `MESHGATE_` variable; times are in seconds.

    `consul` holds Consul's own variables that are set, as written. A token or token file given by a flag stands under
    `token` or `token-file` there, because Consul's precedence tells them from the environment's: flag `-token-file`,
    then `-token`, then `CONSUL_HTTP_TOKEN_FILE`, then `CONSUL_HTTP_TOKEN`. `admin_bind` is a path for a unix socket and
    None when off.
    """

    service: str
    proxy_id: str
    address: HostPort
    wan_address: HostPort | None
    bind_address: tuple[BindAddress, ...]
    expose_servers: bool
    register: bool
    node_name: str
    deregister_after_critical: float
    admin_bind: HostPort | Path | None
    workers: int
    state_dir: Path | None
    hello_timeout: float
    connect_timeout: float
    idle_timeout: float
    keepalive: float
    drain_timeout: float
    max_connections: int
    max_connections_per_client: int
    max_pending_per_endpoint: int
    max_hello_bytes: int
    catalog_watches: int
    panic_threshold: int
    enforce_exports: bool
    pass_http_exports: bool
    access_log: str
    log_level: str
    log_json: bool
    consul: Mapping[str, str] = field(repr=False)
    found: Mapping[str, Found] = field(repr=False)

    @classmethod
    def load(
        cls,
        flags: Mapping[str, str] = MappingProxyType({}),
        *,
        environ: Mapping[str, str] | None = None,
        env_file: str | Path | None = None,
    ) -> "Settings":
        """Find, check and combine all settings.

        Args:
            flags: what the command line says, as text, by the name of the variable.
            environ: the environment; that of this process by default.
            env_file: the `.env` file, which must exist. None: `./.env`, which need not.

        Raises:
            ConfigError: a value is not allowed, a name is not known, or the file cannot be read.
        """
        found = resolve(flags, os.environ if environ is None else environ, env_file)
        values: dict[str, Any] = {setting.field: _parsed(found[setting.name]) for setting in TABLE if setting.field}
        values["proxy_id"] = values["proxy_id"] or values["service"]
        values["bind_address"] = values["bind_address"] or ()
        if values["expose_servers"] and not values["register"]:
            raise ConfigError("MESHGATE_EXPOSE_SERVERS needs MESHGATE_REGISTER: only a registration can carry it")
        values["node_name"] = values["node_name"] or ""
        if values["node_name"] and values["register"]:
            raise ConfigError("MESHGATE_NODE_NAME needs MESHGATE_REGISTER=false: an agent registers on its own node")
        return cls(**values, consul=MappingProxyType(_consul_values(found)), found=MappingProxyType(found))

    def origin(self, name: str) -> Origin:
        """Where the value of the variable `name` came from."""
        return self.found[name].origin

    def shown(self, name: str) -> str:
        """The value of the variable `name` as users may see it; "" where there is none."""
        if name == "MESHGATE_PROXY_ID":
            return self.proxy_id
        return self.found[name].shown

    def secrets(self) -> tuple[str, ...]:
        """Texts that no output may contain."""
        return tuple(found.text for found in self.found.values() if found.setting.secret and found.text)


def _parsed(found: Found) -> object:
    if not found.text:
        return None
    try:
        return found.setting.parse(found.text)
    except ValueError as error:
        raise ConfigError(f"{found.setting.name}={found.shown!r} ({found.source}): {error}") from None


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
