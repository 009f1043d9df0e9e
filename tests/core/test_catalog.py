"""Records of the catalog: equal content is equal, nothing changes, and which view of remote gateways counts."""

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given, strategies as st

from meshgate.core.catalog import (
    Check,
    Instance,
    Remote,
    Service,
    Snapshot,
    Subset,
    WanAddress,
    newer_gateways,
)

from .samples import TD3, instance


def snapshot() -> Snapshot:
    sidecar = instance(checks=(Check("serfHealth", "passing"),), wan=WanAddress("198.18.1.1", 443), meta=(("v", "1"),))
    return Snapshot(
        "dc1",
        TD3,
        services=(Service("web", (sidecar,), subsets=(Subset("v1", instances=(sidecar,)),)),),
        remotes=(Remote("dc2", (instance(datacenter="dc2"),)),),
    )


def test_equal_content_makes_equal_snapshots() -> None:
    assert snapshot() == snapshot()
    assert hash(snapshot()) == hash(snapshot())


def test_a_check_that_turned_makes_another_snapshot() -> None:
    turned = instance(checks=(Check("serfHealth", "critical"),))
    assert Snapshot("dc1", TD3, services=(Service("web", (turned,)),)) != Snapshot(
        "dc1", TD3, services=(Service("web", (instance(checks=(Check("serfHealth", "passing"),)),)),)
    )


def test_records_cannot_be_changed() -> None:
    for record, name in ((snapshot(), "services"), (instance(), "port"), (Check("a", "passing"), "status")):
        with pytest.raises(FrozenInstanceError):
            setattr(record, name, None)


def test_what_is_left_out_is_the_default_partition_and_namespace() -> None:
    assert Snapshot("dc1", TD3).partition == "default"
    assert Service("web", ()).namespace == "default"
    assert instance().partition == "default"


OLD, MIDDLE, NEW = (instance(f"10.0.0.{index}", modify_index=index) for index in (1, 5, 9))


@pytest.mark.parametrize(
    ("direct", "federated", "chosen"),
    [
        pytest.param([], [], [], id="none at all"),
        pytest.param([MIDDLE], [], [MIDDLE], id="no federation state"),
        pytest.param([], [MIDDLE], [MIDDLE], id="the datacenter does not answer"),
        pytest.param([], [instance(modify_index=0)], [instance(modify_index=0)], id="without indexes, some beats none"),
        pytest.param([MIDDLE], [NEW], [NEW], id="newer federation state"),
        pytest.param([MIDDLE], [OLD], [MIDDLE], id="older federation state"),
        pytest.param([MIDDLE], [instance("10.9.9.9", modify_index=5)], [MIDDLE], id="equally new"),
        pytest.param([OLD, NEW], [MIDDLE, MIDDLE], [OLD, NEW], id="the highest index of each counts"),
        pytest.param([MIDDLE, OLD], [OLD, NEW], [OLD, NEW], id="and its whole list is taken"),
    ],
)
def test_the_view_with_the_newest_gateway_wins(
    direct: list[Instance], federated: list[Instance], chosen: list[Instance]
) -> None:
    assert newer_gateways(iter(direct), iter(federated)) == tuple(chosen)


GATEWAYS = st.lists(st.integers(0, 9).map(lambda index: instance(modify_index=index)), max_size=4)


@given(GATEWAYS, GATEWAYS)
def test_one_of_the_two_views_is_taken_as_it_is(direct: list[Instance], federated: list[Instance]) -> None:
    chosen = newer_gateways(direct, federated)
    assert chosen in (tuple(direct), tuple(federated))
    assert bool(chosen) == bool(direct or federated)
