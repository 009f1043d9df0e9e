"""The checks of a node with what they last said: asked of Consul for a person who wants to know, not watched.

What a check says changes with each of its runs, so it has no place in the catalog that routes are made of.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec
import trio

from .errors import ConsulError
from .wire import decoder

# An answer is good for this many seconds, and so many are remembered.
_FRESH: Final = 5.0
_REMEMBERED: Final = 64
_PATIENCE: Final = 3.0


@dataclass(frozen=True, slots=True)
class NodeCheck:
    """A check as its node has it. `service_id` is empty for one of the node itself; `output` is anybody's text."""

    id: str
    name: str
    status: str
    output: str
    service_id: str = ""


class CheckReader(Protocol):
    """What is asked of the client."""

    async def node_checks(self, node: str, *, datacenter: str = "") -> tuple[NodeCheck, ...]:
        """All checks of a node, of another datacenter too."""
        ...


class Checks:
    """Asks for one node at a time, and repeats an answer that is fresh, so that questions do not load Consul."""

    def __init__(self, client: CheckReader) -> None:
        self._client = client
        self._lock = trio.Lock()
        self._answers: OrderedDict[tuple[str, str], tuple[float, tuple[NodeCheck, ...] | str]] = OrderedDict()

    async def of(self, node: str, instance: str, *, datacenter: str = "") -> tuple[NodeCheck, ...] | str:
        """The checks that count for an instance; or a line that says why they cannot be told."""
        answer: tuple[NodeCheck, ...] | str = "Consul does not answer"
        with trio.move_on_after(_PATIENCE):
            async with self._lock:
                answer = await self._answer(node, datacenter)
        if isinstance(answer, str):
            return answer
        return tuple(check for check in answer if check.service_id in ("", instance))

    async def _answer(self, node: str, datacenter: str) -> tuple[NodeCheck, ...] | str:
        key = (datacenter, node)
        asked, answer = self._answers.get(key, (-_FRESH, ""))
        if trio.current_time() - asked < _FRESH:
            return answer
        try:
            answer = await self._client.node_checks(node, datacenter=datacenter)
        except ConsulError as error:
            answer = str(error)
        self._answers[key] = trio.current_time(), answer
        self._answers.move_to_end(key)
        if len(self._answers) > _REMEMBERED:
            self._answers.popitem(last=False)
        return answer


class _Check(msgspec.Struct, rename="pascal"):
    """A row of `/v1/health/node/:node`."""

    check_id: str = msgspec.field(name="CheckID", default="")
    name: str | None = ""
    status: str | None = ""
    output: str | None = ""
    service_id: str | None = msgspec.field(name="ServiceID", default="")


def _node_checks(rows: list[_Check] | None) -> tuple[NodeCheck, ...]:
    return tuple(
        NodeCheck(row.check_id, row.name or "", row.status or "", row.output or "", row.service_id or "")
        for row in rows or ()
    )


decode_node_checks = decoder(list[_Check] | None, _node_checks)
