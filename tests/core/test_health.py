"""Consul's rules for an instance's health, weight and address, one row each."""

import pytest
from hypothesis import given, strategies as st

from meshgate.core.catalog import Check, WanAddress
from meshgate.core.endpoint_maker import Verdict, assess, best_address

from .samples import instance

PASSING, WARNING, CRITICAL = Check("up", "passing"), Check("slow", "warning"), Check("serfHealth", "critical")


@pytest.mark.parametrize(
    ("checks", "only_passing", "weights", "verdict"),
    [
        pytest.param((), False, (1, 1), Verdict(True, 1), id="no checks"),
        pytest.param((), True, (1, 1), Verdict(True, 1), id="no checks, only passing"),
        pytest.param((PASSING,), False, (7, 3), Verdict(True, 7), id="passing weight"),
        pytest.param((PASSING,), True, (7, 3), Verdict(True, 7), id="passing, only passing"),
        pytest.param((PASSING, WARNING), False, (7, 3), Verdict(True, 3), id="warning weight"),
        pytest.param((WARNING, PASSING), False, (7, 3), Verdict(True, 3), id="warning weight, any order"),
        pytest.param((WARNING,), True, (7, 3), Verdict(False, 3, "check slow is warning"), id="only passing: warning"),
        pytest.param((CRITICAL,), False, (1, 1), Verdict(False, 1, "check serfHealth is critical"), id="critical"),
        pytest.param((CRITICAL,), True, (1, 1), Verdict(False, 1, "check serfHealth is critical"), id="critical too"),
        pytest.param((PASSING, CRITICAL, PASSING), False, (7, 3), Verdict(False, 7, "check serfHealth is critical")),
        pytest.param(
            (CRITICAL, WARNING, Check("other", "critical")),
            False,
            (7, 3),
            Verdict(False, 3, "check serfHealth is critical"),
            id="the first cause is named, the weight stays what it would be",
        ),
        pytest.param(
            (Check("_node_maintenance", "critical"), PASSING),
            False,
            (1, 1),
            Verdict(False, 1, "check _node_maintenance is critical"),
            id="node in maintenance",
        ),
        pytest.param(
            (PASSING, Check("_service_maintenance:web-1", "critical")),
            False,
            (1, 1),
            Verdict(False, 1, "check _service_maintenance:web-1 is critical"),
            id="service in maintenance",
        ),
        pytest.param((PASSING,), False, (0, 1), Verdict(False, 1, "weight 0"), id="weight 0"),
        pytest.param((PASSING,), False, (-5, 1), Verdict(False, 1, "weight -5"), id="negative weight"),
        pytest.param((WARNING,), False, (1, 0), Verdict(False, 1, "weight 0"), id="warning weight 0"),
        pytest.param((PASSING,), False, (1, 0), Verdict(True, 1), id="warning weight 0 while passing"),
        pytest.param((CRITICAL,), False, (0, 0), Verdict(False, 1, "check serfHealth is critical"), id="both wrong"),
        pytest.param((PASSING,), False, (128, 1), Verdict(True, 128), id="weight 128"),
        pytest.param((PASSING,), False, (129, 1), Verdict(True, 128), id="weight 129"),
        pytest.param((WARNING,), False, (1, 65535), Verdict(True, 128), id="warning weight too large"),
        pytest.param((CRITICAL,), False, (500, 1), Verdict(False, 128, "check serfHealth is critical")),
    ],
)
def test_health_and_weight(
    checks: tuple[Check, ...], only_passing: bool, weights: tuple[int, int], verdict: Verdict
) -> None:
    subject = instance(checks=checks, weight_passing=weights[0], weight_warning=weights[1])
    assert assess(subject, only_passing=only_passing) == verdict


CHECKS = st.lists(st.builds(Check, st.just("c"), st.sampled_from(["passing", "warning", "critical"]))).map(tuple)


@given(CHECKS, st.integers(), st.integers(), st.booleans())
def test_weight_is_always_one_that_envoy_takes_and_a_cause_is_given_just_when_unhealthy(
    checks: tuple[Check, ...], passing: int, warning: int, only_passing: bool
) -> None:
    subject = instance(checks=checks, weight_passing=passing, weight_warning=warning)
    verdict = assess(subject, only_passing=only_passing)
    assert 1 <= verdict.weight <= 128
    assert verdict.healthy == (not verdict.cause)
    if verdict.healthy:
        assert {check.status for check in checks} <= ({"passing"} if only_passing else {"passing", "warning"})


# Service address, its wan tag, the node's wan tag -> where to dial. The node is 10.10.1.1, the service port 8080.
@pytest.mark.parametrize(
    ("address", "wan", "node_wan", "near", "far"),
    [
        pytest.param("172.16.1.3", None, "", ("172.16.1.3", 8080), ("172.16.1.3", 8080), id="service address"),
        pytest.param("", None, "", ("10.10.1.1", 8080), ("10.10.1.1", 8080), id="node address"),
        pytest.param("", None, "198.18.0.9", ("10.10.1.1", 8080), ("198.18.0.9", 8080), id="node wan tag"),
        pytest.param(
            "172.16.1.3", None, "198.18.0.9", ("172.16.1.3", 8080), ("172.16.1.3", 8080), id="service before node"
        ),
        pytest.param(
            "172.16.1.3",
            WanAddress("198.18.1.1", 443),
            "198.18.0.9",
            ("172.16.1.3", 8080),
            ("198.18.1.1", 443),
            id="wan tag",
        ),
        pytest.param(
            "172.16.1.3", WanAddress("198.18.1.1", 0), "", ("172.16.1.3", 8080), ("198.18.1.1", 8080), id="wan port 0"
        ),
        pytest.param(
            "172.16.1.3",
            WanAddress("", 443),
            "198.18.0.9",
            ("172.16.1.3", 8080),
            ("198.18.0.9", 443),
            id="wan tag without address: the node's wan tag",
        ),
        pytest.param(
            "172.16.1.3",
            WanAddress("", 443),
            "",
            ("172.16.1.3", 8080),
            ("10.10.1.1", 443),
            id="wan tag without address: the node, though the service has an address",
        ),
        pytest.param(
            "", WanAddress("", 0), "", ("10.10.1.1", 8080), ("10.10.1.1", 8080), id="wan tag without anything"
        ),
        pytest.param(
            "172.16.1.3",
            WanAddress("gw.example.com", 443),
            "",
            ("172.16.1.3", 8080),
            ("gw.example.com", 443),
            id="hostname",
        ),
    ],
)
def test_where_to_dial(
    address: str, wan: WanAddress | None, node_wan: str, near: tuple[str, int], far: tuple[str, int]
) -> None:
    subject = instance(address, wan=wan, node_wan=node_wan)
    assert best_address(subject, wan=False) == near
    assert best_address(subject, wan=True) == far
