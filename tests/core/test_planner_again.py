"""Planning again: a planner that remembers makes the same tables as one that does not, and remakes what it must."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from meshgate.core.catalog import Check, Remote, Service, Snapshot, Subset
from meshgate.core.endpoint_maker import Addresses
from meshgate.core.planner import Planner
from meshgate.core.routes import Route

from .samples import TD1, TD3, host_names, instance, plan

NAMED = instance("web.example")
NUMERIC = instance("172.16.1.7")

SERVICES = st.builds(
    lambda name, instances, subset: Service(
        name, tuple(instances), subsets=(Subset("v1", instances=tuple(instances[:1])),) if subset else ()
    ),
    st.sampled_from(["api", "db", "web", "v1.web", "Web"]),
    st.lists(st.sampled_from([NAMED, NUMERIC, instance("172.16.1.8", port=0)]), max_size=2),
    st.booleans(),
)
ADDRESSES = st.sampled_from([{}, {"web.example": ("10.9.0.1",)}, {"web.example": ("10.9.0.1", "10.9.0.2")}])
STEPS = st.lists(
    st.tuples(
        st.lists(SERVICES, max_size=4),
        ADDRESSES,
        st.sampled_from([TD1, TD3, ""]),
        st.sampled_from([0, 50]),
        st.sampled_from([(), (Remote("dc2", (instance("gw.example", datacenter="dc2"),)),)]),
    ),
    max_size=4,
)


@given(STEPS)
def test_a_table_never_depends_on_what_was_planned_before(
    steps: list[tuple[list[Service], Addresses, str, int, tuple[Remote, ...]]],
) -> None:
    planner = Planner()
    for services, addresses, trust_domain, panic, remotes in steps:
        snapshot = Snapshot("dc1", trust_domain, services=tuple(services), remotes=remotes)
        table = planner.plan(snapshot, panic_threshold=panic, addresses=addresses)
        assert table == plan(snapshot, panic_threshold=panic, addresses=addresses)
        assert planner.host_names == host_names(snapshot)


def route(planner: Planner, snapshot: Snapshot, service: str, addresses: Addresses | None = None) -> Route:
    table = planner.plan(snapshot, addresses=addresses or {})
    found = table.find(f"{service}.default.dc1.internal.{TD3}")
    assert found is not None
    return found


def test_services_that_did_not_change_keep_their_routes() -> None:
    planner = Planner()
    web, api = Service("web", (NUMERIC,)), Service("api", (NUMERIC,))
    before = Snapshot("dc1", TD3, services=(api, web))
    after = replace(before, services=(api, replace(web, instances=(instance("172.16.1.9"),))))
    kept, remade = route(planner, before, "api"), route(planner, before, "web")
    assert route(planner, after, "api") is kept
    assert route(planner, after, "web") != remade


def test_services_keep_their_routes_when_another_datacenter_changes() -> None:
    planner = Planner()
    before = Snapshot("dc1", TD3, services=(Service("web", (NUMERIC,)),))
    dc2 = Remote("dc2", (instance("172.16.2.1", datacenter="dc2"),))
    kept = route(planner, before, "web")
    after = replace(before, remotes=(dc2,))
    assert route(planner, after, "web") is kept
    assert planner.plan(after) == plan(after)


def test_a_service_is_planned_again_when_its_host_name_stands_for_something_else() -> None:
    planner = Planner()
    snapshot = Snapshot("dc1", TD3, services=(Service("web", (NAMED,)), Service("api", (NUMERIC,))))
    first = route(planner, snapshot, "web", {"web.example": ("10.9.0.1",)})
    api = route(planner, snapshot, "api")
    assert route(planner, snapshot, "web", {"web.example": ("10.9.0.1",)}).endpoints == first.endpoints
    moved = route(planner, snapshot, "web", {"web.example": ("10.9.0.2",)})
    assert [endpoint.address for endpoint in moved.endpoints] == ["10.9.0.2"]
    assert route(planner, snapshot, "api", {"other.example": ("10.9.0.3",)}) is api


def test_a_service_with_a_host_name_keeps_its_route_when_another_service_changes() -> None:
    planner = Planner()
    web, api = Service("web", (NAMED,)), Service("api", (NUMERIC,))
    before = Snapshot("dc1", TD3, services=(api, web))
    after = replace(before, services=(replace(api, instances=(instance("172.16.1.9"),)), web))
    addresses = {"web.example": ("10.9.0.1",)}
    kept = route(planner, before, "web", addresses)
    assert route(planner, after, "web", addresses) is kept


@pytest.mark.parametrize("change", [{"datacenter": "dc7"}, {"trust_domain": TD1}, {"partition": "team"}])
def test_another_world_has_no_route_of_the_last_one(change: dict[str, Any]) -> None:
    planner = Planner()
    snapshot = Snapshot("dc1", TD3, services=(Service("web", (replace(NUMERIC, checks=(Check("up", "passing"),)),)),))
    planner.plan(snapshot)
    elsewhere = replace(snapshot, **change)
    assert planner.plan(elsewhere) == plan(elsewhere)


def test_a_service_that_claims_a_name_somebody_has_is_planned_with_all_others() -> None:
    planner = Planner()
    web = Service("web", (NUMERIC,))
    first = Snapshot("dc1", TD3, services=(web,))
    assert planner.plan(first).conflicts == ()
    both = replace(first, services=(web, Service("Web", (NUMERIC,))))
    assert planner.plan(both) == plan(both)
    assert planner.plan(both).conflicts == (f"web.default.dc1.internal.{TD3}",)
