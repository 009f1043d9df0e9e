"""Where a gateway is in Consul Enterprise, by its settings and its agent; and what is told of exports."""

import pytest

from meshgate.adapters.consul.api import AgentFacts
from meshgate.app.gateway.from_settings import export_rules, is_enterprise, partition_of
from meshgate.app.gateway.table_keeper import export_problems
from meshgate.app.settings.settings import Settings
from meshgate.core.export_routes import AS_CONSUL, ExportRules
from meshgate.core.routes import RouteTable

TD = "11111111-2222-3333-4444-555555555555.consul"


def settings(**environ: str) -> Settings:
    return Settings.load({}, environ=environ)


@pytest.mark.parametrize(
    ("named", "of_agent", "partition"),
    [("", "", "default"), ("", "p1", "p1"), ("p2", "p1", "p2"), ("default", "p1", "default")],
)
def test_the_partition_is_the_one_that_is_set_and_else_the_agents(named: str, of_agent: str, partition: str) -> None:
    facts = AgentFacts("dc1", partition=of_agent)
    assert partition_of(settings(CONSUL_PARTITION=named), facts) == partition


@pytest.mark.parametrize(
    ("version", "environ", "enterprise"),
    [
        ("1.18.2+ent", {}, True),
        ("1.18.2", {}, False),
        pytest.param("1.8.7", {"CONSUL_PARTITION": "default"}, False, id="a name does not make it another Consul"),
        pytest.param("", {}, False, id="unknown, nothing named"),
        pytest.param("", {"CONSUL_PARTITION": "p1"}, True, id="unknown, partition named"),
        pytest.param("", {"CONSUL_NAMESPACE": "team"}, True, id="unknown, namespace named"),
    ],
)
def test_enterprise_is_known_by_its_version_or_by_what_is_named(
    version: str, environ: dict[str, str], enterprise: bool
) -> None:
    assert is_enterprise(settings(**environ), AgentFacts("dc1", version=version)) is enterprise


def test_exports_are_as_consul_has_them_unless_something_else_is_set() -> None:
    assert export_rules(settings()) == AS_CONSUL
    wanted = settings(MESHGATE_ENFORCE_EXPORTS="true", MESHGATE_PASS_HTTP_EXPORTS="true")
    assert export_rules(wanted) == ExportRules(enforce=True, pass_http=True)


def withholding(reasons: dict[str, str]) -> RouteTable:
    return RouteTable.of("dc1", TD, "default", iter(()), reasons)


def test_exports_to_peers_without_a_route_are_a_problem_told_once() -> None:
    reasons = {f"web.default.default.{peer}.external.{TD}": "web is http" for peer in ("a", "b")}
    assert export_problems(withholding(reasons)) == ["web is http"]
    assert export_problems(withholding({f"web.default.dc1.internal.{TD}": "not exported"})) == []


def test_a_flood_of_problems_is_cut_and_counted() -> None:
    reasons = {f"s{number:02}.default.default.a.external.{TD}": f"s{number:02} is http" for number in range(25)}
    told = export_problems(withholding(reasons))
    assert (told[0], told[9], told[10:]) == ("s00 is http", "s09 is http", ["no route: 15 more exported services"])
