"""The addresses of a machine's network interfaces, and how HashiCorp's go-sockaddr chooses among them.

Blocks and flags are those of that library: "private" is what RFC 6890 sets aside and a router may forward.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_network
from typing import Any, Final


def _blocks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(block) for block in text.split())


_NOT_FORWARDABLE: Final = _blocks(
    "0.0.0.0/8 127.0.0.0/8 169.254.0.0/16 192.0.0.0/24 192.0.2.0/24 198.51.100.0/24 203.0.113.0/24 240.0.0.0/4 "
    "::1/128 ::/128 ::ffff:0:0/96 2001:db8::/32 2001:10::/28 fe80::/10"
)
_RFCS: Final = {
    "1918": _blocks("10.0.0.0/8 172.16.0.0/12 192.168.0.0/16"),
    "4193": _blocks("fc00::/7"),
    "6598": _blocks("100.64.0.0/10"),
    "6890": _NOT_FORWARDABLE
    + _blocks(
        "10.0.0.0/8 100.64.0.0/10 172.16.0.0/12 192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 64:ff9b::/96 100::/64 "
        "2001::/23 2002::/16 fc00::/7"
    ),
}


@dataclass(frozen=True, slots=True)
class Interface:
    """An address of a network interface. `default`: the interface has the default route."""

    name: str
    address: IPv4Interface | IPv6Interface
    up: bool = True
    loopback: bool = False
    broadcast: bool = False
    multicast: bool = False
    point_to_point: bool = False
    default: bool = False

    @property
    def forwardable(self) -> bool:
        """Whether a router would pass packets for the address on."""
        return not self.within(_NOT_FORWARDABLE)

    def within(self, blocks: Sequence[IPv4Network | IPv6Network]) -> bool:
        """Whether the address is in one of the blocks."""
        return any(self.address.version == block.version and self.address.ip in block for block in blocks)


# By what lists can be sorted; the order of go-sockaddr: IPv4 before IPv6, large networks before small ones.
KEYS: Final[Mapping[str, Callable[[Interface], Any]]] = {
    "address": lambda each: (each.address.version, int(each.address.ip)),
    "default": lambda each: not each.default,
    "name": lambda each: each.name,
    "private": lambda each: not each.within(_RFCS["6890"]),
    "size": lambda each: each.address.network.prefixlen,
    "type": lambda each: each.address.version,
}

_FLAGS: Final[Mapping[str, Callable[[Interface], bool]]] = {
    "up": lambda each: each.up,
    "loopback": lambda each: each.loopback,
    "broadcast": lambda each: each.broadcast,
    "multicast": lambda each: each.multicast,
    "point-to-point": lambda each: each.point_to_point,
}
_TYPES: Final = {"ip": (4, 6), "ipv4": (4,), "ipv6": (6,)}


def private(machine: Sequence[Interface]) -> Sequence[Interface]:
    """Forwardable addresses of interfaces that are up, of RFC 6890; the default route's first."""
    return [each for each in _usable(machine) if each.within(_RFCS["6890"])]


def public(machine: Sequence[Interface]) -> Sequence[Interface]:
    """As `private`, but those outside of RFC 6890."""
    return [each for each in _usable(machine) if not each.within(_RFCS["6890"])]


def _usable(machine: Sequence[Interface]) -> Sequence[Interface]:
    usable = [each for each in machine if each.forwardable and each.up]
    return sorted(usable, key=lambda each: (KEYS["default"](each), KEYS["type"](each), KEYS["size"](each)))


def selected(interface: Interface, selector: str, value: str) -> bool:
    """Whether an `include` with this selector and value keeps an address.

    Raises:
        ValueError: the selector is not known, or the value is none for it.
        re.error: the value is no regular expression.
    """
    match selector:
        case "name":
            return re.search(value, interface.name) is not None
        case "address":
            return re.search(value, str(interface.address)) is not None
        case "network":
            return interface.within([ip_network(block, strict=False) for block in value.split("|")])
        case "type":
            return interface.address.version in [
                version for name in value.split("|") for version in _known(name, _TYPES)
            ]
        case "rfc" | "rfcs":
            return interface.within([block for number in value.split("|") for block in _known(number, _RFCS)])
        case "size":
            return interface.address.network.prefixlen == int(value)
        case "flag" | "flags":
            return _flagged(interface, [flag.lower() for flag in value.split("|")])
        case _:
            raise ValueError("selectors are name, address, network, type, rfc, size and flags")


def _flagged(interface: Interface, flags: Sequence[str]) -> bool:
    """As in go-sockaddr: an interface that has all the flags counts, and so does an address that is forwardable."""
    of_interface = [_known(flag, _FLAGS) for flag in flags if flag != "forwardable"]
    has_all = bool(of_interface) and all(flag(interface) for flag in of_interface)
    return has_all or ("forwardable" in flags and interface.forwardable)


def _known(name: str, table: Mapping[str, Any]) -> Any:  # noqa: ANN401 (what the table holds)
    try:
        return table[name.lower()]
    except KeyError:
        raise ValueError(f"{name!r} is none of {', '.join(table)}") from None
