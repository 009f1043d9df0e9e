from itertools import product

import pytest

from meshgate.core.modes import (
    Effective,
    Hop,
    Modes,
    Place,
    SetBy,
    Surroundings,
    Target,
    effective_mode,
    first_hop,
    obstacles,
    path,
    told_apart,
    without_effect,
)

DC1 = Place("dc1")
NEAR = Target("web", "dc1", "web.default.dc1.internal.td.consul")
FAR = Target("web", "dc2", "web.default.dc2.internal.td.consul")
NEXT_DOOR = Target("web", "dc1", "web.default.ap1.dc1.internal-v1.td.consul", partition="ap1")
PEERED = Target("web", "", "", peer="cloud")
OUTSIDE = Target("api.example.com", "dc2", "api.example.com", external=True)

# Lowest precedence first, as Consul has it (reference, section 5).
PRECEDENCE = [
    ("destination", SetBy.DESTINATION),
    ("proxy_defaults", SetBy.PROXY_DEFAULTS),
    ("service_defaults", SetBy.SERVICE_DEFAULTS),
    ("upstream_defaults", SetBy.UPSTREAM_DEFAULTS),
    ("registration", SetBy.REGISTRATION),
    ("override", SetBy.OVERRIDE),
    ("upstream", SetBy.UPSTREAM),
]


@pytest.mark.parametrize("winner", range(len(PRECEDENCE)))
def test_the_more_specific_place_wins_over_all_below_it(winner: int) -> None:
    modes = Modes(**{name: "remote" for name, _ in PRECEDENCE[:winner]} | {PRECEDENCE[winner][0]: "local"})
    effective = effective_mode(modes)
    assert (effective.mode, effective.set_by) == ("local", PRECEDENCE[winner][1])
    assert effective.overruled == tuple((place, "remote") for _, place in PRECEDENCE[:winner])


def test_nobody_sets_a_mode_and_none_is_in_force() -> None:
    assert effective_mode(Modes()) == Effective("none", None)


def test_a_place_that_sets_the_same_mode_is_not_overruled() -> None:
    assert effective_mode(Modes(proxy_defaults="local", upstream="local")).overruled == ()


def test_an_explicit_none_wins_like_any_other_mode() -> None:
    assert effective_mode(Modes(proxy_defaults="local", upstream="none")).mode == "none"


def test_without_central_configuration_the_callers_defaults_are_not_heard() -> None:
    modes = Modes(service_defaults="local", upstream_defaults="local", override="local", registration="remote")
    assert effective_mode(modes, central=False) == Effective("remote", SetBy.REGISTRATION)
    assert modes.unheard() == (SetBy.SERVICE_DEFAULTS, SetBy.UPSTREAM_DEFAULTS, SetBy.OVERRIDE)


def test_without_central_configuration_the_discovery_chain_still_brings_proxy_defaults_below_the_destinations() -> None:
    assert effective_mode(Modes(proxy_defaults="local"), central=False).mode == "local"
    both = Modes(proxy_defaults="local", destination="remote")
    assert effective_mode(both, central=False).set_by is SetBy.DESTINATION
    assert effective_mode(both).set_by is SetBy.PROXY_DEFAULTS


@pytest.mark.parametrize(
    ("configured", "registration", "upstream"),
    list(
        product(
            [
                Modes(),
                Modes(proxy_defaults="local"),
                Modes(proxy_defaults="local", service_defaults="none"),
                Modes(service_defaults="remote", upstream_defaults="local"),
                Modes(proxy_defaults="remote", override="local"),
                Modes(destination="local"),
            ],
            ["", "none", "local", "remote"],
            ["", "none", "local", "remote"],
        )
    ),
)
def test_the_mode_in_force_survives_the_agents_merging(configured: Modes, registration: str, upstream: str) -> None:
    """Merge as the agent does (`MergeServiceConfig`), tell it apart again: the same mode is in force."""
    central = configured.service_defaults or configured.proxy_defaults
    merged_registration = registration or central
    real = Modes(
        configured.destination,
        configured.proxy_defaults,
        configured.service_defaults,
        configured.upstream_defaults,
        registration,
        configured.override,
        upstream,
    )
    lower = effective_mode(
        Modes(
            "",
            configured.proxy_defaults,
            configured.service_defaults,
            configured.upstream_defaults,
            registration,
            configured.override,
        )
    )
    merged_upstream = upstream or (lower.mode if lower.set_by else "")
    found = told_apart(configured, merged_registration, merged_upstream)
    repeated = registration == central and configured.upstream_defaults not in ("", registration)
    if not repeated:
        # A registration that repeats a general mode under another UpstreamConfig.Defaults cannot be told apart.
        assert effective_mode(found).mode == effective_mode(real).mode
    if registration not in ("", central):
        assert found.registration == registration


def test_without_central_configuration_the_agent_shows_what_was_registered() -> None:
    found = told_apart(Modes(proxy_defaults="local"), "local", "local", central=False)
    assert (found.registration, found.upstream) == ("local", "local")


def test_a_mode_of_the_registration_is_told_from_one_of_central_configuration() -> None:
    found = told_apart(Modes(proxy_defaults="local"), "local", "remote")
    assert (found.registration, found.upstream) == ("", "remote")
    found = told_apart(Modes(proxy_defaults="local"), "remote", "remote")
    assert (found.registration, found.upstream) == ("remote", "")


@pytest.mark.parametrize(
    ("mode", "target", "hops"),
    [
        ("local", NEAR, (Hop.SIDECAR,)),
        ("remote", NEAR, (Hop.SIDECAR,)),
        ("none", FAR, (Hop.REMOTE_SIDECAR,)),
        ("remote", FAR, (Hop.REMOTE_GATEWAY, Hop.SIDECAR)),
        ("local", FAR, (Hop.LOCAL_GATEWAY, Hop.REMOTE_GATEWAY, Hop.SIDECAR)),
        ("local", NEXT_DOOR, (Hop.LOCAL_GATEWAY, Hop.REMOTE_GATEWAY, Hop.SIDECAR)),
        ("remote", NEXT_DOOR, (Hop.REMOTE_GATEWAY, Hop.SIDECAR)),
        ("none", PEERED, (Hop.PEER_GATEWAY, Hop.SIDECAR)),
        ("remote", PEERED, (Hop.PEER_GATEWAY, Hop.SIDECAR)),
        ("local", PEERED, (Hop.LOCAL_GATEWAY, Hop.PEER_GATEWAY, Hop.SIDECAR)),
        ("local", OUTSIDE, (Hop.EXTERNAL,)),
    ],
)
def test_who_is_dialled(mode: str, target: Target, hops: tuple[Hop, ...]) -> None:
    assert path(mode, DC1, target) == hops
    assert first_hop(mode, DC1, target) is hops[0]


ALL_WELL = Surroundings(local_gateways=1, remote_gateways=1, instances=1, exported=True)


def said(modes: Modes, target: Target, around: Surroundings = ALL_WELL, *, central: bool = True) -> str:
    effective = effective_mode(modes, central=central)
    notes = without_effect(modes, effective, DC1, [target], central=central)
    return "\n".join([*notes, *obstacles(effective.mode, DC1, target, around)])


@pytest.mark.parametrize("target", [NEAR, FAR, NEXT_DOOR, PEERED])
@pytest.mark.parametrize("mode", ["", "none", "local", "remote"])
def test_what_fits_together_is_not_complained_about(mode: str, target: Target) -> None:
    assert said(Modes(proxy_defaults=mode), target) == ""
    assert said(Modes(proxy_defaults=mode), target, Surroundings()) == ""


def test_mode_local_without_a_local_gateway_is_flagged() -> None:
    around = Surroundings(local_gateways=0, remote_gateways=1)
    assert "mode local, but dc1 has no healthy mesh gateway" in said(Modes(upstream="local"), FAR, around)
    assert said(Modes(upstream="remote"), FAR, around) == ""


@pytest.mark.parametrize("mode", ["local", "remote"])
def test_a_target_without_gateways_is_flagged(mode: str) -> None:
    around = Surroundings(local_gateways=1, remote_gateways=0)
    assert f"mode {mode}, but dc2 has no healthy mesh gateway" in said(Modes(upstream=mode), FAR, around)
    assert f"mode {mode}, but dc1/ap1 has no healthy mesh gateway" in said(Modes(upstream=mode), NEXT_DOOR, around)
    assert said(Modes(upstream=mode), PEERED, around) == ""
    assert said(Modes(upstream="none"), FAR, around) == ""


def test_a_mode_that_central_configuration_would_bring_is_flagged_when_that_is_off() -> None:
    text = said(Modes(service_defaults="local"), FAR, central=False)
    assert "service-defaults sets a mode, but central configuration is off" in text
    assert said(Modes(service_defaults="local"), FAR) == ""


def test_a_mode_set_for_an_upstream_nearby_is_flagged_and_a_general_one_is_not() -> None:
    assert "within one datacenter a gateway is never used" in said(Modes(upstream="local"), NEAR)
    assert "within one datacenter a gateway is never used" in said(Modes(override="remote"), NEAR)
    assert said(Modes(upstream="none"), NEAR) == ""
    assert said(Modes(proxy_defaults="local", registration="remote"), NEAR) == ""


def test_a_mode_for_a_service_nearby_that_fails_over_elsewhere_is_not_flagged() -> None:
    modes = Modes(upstream="remote")
    assert list(without_effect(modes, effective_mode(modes), DC1, [NEAR, FAR], central=True)) == []


def test_a_peer_without_the_service_is_named() -> None:
    assert said(Modes(), PEERED, Surroundings(instances=0)).startswith("peer cloud has no instance of web")


def test_a_mode_for_an_external_destination_is_flagged() -> None:
    assert "external destination" in said(Modes(proxy_defaults="local"), OUTSIDE)
    assert said(Modes(), OUTSIDE) == ""


def test_a_service_that_its_partition_does_not_export_is_flagged() -> None:
    around = Surroundings(exported=False)
    text = said(Modes(upstream="local"), NEXT_DOOR, around)
    assert "partition ap1 does not export web to default: add it to exported-services/ap1" in text
    own = Target("web", "dc1", "", partition="")
    (found,) = obstacles("none", Place("dc1", "ap1"), own, around)
    assert "partition default does not export web to ap1" in found


def test_a_service_without_instances_is_flagged() -> None:
    assert "dc2 has no instance of web" in said(Modes(), FAR, Surroundings(instances=0))


def test_a_word_that_is_no_mode_is_flagged() -> None:
    assert "sets the mode 'locall', which is none" in said(Modes(upstream="locall"), FAR)
