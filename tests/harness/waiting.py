"""Waiting for a state of the outside world: ask again until it holds, with a deadline, and say what was missing."""

from collections.abc import Awaitable, Callable

import trio


class LateError(Exception):
    """A state was not reached in time; the message says which one and what was seen last."""


async def until(
    what: str, missing: Callable[[], Awaitable[str | None]], *, seconds: float = 10.0, interval: float = 0.05
) -> None:
    """Returns once `missing` answers None; until then it is asked every `interval` seconds.

    `missing` answers what still lacks, in words. An exception of it ends the wait.

    Raises:
        LateError: `seconds` have passed; names `what` and the last answer.
    """
    lacking: str | None = "no answer"
    with trio.move_on_after(seconds):
        while (lacking := await missing()) is not None:
            await trio.sleep(interval)
        return
    raise LateError(f"{what}: not within {seconds:g} s ({lacking})")
