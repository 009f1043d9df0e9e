"""The real client, connected to the double of Consul."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from meshgate.adapters.consul.api import ConsulAddress, ConsulClient, Cursor

from .fake_consul import FakeConsul, fake_consul

TOKEN = "5ecc9f1b-7d3a-4c5e-token"
WEB = "/v1/health/connect/web"


@asynccontextmanager
async def connected(**values: str) -> AsyncIterator[tuple[FakeConsul, ConsulClient]]:
    async with fake_consul() as double:
        settings = {"CONSUL_HTTP_ADDR": f"127.0.0.1:{double.port}", "CONSUL_HTTP_TOKEN": TOKEN}
        address = ConsulAddress.from_settings(settings | {f"CONSUL_{name}": value for name, value in values.items()})
        async with ConsulClient(address) as client:
            yield double, client


Call = Callable[[ConsulClient], Awaitable[Any]]


def ask_web(client: ConsulClient) -> Awaitable[Any]:
    return client.connect_instances("web", Cursor())
