"""When a request to Consul is tried again: one policy for each kind of request, by name.

Waits are random, so that many gateways do not return to Consul in step. How a wait may be cut short is the caller's: it
gives `Policy.retrying` a sleep of its own.
"""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    wait_random,
    wait_random_exponential,
)

from .api import (
    BadRequestError,
    ConsulError,
    EndpointBlockedError,
    NotFoundError,
    NotReadyError,
    PermissionDeniedError,
    RateLimitedError,
    UnexpectedStatusError,
)

# Seconds between two tries at most.
LONGEST_PAUSE: Final = 30.0

_exponential: Final = wait_random_exponential(multiplier=0.5, max=LONGEST_PAUSE)

Wait = Callable[[RetryCallState], float]


@dataclass(frozen=True, slots=True)
class Policy:
    """Which failures a request is tried again after, and how long after: `wait` makes what tells that."""

    wait: Callable[[], Wait]
    after: Callable[[ConsulError], bool] = lambda _: True

    def retrying(
        self,
        *,
        sleep: Callable[[float], Awaitable[None]] = trio.sleep,
        on_failure: Callable[[ConsulError], None] = lambda _: None,
        wanted: Callable[[], bool] = lambda: True,
    ) -> AsyncRetrying:
        """What makes one request as often as it takes: `await policy.retrying()(request)`.

        No other try is made once it is no longer `wanted`. `on_failure` hears of each failure that is followed by
        another try. The last one goes through as it is, and so does anything but a `ConsulError`, cancellation among
        it.
        """
        return AsyncRetrying(
            sleep=sleep,
            wait=self.wait(),
            retry=retry_if_exception(lambda error: isinstance(error, ConsulError) and self.after(error)),
            stop=lambda _: not wanted(),
            before_sleep=lambda attempt: on_failure(error_of(attempt)),
            reraise=True,
        )


def error_of(attempt: RetryCallState) -> ConsulError:
    error = None if attempt.outcome is None else attempt.outcome.exception()
    assert isinstance(error, ConsulError)
    return error


class _ByFailure:
    """Seconds by what failed.

    A refusal starts at about a second, since a secondary datacenter learns of a new token that late, and an agent that
    starts knows no token at first; it becomes slow when it stays. Where only an operator can help, or Consul asks for
    less, it is slow from the start.
    """

    def __init__(self) -> None:
        self._refusals = 0

    def __call__(self, attempt: RetryCallState) -> float:
        error = error_of(attempt)
        refused = isinstance(error, PermissionDeniedError) and not isinstance(error, EndpointBlockedError)
        self._refusals = self._refusals + 1 if refused else 0
        if self._refusals:
            # Other failures before, of an outage perhaps, do not make it slow.
            return random.uniform(0.5, 1) * min(LONGEST_PAUSE, 2.0 ** min(self._refusals - 1, 10))  # noqa: S311
        if isinstance(error, NotReadyError):
            return random.uniform(0.5, 1.5)  # noqa: S311
        slow = isinstance(
            error, BadRequestError | EndpointBlockedError | NotFoundError | RateLimitedError | UnexpectedStatusError
        )
        if slow or error.status == "disabled":
            return random.uniform(10, LONGEST_PAUSE)  # noqa: S311
        return _exponential(attempt)


WATCHES: Final = Policy(wait=_ByFailure)
"""Queries that are held, and those that are made in turns: tried until they succeed."""

READINGS: Final = Policy(
    wait=lambda: wait_random(1, 5), after=lambda error: error.status in ("unreachable", "timeout", "429")
)
"""Queries that nobody holds, while nothing can be asked: another failure is left to those who enqueue them."""

LOOKUPS: Final = Policy(
    wait=lambda: wait_random(0.1, 0.3), after=lambda error: not isinstance(error, PermissionDeniedError)
)
"""What a stream waits for: no answer must not be taken for "no such service". When to give up is the caller's."""

DEREGISTRATIONS: Final = Policy(wait=lambda: wait_random(0.05, 0.2), after=lambda error: error.status == "other_agent")
"""The removal of the own registration: tried until the agent that has it answers. When to give up is the caller's."""
