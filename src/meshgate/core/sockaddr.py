"""Addresses that say how to find themselves: the templates that Consul's tools take in place of an IP address.

`{{ GetPrivateIP }}`, `{{ GetInterfaceIP "eth0" }}` and pipelines such as
`{{ GetAllInterfaces | include "network" "10.0.0.0/8" | attr "address" }}` (HashiCorp's go-sockaddr, its package
template). The part of the language that finds one address is here; the rest (`math`, `join`, `unique`, variables,
control structures) is refused with words, never guessed.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from .interfaces import KEYS, Interface, private, public, selected

_TEMPLATE: Final = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
# A bar, a name, a text in quotes or backquotes, or a number; a bar inside quotes is text.
_WORD: Final = re.compile(r'\s*(?:(\|)|([A-Za-z]\w*)|"((?:[^"\\]|\\.)*)"|`([^`]*)`|(-?\d+))')

Found = Sequence[Interface]


class TemplateError(ValueError):
    """The template cannot be evaluated; one line, which says what is not understood or not found."""


def is_template(text: str) -> bool:
    """Whether a text is to be evaluated before it is an address."""
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
    found = _source(first, machine)
    for number, step in enumerate(steps, 1):
        if step[0] == "attr" and number < len(steps):
            raise TemplateError(f"nothing can follow attr in {{{{ {pipeline} }}}}")
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
            named = [each for each in machine if _matches(name, each.name) and each.forwardable]
            return sorted(named, key=lambda each: (KEYS["type"](each), KEYS["size"](each)))
        case [name] if name in _SOURCES:
            return _SOURCES[name](machine)
        case _:
            known = ", ".join(("GetInterfaceIP NAME", *_SOURCES))
            raise TemplateError(f"a template that begins with {_shown(call)} is not supported here, only {known}")


_SOURCES: Final[Mapping[str, Callable[[Found], Found]]] = {
    "GetPrivateIP": private,
    "GetPublicIP": public,
    "GetPrivateInterfaces": private,
    "GetPublicInterfaces": public,
    "GetDefaultInterfaces": lambda machine: [each for each in machine if each.default],
    "GetAllInterfaces": lambda machine: machine,
}


def _step(call: Sequence[str], found: Found) -> Found:
    match call:
        case ["include" | "exclude" as verb, selector, value]:
            try:
                return [each for each in found if selected(each, selector.lower(), value) == (verb == "include")]
            except (ValueError, re.error) as error:
                raise TemplateError(f"{_shown(call)}: {error}") from None
        case ["sort", keys] if all(key.strip().lstrip("+-").lower() in KEYS for key in keys.split(",")):
            return _sorted(keys, found)
        case ["limit", count] if count.isdigit():
            return found[: int(count)]
        case ["offset", count] if count.lstrip("-").isdigit():
            return found[int(count) :]
        case ["attr", "address"]:
            return found
        case _:
            known = f"include, exclude, sort by {', '.join(KEYS)}, limit, offset and attr address"
            raise TemplateError(f"{_shown(call)} is not supported here; known are {known}")


def _sorted(keys: str, found: Found) -> Found:
    for key in reversed([key.strip().lower() for key in keys.split(",")]):
        found = sorted(found, key=KEYS[key.lstrip("+-")], reverse=key.startswith("-"))
    return found


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        raise TemplateError(f"{pattern!r} is no regular expression: {error}") from None


def _shown(call: Sequence[str]) -> str:
    return " ".join((call[0], *(f'"{text}"' for text in call[1:])))
