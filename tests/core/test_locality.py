"""Gateways elsewhere by their distance, where Consul was told regions and zones."""

from dataclasses import replace

import pytest

from meshgate.core.catalog import (
    NOWHERE,
    Check,
    ImportedService,
    Instance,
    Locality,
    Remote,
    Service,
    Snapshot,
)
from meshgate.core.endpoint_maker import distance
from meshgate.core.load_balancer import HostSet
from meshgate.core.routes import Route, RouteKind

from .samples import TD3, instance, plan

HERE = Locality("us-west-1", "us-west-1a")
NEAR = Locality("us-west-1", "us-west-1a")
REGION = Locality("us-west-1", "us-west-1b")
FAR = Locality("us-east-1", "us-east-1a")
PEER_TD = "99999999-aaaa-bbbb-cccc-dddddddddddd.consul"
DOWN = (Check("up", "critical"),)


@pytest.mark.parametrize(
    ("here", "there", "steps"),
    [
        (HERE, NEAR, 0),
        (HERE, REGION, 1),
        (HERE, Locality("us-west-1"), 1),
        (HERE, FAR, 2),
        (HERE, NOWHERE, 2),
        (HERE, Locality("us-east-1", "us-west-1a"), 2),
        (NOWHERE, NEAR, 2),
        (NOWHERE, NOWHERE, 2),
        (Locality("us-west-1"), Locality("us-west-1"), 0),
    ],
)
def test_distance(here: Locality, there: Locality, steps: int) -> None:
    assert distance(here, there) == steps


def gateway(address: str, locality: Locality, **fields: object) -> Instance:
    return instance(address, datacenter="dc2", kind="mesh-gateway", locality=locality, **fields)


def far(route: Route) -> list[str]:
    hosts = HostSet(route)
    return [hosts.candidates[position].address for position in hosts.lower_priority]


def dc2(here: Locality, *gateways: Instance) -> Route:
    (route,) = plan(Snapshot("dc1", TD3, remotes=(Remote("dc2", gateways),)), locality=here)
    return route


def test_nearest_gateways_come_first_and_all_others_after_them() -> None:
    gateways = gateway("10.0.0.1", FAR), gateway("10.0.0.2", NEAR), gateway("10.0.0.3", REGION)
    assert far(dc2(HERE, *gateways)) == ["10.0.0.1", "10.0.0.3"]
    assert far(dc2(Locality("us-east-1", "us-east-1b"), *gateways)) == ["10.0.0.2", "10.0.0.3"]


def test_gateway_that_is_not_healthy_is_no_nearest_one() -> None:
    gateways = gateway("10.0.0.1", FAR), gateway("10.0.0.2", NEAR, checks=DOWN), gateway("10.0.0.3", REGION)
    assert far(dc2(HERE, *gateways)) == ["10.0.0.1"]


@pytest.mark.parametrize("here", [NOWHERE, HERE])
def test_equally_far_gateways_are_all_the_same(here: Locality) -> None:
    assert far(dc2(here, gateway("10.0.0.1", FAR), gateway("10.0.0.2", NOWHERE))) == []


def test_partitions_and_peers_are_measured_and_services_are_not() -> None:
    gateways = (gateway("10.0.0.1", FAR), gateway("10.0.0.2", NEAR))
    peers = [replace(each, peer_sni=(f"web.default.default.us.external.{PEER_TD}",)) for each in gateways]
    snapshot = Snapshot(
        "dc1",
        TD3,
        remotes=(Remote("dc2", gateways),),
        partitions=(Remote("billing", gateways),),
        imports=(ImportedService("web", "peer-a", tuple(peers)),),
        services=(Service("api", (instance("10.1.0.1", locality=FAR), instance("10.1.0.2", locality=NEAR))),),
    )
    found = {route.kind: [each.distance for each in route.endpoints] for route in plan(snapshot, locality=HERE)}
    assert found == {
        RouteKind.SERVICE: [0, 0],
        RouteKind.DATACENTER: [2, 0],
        RouteKind.PARTITION: [2, 0],
        RouteKind.PEER_IMPORT: [2, 0],
    }
