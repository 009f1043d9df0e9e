"""Why a service of the gateway's own datacenter is not routed: asked of Consul, for a person who wants to know."""

from collections import OrderedDict
from typing import Final

import trio

from .errors import ConsulError, PermissionDeniedError
from .mesh_records import MeshReader, Tenant
from .records import Cursor

# An answer is good for this many seconds, and so many are remembered.
_FRESH: Final = 5.0
_REMEMBERED: Final = 256
_PATIENCE: Final = 5.0
_LONGEST_NAME: Final = 255


class Explainer:
    """Answers one question at a time, and repeats an answer that is fresh: strangers' names must not load Consul."""

    def __init__(self, client: MeshReader, *, enterprise: bool = False) -> None:
        self._client = client
        self._enterprise = enterprise
        self._lock = trio.Lock()
        self._answers: OrderedDict[str, tuple[float, str | None]] = OrderedDict()

    async def why_missing(self, service: str) -> str | None:
        """A line that says why; None where the token sees mesh instances of the service.

        `service` may have its namespace in front (`team/web`), which only Enterprise is asked for.
        """
        if not service or len(service) > _LONGEST_NAME:
            return "no such service registered"
        with trio.move_on_after(_PATIENCE):
            async with self._lock:
                asked, answer = self._answers.get(service, (-_FRESH, None))
                if trio.current_time() - asked >= _FRESH:
                    answer = await self._ask(service)
                    self._remember(service, answer)
                return answer
        return "not known: Consul does not answer"

    def _remember(self, service: str, answer: str | None) -> None:
        self._answers[service] = trio.current_time(), answer
        self._answers.move_to_end(service)
        if len(self._answers) > _REMEMBERED:
            self._answers.popitem(last=False)

    async def _ask(self, service: str) -> str | None:
        namespace, _, name = service.rpartition("/")
        reader = self._client.within(Tenant(namespace=namespace)) if namespace and self._enterprise else self._client
        try:
            await reader.resolver_exists(name)
            page = await reader.connect_instances(name, Cursor())
            if page.value:
                return None
            if not (await reader.instances(name, Cursor())).value:
                return "no such service registered"
            return await self._without_sidecar(reader, name, filtered=page.filtered)
        except PermissionDeniedError as error:
            return f"the {error}"
        except ConsulError as error:
            return f"not known: {error}"

    async def _without_sidecar(self, reader: MeshReader, service: str, *, filtered: bool) -> str:
        """A sidecar has a name of its own, which the token may not be allowed to read."""
        try:
            await reader.resolver_exists(f"{service}-sidecar-proxy")
        except PermissionDeniedError as error:
            return f"registered, but its sidecars may be hidden: the {error}"
        if filtered:
            return "registered, but Consul hides its sidecars from the token: it may not read their names or nodes"
        return "registered but without a sidecar or native instance"
