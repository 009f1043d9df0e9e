"""The process of the peer `meshgate`: the real relay, without Consul. Talks JSON lines with the benchmark.

Its first line are the routes, which it answers with its port. After that `{"services": N}` makes it build the table of
a catalog with N services and install it, while streams go on; it answers with the milliseconds of both steps.
"""

import json
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import trio

from meshgate.adapters.relay import Limits, Refused, Relay
from meshgate.core.catalog import Check, Instance, Service, Snapshot
from meshgate.core.planner import plan
from meshgate.core.routes import Endpoint, Route, RouteKind, RouteTable

from .peers import TRUST_DOMAIN

INSTANCES = 3  # of a service in the catalog that is made up


def table_of(routes: Mapping[str, int]) -> RouteTable:
    """A table that leads each server name to a port of 127.0.0.1."""
    return RouteTable.of(
        "dc1",
        TRUST_DOMAIN,
        "default",
        (
            Route(
                name,
                RouteKind.SERVICE,
                name.partition(".")[0],
                (Endpoint("127.0.0.1", port, True, 1, "node1", f"instance-{port}"),),
            )
            for name, port in routes.items()
        ),
    )


def snapshot_of(services: int) -> Snapshot:
    """A catalog with so many services, in which every instance has its two usual checks."""
    checks = (Check("serfHealth", "passing"), Check("service:1", "passing"))

    def instance(service: str, number: int) -> Instance:
        address = f"10.{number % 250}.{number // 250 % 250}.{number // 62500}"
        return Instance(
            f"node{number}", "dc1", f"{service}-{number}", service, address, 21000, address, "connect-proxy", checks=checks
        )

    return Snapshot(
        "dc1",
        TRUST_DOMAIN,
        services=tuple(
            Service(name, tuple(instance(name, INSTANCES * number + each) for each in range(INSTANCES)))
            for number, name in ((number, f"service-{number}") for number in range(services))
        ),
    )


async def main() -> None:
    """Serve until standard input ends."""
    messages = _lines()
    first = await anext(messages)
    relay = Relay(table_of(first["routes"]), Limits(max_connections=first["max_connections"]), _ignore)
    _, port = relay.bind("default", "127.0.0.1", 0)
    relay.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.run)
        _tell(port)
        async for message in messages:
            _tell(_update(relay, table_of(first["routes"]), message["services"]))
        nursery.cancel_scope.cancel()


def _update(relay: Relay, old: RouteTable, services: int) -> Any:
    """Build and install the table of a large catalog; then the old one again, for the streams of the next round."""
    snapshot = snapshot_of(services)
    begun = time.perf_counter()
    table = plan(snapshot)
    planned = time.perf_counter()
    relay.install(table)
    installed = time.perf_counter()
    relay.install(old)
    return {"plan_ms": (planned - begun) * 1e3, "install_ms": (installed - planned) * 1e3, "routes": len(table)}


async def _lines() -> AsyncIterator[Any]:
    rest = b""
    while True:
        await trio.lowlevel.wait_readable(0)
        data = os.read(0, 1 << 16)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield json.loads(line)


def _tell(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _ignore(_refused: Refused) -> None:
    """Refusals are the load's to notice."""


if __name__ == "__main__":
    trio.run(main)
