"""What doctor says of the gateway's own registration."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from meshgate.adapters.consul.api import ConsulClient
from meshgate.app.diagnostics.doctor import Examination, registration
from meshgate.app.settings.settings import Settings
from meshgate.core.prerequisites import Finding, Status

from .consul_double import inspected, may

OK, WARNING, FAILED = Status.OK, Status.WARNING, Status.FAILED
SERVICES, HEALTH = "/v1/agent/services", "/v1/health/service/mesh-gateway"


async def found(client: ConsulClient, **values: str) -> list[Finding]:
    base = {"MESHGATE_ADDRESS": "127.0.0.1:8443"}
    flags = base | {f"MESHGATE_{name}": value for name, value in values.items()}
    return await registration(client, Settings.load(flags, environ={}))


def service(**fields: Any) -> dict[str, Any]:
    known = {
        "ID": "mesh-gateway",
        "Service": "mesh-gateway",
        "Kind": "mesh-gateway",
        "Address": "127.0.0.1",
        "Port": 8443,
    }
    return known | fields


@contextmanager
def somebody() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


async def test_registration_that_can_be_made_or_is_there_is_in_order() -> None:
    async with inspected() as (double, client):
        assert await found(client) == [Finding("registration", OK, "no mesh-gateway on this agent yet")]
        double.set(SERVICES, {"mesh-gateway": service()}, index=None)
        assert await found(client) == [Finding("registration", OK, "mesh-gateway at 127.0.0.1:8443")]
        double.set(SERVICES, {"mesh-gateway": service(Address="")}, index=None)
        assert await found(client, ADDRESS=":8443") == [
            Finding("registration", OK, "mesh-gateway at the agent's address:8443")
        ]


async def test_registration_of_another_process_fails_and_one_of_another_address_does_not() -> None:
    async with inspected() as (double, client):
        with somebody() as port:
            double.set(SERVICES, {"mesh-gateway": service(Port=port)}, index=None)
            assert await found(client) == [
                Finding(
                    "registration",
                    FAILED,
                    f"'mesh-gateway' is registered at 127.0.0.1:{port} by another process, which answers there",
                    "give this gateway a --proxy-id of its own",
                )
            ]
            # The same listener, by another of its addresses.
            double.set(SERVICES, {"mesh-gateway": service(Address="")} | {"x": service(ID="x")}, index=None)
            double.set(SERVICES, {"mesh-gateway": service(Address="", Port=port)}, index=None)
            assert [each.status for each in await found(client, ADDRESS=f"127.0.0.1:{port}")] == [OK]
        double.set(SERVICES, {"mesh-gateway": service(Port=port)}, index=None)
        assert [each.status for each in await found(client)] == [OK]


async def test_registration_that_somebody_else_is_to_make_has_to_be_there() -> None:
    async with inspected() as (double, client):
        (missing,) = await found(client, REGISTER="false")
        assert (missing.status, missing.detail) == (FAILED, "the agent holds no registration 'mesh-gateway'")
        assert "consul services register" in missing.advice
        double.set(SERVICES, {"mesh-gateway": service(Kind="connect-proxy")}, index=None)
        (wrong,) = await found(client, REGISTER="false")
        assert (wrong.status, wrong.detail) == (FAILED, "'mesh-gateway' is of kind connect-proxy")
        double.set(SERVICES, {"mesh-gateway": service()}, index=None)
        assert await found(client, REGISTER="false") == [Finding("registration", OK, "mesh-gateway at 127.0.0.1:8443")]


async def test_registration_that_no_agent_holds_is_looked_for_on_its_node() -> None:
    async with inspected() as (double, client):
        double.set(SERVICES, {"mesh-gateway": service()}, index=None)
        double.set(HEALTH, [{"Node": {"Node": "other"}, "Service": service(), "Checks": None}])
        (missing,) = await found(client, REGISTER="false", NODE_NAME="virtual")
        assert missing.status is FAILED
        assert "no registration 'mesh-gateway' on node 'virtual'" in missing.detail
        assert "node:read" in missing.advice
        double.set(HEALTH, [{"Node": {"Node": "virtual"}, "Service": service(), "Checks": None}])
        (there,) = await found(client, REGISTER="false", NODE_NAME="virtual")
        assert there.status is OK


async def test_several_agents_behind_one_address_and_what_one_of_them_kept_are_told() -> None:
    async with inspected() as (double, client):
        double.set(HEALTH, [{"Node": {"Node": node}, "Service": service(), "Checks": None} for node in ("n1", "n2")])
        (first, left) = await found(client)
        assert (first.status, left.status) == (OK, WARNING)
        assert left.detail == "mesh-gateway at 127.0.0.1:8443 is registered on node n2 too"
        assert left.advice == "consul services deregister -id=mesh-gateway there"


async def test_token_that_may_not_see_it_is_told_the_rule() -> None:
    async with inspected() as (double, client):
        double.set(SERVICES, b"Permission denied", status=403)
        may(double, service_read=False)
        settings = Settings.load({"MESHGATE_ADMIN_BIND": "off"}, environ={})
        (refused,) = [each for each in await Examination(client, settings).run() if each.check == "registration"]
        assert refused.status is FAILED
        assert refused.advice == 'add service "mesh-gateway" { policy = "read" } to the token\'s policy'
