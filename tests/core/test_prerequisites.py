import pytest

from meshgate.core.prerequisites import (
    Finding,
    Status,
    agent_connections,
    blocked_endpoints,
    ca_roots,
    central_config,
    clock,
    connect_enabled,
    consul_version,
    descriptors,
    grpc_port,
    http_export,
    keys_of_services,
    one_primary,
    stops_without,
    wan_address,
)

OK, WARNING, FAILED = Status.OK, Status.WARNING, Status.FAILED
DAY = 86400.0


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("1.8.0", OK),
        ("1.8.7", OK),
        ("1.15.3+ent", OK),
        ("1.23.0-dev", OK),
        ("2.0.0", OK),
        ("1.10", OK),
        ("1.7.14", FAILED),
        ("0.9.4", FAILED),
        ("", WARNING),
        ("unknown", WARNING),
        ("v1.8.7", WARNING),
    ],
)
def test_consul_from_1_8_on_will_do(text: str, status: Status) -> None:
    finding = consul_version(text)
    assert finding.status is status
    assert bool(finding.advice) == (status is not OK)


def test_connect_needs_a_trust_domain_and_wants_the_agents_setting() -> None:
    assert connect_enabled(True, "td.consul") == Finding("connect", OK, "trust domain td.consul")
    assert connect_enabled(None, "td.consul").status is OK
    assert connect_enabled(False, "td.consul").status is WARNING
    assert connect_enabled(True, "").status is FAILED


@pytest.mark.parametrize(
    ("count", "days", "status"),
    [(0, None, FAILED), (1, None, WARNING), (1, -0.1, FAILED), (1, 0.0, FAILED), (1, 29.9, WARNING), (2, 30.0, OK)],
)
def test_roots_that_end_soon_are_said_in_time(count: int, days: float | None, status: Status) -> None:
    assert ca_roots(count, None if days is None else 1e9 + days * DAY, 1e9).status is status


def test_roots_are_counted_in_words() -> None:
    assert ca_roots(1, 1e9 + 40 * DAY, 1e9).detail == "1 root, the active one for 40 more days"
    assert ca_roots(2, 1e9 + 40 * DAY, 1e9).detail == "2 roots, the active one for 40 more days"


def test_grpc_is_for_envoy_alone_and_so_never_fails() -> None:
    assert grpc_port((8502, 8503)) == Finding("gRPC port", OK, "8502, 8503")
    assert grpc_port(()).status is WARNING
    assert grpc_port(None).status is WARNING


def test_central_configuration_that_is_off_is_warned_of() -> None:
    on = central_config(True, "1.8.7")
    assert (on.status, on.detail) == (OK, "on: sidecars here follow proxy-defaults and service-defaults")
    ignored = "sidecars here ignore proxy-defaults and service-defaults"
    for version, default in (("1.8.7", ", as by default before 1.9"), ("1.9.0", ""), ("", "")):
        off = central_config(False, version)
        assert (off.status, off.detail) == (WARNING, f"off{default}: {ignored}")
        assert off.advice.startswith("a problem if modes are set there: then set enable_central_service_config = true")


def test_central_configuration_that_the_agent_does_not_tell_of_is_not_said_to_be_off() -> None:
    hidden = central_config(None, "")
    assert (hidden.status, hidden.detail.split(";")[0]) == (WARNING, "not told")
    assert "where it is off" in hidden.advice


@pytest.mark.parametrize(
    ("skew", "status"),
    [
        (0.0, OK),
        (5.0, OK),
        (-5.0, OK),
        (5.1, WARNING),
        (-60.0, WARNING),
        (60.1, FAILED),
        (-90.0, FAILED),
        (None, WARNING),
    ],
)
def test_clocks_more_than_a_minute_apart_fail(skew: float | None, status: Status) -> None:
    assert clock(skew).status is status


def test_the_side_that_is_ahead_is_named() -> None:
    assert clock(7.0).detail == "7.0 s ahead of the agent"
    assert clock(-7.0).detail == "7.0 s behind the agent"


@pytest.mark.parametrize(
    ("limit", "streams", "status"),
    [
        (2200, 1000, OK),
        (2199, 1000, WARNING),
        (2000, 900, WARNING),
        (200, 1, FAILED),
        (201, 1, WARNING),
        (20000, 64, OK),
    ],
)
def test_a_stream_takes_two_descriptors(limit: int, streams: int, status: Status) -> None:
    assert descriptors(limit, streams, reserved=200).status is status


@pytest.mark.parametrize(
    ("limit", "watches", "status"),
    [(200, 100, OK), (120, 100, OK), (119, 100, FAILED), (0, 5000, OK), (None, 100, WARNING)],
)
def test_watches_have_to_fit_into_the_agents_limit(limit: int | None, watches: int, status: Status) -> None:
    assert agent_connections(limit, watches).status is status


def test_a_number_of_watches_that_fits_is_named() -> None:
    assert "MESHGATE_CATALOG_WATCHES to 99" in agent_connections(119, 100).advice
    assert "MESHGATE_CATALOG_WATCHES to 1" in agent_connections(5, 100).advice
    assert "any number" in agent_connections(0, 100).detail


def test_one_mesh_has_one_primary() -> None:
    own = ("td.consul", "dc1")
    others = {
        "dc5": ("td.consul", ""),
        "dc2": ("td.consul", "dc1"),
        "dc3": ("other.consul", "dc1"),
        "dc4": ("td.consul", "dc9"),
        "dc6": ("", ""),
    }
    found = {finding.check: finding.status for finding in one_primary(own, others)}
    assert found == {
        "primary of dc2": OK,
        "primary of dc3": FAILED,
        "primary of dc4": FAILED,
        "primary of dc5": OK,
        "primary of dc6": FAILED,
    }
    assert [finding.detail for finding in one_primary(("td.consul", ""), {"dc2": ("td.consul", "dc1")})] == [
        "same trust domain"
    ]


@pytest.mark.parametrize(
    ("host", "federated", "status"),
    [
        ("", False, OK),
        ("", True, WARNING),
        ("198.51.100.7", True, OK),
        ("10.0.0.7", True, OK),
        ("2001:db8::7", True, OK),
        ("gw.example.com", True, OK),
        ("127.0.0.1", True, WARNING),
        ("::1", True, WARNING),
        ("169.254.1.1", True, WARNING),
        ("0.0.0.0", True, FAILED),
        ("::", True, FAILED),
        ("224.0.0.1", True, FAILED),
    ],
)
def test_a_wan_address_has_to_mean_something_elsewhere(host: str, federated: bool, status: Status) -> None:
    finding = wan_address(host, federated=federated)
    assert finding.status is status
    assert bool(finding.advice) == (status is not OK)


@pytest.mark.parametrize("version", ["1.16.0", "1.22.6", "1.22.6+ent", "", "dev"])
def test_versions_that_give_cached_keys_away_are_warned_of(version: str) -> None:
    found = keys_of_services(version)
    assert found is not None
    assert found.status is Status.WARNING
    assert 'block_endpoints = ["/v1/agent/connect/ca/leaf"]' in found.advice


def test_an_agent_that_blocks_the_endpoint_and_an_old_one_give_no_keys() -> None:
    for blocked in ("/v1/agent/connect/ca/leaf", "/v1/agent/connect/ca/leaf/", "/v1/agent"):
        found = keys_of_services("1.22.6", ["/v1/kv", blocked])
        assert found is not None
        assert found.status is Status.OK
    assert keys_of_services("1.8.7") is None
    assert keys_of_services("1.15.10") is None


def test_endpoints_that_the_gateway_asks_and_the_agent_blocks_are_told_with_what_stops() -> None:
    assert blocked_endpoints(["/v1/kv/", "/v1/agent/connect/ca/leaf", "/v1/health/node/"]) == []
    found = blocked_endpoints(["/v1/internal", "/v1/health/connect/"])
    assert {finding.status for finding in found} == {FAILED}
    assert ["gateways of another name" in found[0].detail, len(found)] == [True, 4]
    assert "services have no endpoints" in found[-1].detail


def test_an_export_over_http_is_told_with_the_remedy_by_name() -> None:
    refused, passed = (http_export("export of api", "api", "grpc", passed=passed) for passed in (False, True))
    assert (refused.status, passed.status) == (FAILED, WARNING)
    for finding in (refused, passed):
        assert "protocol grpc" in finding.detail
        assert 'protocol = "tcp" in service-defaults/api' in finding.advice
        assert "Envoy gateway" in finding.advice


@pytest.mark.parametrize(
    ("path", "endpoint", "stops"),
    [
        ("/v1/agent/connect/ca/leaf/web", "/v1/agent/connect/ca/leaf", "`meshgate probe` gets no certificate"),
        ("/v1/health/connect/web", "/v1/health/connect", "services have no endpoints"),
        ("/v1/peerings", "/v1/peerings", "services of peers have no route"),
        ("/v1/operator/x", "/v1/operator/x", "what it tells is missing"),
    ],
)
def test_what_stops_working_without_an_endpoint(path: str, endpoint: str, stops: str) -> None:
    assert stops_without(path) == (endpoint, stops)
