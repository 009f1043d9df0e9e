"""Consul's own tests of its mesh gateway as a checklist: for each scenario our tests that cover it, or why none can.

The scenarios are those of Consul's repository by their names there: the cases of `test/integration/connect/envoy`, the
tests of `test-integ/peering_commontopo` and `test/integration/consul-container`, and the golden variants of
`agent/xds/testdata` for mesh gateways. A gateway that never terminates TLS can satisfy those marked PASS; L7 needs
termination, CALLER is a test of the caller, of which a gateway only has to forward the streams.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


class Mark(Enum):
    """What a scenario asks of a gateway."""

    PASS = "tcp-pass"
    L7 = "L7"
    CALLER = "caller"


@dataclass(frozen=True)
class Entry:
    """The tests that cover a scenario, as `path::test` or `path::test[id]` below `tests`, and what they leave out."""

    mark: Mark
    tests: tuple[str, ...] = ()
    why_not: str = ""


def passes(*tests: str, but: str = "") -> Entry:
    return Entry(Mark.PASS, tests, but)


def needs_http(why: str, *tests: str) -> Entry:
    return Entry(Mark.L7, tests, why)


def of_caller(why: str, *tests: str) -> Entry:
    return Entry(Mark.CALLER, tests, why)


GOLDEN = "core/test_planner.py::test_golden_variant"
EXPORTED = "core/test_exports.py::test_golden_variant"
MODES = "e2e/test_modes.py::test_caller_meets_the_service_and_only_the_gateways_of_its_mode_carry_it"
WANFED = "e2e/test_wan_federation.py::test_"
PEERING = "adapters/consul/test_peering.py::test_"
CHAINS = "e2e/test_discovery_chains.py::test_"
HTTP_EXPORT = f"{PEERING}a_service_that_changes_its_protocol_is_withdrawn_with_a_reason_or_passed_on"
CONTROL_PLANE = f"{PEERING}the_control_plane_is_routed_both_ways_while_the_mesh_entry_says_so"
PEERED = "e2e/test_peering.py::test_streams_for_imported_services_reach_what_their_exporter_redirects_them_to"
PASSED_ON = "e2e/test_peering.py::test_http_exports_are_passed_on_unterminated_where_the_operator_wants_that"
SERVERS_MEET = "e2e/test_peering.py::test_servers_of_peered_clusters_meet_through_both_gateways"
REAL_PEERS = (
    "e2e/test_real_peering.py::test_two_real_clusters_peer_and_exchange_tcp_services_through_their_gateways_alone"
)
ENVOYS = "e2e/test_envoy_sidecars.py::test_"
ENVOY_PEERS = "e2e/test_envoy_peering.py::test_envoys_of_peered_clusters_call_each_other_through_the_gateways_alone"
IMPORTS = f"{PEERING}imported_services_are_routed_by_the_name_that_their_exporter_gave_them"

TERMINATES = (
    "Consul's gateway terminates TLS for exported services of http-like protocols, with a certificate of kind "
    "mesh-gateway that the HTTP API does not issue; such an export is refused with the reason, or passed on untouched "
)

CHECKLIST = {
    # test/integration/connect/envoy
    "case-gateway-without-services": passes("e2e/test_modes.py::test_gateway_with_no_services_at_all_is_ready"),
    "case-gateways-local": passes(
        MODES,
        "e2e/test_envoy.py::test_envoy_as_the_caller_reaches_the_service",
        f"{ENVOYS}envoys_streams_take_the_gateways_of_their_mode",
    ),
    "case-gateways-remote": passes(MODES, f"{ENVOYS}envoys_streams_take_the_gateways_of_their_mode"),
    "case-wanfed-gw": passes(
        f"{WANFED}each_datacenter_sees_both_alive_at_addresses_that_only_gateways_can_make_good",
        f"{WANFED}a_key_is_written_by_rpc_in_both_directions",
        f"{WANFED}each_gateway_has_the_names_that_consuls_own_has",
    ),
    "case-ingress-mesh-gateways-resolver": of_caller(
        "an ingress gateway is a caller like a sidecar: it only chooses the address by the mode",
        f"{CHAINS}redirect_to_another_datacenter_goes_through_the_gateways_of_its_mode",
    ),
    "case-cfg-resolver-dc-failover-gateways-none": of_caller(
        "with mode none the caller dials the other datacenter's sidecar and no gateway hears of it",
        f"{CHAINS}failover_without_gateways_is_told_so_by_consul_and_touches_none",
    ),
    "case-cfg-resolver-dc-failover-gateways-remote": passes(
        f"{CHAINS}failover_to_another_datacenter_goes_through_the_gateways_of_its_mode",
        f"{ENVOYS}failover_to_the_other_datacenter_and_back",
    ),
    "case-cross-peers": passes(
        PEERED,
        REAL_PEERS,
        ENVOY_PEERS,
        IMPORTS,
        f"{PEERING}tcp_exports_are_routed_for_each_peer_along_redirects_and_subsets",
        f"{EXPORTED}[with-exported-peered-services]",
    ),
    "case-cross-peers-http": needs_http(TERMINATES + "if a setting says so", HTTP_EXPORT, PASSED_ON),
    "case-cross-peers-http-router": needs_http(TERMINATES + "(a service-router then has no effect)", HTTP_EXPORT),
    "case-cross-peers-resolver-redirect-tcp": passes(f"{EXPORTED}[case-cross-peers-resolver-redirect-tcp]", PEERED),
    "case-cross-peer-control-plane-mgw": passes(CONTROL_PLANE, SERVERS_MEET, REAL_PEERS),
    "case-cfg-resolver-cluster-peering-failover": passes(IMPORTS, but="the failover itself is the caller's"),
    "case-cfg-splitter-cluster-peering": needs_http(
        TERMINATES + "(the splitter is the caller's)", IMPORTS, HTTP_EXPORT
    ),
    "case-cfg-splitter-peering-ingress-gateways": needs_http(
        TERMINATES + "(the splitter is the ingress gateway's)", IMPORTS, HTTP_EXPORT
    ),
    "case-ingress-gateway-peering-failover": needs_http(
        TERMINATES + "(the failover is the ingress gateway's)", IMPORTS, HTTP_EXPORT
    ),
    # test-integ/peering_commontopo
    "ac1_basic": passes(
        REAL_PEERS, IMPORTS, f"{EXPORTED}[with-exported-peered-services]", but="its http half needs termination"
    ),
    "ac2_disco_chain": needs_http(TERMINATES + "(splitter and resolver of the exporter)", HTTP_EXPORT),
    "ac3_service_defaults_upstream": of_caller("passive health checks of an upstream are the caller's sidecar's"),
    "ac4_proxy_defaults": needs_http("a timeout of HTTP requests needs somebody who reads them"),
    "ac5_1_no_svc_mesh": of_caller("services outside of the mesh do not meet a gateway"),
    "ac5_2_pq_failover": of_caller("a prepared query is answered by servers; no gateway is involved"),
    "ac6_failovers": of_caller("the failover is the caller's; the gateway has a route for each target", IMPORTS),
    "ac7_1_rotate_gw": passes(
        f"{PEERING}a_gateway_of_the_peer_that_is_replaced_is_followed_at_once",
        "e2e/test_replacement.py::test_replacing_every_gateway_one_by_one_fails_no_connection",
    ),
    "ac7_2_rotate_leader": passes(
        f"{PEERING}what_the_leader_forgets_after_an_election_stays_while_something_answers_for_it",
        f"{PEERING}an_export_that_ends_and_one_that_begins_are_followed",
    ),
    # test/integration/consul-container
    "peering_control_plane_mgw_test": passes(
        CONTROL_PLANE, f"{PEERING}peering_that_comes_with_an_upgrade_of_consul_is_found"
    ),
    "peering_http_test": needs_http(TERMINATES + "if a setting says so", HTTP_EXPORT),
    "rotate_server_and_ca_then_fail_test": passes(
        f"{PEERING}imports_outlive_a_token_that_loses_its_rights_and_consul_that_fails",
        "e2e/test_outage.py::test_agent_that_dies_takes_no_stream_with_it_and_gets_the_registration_back",
        "e2e/test_paused_agent.py::test_streams_go_on_and_begin_while_the_agent_is_paused",
        but="a passthrough gateway never sees a certificate, so a new CA is none of its business",
    ),
    "wanfed_peering_test": passes(
        "core/test_peering.py::test_the_control_plane_opens_no_names_of_wan_federation",
        f"{WANFED}a_service_of_dc2_is_reached_from_dc1_in_mode_local_on_top_of_it",
    ),
    "acl_bootstrap_replication_test": of_caller("replication of ACLs is the servers'; no gateway is involved"),
    "troubleshoot": of_caller(
        "`consul troubleshoot` asks the Envoy of a caller",
        "e2e/test_asking_with_gateways.py::test_probe_meets_the_service_through_the_gateway_of_its_choice",
    ),
    # agent/xds/testdata, mesh-gateway*
    "mesh-gateway": passes(f"{GOLDEN}[mesh-gateway]"),
    "mesh-gateway-no-services": passes(f"{GOLDEN}[no-services]"),
    "mesh-gateway-service-subsets": passes(f"{GOLDEN}[service-subsets]"),
    "mesh-gateway-service-subsets2": passes(f"{GOLDEN}[service-subsets2]"),
    "mesh-gateway-default-service-subset": passes(f"{GOLDEN}[default-service-subset]"),
    "mesh-gateway-ignore-extra-resolvers": passes(f"{GOLDEN}[ignore-extra-resolvers]"),
    "mesh-gateway-service-timeouts": passes(
        "core/test_planner.py::test_service_timeouts_are_those_of_the_resolver_for_the_service_and_its_subsets_only"
    ),
    "mesh-gateway-non-hash-lb-injected": passes(
        "adapters/consul/test_records.py::test_load_balancer_of_a_resolver",
        "core/test_resolver_settings.py::test_load_balancing_holds_for_the_service_and_its_subsets_and_nothing_else",
        "core/test_load_balancer.py::test_least_request_takes_the_one_with_fewer_streams_for_its_weight",
    ),
    "mesh-gateway-hash-lb-ignored": passes("adapters/consul/test_records.py::test_load_balancer_of_a_resolver"),
    "mesh-gateway-tagged-addresses": passes(
        "core/test_listeners.py::test_tagged_addresses_beside_the_default_one",
        "e2e/test_registration_options.py::"
        "test_registration_from_a_definition_file_is_waited_for_and_followed_and_left_behind",
    ),
    "mesh-gateway-custom-addresses": passes(
        "core/test_listeners.py::test_addresses_of_their_own_without_the_default_one",
        "e2e/test_registration_options.py::test_bind_addresses_of_the_command_line_are_listened_on_and_registered",
    ),
    "mesh-gateway-tcp-keepalives": passes(
        "adapters/relay/test_circuit_breakers.py::test_keepalive_of_consul_is_for_connections_to_other_gateways",
        "e2e/test_registration_options.py::test_keepalive_towards_other_gateways_is_set_centrally",
    ),
    "mesh-gateway-with-limits": passes(
        "adapters/relay/test_circuit_breakers.py::"
        "test_destination_takes_so_many_streams_and_others_are_not_charged_for_them",
        "adapters/consul/test_gateway_limits.py::test_limits_are_read",
        "app/test_registration.py::test_limits_of_the_gateways_own_service_defaults_are_followed",
        but="MaxPendingRequests and MaxConcurrentRequests: nothing waits here, and a stream is no request",
    ),
    "mesh-gateway-using-federation-states": passes(f"{GOLDEN}[using-federation-states]"),
    "mesh-gateway-using-federation-control-plane": passes(
        "core/test_servers.py::test_golden_variant_using_federation_control_plane"
    ),
    "mesh-gateway-newer-information-in-federation-states": passes(f"{GOLDEN}[newer-information-in-federation-states]"),
    "mesh-gateway-older-information-in-federation-states": passes(f"{GOLDEN}[older-information-in-federation-states]"),
    "mesh-gateway-peering-control-plane": passes("core/test_peering.py::test_golden_variant_peering_control_plane"),
    "mesh-gateway-with-exported-peered-services": passes(f"{EXPORTED}[with-exported-peered-services]"),
    "mesh-gateway-with-exported-peered-services-http": needs_http(
        TERMINATES + "if a setting says so", f"{EXPORTED}[with-exported-peered-services-http]"
    ),
    "mesh-gateway-with-exported-peered-services-http-with-router": needs_http(
        TERMINATES + "(a service-router then has no effect)",
        "core/test_exports.py::test_http_exports_are_passed_on_where_that_is_wanted_to_the_service_itself",
    ),
    "mesh-gateway-with-imported-peered-services": passes(
        "core/test_peering.py::test_golden_variant_with_imported_peered_services"
    ),
    "mesh-gateway-with-peer-through-mesh-gateway-enabled": passes(
        "core/test_peering.py::test_servers_of_peers_have_exact_names[with-peer-through-mesh-gateway-enabled]"
    ),
    "mesh-gateway-peering-service-max-request-headers": needs_http("a limit of HTTP headers needs who reads them"),
    "local-mesh-gateway-with-peered-upstreams": of_caller("a golden file of the caller's sidecar", IMPORTS),
}

SCENARIOS = """
PASS case-gateway-without-services case-gateways-local case-gateways-remote case-wanfed-gw
  case-cfg-resolver-dc-failover-gateways-remote case-cross-peers case-cross-peers-resolver-redirect-tcp
  case-cross-peer-control-plane-mgw case-cfg-resolver-cluster-peering-failover
CALLER case-ingress-mesh-gateways-resolver case-cfg-resolver-dc-failover-gateways-none
L7 case-cross-peers-http case-cross-peers-http-router case-cfg-splitter-cluster-peering
  case-cfg-splitter-peering-ingress-gateways case-ingress-gateway-peering-failover
PASS ac1_basic ac7_1_rotate_gw ac7_2_rotate_leader
L7 ac2_disco_chain ac4_proxy_defaults
CALLER ac3_service_defaults_upstream ac5_1_no_svc_mesh ac5_2_pq_failover ac6_failovers
PASS peering_control_plane_mgw_test rotate_server_and_ca_then_fail_test wanfed_peering_test
L7 peering_http_test
CALLER acl_bootstrap_replication_test troubleshoot
PASS mesh-gateway mesh-gateway-no-services mesh-gateway-service-subsets mesh-gateway-service-subsets2
  mesh-gateway-default-service-subset mesh-gateway-ignore-extra-resolvers mesh-gateway-service-timeouts
  mesh-gateway-non-hash-lb-injected mesh-gateway-hash-lb-ignored mesh-gateway-tagged-addresses
  mesh-gateway-custom-addresses mesh-gateway-tcp-keepalives mesh-gateway-with-limits
  mesh-gateway-using-federation-states mesh-gateway-using-federation-control-plane
  mesh-gateway-newer-information-in-federation-states mesh-gateway-older-information-in-federation-states
  mesh-gateway-peering-control-plane mesh-gateway-with-exported-peered-services
  mesh-gateway-with-imported-peered-services mesh-gateway-with-peer-through-mesh-gateway-enabled
L7 mesh-gateway-with-exported-peered-services-http mesh-gateway-with-exported-peered-services-http-with-router
  mesh-gateway-peering-service-max-request-headers
CALLER local-mesh-gateway-with-peered-upstreams
"""


def scenarios() -> Iterator[tuple[str, Mark]]:
    """All of them, and what each asks of a gateway."""
    mark = Mark.PASS
    for word in SCENARIOS.split():
        if word in Mark.__members__:
            mark = Mark[word]
        else:
            yield word, mark


@cache
def contents(path: str) -> dict[str, frozenset[str]]:
    """The test functions of a file, and the ids that each one's parameters are given."""
    tree = ast.parse((TESTS / path).read_text(), path)
    return {
        node.name: frozenset(ids_in(node.decorator_list))
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def ids_in(decorators: list[ast.expr]) -> Iterator[str]:
    for node in (node for decorator in decorators for node in ast.walk(decorator)):
        if isinstance(node, ast.keyword) and node.arg == "id" and isinstance(node.value, ast.Constant):
            yield str(node.value.value)


def test_every_scenario_has_an_entry_and_every_entry_is_a_scenario() -> None:
    assert {name: entry.mark for name, entry in CHECKLIST.items()} == dict(scenarios())


@pytest.mark.parametrize("name", CHECKLIST)
def test_scenario_is_covered_or_has_a_reason(name: str) -> None:
    entry = CHECKLIST[name]
    assert entry.tests or entry.mark is not Mark.PASS, "a passthrough gateway can satisfy it: it needs a test"
    assert entry.why_not or entry.mark is Mark.PASS, "it needs a reason"


@pytest.mark.parametrize("test", sorted({test for entry in CHECKLIST.values() for test in entry.tests}))
def test_named_test_exists(test: str) -> None:
    path, _, rest = test.partition("::")
    function, bracket, identity = rest.partition("[")
    functions = contents(path)
    assert function in functions
    assert not bracket or identity.removesuffix("]") in functions[function]
