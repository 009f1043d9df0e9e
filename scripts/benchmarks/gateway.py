"""The process of the peer `meshgate`: the relay with its workers, without Consul. Talks JSON lines with the benchmark.

Its first line has the routes, which it answers with its port. Of the later ones, `{"do": "learn", "services": N}` makes
up a catalog with N services, `{"do": "update"}` builds the table of that catalog and installs it while streams go on
(the answer has the milliseconds of both steps), `{"do": "change"}` does so after a change of one service of it, and
`{"do": "restore"}` installs the first table again.
"""

import json
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import structlog
import trio

from meshgate.adapters.relay import Limits, Refused, StreamRecord
from meshgate.adapters.relay.pool import RelayPool
from meshgate.core.catalog import Check, Instance, Service, Snapshot
from meshgate.core.planner import Planner
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


def snapshot_of(services: int, routes: Mapping[str, int]) -> Snapshot:
    """A catalog with so many services and those that `routes` name; every instance has its two usual checks."""
    checks = (Check("serfHealth", "passing"), Check("service:1", "passing"))

    def instance(service: str, number: int) -> Instance:
        address = f"10.{number % 250}.{number // 250 % 250}.{number // 62500}"
        return Instance(
            f"node{number}",
            "dc1",
            f"{service}-{number}",
            service,
            address,
            21000,
            address,
            "connect-proxy",
            checks=checks,
        )

    def real(service: str, port: int) -> Service:
        local = Instance("node0", "dc1", service, service, "127.0.0.1", port, "127.0.0.1", checks=checks)
        return Service(service, (local,))

    made_up = (
        Service(name, tuple(instance(name, INSTANCES * number + each) for each in range(INSTANCES)))
        for number, name in ((number, f"service-{number}") for number in range(services))
    )
    named = (real(name.partition(".")[0], port) for name, port in routes.items())
    return Snapshot("dc1", TRUST_DOMAIN, services=(*made_up, *named))


class Silent:
    """An observer that keeps nothing: as with the access log off. Refusals are the load's to notice."""

    wants_records = False

    def on_refused(self, refused: Refused) -> None:
        """Not looked at."""

    def on_ended(self, record: StreamRecord) -> None:
        """Not wanted."""


async def main() -> None:
    """Serve until standard input ends."""
    messages = _lines()
    first = await anext(messages)
    routes: Mapping[str, int] = first["routes"]
    relay = RelayPool(first["workers"], Limits(max_connections=first["max_connections"]), Silent(), 0.0)
    _, port = relay.bind("default", "127.0.0.1", 0)
    relay.install(table_of(routes))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.run)
        relay.listen()
        _tell(port)
        snapshot = snapshot_of(0, routes)
        async for message in messages:
            match message["do"]:
                case "learn":
                    snapshot = snapshot_of(message["services"], routes)
                    _tell(len(snapshot.services))
                case "update":
                    _tell(_update(relay, snapshot))
                case "change":
                    first_service, *others = snapshot.services
                    fewer = replace(first_service, instances=first_service.instances[1:])
                    snapshot = replace(snapshot, services=(fewer, *others))
                    _tell(_update(relay, snapshot))
                case "replace":
                    begun = time.perf_counter()
                    for number in range(first["workers"]):
                        await relay.replace(number)
                    _tell(time.perf_counter() - begun)
                case "restore":
                    relay.install(table_of(routes))
                    _tell(len(routes))
        nursery.cancel_scope.cancel()


def _update(relay: RelayPool, snapshot: Snapshot) -> dict[str, float]:
    begun = time.perf_counter()
    table = Planner().plan(snapshot)
    planned = time.perf_counter()
    relay.install(table)
    installed = time.perf_counter()
    return {"plan_ms": (planned - begun) * 1e3, "install_ms": (installed - planned) * 1e3}


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


def _tell(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # Answers go to standard output.
    trio.run(main)
