"""Upstreams in another partition: whether that exports them to the caller's, by name or through sameness groups."""

from typing import Any

import pytest

from meshgate.adapters.consul.api import ConsulClient
from meshgate.app.diagnostics.modes_report import ModesReader, ModesReport
from tests.adapters.consul.fake_consul import FakeConsul, row

from .consul_double import gateway, inspected
from .test_modes import chain, one, path, sidecar

EXPORTS = "/v1/config/exported-services/ap1"
GROUPS = "/v1/config/sameness-group"
GROUP = f"{GROUPS}/"
TO_ALL = {"Name": "web", "Consumers": [{"SamenessGroup": "all"}]}
UNKNOWN_KIND = b"rpc error: invalid config entry kind: sameness-group"


def next_door(double: FakeConsul, *exports: dict[str, Any]) -> None:
    """web of partition ap1, which exports what is given, is an upstream in the partition default."""
    gateway(double, "dc1", "10.0.0.5", 8443)
    chain(double, Datacenter="dc1", Partition="ap1")
    sidecar(double, {"Datacenter": "", "DestinationPartition": "ap1"}, mode="local")
    double.set("/v1/health/connect/web", [row("web")])
    double.set(EXPORTS, {"Services": list(exports)})


def group(double: FakeConsul, name: str, *members: dict[str, str]) -> None:
    double.set(GROUP + name, {"Kind": "sameness-group", "Name": name, "Members": list(members)})


async def look(client: ConsulClient) -> tuple[ModesReport, tuple[str, ...]]:
    """The report and the problems of the one way in it."""
    report = await ModesReader(client).read()
    return report, report.sidecars[0].upstreams[0].ways[0].problems


async def test_a_service_of_another_partition_goes_through_gateways_if_it_is_exported() -> None:
    async with inspected() as (double, client):
        gateway(double, "dc1", "10.0.0.5", 8443)
        sni = "web.shops.ap1.dc1.internal-v1.td.consul"
        chain(double, Datacenter="dc1", Partition="ap1", Namespace="shops", SNI=sni)
        sidecar(
            double,
            {"Datacenter": "", "DestinationPartition": "ap1", "DestinationNamespace": "shops"},
            mode="local",
            Namespace="default",
            Partition="default",
        )
        double.set("/v1/health/connect/web", [row("web", address="10.3.0.9")])
        services = [
            {"Name": "web", "Namespace": "shops", "Consumers": [{"Partition": "ap2"}, {"Peer": "cloud"}]},
            {"Name": "web", "Namespace": "other", "Consumers": [{"Partition": "default"}]},
            {"Name": "other", "Namespace": "shops", "Consumers": [{"Partition": "default"}]},
        ]
        double.set("/v1/config/exported-services/ap1", {"Services": services})
        found = await one(client)
        assert [name for name, _ in path(found)] == ["LOCAL_GATEWAY", "REMOTE_GATEWAY", "SIDECAR"]
        assert found.ways[0].target.sni == sni
        assert "partition ap1 does not export web to default" in found.ways[0].problems[0]
        asked = {seen.path: seen.query for seen in double.seen if seen.query.get("partition") == "ap1"}
        assert asked["/v1/health/connect/web"] == {"ns": "shops", "partition": "ap1"}
        assert asked["/v1/health/service/mesh-gateway"]["dc"] == "dc1"
        for consumers, name in (([{"Partition": "default"}], "web"), ([{"Partition": "*"}], "*")):
            services = [{"Name": name, "Namespace": "shops", "Consumers": consumers}]
            double.set("/v1/config/exported-services/ap1", {"Services": services})
            assert (await one(client)).sound


async def test_an_export_that_may_not_be_read_is_unknown_and_no_contradiction() -> None:
    async with inspected() as (double, client):
        next_door(double)
        double.set(EXPORTS, b"Permission denied", status=403)
        report, problems = await look(client)
        assert report.sound
        assert problems == ()
        refused, unknown = report.notes
        assert 'mesh = "read"' in refused
        assert unknown == (
            "whether partition ap1 exports web to default is unknown: exported-services/ap1 could not be read"
        )


# --- sameness groups --------------------------------------------------------------------------------------------------


async def test_an_export_to_a_group_is_one_to_its_members_as_the_exporting_partition_sees_them() -> None:
    async with inspected() as (double, client):
        next_door(double, TO_ALL)
        group(double, "all", {"Partition": "ap1"}, {"Partition": "default"}, {"Peer": "cloud"})
        report, problems = await look(client)
        assert (report.sound, problems, report.notes) == (True, (), ())
        assert [seen.query for seen in double.requests(GROUPS)] == [{"partition": "ap1"}]


@pytest.mark.parametrize(
    "members",
    [
        pytest.param([{"Partition": "ap1"}, {"Partition": "ap2"}], id="others"),
        pytest.param([{"Peer": "default"}], id="a peer of that name"),
        pytest.param(None, id="no such group"),
    ],
)
async def test_a_group_without_the_callers_partition_exports_nothing_to_it(
    members: list[dict[str, str]] | None,
) -> None:
    async with inspected() as (double, client):
        next_door(double, TO_ALL)
        double.set(GROUP + "all", b"Config entry not found", status=404)
        if members is not None:
            group(double, "all", *members)
        report, (problem,) = await look(client)
        assert "partition ap1 does not export web to default" in problem
        assert report.notes == ()


@pytest.mark.parametrize(
    ("status", "answer", "why"),
    [
        (403, b"Permission denied", 'mesh = "read"'),
        (500, b"rpc error: No cluster leader", "No cluster leader"),
        (500, UNKNOWN_KIND, "this version of Consul knows no sameness groups"),
    ],
)
async def test_a_group_that_cannot_be_read_leaves_unknown_whether_the_caller_is_in_it(
    status: int, answer: bytes, why: str
) -> None:
    async with inspected() as (double, client):
        next_door(double, {"Name": "web", "Consumers": [{"SamenessGroup": "all"}, {"SamenessGroup": "other"}]})
        double.set(GROUP + "all", answer, status=status)
        group(double, "other", {"Partition": "ap2"})
        report, problems = await look(client)
        assert problems == ()
        refused, unknown = report.notes
        assert why in refused
        assert unknown.startswith("whether partition ap1 exports web to default is unknown: sameness-group/all")
        # Another one says it.
        double.set(GROUP + "all", b"Permission denied", status=403)
        group(double, "other", {"Partition": "default"})
        report, problems = await look(client)
        assert (report.sound, problems) == (True, ())
        assert [note for note in report.notes if "unknown" in note] == []


@pytest.mark.parametrize(
    "exports",
    [
        pytest.param([{"Name": "web", "Consumers": [{"Partition": "default"}]}, TO_ALL], id="opened by name"),
        pytest.param([{"Name": "web", "Consumers": [{"Partition": "ap2"}]}], id="none named"),
        pytest.param([TO_ALL | {"Name": "other"}, TO_ALL | {"Namespace": "shops"}], id="named for others"),
    ],
)
async def test_no_group_is_asked_for_on_which_nothing_depends(exports: list[dict[str, Any]]) -> None:
    async with inspected() as (double, client):
        next_door(double, *exports)
        await look(client)
        assert not [path for path in double.paths() if path.startswith(GROUPS)]


async def test_a_group_that_several_upstreams_need_is_asked_for_once() -> None:
    async with inspected() as (double, client):
        next_door(double, {"Name": "*", "Namespace": "*", "Consumers": [{"SamenessGroup": "all"}]})
        group(double, "all", {"Partition": "default"})
        upstream = {"Datacenter": "", "DestinationPartition": "ap1"}
        sidecar(double, upstream | {"LocalBindPort": 1}, upstream | {"LocalBindPort": 2}, mode="local")
        report, _ = await look(client)
        assert [each.sound for each in report.sidecars[0].upstreams] == [True, True]
        assert len(double.requests(GROUPS)) == 1
