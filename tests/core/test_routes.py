"""Which route a name finds, what a route's candidates are, and that neither ever changes."""

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given, strategies as st

from meshgate.core.routes import MAX_NAME, Route, RouteKind, RouteTable
from meshgate.core.sni import PeeredServiceSni, ServiceSni

from .samples import TD1, TD3, endpoint, exact, suffix, table, unhealthy


def found(routes: RouteTable, name: str) -> str | None:
    route = routes.find(name)
    return route.sni if route else None


MESH = table(
    exact(f"foo.default.dc1.internal.{TD3}"),
    exact(f"v2.foo.default.dc1.internal.{TD3}", kind=RouteKind.SUBSET),
    suffix(f"dc2.internal.{TD3}"),
    suffix(f"p1.dc2.internal-v1.{TD3}", kind=RouteKind.PARTITION),
    exact(f"pinned.default.dc2.internal.{TD3}"),
    suffix("b"),
    suffix("a.b"),
    suffix("x.a.b"),
)


@pytest.mark.parametrize(
    ("name", "route"),
    [
        pytest.param(f"foo.default.dc1.internal.{TD3}", f"foo.default.dc1.internal.{TD3}", id="exact"),
        pytest.param(f"v2.foo.default.dc1.internal.{TD3}", f"v2.foo.default.dc1.internal.{TD3}", id="subset"),
        pytest.param(f"v3.foo.default.dc1.internal.{TD3}", None, id="an exact name has nothing in front of it"),
        pytest.param(f"foo.default.dc2.internal.{TD3}", f"*.dc2.internal.{TD3}", id="suffix"),
        pytest.param(f"x.dc2.internal.{TD3}", f"*.dc2.internal.{TD3}", id="one label in front"),
        pytest.param(f"a.b.c.d.e.dc2.internal.{TD3}", f"*.dc2.internal.{TD3}", id="any number in front"),
        pytest.param(f"dc2.internal.{TD3}", None, id="a suffix itself"),
        pytest.param(f"xdc2.internal.{TD3}", None, id="a suffix ends at a dot"),
        pytest.param(f"web.default.p1.dc2.internal-v1.{TD3}", f"*.p1.dc2.internal-v1.{TD3}", id="partition"),
        pytest.param(f"web.default.p2.dc2.internal-v1.{TD3}", None, id="another partition"),
        pytest.param(
            f"pinned.default.dc2.internal.{TD3}", f"pinned.default.dc2.internal.{TD3}", id="exact beats suffix"
        ),
        pytest.param("a.b", "*.b", id="*.a.b does not match a.b, *.b does"),
        pytest.param("b", None, id="*.b does not match b"),
        pytest.param("c.b", "*.b", id="short suffix"),
        pytest.param("c.a.b", "*.a.b", id="longer suffix"),
        pytest.param("c.x.a.b", "*.x.a.b", id="longest suffix"),
        pytest.param("c.d.x.a.b", "*.x.a.b", id="longest suffix, more in front"),
        pytest.param("x.a.b", "*.a.b", id="the longest does not match itself"),
        pytest.param(f"foo.default.dc2.internal.{TD1}", None, id="another mesh's trust domain"),
        pytest.param(f"foo.default.dc1.internal.{TD1}", None, id="another mesh's service here"),
        pytest.param(f"bar.default.dc1.internal.{TD3}", None, id="unknown service"),
        pytest.param(f"foo.default.dc9.internal.{TD3}", None, id="unknown datacenter"),
        pytest.param(f"dc1.internal.{TD3}", None, id="own datacenter"),
        pytest.param("", None, id="no name"),
        pytest.param(".", None, id="a dot"),
        pytest.param("localhost", None, id="one label"),
        pytest.param(f"foo.default.dc1.internal.{TD3}.", None, id="a final dot"),
        pytest.param("c.b.", None, id="a final dot after a suffix"),
        pytest.param(".b", None, id="nothing in front of a suffix"),
        pytest.param("c..b", None, id="an empty label in front of a suffix"),
    ],
)
def test_a_name_finds_the_most_specific_route(name: str, route: str | None) -> None:
    assert found(MESH, name) == route


@pytest.mark.parametrize("name", [f"FOO.Default.DC1.internal.{TD3}", f"foo.default.dc1.INTERNAL.{TD3.upper()}"])
def test_case_of_an_exact_name_does_not_matter(name: str) -> None:
    assert found(MESH, name) == f"foo.default.dc1.internal.{TD3}"


def test_case_of_a_suffix_does_not_matter() -> None:
    assert found(MESH, f"Web.Default.DC2.Internal.{TD3.upper()}") == f"*.dc2.internal.{TD3}"


def test_the_longest_name_there_is_finds_a_suffix() -> None:
    name = "a." * 126 + "aaa"
    assert len(name) == MAX_NAME
    assert name.count(".") + 1 == 127
    assert found(table(suffix("a.aaa")), name) == "*.a.aaa"
    assert found(table(suffix(name.partition(".")[2])), name) == f"*.{name.partition('.')[2]}"
    assert found(table(suffix("other")), name) is None


def test_a_longer_name_finds_nothing() -> None:
    name = "a." * 126 + "aaaa"
    assert len(name) == MAX_NAME + 1
    assert found(table(suffix("aaaa"), exact(name)), name) is None


def test_an_empty_table_finds_nothing() -> None:
    assert table().find(f"foo.default.dc1.internal.{TD3}") is None
    assert len(table()) == 0


def test_the_first_claim_to_a_name_wins_and_the_others_are_noted() -> None:
    first, second = exact("v2.web", destination="v2.web"), exact("v2.web", destination="impostor")
    third, fourth = suffix("dc2", destination="dc2"), suffix("dc2", destination="impostor")
    routes = table(third, first, second, fourth)
    assert routes.find("v2.web") is first
    assert routes.find("x.dc2") is third
    assert routes.conflicts == ("*.dc2", "v2.web")


def test_an_exact_name_and_a_suffix_of_the_same_text_are_two_claims() -> None:
    routes = table(exact("a.b"), suffix("a.b"))
    assert routes.conflicts == ()
    assert [found(routes, name) for name in ("a.b", "c.a.b")] == ["a.b", "*.a.b"]


def test_routes_are_listed_by_name_exact_ones_first() -> None:
    routes = table(suffix("d"), exact("b"), suffix("c"), exact("a"))
    assert [route.sni for route in routes] == ["a", "b", "*.c", "*.d"]
    assert len(routes) == 4


@pytest.mark.parametrize(
    ("threshold", "healthy", "known", "candidates"),
    [
        pytest.param(0, 3, 4, 3, id="off"),
        pytest.param(0, 0, 4, 0, id="off, nobody healthy"),
        pytest.param(50, 2, 4, 2, id="exactly the threshold"),
        pytest.param(50, 1, 4, 4, id="under the threshold"),
        pytest.param(50, 0, 4, 4, id="nobody healthy"),
        pytest.param(50, 4, 4, 4, id="all healthy"),
        pytest.param(50, 0, 0, 0, id="nobody at all"),
        pytest.param(34, 1, 3, 3, id="33.3 is under 34"),
        pytest.param(33, 1, 3, 1, id="33.3 is not under 33"),
        pytest.param(100, 99, 100, 100, id="all or all"),
        pytest.param(1, 0, 1, 1, id="the least threshold"),
    ],
)
def test_panic_lets_all_have_traffic_when_too_few_are_healthy(
    threshold: int, healthy: int, known: int, candidates: int
) -> None:
    endpoints = [endpoint(f"10.0.0.{at}") if at < healthy else unhealthy(f"10.0.0.{at}") for at in range(known)]
    route = Route("web", RouteKind.SERVICE, "web", tuple(endpoints), panic_threshold=threshold)
    assert len(route.candidates) == candidates
    assert route.endpoints == tuple(endpoints)


def test_nothing_can_be_changed() -> None:
    routes = table(exact("web"), suffix("dc2"))
    for record, name in ((routes, "exact"), (routes.exact["web"], "endpoints"), (endpoint(), "healthy")):
        with pytest.raises(FrozenInstanceError):
            setattr(record, name, None)
    for mapping in (routes.exact, routes.suffixes):
        with pytest.raises(TypeError):
            mapping["web"] = exact("other")  # type: ignore[index]


def test_equal_routes_make_equal_tables() -> None:
    assert table(exact("a"), suffix("b")) == table(suffix("b"), exact("a"))
    assert table(exact("a", unhealthy())) != table(exact("a", endpoint()))


LABELS = st.lists(st.sampled_from(["a", "b", "c", "A", ""]), min_size=1, max_size=5)
NAMES = LABELS.map(".".join)
ROUTED = LABELS.map(lambda labels: ".".join(label.lower() or "x" for label in labels))


@given(st.lists(ROUTED), st.lists(ROUTED), NAMES)
def test_find_agrees_with_the_rule_said_slowly(exacts: list[str], suffixes: list[str], name: str) -> None:
    routes = table(*map(exact, exacts), *map(suffix, suffixes))
    folded = name.lower()
    if folded in exacts:
        expected: str | None = folded
    else:
        fitting = [
            tail for tail in suffixes if folded.endswith(f".{tail}") and all(folded[: -len(tail) - 1].split("."))
        ]
        expected = f"*.{max(fitting, key=len)}" if fitting else None
    assert found(routes, name) == expected


def test_a_table_knows_the_routes_it_has_by_the_names_that_users_write() -> None:
    made = table(exact("web"), suffix("dc2.internal"))
    assert [route.sni for name in ("web", "*.dc2.internal") if (route := made.named(name))] == ["web", "*.dc2.internal"]
    assert made.named("dc2.internal") is None
    assert made.named("*.web") is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        pytest.param(f"web.default.dc1.internal.{TD3}", ("web", "default", ""), id="a service"),
        pytest.param(f"foo.default.dc1.internal.{TD3}", ("foo", "default", ""), id="one that has a route"),
        pytest.param(f"v2.web.default.dc1.internal.{TD3}", ("web", "default", "v2"), id="a subset"),
        pytest.param(f"web.team.dc1.internal.{TD3}", ("web", "team", ""), id="a namespace"),
        pytest.param(f"WEB.Default.DC1.internal.{TD3.upper()}", ("web", "default", ""), id="any case"),
        pytest.param(f"web.default.dc2.internal.{TD3}", None, id="another datacenter"),
        pytest.param(f"web.default.p1.dc1.internal-v1.{TD3}", None, id="another partition"),
        pytest.param(f"web.default.default.dc1.internal-v1.{TD3}", None, id="no name that Consul builds"),
        pytest.param(f"web.default.dc1.internal.{TD1}", None, id="another trust domain"),
        pytest.param(f"x.web.default.dc1.internal.y.{TD3}", None, id="labels in between"),
        pytest.param(f"dc1.internal.{TD3}", None, id="the datacenter itself"),
        pytest.param(f"web.default.dc1.query.{TD3}", None, id="a prepared query"),
        pytest.param("server.dc1.consul", None, id="the servers"),
        pytest.param(f".default.dc1.internal.{TD3}", None, id="an empty label"),
        pytest.param("example.com", None, id="anything"),
        pytest.param("", None, id="no name"),
    ],
)
def test_a_name_says_which_service_of_the_own_datacenter_and_partition_it_is_of(
    name: str, said: tuple[str, str, str] | None
) -> None:
    service = MESH.on_demand(name)
    assert said == (None if service is None else (service.service, service.namespace, getattr(service, "subset", None)))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (f"web.default.default.peer.external.{TD3}", ("web", "default", "peer")),
        (f"WEB.Team.default.Peer.external.{TD3}", ("web", "team", "peer")),
        ("web.default.p9.us.external.22222222-3333-4444-5555-666666666666.consul", ("web", "default", "us")),
        (f"web.default.p9.peer.external.{TD3}", None),
        (f"web.default.default.peer.internal.{TD3}", None),
    ],
)
def test_a_name_says_which_service_is_exported_to_a_peer_or_imported_from_one(
    name: str, said: tuple[str, str, str] | None
) -> None:
    service = MESH.on_demand(name)
    assert said == (
        (service.service, service.namespace, service.peer) if isinstance(service, PeeredServiceSni) else None
    )
    assert isinstance(service, PeeredServiceSni) or service is None


def test_an_endless_name_is_of_nothing() -> None:
    assert MESH.on_demand("web.default.default.peer." + "x" * 255 + f".external.{TD3}") is None


def test_own_service_is_of_the_tables_own_partition_and_datacenter_in_any_case() -> None:
    routes = table(partition="P1", datacenter="DC1", trust_domain=TD3.upper())
    found = routes.on_demand(f"web.default.p1.dc1.internal-v1.{TD3}")
    assert isinstance(found, ServiceSni)
    assert (found.service, found.partition, found.datacenter) == ("web", "p1", "dc1")
    assert routes.on_demand(f"web.default.dc1.internal.{TD3}") is None


def test_a_table_without_a_trust_domain_has_no_services_of_its_own() -> None:
    for name in ("web.default.dc1.internal.", "web.default.dc1.internal", f"web.default.dc1.internal.{TD3}"):
        assert table(trust_domain="").on_demand(name) is None
