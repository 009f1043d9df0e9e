"""The Consul client as the application makes it: one address, one token, one TLS context, and connections by need."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Final, Self

import trio

from .address import ConsulAddress
from .mesh_endpoints import MeshEndpoints
from .mesh_records import MeshReader, Tenant
from .tls import tls_context
from .tokens import TokenSource
from .transport import HttpClient

# Connections that short requests share.
SHORT_CONNECTIONS: Final = 4


class ConsulClient(MeshEndpoints):
    """A client for short requests, which makes clients with a connection of their own for those that are held.

    Use it as an asynchronous context manager. `errors` counts failed requests by status, those of dedicated clients
    included; `token` is where the credentials come from.

    Raises:
        ConsulConfigError: the token file or a TLS file cannot be read.
    """

    def __init__(self, address: ConsulAddress, *, token: TokenSource | None = None) -> None:
        self.address = address
        self.token = TokenSource.of(address) if token is None else token
        self._context = tls_context(address)
        super().__init__(self._connections(SHORT_CONNECTIONS), Counter())

    def __repr__(self) -> str:
        return f"ConsulClient({self.address.url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await _close(self._http)

    @asynccontextmanager
    async def dedicated(self) -> AsyncIterator[MeshEndpoints]:
        """A client with one connection, closed at the end of the block."""
        http = self._connections(1)
        try:
            yield MeshEndpoints(http, self.errors)
        finally:
            await _close(http)

    def scoped(self, tenant: Tenant) -> "ScopedClient":
        """The same client, for requests elsewhere. It lives as long as this one does."""
        return ScopedClient(self, tenant)

    def _connections(self, number: int) -> HttpClient:
        return HttpClient(self.address, self.token, self._context, connections=number)


class ScopedClient(MeshEndpoints):
    """A view of a client, whose requests go to another namespace, partition or peer."""

    def __init__(self, client: "ConsulClient | ScopedClient", tenant: Tenant) -> None:
        super().__init__(client.http_at(tenant), client.errors)
        self._client = client
        self._tenant = tenant

    @asynccontextmanager
    async def dedicated(self) -> AsyncIterator[MeshReader]:
        """As that of the client."""
        async with self._client.dedicated() as reader:
            yield reader.within(self._tenant)

    def scoped(self, tenant: Tenant) -> "ScopedClient":
        """A view of this view."""
        return ScopedClient(self, tenant)


async def _close(http: HttpClient) -> None:
    # Closing says goodbye over TLS; it must not hang on an agent that is gone, nor be skipped when cancelled.
    with trio.move_on_after(1, shield=True):
        await http.aclose()
