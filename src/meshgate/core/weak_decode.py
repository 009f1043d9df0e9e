"""Values of Consul's opaque configuration, read as loosely as Consul reads them.

The maps under `Proxy.Config` come from JSON, HCL or YAML that people wrote; Consul decodes them with weak typing
(mapstructure's `WeaklyTypedInput`). What cannot be read at all is as if it were not there.
"""

from collections.abc import Mapping
from typing import Final

# Go's strconv.ParseBool.
_TRUE: Final = frozenset(("1", "t", "T", "TRUE", "true", "True"))
_FALSE: Final = frozenset(("0", "f", "F", "FALSE", "false", "False"))


def parse_bool(text: str) -> bool:
    """A boolean as Go's ParseBool reads it, which reads those of Consul's own flags and variables.

    Raises:
        ValueError: it is none.
    """
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError("must be true or false")


def number(value: object) -> float | None:
    """A number as JSON or HCL brings it: an integer, a float, or its text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if abs(found) < float("inf") else None


def boolean(value: object) -> bool:
    """True for true, the texts that Go reads as true, and numbers other than 0."""
    if isinstance(value, str):
        return value in _TRUE
    return isinstance(value, int | float) and bool(value)


def mapping(value: object) -> Mapping[str, object]:
    """A map with text keys; HCL wraps it into a list of one. Empty for anything else."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, Mapping):
        return {}
    return {key: each for key, each in value.items() if isinstance(key, str)}
