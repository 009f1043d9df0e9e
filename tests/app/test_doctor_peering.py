"""`meshgate doctor` about cluster peering and admin partitions, against the double that has them."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from meshgate.adapters.consul.api import ConsulAddress, ConsulClient
from meshgate.app.diagnostics.doctor import Examination
from meshgate.app.settings.settings import Settings
from meshgate.core.prerequisites import Finding, Status
from tests.adapters.consul.mesh_double import MeshDouble, chain, exported, mesh_double, peering

from .consul_double import RIGHTS

OK, WARNING, FAILED = Status.OK, Status.WARNING, Status.FAILED


@asynccontextmanager
async def examining(double: MeshDouble, **values: str) -> AsyncIterator[tuple[ConsulClient, Settings]]:
    environ = {"CONSUL_HTTP_ADDR": f"127.0.0.1:{double.port}"} | values
    settings = Settings.load({}, environ=environ)
    async with ConsulClient(ConsulAddress.from_settings(settings.consul)) as client:
        yield client, settings


async def peerings(double: MeshDouble, **values: str) -> dict[str, Finding]:
    return await _found(double, Examination.peerings, **values)


async def partitions(double: MeshDouble, **values: str) -> dict[str, Finding]:
    return await _found(double, Examination.partitions, **values)


async def _found(
    double: MeshDouble, check: Callable[[Examination], Awaitable[None]], **values: str
) -> dict[str, Finding]:
    async with examining(double, **values) as (client, settings):
        examination = Examination(client, settings)
        await examination.agent()
        before = len(examination.found)
        await check(examination)
        return {finding.check: finding for finding in examination.found[before:]}


async def test_where_consul_knows_neither_peering_nor_partitions_there_is_nothing_to_say() -> None:
    async with mesh_double(enterprise=False, version="1.8.7") as double:
        assert await peerings(double) == {}
        assert await partitions(double) == {}


async def test_peerings_are_listed_with_their_state_and_exports_counted() -> None:
    async with mesh_double(enterprise=False) as double:
        double.peering(peering("east"), peering("west", State="FAILING"))
        rows = [exported("web", peers=("east",)), exported("db", partitions=("p1",)), exported("api", peers=("gone",))]
        double.set_at("/v1/exported-services", rows)
        double.set_at("/v1/discovery-chain/web", chain("web"))
        found = await peerings(double)
        assert found == {
            "cluster peering": Finding("cluster peering", OK, "east (active), west (failing)"),
            "exported services": Finding("exported services", OK, "1 to peers"),
        }


async def test_no_peering_is_fine_and_nothing_more_is_asked() -> None:
    async with mesh_double(enterprise=False) as double:
        double.peering()
        assert await peerings(double) == {"cluster peering": Finding("cluster peering", OK, "no peerings")}
        assert "/v1/exported-services" not in double.paths()


async def test_rights_that_are_missing_are_named_with_the_rule() -> None:
    async with mesh_double(enterprise=False) as double:
        double.set("/v1/peerings", b"Permission denied: lacks permission 'peering:read'", status=403, index=None)
        found = (await peerings(double))["cluster peering"]
        assert (found.status, found.advice) == (WARNING, 'add peering = "read" to the token\'s policy')
        double.peering(peering("east"))
        double.set("/v1/exported-services", b"Permission denied", status=403, index=None)
        found = (await peerings(double))["exported services"]
        assert (found.status, found.advice) == (WARNING, 'add mesh = "read" to the token\'s policy')


async def test_exports_that_a_passthrough_gateway_cannot_serve_fail_with_what_to_do() -> None:
    async with mesh_double(enterprise=False) as double:
        double.peering(peering("east"))
        double.set_at("/v1/exported-services", [exported(name, peers=("east",)) for name in ("api", "web")])
        double.set_at("/v1/discovery-chain/api", chain("api", protocol="http"))
        double.set_at("/v1/discovery-chain/web", chain("web", Datacenter="dc9"))
        found = await peerings(double)
        assert found["export of api"].status is FAILED
        assert 'protocol = "tcp" in service-defaults/api' in found["export of api"].advice
        assert "Envoy gateway" in found["export of api"].advice
        assert found["export of web"].status is FAILED
        passed = await peerings(double, MESHGATE_PASS_HTTP_EXPORTS="true")
        assert passed["export of api"].status is WARNING
        assert "its sidecar denies every call" in passed["export of api"].detail


async def test_partitions_are_listed_and_those_without_a_gateway_told() -> None:
    async with mesh_double() as double:
        for name in ("p1", "p2"):
            double.tenant(name)
        double.gateway("p1", "198.18.0.1", 443)
        found = await partitions(double)
        assert found["partitions"] == Finding("partitions", OK, "default, and p1, p2")
        assert found["gateways of partition p2"].status is WARNING
        assert "gateways of partition p1" not in found
        double.gateway("default", "198.18.0.2", 443, name="edge")
        found = await partitions(double, CONSUL_PARTITION="p2")
        assert found["partitions"].detail == "p2, and default, p1"
        assert not {"gateways of partition default", "gateways of partition p1"} & found.keys()


async def test_the_right_to_list_partitions_and_a_wrong_namespace_are_told() -> None:
    async with mesh_double() as double:
        double.set("/v1/partitions", b"Permission denied", status=403, index=None)
        found = await partitions(double, CONSUL_NAMESPACE="team")
        assert (found["partitions"].status, found["partitions"].advice) == (
            WARNING,
            'add operator = "read" to the token\'s policy',
        )
        assert found["namespace"].status is WARNING


async def test_the_right_to_peerings_is_asked_for_before_the_peerings_are() -> None:
    """Consul answers 403 only after twelve seconds, longer than anybody waits for an answer."""
    async with mesh_double(enterprise=False) as double:
        double.set("/v1/peerings", hang=True)
        double.set(RIGHTS, [{"Allow": False}], index=None)
        found = (await peerings(double))["cluster peering"]
        assert (found.status, found.advice) == (WARNING, 'add peering = "read" to its policy')
        assert "/v1/peerings" not in double.paths()


async def test_a_rule_that_the_token_has_is_not_asked_for() -> None:
    async with mesh_double(enterprise=False) as double:
        double.peering(peering("east"))
        double.set(RIGHTS, [{"Allow": True}], index=None)
        double.set("/v1/exported-services", b"Permission denied", status=403, index=None)
        found = (await peerings(double))["exported services"]
        assert found.advice.startswith('the token has mesh = "read": compare its policy')
        blocked = b"Endpoint is blocked by agent configuration"
        double.set("/v1/exported-services", blocked, status=403, index=None)
        found = (await peerings(double))["exported services"]
        assert (found.status, found.advice) == (WARNING, "")
        assert "http_config.block_endpoints" in found.detail
