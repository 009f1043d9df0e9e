"""Addresses that say how to find themselves: the templates that Consul's tools take in place of an IP address.

`{{ GetPrivateIP }}`, `{{ GetInterfaceIP "eth0" }}` and pipelines such as
`{{ GetAllInterfaces | include "network" "10.0.0.0/8" | attr "address" }}` (HashiCorp's go-sockaddr, its package
template; blocks, flags and order are that library's). The part of the language that finds one address is here; the rest
(`math`, `join`, `unique`, variables, control structures) is refused with words, never guessed.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_network
from typing import Any, Final

_TEMPLATE: Final = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
# A bar, a name, a text in quotes or backquotes, or a number; a bar inside quotes is text.
_WORD: Final = re.compile(r'\s*(?:(\|)|([A-Za-z]\w*)|"((?:[^"\\]|\\.)*)"|`([^`]*)`|(-?\d+))')


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
        return any(self.address.version == block.version and self.address.ip in block for block in blocks)


# By what lists can be sorted; the order of go-sockaddr: IPv4 before IPv6, large networks before small ones.
_KEYS: Final[Mapping[str, Callable[[Interface], Any]]] = {
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


def _usable(machine: Sequence[Interface], *, private: bool) -> Sequence[Interface]:
    """Forwardable addresses of interfaces that are up, inside of RFC 6890 or outside; the default route's first."""
    usable = [each for each in machine if each.forwardable and each.up and each.within(_RFCS["6890"]) == private]
    return sorted(usable, key=lambda each: (_KEYS["default"](each), _KEYS["type"](each), _KEYS["size"](each)))


def _selected(interface: Interface, selector: str, value: str) -> bool:
    """Whether an `include` of this selector and value keeps an address; ValueError or re.error where it is none."""
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
            # As in go-sockaddr: an interface that has all flags counts, and so does an address that is forwardable.
            flags = [flag.lower() for flag in value.split("|")]
            of_interface = [_known(flag, _FLAGS)(interface) for flag in flags if flag != "forwardable"]
            return bool(of_interface and all(of_interface)) or ("forwardable" in flags and interface.forwardable)
        case _:
            raise ValueError("selectors are name, address, network, type, rfc, size and flags")


def _known(name: str, table: Mapping[str, Any]) -> Any:  # noqa: ANN401 (what the table holds)
    try:
        return table[name.lower()]
    except KeyError:
        raise ValueError(f"{name!r} is none of {', '.join(table)}") from None


Found = Sequence[Interface]


class TemplateError(ValueError):
    """The template cannot be evaluated; one line, which says what is not understood or not found."""


def is_template(text: str) -> bool:
    return "{{" in text


def evaluate(text: str, interfaces: Iterable[Interface]) -> str:
    """The text with its templates replaced by the addresses that they find.

    Args:
        text: such as `{{ GetPrivateIP }}:8443`.
        interfaces: all addresses of this machine, in the system's order.

    Raises:
        TemplateError: a template is not understood, or finds nothing.
    """
    machine = tuple(interfaces)
    found = _TEMPLATE.sub(lambda match: _evaluated(match[1].strip(), machine), text)
    if "{{" in found or "}}" in found:
        raise TemplateError("a template has {{ in front and }} behind it")
    return found


def _evaluated(pipeline: str, machine: Found) -> str:
    first, *steps = _calls(pipeline)
    if any(step[0] == "attr" for step in steps[:-1]):
        raise TemplateError(f"nothing can follow attr in {{{{ {pipeline} }}}}")
    found = _source(first, machine)
    for step in steps:
        found = _step(step, found)
    if not found:
        raise TemplateError(f"{{{{ {pipeline} }}}} finds no address on this machine")
    return str(found[0].address.ip)


def _calls(pipeline: str) -> list[list[str]]:
    """The parts of a pipeline, each a name and its texts."""
    calls: list[list[str]] = [[]]
    at = 0
    while at < len(pipeline):
        match = _WORD.match(pipeline, at)
        # A name begins each part, and stands nowhere else.
        if match is None or bool(match[2]) == bool(calls[-1]):
            break
        bar, name, quoted, raw, number = match.groups()
        if bar:
            calls.append([])
        elif quoted is not None:
            calls[-1].append(re.sub(r"\\(.)", r"\1", quoted))
        else:
            calls[-1].append(name or raw or number or "")
        at = match.end()
    if at < len(pipeline) or not calls[-1]:
        rest = pipeline[at:].strip() or "its end"
        raise TemplateError(f'{{{{ {pipeline} }}}} is not understood at {rest}: parts are such as attr "address"')
    return calls


def _source(call: Sequence[str], machine: Found) -> Found:
    match call:
        case ["GetInterfaceIP", name]:
            try:
                named = [each for each in machine if re.search(name, each.name) and each.forwardable]
            except re.error as error:
                raise TemplateError(f"{name!r} is no regular expression: {error}") from None
            return sorted(named, key=lambda each: (_KEYS["type"](each), _KEYS["size"](each)))
        case [name] if name in _SOURCES:
            return _SOURCES[name](machine)
        case _:
            known = ", ".join(("GetInterfaceIP NAME", *_SOURCES))
            raise TemplateError(f"a template that begins with {_shown(call)} is not supported here, only {known}")


_SOURCES: Final[Mapping[str, Callable[[Found], Found]]] = {
    "GetPrivateIP": partial(_usable, private=True),
    "GetPublicIP": partial(_usable, private=False),
    "GetPrivateInterfaces": partial(_usable, private=True),
    "GetPublicInterfaces": partial(_usable, private=False),
    "GetDefaultInterfaces": lambda machine: [each for each in machine if each.default],
    "GetAllInterfaces": lambda machine: machine,
}


def _step(call: Sequence[str], found: Found) -> Found:
    match call:
        case ["include" | "exclude" as verb, selector, value]:
            try:
                return [each for each in found if _selected(each, selector.lower(), value) == (verb == "include")]
            except (ValueError, re.error) as error:
                raise TemplateError(f"{_shown(call)}: {error}") from None
        case ["sort", keys] if all(key.strip().lstrip("+-").lower() in _KEYS for key in keys.split(",")):
            return _sorted(keys, found)
        case ["limit", count] if count.isdecimal():
            return found[: int(count)]
        case ["offset", count] if count.removeprefix("-").isdecimal():
            return found[int(count) :]
        case ["attr", "address"]:
            return found
        case _:
            known = f"include, exclude, sort by {', '.join(_KEYS)}, limit, offset and attr address"
            raise TemplateError(f"{_shown(call)} is not supported here; known are {known}")


def _sorted(keys: str, found: Found) -> Found:
    for key in reversed([key.strip().lower() for key in keys.split(",")]):
        found = sorted(found, key=_KEYS[key.lstrip("+-")], reverse=key.startswith("-"))
    return found


def _shown(call: Sequence[str]) -> str:
    return " ".join((call[0], *(f'"{text}"' for text in call[1:])))
