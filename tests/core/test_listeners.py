"""Where a gateway listens, for the registrations that Consul's documentation shows and for those that people write."""

from typing import Any

import pytest

from meshgate.core.proxy_config import BindAddress, ListenPlan, listen_plan

LAN = BindAddress("lan", "10.0.0.7", 8443)
WAN = BindAddress("wan", "192.0.2.1", 443)


def plan(config: dict[str, Any], *tagged: BindAddress, address: str = "10.0.0.7", port: int = 8443) -> ListenPlan:
    return listen_plan(address, port, tagged, config)


def named(plan: ListenPlan) -> list[str]:
    return [str(each) for each in plan.addresses]


def test_default_is_the_service_address() -> None:
    assert plan({}, LAN, WAN) == ListenPlan((BindAddress("default", "10.0.0.7", 8443),))


def test_service_without_an_address_listens_on_every_address() -> None:
    assert named(plan({}, address="")) == ["default=*:8443"]


@pytest.mark.parametrize("prefix", ["envoy_gateway", "envoy_mesh_gateway"])
def test_tagged_addresses_beside_the_default_one(prefix: str) -> None:
    found = plan({f"{prefix}_bind_tagged_addresses": True}, WAN)
    assert named(found) == ["default=10.0.0.7:8443", "wan=192.0.2.1:443"]


@pytest.mark.parametrize("prefix", ["envoy_gateway", "envoy_mesh_gateway"])
def test_addresses_of_their_own_without_the_default_one(prefix: str) -> None:
    config = {
        f"{prefix}_no_default_bind": True,
        f"{prefix}_bind_addresses": {
            "b": {"address": "::1", "port": 2},
            "a": {"Address": "127.0.0.1", "Port": "1"},
        },
    }
    assert named(plan(config, LAN, WAN)) == ["a=127.0.0.1:1", "b=[::1]:2"]


def test_present_spelling_counts_before_that_of_consul_1_6() -> None:
    config = {"envoy_gateway_no_default_bind": False, "envoy_mesh_gateway_no_default_bind": True}
    assert named(plan(config)) == ["default=10.0.0.7:8443"]


@pytest.mark.parametrize("value", [True, "true", "1", 1, "T"])
def test_booleans_may_be_texts_and_numbers(value: object) -> None:
    config = {"envoy_gateway_no_default_bind": value, "envoy_gateway_bind_tagged_addresses": value}
    assert named(plan(config, LAN)) == ["lan=10.0.0.7:8443"]


def test_maps_may_be_lists_of_one_as_hcl_makes_them() -> None:
    config = {"envoy_gateway_bind_addresses": [{"a": [{"address": "127.0.0.1", "port": 1}]}]}
    assert named(plan(config)) == ["a=127.0.0.1:1", "default=10.0.0.7:8443"]


def test_address_that_comes_twice_is_bound_once_by_the_first_name() -> None:
    config = {"envoy_gateway_bind_tagged_addresses": True}
    assert named(plan(config, LAN, BindAddress("lan_ipv4", "10.0.0.7", 8443))) == ["default=10.0.0.7:8443"]
    same = {"envoy_gateway_bind_addresses": {"a": {"address": "2001:db8::1", "port": 1}}}
    found = plan(same | config, BindAddress("z", "2001:DB8:0::1", 1), address="10.0.0.7")
    assert named(found) == ["a=[2001:db8::1]:1", "default=10.0.0.7:8443"]


def test_address_beside_the_one_that_stands_for_all_is_not_bound() -> None:
    config = {"envoy_gateway_bind_tagged_addresses": True}
    v6 = BindAddress("v6", "2001:db8::1", 8443)
    other_port = BindAddress("other", "10.0.0.7", 8444)
    found = plan(config, LAN, v6, other_port, address="")
    assert named(found) == ["default=*:8443", "other=10.0.0.7:8444", "v6=[2001:db8::1]:8443"]
    every = {"envoy_gateway_bind_addresses": {"all": {"address": "0.0.0.0", "port": 8443}}}
    assert named(plan(every)) == ["all=0.0.0.0:8443"]


def test_what_cannot_be_bound_is_told_and_harms_no_other() -> None:
    config = {"envoy_gateway_bind_tagged_addresses": True, "envoy_gateway_bind_addresses": {"c": "nonsense"}}
    found = plan(config, BindAddress("wan", "gw.example.com", 443), BindAddress("x", "10.0.0.8", 70000))
    assert named(found) == ["default=10.0.0.7:8443"]
    assert found.problems == (
        "listener c=*:0: 0 is no port",
        "listener wan=gw.example.com:443: 'gw.example.com' is no IP address",
        "listener x=10.0.0.8:70000: 70000 is no port",
    )


@pytest.mark.parametrize("value", [None, 7, "a", [], [{"a": {}}, {}]])
def test_what_is_no_map_is_as_if_it_were_not_there(value: object) -> None:
    assert plan({"envoy_gateway_bind_addresses": value}) == plan({})


def test_no_default_bind_and_nothing_else_leaves_nothing() -> None:
    assert plan({"envoy_gateway_no_default_bind": True}, LAN) == ListenPlan(())
