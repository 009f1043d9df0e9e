"""Where a gateway listens, by its registration: the service address, tagged addresses, and addresses of their own.

The rules are those of Consul's gateway (`agent/xds` makeGatewayListeners, `agent/xds/config` ParseGatewayConfig), which
reads the opaque keys of `Proxy.Config` with weak typing: "true" is true, "8443" a port, keys have any case, and a list
of one map is that map. Both spellings count: the keys of Consul 1.6 began with `envoy_mesh_gateway_`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from .weak_decode import boolean, mapping, number

DEFAULT_LISTENER: Final = "default"
_PREFIXES: Final = ("envoy_gateway_", "envoy_mesh_gateway_")
_PORTS: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class BindAddress:
    """A named address: a listener of the gateway, or one of its tagged addresses."""

    name: str
    address: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address or "*"
        return f"{self.name}={host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ListenPlan:
    """`addresses` are numeric, each one once, by name; an empty one is every IPv4 address.

    `problems` are addresses that the registration asks for and that nothing can listen on, a line each.
    """

    addresses: tuple[BindAddress, ...]
    problems: tuple[str, ...] = ()


def listen_plan(address: str, port: int, tagged: Iterable[BindAddress], config: Mapping[str, object]) -> ListenPlan:
    """Where to listen.

    Args:
        address: of the service; empty for the node's, which means every address of this machine.
        port: of the service.
        tagged: `TaggedAddresses` of the service.
        config: `Proxy.Config`, central configuration merged.
    """
    wanted = sorted(_wanted(address, port, tagged, config), key=lambda each: each.name)
    problems = [f"listener {each}: {why}" for each in wanted if (why := _unusable(each))]
    usable = [each for each in wanted if not _unusable(each)]
    everywhere = {(_family(each.address), each.port) for each in usable if _is_any(each.address)}
    found: dict[tuple[str, int], BindAddress] = {}
    for each in usable:
        # An address beside the one that stands for all of its family could not be bound, and is served anyway.
        if _is_any(each.address) or (_family(each.address), each.port) not in everywhere:
            found.setdefault((_canonical(each.address), each.port), each)
    return ListenPlan(tuple(found.values()), tuple(problems))


def _wanted(
    address: str, port: int, tagged: Iterable[BindAddress], config: Mapping[str, object]
) -> Iterator[BindAddress]:
    if not boolean(_value(config, "no_default_bind")):
        yield BindAddress(DEFAULT_LISTENER, address, port)
    if boolean(_value(config, "bind_tagged_addresses")):
        yield from tagged
    for name, value in mapping(_value(config, "bind_addresses")).items():
        fields = {key.lower(): each for key, each in mapping(value).items()}
        yield BindAddress(name, str(fields.get("address") or ""), int(number(fields.get("port")) or 0))


def _value(config: Mapping[str, object], key: str) -> object:
    """The value under the present spelling, else under that of Consul 1.6."""
    return next((config[prefix + key] for prefix in _PREFIXES if prefix + key in config), None)


def _unusable(bind: BindAddress) -> str:
    if not 0 < bind.port < _PORTS:
        return f"{bind.port} is no port"
    if bind.address and _family(bind.address) == 0:
        return f"{bind.address!r} is no IP address"
    return ""


def _family(address: str) -> int:
    """4 or 6; 0 for what is no numeric address. No address means every IPv4 address."""
    try:
        return ip_address(address or "0.0.0.0").version  # noqa: S104 (compared, not bound)
    except ValueError:
        return 0


def _is_any(address: str) -> bool:
    return not address or ip_address(address).is_unspecified


def _canonical(address: str) -> str:
    return str(ip_address(address)) if address else "0.0.0.0"  # noqa: S104 (compared, not bound)
