"""A watch of something that answers by a script."""

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from meshgate.adapters.consul import WatchKey, WatchRegistry
from meshgate.adapters.consul.api import (
    LONGEST_WAIT,
    ConsulError,
    ConsulUnreachableError,
    Cursor,
    Page,
    PermissionDeniedError,
)
from meshgate.adapters.consul.watch import Watch

UNREACHABLE = ConsulUnreachableError("cannot reach Consul", "unreachable")
DENIED = PermissionDeniedError("Permission denied")

Step = Page[str] | ConsulError


@dataclass
class Script:
    """Answers by a script, at once; the last step repeats. Records when it was asked and with what."""

    steps: list[Step]
    asked: list[tuple[float, Cursor]] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    hold: Callable[[Cursor], bool] = lambda cursor: False

    async def ask(self, cursor: Cursor) -> Page[str]:
        self.asked.append((trio.current_time(), cursor))
        await trio.sleep(cursor.wait if self.hold(cursor) else 0)
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, ConsulError):
            raise step
        return step

    def watch(self, registry: WatchRegistry, name: str = "it", interval: float | None = None) -> Watch[str]:
        return Watch(
            registry,
            WatchKey("kind", name),
            self.ask,
            self.values.append,
            on_error=lambda e: self.errors.append(str(e)),
            interval=interval,
        )

    @property
    def times(self) -> list[float]:
        start = self.asked[0][0]
        return [round(at - start, 3) for at, _ in self.asked]

    @property
    def cursors(self) -> list[int]:
        return [cursor.index for _, cursor in self.asked]


async def run(
    script: Script, seconds: float, registry: WatchRegistry | None = None, interval: float | None = None
) -> None:
    with trio.move_on_after(seconds):
        await script.watch(registry or WatchRegistry(first_wait=LONGEST_WAIT), interval=interval).run()
