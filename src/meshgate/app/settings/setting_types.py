"""From the text of a setting to its value.

A parser takes the text as the user wrote it and returns the value, or raises `ValueError` whose message says what is
allowed. Who wrote it where is the caller's to add.
"""

import ipaddress
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from meshgate.adapters.error_words import words_of
from meshgate.core.addresses import LOCAL_CLASSES, DeniedAddresses, HostPort, is_numeric, plain_network
from meshgate.core.durations import format_duration, parse_duration
from meshgate.core.proxy_config import BindAddress
from meshgate.core.sockaddr import evaluate, is_template

SANDBOX_MODES: Final = ("require", "auto", "off")
LOG_LEVELS: Final = ("trace", "debug", "info", "warn", "error")

_HOSTNAME: Final = re.compile(r"(?=.{1,253}\.?$)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_-]+)*\.?")
_SIZE: Final = re.compile(r"([0-9]{1,15})(K|M|G|Ki|Mi|Gi|)")
_SHIFTS: Final = {"": 0, "K": 10, "M": 20, "G": 30, "Ki": 10, "Mi": 20, "Gi": 30}
_LARGEST_SIZE: Final = 1 << 50
# sun_path of the smaller systems, without its final NUL.
_LONGEST_SOCKET_PATH: Final = 103
_IN_NO_NAME: Final = frozenset(" \"'{}\\")
_BIND_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")


def name(text: str) -> str:
    """The name or ID of a service. Consul cuts one at a blank, and no ACL rule can hold a quote or a template."""
    if not text.isprintable() or not _IN_NO_NAME.isdisjoint(text):
        raise ValueError("must be a name without spaces, quotes, braces, backslashes and control characters")
    return text


def duration(low: float = 0.0, *, high: float = float("inf"), zero: bool = False) -> Callable[[str], float]:
    """A parser of durations in seconds, from `low` to `high`; 0 as well if `zero`."""

    def parse(text: str) -> float:
        try:
            seconds = parse_duration(text)
        except ValueError:
            raise ValueError("must be a duration such as 500ms, 15s or 1h") from None
        if (zero and seconds == 0) or low <= seconds <= high:
            return seconds
        bounds = (
            f"at least {format_duration(low)}"
            if high == float("inf")
            else (f"from {format_duration(low)} to {format_duration(high)}")
        )
        raise ValueError(f"must be {'0 (off), or ' if zero else ''}{bounds}")

    return parse


def whole(low: int, high: int, what: str = "a number") -> Callable[[str], int]:
    """A parser of whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        # isascii: int() also takes other scripts' digits, and underscores.
        if text.isascii() and text.isdigit() and len(text) <= 20 and low <= int(text) <= high:
            return int(text)
        raise ValueError(f"must be {what} from {low} to {high}")

    return parse


def size(low: int) -> Callable[[str], int]:
    """A parser of numbers of bytes from `low`, also written with K, M or G as systemd has them; 0 as well."""

    def parse(text: str) -> int:
        found = _SIZE.fullmatch(text)
        size = int(found[1]) << _SHIFTS[found[2]] if found else -1
        if size == 0 or low <= size <= _LARGEST_SIZE:
            return size
        raise ValueError(f"must be 0 (off), or a size such as 512M or 2G of at least {low >> 20}M")

    return parse


def one_of(words: Collection[str]) -> Callable[[str], str]:
    """A parser of these words, in any case."""

    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return text.lower()

    return parse


def lan_address(text: str) -> HostPort:
    """`:port`, `host:port` or `[v6]:port`; the host may be missing, the port may not be 0."""
    allowed = "must be :port, host:port or [IPv6]:port with a port from 1 to 65535"
    found = _host_port(_evaluated(text), allowed)
    if found.host and not _is_host(found.host):
        raise ValueError(allowed)
    return _not_any(found, f":{found.port} registers the node's address and listens on all")


def wan_address(text: str) -> HostPort:
    """`host:port` or `[v6]:port`: what other datacenters dial."""
    allowed = "must be host:port or [IPv6]:port with a port from 1 to 65535"
    found = _host_port(_evaluated(text), allowed)
    if not _is_host(found.host):
        raise ValueError(allowed)
    return _not_any(found, "other datacenters need an address that they can dial")


def bind_addresses(text: str) -> tuple[BindAddress, ...]:
    """`name=ip:port`, several separated by commas; every name and every address once."""
    allowed = "must be name=ip:port, several separated by commas"
    found: list[BindAddress] = []
    for item in _evaluated(text).split(","):
        label, equals, address = item.strip().partition("=")
        if not (equals and _BIND_NAME.fullmatch(label)):
            raise ValueError(allowed)
        host, port = _host_port(address, allowed)
        if not _is_ip(host):
            raise ValueError(f"{allowed}; {address!r} has no IP address")
        found.append(BindAddress(label, host, port))
    if len({bind.name for bind in found}) < len(found):
        raise ValueError("must not name a listener twice")
    if len({(bind.address, bind.port) for bind in found}) < len(found):
        raise ValueError("must not bind an address twice")
    return tuple(found)


def networks(text: str) -> tuple[str, ...]:
    """CIDR blocks, separated by commas; an address is the block of it alone."""
    try:
        return tuple(str(plain_network(word.strip())) for word in text.split(","))
    except ValueError as error:
        raise ValueError(f"must be CIDR blocks separated by commas: {error}") from None


def denied_addresses(text: str) -> DeniedAddresses:
    """CIDR blocks and names of `LOCAL_CLASSES`, separated by commas; or `none`."""
    words = [word.strip() for word in text.split(",")]
    if words == ["none"]:
        return DeniedAddresses()
    networks = []
    for word in words:
        if word not in LOCAL_CLASSES:
            try:
                networks.append(plain_network(word))
            except ValueError as error:
                known = ", ".join(LOCAL_CLASSES)
                why = f"; {error}" if "/" in word else ""
                raise ValueError(f"must be CIDR blocks and {known}, separated by commas, or none{why}") from None
    return DeniedAddresses(frozenset(words).intersection(LOCAL_CLASSES), tuple(networks))


def admin_bind(text: str) -> HostPort | Path | None:
    """`ip:port` (port 0: a free one), `unix:///path`, or `off` for None."""
    allowed = "must be ip:port, unix:///path or off"
    if text == "off":
        return None
    if text.startswith("unix://"):
        path = Path(text.removeprefix("unix://"))
        if not path.is_absolute() or "\0" in text or path == Path("/"):
            raise ValueError(allowed)
        if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
            raise ValueError(f"must be a path of at most {_LONGEST_SOCKET_PATH} bytes")
        return path
    host, port = _host_port(text, allowed, lowest=0)
    if host == "localhost":
        host = "127.0.0.1"
    if not _is_ip(host):
        raise ValueError(allowed)
    return HostPort(host, port)


def path(text: str) -> Path:
    """A path, with `~` for the home directory."""
    if "\0" in text:
        raise ValueError("must be a path")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError("must be a path; the home directory that ~ stands for is not known") from None


def access_log(text: str) -> str:
    if text in ("off", "stdout", "stderr"):
        return text
    return str(path(text))


def _evaluated(text: str) -> str:
    """The text with go-sockaddr templates replaced by addresses of this machine, as Consul's own flags have it."""
    if not is_template(text):
        return text
    from meshgate.adapters.machine import interfaces  # noqa: PLC0415 - few settings need it

    try:
        return evaluate(text, interfaces())
    except OSError as error:
        raise ValueError(f"the addresses of this machine cannot be listed: {words_of(error)}") from None


def _host_port(text: str, allowed: str, *, lowest: int = 1) -> HostPort:
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        bracketed_right = ":" in host
    else:
        bracketed_right = ":" not in host
    digits = port.isascii() and port.isdigit() and len(port) <= 5
    if not (colon and bracketed_right and digits and lowest <= int(port) <= 65535):
        raise ValueError(allowed)
    return HostPort(host, int(port))


def _not_any(address: HostPort, advice: str) -> HostPort:
    # Consul refuses to register 0.0.0.0 or [::] ("Invalid service address").
    if _is_ip(address.host) and ipaddress.ip_address(address.host).is_unspecified:
        raise ValueError(f"must not be 0.0.0.0 or [::], which nobody can dial; {advice}")
    return address


def _is_ip(host: str) -> bool:
    return is_numeric(host) and "%" not in host  # a zone names an interface of one machine


def _is_host(host: str) -> bool:
    if _is_ip(host):
        return True
    # A name whose last label is a number is a mistyped IPv4 address (WHATWG URL, "ends in a number").
    return bool(_HOSTNAME.fullmatch(host)) and not host.rstrip(".").rpartition(".")[2].isdigit()
