"""What a person wants to know and no watch follows: why a service has no route, and what the checks of a node say.

One question is asked at a time, and an answer that is fresh is repeated: strangers' names must not load Consul. What a
check says changes with each of its runs, so it has no place in the catalog that routes are made of.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

import trio

from .api import ConsulClient, ConsulError, HealthCheck, PermissionDeniedError, Tenant

K = TypeVar("K")
V = TypeVar("V")

# An answer is good for this many seconds, and so many are remembered.
_FRESH: Final = 5.0
_REMEMBERED: Final = 64
_LONGEST_NAME: Final = 255


class _Questions(Generic[K, V]):
    """One kind of question. `patience` is how many seconds somebody waits for an answer, those before him included."""

    def __init__(self, ask: Callable[[K], Awaitable[V]], patience: float) -> None:
        self._ask = ask
        self._patience = patience
        self._lock = trio.Lock()
        self._answers: OrderedDict[K, tuple[float, V]] = OrderedDict()

    async def answer(self, question: K, otherwise: V) -> V:
        with trio.move_on_after(self._patience):
            async with self._lock:
                asked, answer = self._answers.get(question, (-_FRESH, otherwise))
                if trio.current_time() - asked >= _FRESH:
                    answer = await self._ask(question)
                    self._answers[question] = trio.current_time(), answer
                    self._answers.move_to_end(question)
                    if len(self._answers) > _REMEMBERED:
                        self._answers.popitem(last=False)
                return answer
        return otherwise


class Checks:
    """The checks of a node, as `ConsulClient.node_checks` tells them."""

    def __init__(self, node_checks: Callable[..., Awaitable[tuple[HealthCheck, ...]]]) -> None:
        self._node_checks = node_checks
        self._questions = _Questions(self._ask, 3.0)

    async def of(self, node: str, instance: str, *, datacenter: str = "") -> tuple[HealthCheck, ...] | str:
        """The checks that count for an instance; or a line that says why they cannot be told."""
        answer = await self._questions.answer((node, datacenter), "Consul does not answer")
        if isinstance(answer, str):
            return answer
        return tuple(check for check in answer if check.service_id in ("", instance))

    async def _ask(self, question: tuple[str, str]) -> tuple[HealthCheck, ...] | str:
        node, datacenter = question
        try:
            return await self._node_checks(node, datacenter=datacenter)
        except ConsulError as error:
            return str(error)


class Explainer:
    """Why a service of the gateway's own datacenter is not routed."""

    def __init__(self, client: ConsulClient, *, enterprise: bool = False) -> None:
        self._client = client
        self._enterprise = enterprise
        self._questions = _Questions(self._ask, 5.0)

    async def why_missing(self, service: str) -> str | None:
        """A line that says why; None where the token sees mesh instances of the service.

        `service` may have its namespace in front (`team/web`), which only Enterprise is asked for.
        """
        if not service or len(service) > _LONGEST_NAME:
            return "no such service registered"
        return await self._questions.answer(service, "not known: Consul does not answer")

    async def _ask(self, service: str) -> str | None:
        namespace, _, name = service.rpartition("/")
        client = self._client.at(Tenant(namespace=namespace)) if namespace and self._enterprise else self._client
        try:
            await client.confirm_readable(name)
            page = await client.connect_instances(name)
            if page.value:
                return None
            if not (await client.instances(name)).value:
                return "no such service registered"
            try:
                # A sidecar has a name of its own, which the token may not be allowed to read.
                await client.confirm_readable(f"{name}-sidecar-proxy")
            except PermissionDeniedError as error:
                return f"registered, but its sidecars may be hidden: the {error}"
        except PermissionDeniedError as error:
            return f"the {error}"
        except ConsulError as error:
            return f"not known: {error}"
        if page.filtered:
            return "registered, but Consul hides its sidecars from the token: it may not read their names or nodes"
        return "registered but without a sidecar or native instance"
