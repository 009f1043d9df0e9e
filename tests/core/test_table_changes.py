"""A change leads from any table to any other one, and says no more than it must."""

from hypothesis import given, strategies as st

from meshgate.core.routes import Route, RouteTable, changed, difference

from .samples import endpoint, exact, suffix, table

ROUTES = st.builds(
    lambda name, ports, ends: (suffix if ends else exact)(name, *(endpoint(port=port) for port in ports)),
    st.sampled_from(["a.b", "b", "c.b", "d"]),
    st.lists(st.integers(1, 3), min_size=1, max_size=2),
    st.booleans(),
)
TABLES = st.builds(lambda routes, datacenter: table(*routes, datacenter=datacenter), st.lists(ROUTES), st.just("dc1"))


@given(TABLES, TABLES)
def test_change_makes_one_table_of_the_other(before: RouteTable, after: RouteTable) -> None:
    assert changed(before, difference(before, after)) == after


@given(TABLES)
def test_equal_tables_need_no_change(same: RouteTable) -> None:
    change = difference(same, same)
    assert change.routes == ()
    assert change.removed == ()


def test_only_what_differs_is_sent() -> None:
    kept, moved, gone, new = exact("kept"), exact("moved"), suffix("gone"), exact("new")
    elsewhere: Route = exact("moved", endpoint("10.9.9.9"))
    change = difference(table(kept, moved, gone), table(kept, elsewhere, new))
    assert change.routes == (elsewhere, new)
    assert change.removed == ("*.gone",)


def test_a_change_leaves_the_table_that_is_in_use_alone() -> None:
    kept, gone, new = exact("kept"), suffix("gone"), exact("new")
    before = table(kept, gone)
    after = changed(before, difference(before, table(kept, new)))
    assert (after.find("new"), after.find("x.gone")) == (new, None)
    assert (before.find("new"), before.find("x.gone")) == (None, gone)
