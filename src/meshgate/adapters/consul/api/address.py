"""How to reach the Consul agent: the `CONSUL_*` settings with the meaning that Consul's own client gives them.

Source of every rule here: `api/api.go` of Consul (`DefaultConfig`, `NewClient`, `SetupTLSConfig`) and its command line
flags. The settings arrive as plain text, with flags already laid over the environment; only for the token both origins
are needed, because a token flag wins over a token file of the environment.

A `ConsulAddress` holds secrets, so its repr leaves them out; so do all errors of this module.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import urlsplit

from meshgate.core.weak_decode import parse_bool

DEFAULT_ADDRESS: Final = "127.0.0.1:8500"
# Keys of a token that came from a flag, next to CONSUL_HTTP_TOKEN and CONSUL_HTTP_TOKEN_FILE of the environment.
FLAG_TOKEN: Final = "token"  # noqa: S105 (the name of a setting)
FLAG_TOKEN_FILE: Final = "token-file"  # noqa: S105


class ConsulConfigError(ValueError):
    """The settings of the Consul client cannot be used. One line, without any secret."""


@dataclass(frozen=True, slots=True)
class ConsulAddress:
    """Where the agent listens and how to speak with it.

    With `unix_path` the socket is dialed and `host` and `port` are not used. `port` is None where the address names
    none (HTTP's own default then applies, as in Consul's client). `token` is what to use while `token_file` is empty or
    not set. `http_auth` is user and password. `warnings` are lines for the log about settings that were ignored.
    """

    scheme: str = "http"
    host: str = "127.0.0.1"
    port: int | None = 8500
    path_prefix: str = ""
    unix_path: str = ""
    verify: bool = True
    token: str = field(default="", repr=False)
    token_file: str = ""
    http_auth: tuple[str, str] | None = field(default=None, repr=False)
    ca_file: str = ""
    ca_path: str = ""
    client_cert: str = ""
    client_key: str = ""
    tls_server_name: str = ""
    namespace: str = ""
    partition: str = ""
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_settings(cls, values: Mapping[str, str]) -> "ConsulAddress":
        """Read the settings that are set; an absent key and an empty value both mean "not set".

        Args:
            values: by their `CONSUL_*` names, with flags already laid over the environment, except for the token:
                `CONSUL_HTTP_TOKEN` and `CONSUL_HTTP_TOKEN_FILE` are those of the environment, `FLAG_TOKEN` and
                `FLAG_TOKEN_FILE` those of the flags. Keys that are not of the client are ignored.

        Raises:
            ConsulConfigError: a setting has no usable value, or two contradict each other.
        """
        warnings: list[str] = []
        ssl = _flag(values, "CONSUL_HTTP_SSL", warnings)
        verify = _flag(values, "CONSUL_HTTP_SSL_VERIFY", warnings)
        place = _place(values.get("CONSUL_HTTP_ADDR") or DEFAULT_ADDRESS)
        cert, key = values.get("CONSUL_CLIENT_CERT", ""), values.get("CONSUL_CLIENT_KEY", "")
        if bool(cert) != bool(key):
            missing = "CONSUL_CLIENT_KEY" if cert else "CONSUL_CLIENT_CERT"
            raise ConsulConfigError(f"both client certificate and key must be set, {missing} is missing")
        token, token_file = _token(values)
        user, separator, password = values.get("CONSUL_HTTP_AUTH", "").partition(":")
        return replace(
            place,
            # An address with http:// does not take back TLS that was asked for.
            scheme="https" if ssl else place.scheme,
            verify=verify is not False,
            token=token,
            token_file=token_file,
            http_auth=(user, password) if user or separator else None,
            ca_file=values.get("CONSUL_CACERT", ""),
            ca_path=values.get("CONSUL_CAPATH", ""),
            client_cert=cert,
            client_key=key,
            tls_server_name=_without_port(values.get("CONSUL_TLS_SERVER_NAME", "")),
            namespace=values.get("CONSUL_NAMESPACE", ""),
            partition=values.get("CONSUL_PARTITION", ""),
            warnings=tuple(warnings),
        )

    @property
    def url(self) -> str:
        """The address for a log line or an error: never a secret in it."""
        return f"unix://{self.unix_path}" if self.unix_path else self.base_url

    @property
    def base_url(self) -> str:
        """What the path of a request is appended to; over a Unix socket the host is only a name."""
        if self.unix_path:
            return f"{self.scheme}://localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.path_prefix}"


def _flag(values: Mapping[str, str], name: str, warnings: list[str]) -> bool | None:
    text = values.get(name, "")
    try:
        return parse_bool(text) if text else None
    except ValueError:
        warnings.append(f"{name} is no boolean and is ignored: {text!r}")
        return None


def _token(values: Mapping[str, str]) -> tuple[str, str]:
    """Token and token file by precedence: file flag, token flag, file of the environment, token of the environment.

    The token next to a file is the one of the next lower rank: Consul's client ignores an empty file.
    """
    flag, flag_file = values.get(FLAG_TOKEN, ""), values.get(FLAG_TOKEN_FILE, "")
    environment = values.get("CONSUL_HTTP_TOKEN", "")
    if flag_file:
        return flag or environment, flag_file
    if flag:
        return flag, ""
    return environment, values.get("CONSUL_HTTP_TOKEN_FILE", "")


def _place(text: str) -> ConsulAddress:
    """Scheme, host, port, prefix and socket path of `CONSUL_HTTP_ADDR`."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "http", text
    if scheme == "unix":
        if not rest:
            raise ConsulConfigError("CONSUL_HTTP_ADDR names no socket: unix:// needs a path")
        return ConsulAddress(unix_path=rest)
    if scheme not in ("http", "https"):
        raise ConsulConfigError(f"Unknown protocol scheme: {scheme}")
    netloc, slash, path = rest.partition("/")
    try:
        parts = urlsplit(f"//{netloc}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        # The text of the error could repeat a password that was written into the address.
        raise ConsulConfigError("CONSUL_HTTP_ADDR is no host:port, URL or unix:// path") from error
    if parts.username is not None:
        raise ConsulConfigError("CONSUL_HTTP_ADDR holds a user name: use CONSUL_HTTP_AUTH for it")
    if parts.netloc != netloc or any(character.isspace() for character in text) or not (host or port):
        raise ConsulConfigError(f"CONSUL_HTTP_ADDR is no host:port, URL or unix:// path: {text!r}")
    return ConsulAddress(
        scheme=scheme,
        # Go dials an address without a host (":8500") on this machine.
        host=host or "127.0.0.1",
        port=port,
        path_prefix=f"/{path}".rstrip("/") if slash else "",
    )


def _without_port(name: str) -> str:
    """Host of `host:port`, as `SetupTLSConfig` cuts it; an IPv6 literal without brackets stays whole."""
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0] if name.count(":") == 1 else name
