"""An address and a port as one text, and as one value."""

from typing import NamedTuple


def host_port(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class HostPort(NamedTuple):
    """A host (an IP address without brackets, a name, or "" for none) and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return host_port(*self)
