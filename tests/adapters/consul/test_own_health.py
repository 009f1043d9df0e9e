"""What Consul tells of the gateway's own registration, and requests that leave its checks alone."""

import pytest

from meshgate.adapters.consul import Maintenance, OwnHealth
from meshgate.adapters.consul.api import Cursor, HealthCheck, OwnInstance, OwnRegistration
from meshgate.adapters.consul.registrar import own_health

from .connected import connected

OWN = HealthCheck("_service_maintenance:gw", status="critical", service_id="gw", notes="new disk")
NODE = HealthCheck("_node_maintenance", status="critical", notes="new rack")
PASSING = HealthCheck("service:gw", status="passing", service_id="gw")
GATEWAY = OwnRegistration("gw", "mesh-gateway", "10.0.0.1", 8443)
CHECKS = "/v1/agent/checks"
HEALTH = "/v1/health/service/mesh-gateway"


async def test_checks_of_a_service_are_asked_of_the_agent_and_read() -> None:
    async with connected() as (double, client):
        rows = {
            OWN.id: {"CheckID": OWN.id, "ServiceID": "gw", "Notes": "new disk", "Status": "critical"},
            "x": {"CheckID": "x", "ServiceID": "gw"},
        }
        double.set(CHECKS, rows, index=None)
        assert await client.agent_checks("gw") == (OWN, HealthCheck("x", service_id="gw"))
        assert double.seen[0].query == {"filter": 'ServiceID == "gw"'}
        double.set(CHECKS, None, index=None)
        assert await client.agent_checks("gw") == ()


async def test_instances_of_an_id_are_asked_of_the_catalog_merged_with_central_configuration() -> None:
    row = {
        "Node": {"Node": "n1"},
        "Service": {"ID": "gw", "Service": "mesh-gateway", "Kind": "mesh-gateway", "Address": "10.0.0.1", "Port": 8443},
        "Checks": [{"CheckID": "service:gw", "ServiceID": "gw", "Status": "passing"}],
    }
    other = {"Node": {"Node": "n2"}, "Service": {"ID": "gw-2", "Service": "mesh-gateway"}, "Checks": None}
    async with connected() as (double, client):
        double.set(HEALTH, [row, other])
        page = await client.own_instances("mesh-gateway", "gw", Cursor())
        assert page.value == (OwnInstance("n1", GATEWAY, (PASSING,)),)
        assert double.seen[0].query == {"merge-central-config": "true", "filter": 'Service.ID == "gw"'}
        double.set(HEALTH, None)
        assert (await client.own_instances("mesh-gateway", "gw", Cursor())).value == ()


@pytest.mark.parametrize("odd", ['g"w', "g\\w"])
async def test_name_that_cannot_stand_in_a_filter_is_looked_for_among_all(odd: str) -> None:
    async with connected() as (double, client):
        double.set(CHECKS, {}, index=None)
        await client.agent_checks(odd)
        double.set(HEALTH, [])
        await client.own_instances("mesh-gateway", odd, Cursor())
        assert [seen.query for seen in double.seen] == [{}, {"merge-central-config": "true"}]


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
    failing = HealthCheck("service:gw", "listening", "critical", "refused", "gw")
    found = own_health([OwnInstance("n1", GATEWAY, (NODE, OWN, failing))], "n1", GATEWAY)
    causes = Maintenance(node=False, reason="new disk"), Maintenance(node=True, reason="new rack")
    assert found == OwnHealth(causes, (("listening", "refused"),))
    assert own_health([OwnInstance("n1", GATEWAY, (PASSING,))], "n1", GATEWAY) == OwnHealth()


def test_health_is_that_of_the_own_node_and_of_the_own_address_where_the_node_is_not_known() -> None:
    moved = OwnRegistration("gw", "mesh-gateway", "10.0.0.2", 8443)
    instances = [OwnInstance("n1", moved, (OWN,)), OwnInstance("n2", GATEWAY, (NODE,))]
    assert own_health(instances, "", GATEWAY).maintenance == (Maintenance(node=True, reason="new rack"),)
    assert own_health(instances, "n3", GATEWAY) == OwnHealth()
    assert own_health(instances, "n2", None) == OwnHealth()


def test_registrations_without_an_address_are_those_of_their_nodes() -> None:
    here = OwnRegistration("mesh-gateway", "mesh-gateway", "", 8443)
    instances = [OwnInstance("n1", here), OwnInstance("n2", here)]
    assert own_health(instances, "n1", here) == OwnHealth()
