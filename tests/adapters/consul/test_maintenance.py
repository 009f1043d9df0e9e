"""What the agent tells of maintenance, and requests that leave it alone."""

import pytest

from meshgate.adapters.consul.api import HealthCheck
from meshgate.adapters.consul.maintenance import Maintenance, left_over, maintenance_of

from .connected import connected

OWN = HealthCheck("_service_maintenance:gw", status="critical", service_id="gw", notes="new disk")
NODE = HealthCheck("_node_maintenance", notes="new rack")
CHECKS = "/v1/agent/checks"


async def test_checks_of_a_service_are_asked_of_the_agent_and_read() -> None:
    async with connected() as (double, client):
        rows = {
            OWN.id: {"CheckID": OWN.id, "ServiceID": "gw", "Notes": "new disk", "Status": "critical"},
            NODE.id: {"CheckID": NODE.id, "ServiceID": "", "Notes": "new rack"},
            "x": {"CheckID": "x", "ServiceID": "gw"},
        }
        double.set(CHECKS, rows, index=None)
        assert await client.agent_checks("gw") == (OWN, NODE, HealthCheck("x", service_id="gw"))
        assert double.seen[0].query == {"filter": 'ServiceID == "gw" or CheckID == "_node_maintenance"'}
        double.set(CHECKS, None, index=None)
        assert await client.agent_checks("gw") == ()


@pytest.mark.parametrize("odd", ['g"w', "g\\w"])
async def test_name_that_cannot_stand_in_a_filter_is_looked_for_among_all(odd: str) -> None:
    async with connected() as (double, client):
        double.set(CHECKS, {}, index=None)
        await client.agent_checks(odd)
        assert double.seen[0].query == {}


async def test_a_registration_leaves_checks_alone_and_they_are_removed_one_by_one() -> None:
    async with connected() as (double, client):
        double.set("/v1/agent/service/register", b"", index=None)
        double.set("/v1/agent/check/deregister/a/b", b"", index=None)
        double.set("/v1/agent/check/deregister/a%2Fb", b"", index=None)
        await client.register({"Name": "gw", "Port": 1})
        await client.deregister_check("a/b")
        assert [(seen.method, seen.target) for seen in double.seen] == [
            ("PUT", "/v1/agent/service/register"),
            ("PUT", "/v1/agent/check/deregister/a%2Fb"),
        ]


def test_a_service_is_held_out_by_its_own_maintenance_and_that_of_its_node() -> None:
    other = HealthCheck("_service_maintenance:gw-2", service_id="gw-2", notes="theirs")
    assert maintenance_of([NODE, other, OWN, HealthCheck("service:gw", service_id="gw")], "gw") == (
        Maintenance(node=False, reason="new disk"),
        Maintenance(node=True, reason="new rack"),
    )
    assert maintenance_of([other], "gw") == ()


def test_what_a_registration_replaces_is_all_of_the_service_but_its_maintenance_and_what_was_sent() -> None:
    checks = [
        NODE,
        OWN,
        HealthCheck("service:gw", service_id="gw"),
        HealthCheck("old", service_id="gw"),
        HealthCheck("other", service_id="gw-2"),
    ]
    assert list(left_over(checks, "gw", "service:gw")) == ["old"]
