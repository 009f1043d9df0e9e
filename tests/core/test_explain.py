"""What a person is told about a server name: the decision is the relay's, the words fit, nothing hostile gets out."""

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given, strategies as st

from meshgate.core.catalog import Remote, Service, Snapshot, Subset
from meshgate.core.explain import MAX_SHOWN, Explanation, Step, explain
from meshgate.core.hello import Hello
from meshgate.core.reasons import Reason
from meshgate.core.routes import Endpoint, Policy, Route, RouteKind, RouteTable

from .hellos import hello, judge, malformed, server_name
from .samples import TD1, TD3, endpoint, exact, instance, plan, suffix, table, unhealthy

WEB = (instance(),)
MESH = plan(
    Snapshot(
        "dc1",
        TD3,
        services=(
            Service("web", WEB, subsets=(Subset("v1", instances=WEB), Subset("v2", instances=WEB), Subset("v3"))),
            Service("Webhook", WEB),
            Service("api", WEB, namespace="team"),
            Service("broken", WEB, subsets=(Subset("bad"), Subset("v1", instances=WEB)), default_subset="bad"),
            Service("three.dots.here", WEB),
        ),
        remotes=(Remote("dc2", WEB), Remote("dc3", WEB)),
    )
)

DEFAULT_ALONE = "Consul federates datacenters in partition default alone; from here, it takes cluster peering"


def told(explanation: Explanation) -> list[tuple[str, str]]:
    return [(step.rule, step.outcome) for step in explanation.steps]


def outcome(explanation: Explanation, rule: str) -> str:
    """The outcome of a rule that comes up once."""
    (found,) = [step.outcome for step in explanation.steps if step.rule == rule]
    return found


def test_a_service_here_is_routed_by_its_exact_name() -> None:
    name = f"Web.Default.DC1.internal.{TD3}"
    explanation = explain(MESH, name)
    assert (explanation.sni, explanation.decision, explanation.reason) == (name, "routed", None)
    assert explanation.route is MESH.find(name)
    assert explanation.kind is RouteKind.SERVICE
    assert [endpoint.address for endpoint in explanation.endpoints] == ["172.16.1.3"]
    assert told(explanation) == [
        ("server name", f"compared as web.default.dc1.internal.{TD3}"),
        ("form", "service web, namespace default, partition default, datacenter dc1 (this one)"),
        ("exact match", "yes: service web"),
        ("longest suffix match", "not tried: an exact match wins"),
        ("endpoints", "1 known, 1 healthy"),
        ("panic mode", "switched off: unhealthy endpoints get no traffic"),
        ("balancing", "weighted round robin over 1 endpoint"),
    ]


def test_a_service_elsewhere_is_routed_by_its_datacenters_suffix() -> None:
    explanation = explain(MESH, f"v2.web.default.dc2.internal.{TD3}")
    assert (explanation.decision, explanation.kind) == ("routed", RouteKind.DATACENTER)
    assert told(explanation)[1:4] == [
        ("form", "subset v2 of service web, namespace default, partition default, datacenter dc2"),
        ("exact match", "no"),
        ("longest suffix match", f"yes, *.dc2.internal.{TD3}: datacenter dc2"),
    ]


def test_no_name_is_refused_as_such() -> None:
    explanation = explain(MESH, "")
    assert (explanation.decision, explanation.reason, explanation.route) == ("refused", Reason.NO_SNI, None)
    assert explanation.kind is None
    assert explanation.endpoints == ()
    assert told(explanation) == [("server name", "the client sent none, and a gateway has nothing else to route by")]


def test_notes_of_the_caller_come_first() -> None:
    stale = Step("catalog", "as of 300 s ago, Consul does not answer")
    for name in ("", f"web.default.dc1.internal.{TD3}", "junk"):
        assert explain(MESH, name, notes=[stale]).steps[0] is stale


@pytest.mark.parametrize(
    ("name", "form"),
    [
        (f"api.team.p1.dc2.internal-v1.{TD3}", "service api, namespace team, partition p1, datacenter dc2"),
        (f"dc2.internal.{TD3}", "all of datacenter dc2, partition default"),
        (f"p1.dc2.internal-v1.{TD3}", "all of datacenter dc2, partition p1"),
        (f"magic.default.dc1.query.{TD3}", "prepared query magic, datacenter dc1 (this one)"),
        (f"web.team.p1.peer-a.external.{TD3}", "service web, namespace team, partition p1, for peer peer-a"),
        ("server.dc1.consul", "Consul servers, datacenter dc1 (this one)"),
        ("node1.server.dc2.consul", "Consul server node1, datacenter dc2"),
        (f"server.dc1.peering.{TD3}", "peering control plane, datacenter dc1 (this one)"),
        (f"web.default.dc1.internal.{TD1}", "service web, namespace default, partition default, datacenter dc1"),
        ("www.example.com", "none of Consul's"),
    ],
)
def test_the_form_says_what_the_name_asks_for(name: str, form: str) -> None:
    assert outcome(explain(MESH, name), "form") == form


@pytest.mark.parametrize(
    ("name", "step"),
    [
        pytest.param(
            f"web.default.dc1.internal.{TD1}",
            Step("trust domain", f"the name's is {TD1}, this mesh's is {TD3}"),
            id="another mesh",
        ),
        pytest.param(
            f"dc2.internal.{TD1}",
            Step("trust domain", f"the name's is {TD1}, this mesh's is {TD3}"),
            id="a datacenter of another mesh",
        ),
        pytest.param(
            "www.example.com",
            Step("trust domain", f"the name does not end in this mesh's, {TD3}"),
            id="no name of any mesh",
        ),
        pytest.param(
            f"magic.default.dc1.query.{TD3}",
            Step("prepared query", "gateways never route these; the upstream has to name a service"),
            id="prepared query",
        ),
        pytest.param(
            f"web.default.dc9.internal.{TD3}",
            Step("datacenter", "no gateway of datacenter dc9 is known; known are dc1 (this one), dc2, dc3"),
            id="unknown datacenter",
        ),
        pytest.param(
            f"dc9.internal.{TD3}",
            Step("datacenter", "no gateway of datacenter dc9 is known; known are dc1 (this one), dc2, dc3"),
            id="bare unknown datacenter",
        ),
        pytest.param(
            f"dc2.internal.{TD3}",
            Step("datacenter", "its bare name leads nowhere, only names of services in it do"),
            id="bare datacenter",
        ),
        pytest.param(
            f"dc1.internal.{TD3}",
            Step("datacenter", "its bare name leads nowhere, only names of services in it do"),
            id="bare own datacenter",
        ),
        pytest.param(
            f"web.default.p1.dc2.internal-v1.{TD3}",
            Step("partition", f"no gateway routes to partition p1 of datacenter dc2: {DEFAULT_ALONE}"),
            id="partition elsewhere",
        ),
        pytest.param(
            f"v2.web.team.p1.dc9.internal-v1.{TD3}",
            Step("partition", f"no gateway routes to partition p1 of datacenter dc9: {DEFAULT_ALONE}"),
            id="partition of a datacenter that has no gateway either",
        ),
        pytest.param(
            f"p1.dc2.internal-v1.{TD3}",
            Step("partition", f"no gateway routes to partition p1 of datacenter dc2: {DEFAULT_ALONE}"),
            id="bare partition elsewhere",
        ),
        pytest.param(
            f"web.default.p1.dc1.internal-v1.{TD3}",
            Step("partition", "no gateway of partition p1 is known; known are default (this gateway's)"),
            id="partition here",
        ),
        pytest.param(
            f"wbe.default.dc1.internal.{TD3}",
            Step("service", "no mesh instance of service wbe is known in this datacenter; similar names: web"),
            id="unknown service with a neighbour",
        ),
        pytest.param(
            f"webhok.default.dc1.internal.{TD3}",
            Step(
                "service", "no mesh instance of service webhok is known in this datacenter; similar names: Webhook, web"
            ),
            id="unknown service with two neighbours, the nearest first and as Consul spells them",
        ),
        pytest.param(
            f"v1.wbe.default.dc1.internal.{TD3}",
            Step("service", "no mesh instance of service wbe is known in this datacenter; similar names: web"),
            id="subset of an unknown service",
        ),
        pytest.param(
            f"v1web.default.dc1.internal.{TD3}",
            Step("service", "no mesh instance of service v1web is known in this datacenter; similar names: web"),
            id="subsets are no neighbours of services",
        ),
        pytest.param(
            f"zzz.default.dc1.internal.{TD3}",
            Step("service", "no mesh instance of service zzz is known in this datacenter; similar names: none"),
            id="unknown service without a neighbour",
        ),
        pytest.param(
            f"v9.web.default.dc1.internal.{TD3}",
            Step("subset", "service web has no subset v9 with a usable filter; known subsets: v1, v2"),
            id="unknown subset",
        ),
        pytest.param(
            f"v3.web.default.dc1.internal.{TD3}",
            Step("subset", "service web has no subset v3 with a usable filter; known subsets: v1, v2"),
            id="subset whose filter does not compile",
        ),
        pytest.param(
            f"v1.webhook.default.dc1.internal.{TD3}",
            Step("subset", "service webhook has no subset v1 with a usable filter; known subsets: none"),
            id="subset of a service without any",
        ),
        pytest.param(
            f"broken.default.dc1.internal.{TD3}",
            Step("subset", "service broken has no default subset with a usable filter; known subsets: v1"),
            id="default subset whose filter does not compile",
        ),
        pytest.param(
            f"api.default.dc1.internal.{TD3}",
            Step("namespace", "service api is in team, not in default"),
            id="another namespace",
        ),
        pytest.param(
            f"bar.default.default.peer-a.external.{TD3}",
            Step("peering", "no service that is exported to a peer or imported from one has this name; known are none"),
            id="not exported",
        ),
        pytest.param(
            f"bar.default.default.peer-a.external.{TD1}",
            Step("peering", "no service that is exported to a peer or imported from one has this name; known are none"),
            id="not imported",
        ),
        pytest.param(
            f"server.dc1.peering.{TD1}",
            Step(
                "peering",
                "this gateway has no route to a control plane of this name; it has one only with "
                "Peering.PeerThroughMeshGateways in the mesh entry, and in the default partition",
            ),
            id="peering control plane",
        ),
        pytest.param(
            "node1.server.dc1.consul",
            Step("servers", "this gateway has no names of Consul servers: does it run with --expose-servers?"),
            id="servers are not exposed",
        ),
        pytest.param(
            f"web.dc1.internal.{TD3}",
            Step("form", "services are asked for as [subset.]service.namespace.datacenter.internal.trust-domain"),
            id="namespace left out",
        ),
    ],
)
def test_a_name_without_a_route_is_told_what_is_wrong_with_it(name: str, step: Step) -> None:
    explanation = explain(MESH, name)
    assert (explanation.decision, explanation.reason) == ("refused", Reason.UNKNOWN_SNI)
    assert (explanation.route, explanation.kind, explanation.endpoints) == (None, None, ())
    assert [step.rule for step in explanation.steps[:2]] == ["server name", "form"]
    assert told(explanation)[2:-1] == [("exact match", "no"), ("longest suffix match", "no")]
    assert explanation.steps[-1] == step


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        pytest.param(f"web.default.dc1.internal.{TD3}.", "a name with a final dot", id="final dot"),
        pytest.param(f"web..dc1.internal.{TD3}", "a name that is no host name", id="empty label"),
        pytest.param(f"{'a' * 200}.default.dc2.internal.{TD3}", "a name longer than 255 bytes", id="too long"),
        pytest.param("10.0.0.7", "an IP address", id="IPv4 address"),
        pytest.param("::1", "an IP address", id="IPv6 address"),
        pytest.param(f"b\u00fcro.default.dc1.internal.{TD3}", "a name that is not ASCII", id="not ASCII"),
        pytest.param("a\udcff", "a name that is not ASCII", id="half a pair"),
        pytest.param("we b", "a name that is no host name", id="blank"),
        pytest.param("web\0", "a name with a NUL byte", id="NUL"),
    ],
)
def test_a_name_that_no_hello_may_carry_is_refused_as_the_relay_refuses_it(name: str, fault: str) -> None:
    explanation = explain(MESH, name)
    assert (explanation.decision, explanation.reason) == ("refused", Reason.HELLO_MALFORMED)
    assert (explanation.route, explanation.kind, explanation.endpoints) == (None, None, ())
    assert [step.rule for step in explanation.steps] == ["server name", "host name"]
    assert explanation.steps[-1].outcome.startswith(f"{fault}: ")
    # The same name in a hello, as far as a hello can carry it.
    assert fault in malformed(hello(server_name(name.encode("utf-8", "surrogatepass"))))


def test_before_the_trust_domain_is_known_that_is_the_cause() -> None:
    explanation = explain(plan(Snapshot("dc1", "")), f"web.default.dc1.internal.{TD3}")
    assert explanation.steps[-1] == Step("trust domain", "this mesh's is not known yet, so no name has a route")


def test_names_of_servers_are_known_by_the_agents_domain() -> None:
    explanation = explain(MESH, "server.dc2.example.com", domain="example.com.")
    assert outcome(explanation, "form") == "Consul servers, datacenter dc2"


def test_a_gateway_of_another_partition_than_the_default_one_says_its_own() -> None:
    routes = table(exact(f"web.default.p1.dc1.internal-v1.{TD3}"), partition="P1", datacenter="DC1")
    assert explain(routes, f"web.default.p1.dc1.internal-v1.{TD3}").decision == "routed"
    assert explain(routes, f"web.default.dc1.internal.{TD3}").steps[-1] == Step(
        "partition", "no gateway of partition default is known; known are p1 (this gateway's)"
    )
    assert explain(routes, f"wbe.default.p1.dc1.internal-v1.{TD3}").steps[-1].rule == "service"


def test_a_gateway_of_a_partition_knows_no_partition_of_another_datacenter_of_its_own_name_either() -> None:
    routes = table(exact(f"web.default.p1.dc1.internal-v1.{TD3}"), partition="P1", datacenter="DC1")
    assert explain(routes, f"web.default.p1.dc2.internal-v1.{TD3}").steps[-1] == Step(
        "partition", f"no gateway routes to partition p1 of datacenter dc2: {DEFAULT_ALONE}"
    )
    assert explain(routes, f"web.default.dc2.internal.{TD3}").steps[-1] == Step(
        "datacenter",
        "no gateway of datacenter dc2 is known; known are DC1 (this one); only gateways of partition default know "
        "other datacenters",
    )


def test_a_table_without_a_partition_is_of_the_default_one() -> None:
    assert explain(table(partition=""), f"web.default.dc1.internal.{TD3}").steps[-1].rule == "service"


def test_the_spelling_in_the_catalog_makes_no_difference() -> None:
    routes = table(
        exact(f"web.default.dc1.internal.{TD3}", destination="Web"),
        suffix(f"dc2.internal.{TD3}", destination="DC2"),
        datacenter="DC1",
        trust_domain=TD3.upper(),
    )
    assert explain(routes, f"wbe.default.dc1.internal.{TD3}").steps[-1].outcome.endswith("similar names: Web")
    assert explain(routes, f"dc2.internal.{TD3}").steps[-1].outcome.startswith("its bare name")


def test_only_datacenters_are_listed_as_such() -> None:
    routes = table(suffix("server.dc2.consul", kind=RouteKind.SERVER), suffix(f"dc3.internal.{TD3}"))
    assert explain(routes, f"web.default.dc9.internal.{TD3}").steps[-1].outcome == (
        "no gateway of datacenter dc9 is known; known are dc1 (this one), dc3"
    )


def test_many_datacenters_are_not_all_listed() -> None:
    routes = table(*(suffix(f"r{at:02}.internal.{TD3}") for at in range(14)))
    assert explain(routes, f"web.default.dc9.internal.{TD3}").steps[-1].outcome == (
        "no gateway of datacenter dc9 is known; "
        "known are dc1 (this one), r00, r01, r02, r03, r04, r05, r06, r07, r08, 5 more"
    )


def test_a_name_that_two_things_claim_is_pointed_out() -> None:
    routes = table(
        exact("v2.web", destination="v2.web"), exact("v2.web", destination="web"), suffix("dc2"), suffix("dc2")
    )
    for name in ("V2.web", "x.dc2"):
        assert outcome(explain(routes, name), "conflict") == (
            "more than one thing in Consul claims this name; only the one above gets it"
        )
    assert "conflict" not in [step.rule for step in explain(table(exact("web")), "web").steps]


SICK = (
    endpoint("10.0.0.1"),
    unhealthy("10.0.0.2", "check serfHealth is critical", node="n2", instance="web-2"),
    unhealthy("fd00::3", "weight 0", node="n3", instance="web-3"),
)


def health_told(*endpoints: Endpoint, threshold: int = 0) -> list[tuple[str, str]]:
    """The steps that follow the match."""
    return told(explain(table(exact("web", *endpoints, panic_threshold=threshold)), "web"))[4:]


def test_each_unhealthy_endpoint_is_named_with_its_cause() -> None:
    assert health_told(*SICK) == [
        ("endpoints", "3 known, 1 healthy"),
        ("unhealthy endpoint", "10.0.0.2:8080, web-2 on n2: check serfHealth is critical"),
        ("unhealthy endpoint", "[fd00::3]:8080, web-3 on n3: weight 0"),
        ("panic mode", "switched off: unhealthy endpoints get no traffic"),
        ("balancing", "weighted round robin over 1 endpoint"),
    ]


def test_panic_mode_in_force_lets_all_have_traffic() -> None:
    assert health_told(*SICK, threshold=50)[-2:] == [
        ("panic mode", "in force: under 50 % are healthy, so all get traffic"),
        ("balancing", "weighted round robin over 3 endpoints"),
    ]


def test_panic_mode_not_in_force() -> None:
    assert health_told(*SICK, threshold=30)[-2:] == [
        ("panic mode", "not in force: 30 % or more are healthy, only they get traffic"),
        ("balancing", "weighted round robin over 1 endpoint"),
    ]


def test_a_route_of_which_all_are_unhealthy_is_found_and_refused() -> None:
    routes = table(exact("web", *SICK[1:]))
    explanation = explain(routes, "web")
    assert (explanation.decision, explanation.reason) == ("refused", Reason.NO_HEALTHY_ENDPOINT)
    assert explanation.route is routes.find("web")
    assert explanation.kind is RouteKind.SERVICE
    assert explanation.endpoints == SICK[1:]
    assert outcome(explanation, "endpoints") == "2 known, 0 healthy"
    assert explanation.steps[-1].rule == "panic mode"


def test_all_unhealthy_in_panic_mode_is_routed() -> None:
    explanation = explain(table(exact("web", *SICK[1:], panic_threshold=50)), "web")
    assert (explanation.decision, explanation.reason) == ("routed", None)


def test_a_route_without_endpoints_is_found_and_refused() -> None:
    services = (Service("web", WEB, subsets=(Subset("v1", instances=()),)),)
    explanation = explain(plan(Snapshot("dc1", TD3, services=services)), f"v1.web.default.dc1.internal.{TD3}")
    assert (explanation.decision, explanation.reason) == ("refused", Reason.NO_HEALTHY_ENDPOINT)
    assert explanation.kind is RouteKind.SUBSET
    assert explanation.steps[-1] == Step("endpoints", "none known: Consul has no instance that belongs to it")


def test_hostile_names_are_escaped_and_cut() -> None:
    explanation = explain(MESH, "\x1b[2m\r\n\u202eweb\udcff\x00")
    assert outcome(explanation, "server name") == "compared as \\x1b[2m\\r\\n\\u202eweb\\udcff\\x00"
    cut = outcome(explain(MESH, "\u202e" * 100_000), "server name").removeprefix("compared as ")
    assert len(cut) == MAX_SHOWN
    assert cut.startswith("\\u202e\\u202e")
    assert cut.endswith("...")


@pytest.mark.parametrize(("length", "shown"), [(MAX_SHOWN, "a" * MAX_SHOWN), (256, f"{'a' * 252}...")])
def test_a_name_is_shown_whole_while_it_fits(length: int, shown: str) -> None:
    assert outcome(explain(MESH, "a" * length), "server name") == f"compared as {shown}"


def test_texts_from_consul_are_escaped_too() -> None:
    sick = unhealthy("\x1b[2J", "check \n is critical", node="\r", instance="\u202e")
    assert ("unhealthy endpoint", "\\x1b[2J:8080, \\u202e on \\r: check \\n is critical") in health_told(sick)


def test_an_explanation_cannot_be_changed() -> None:
    explanation = explain(MESH, "web")
    for record, name in ((explanation, "decision"), (explanation.steps[0], "outcome")):
        with pytest.raises(FrozenInstanceError):
            setattr(record, name, "routed")


LABEL = st.sampled_from(["web", "v1", "Default", "dc1", "DC2", "p1", "api", ""])
FORM = st.sampled_from(["internal", "internal-v1", "external", "query", "peering", "server", "INTERNAL"])
TAIL = st.sampled_from([TD3, TD1, TD3.upper(), "consul", "com", ""])
MESHLIKE = st.tuples(st.lists(LABEL, max_size=5).map(".".join), FORM, TAIL).map(".".join)
HEALTH = st.lists(st.sampled_from([endpoint(), unhealthy()]), max_size=3).map(tuple)


@st.composite
def tables_and_names(draw: st.DrawFn) -> tuple[RouteTable, str]:
    """A table, and a name that some route of it often matches."""
    names = draw(st.lists(MESHLIKE.map(str.lower), min_size=1, max_size=4))
    routes = [
        Route(
            name,
            draw(st.sampled_from(RouteKind)),
            draw(LABEL),
            draw(HEALTH),
            suffix=draw(st.booleans()),
            panic_threshold=draw(st.sampled_from([0, 50])),
        )
        for name in names
    ]
    routed = st.sampled_from(names)
    name = draw(routed | routed.map(str.upper) | routed.map("x.".__add__) | MESHLIKE | st.text())
    trust_domain = draw(st.sampled_from([TD3, TD3.upper(), ""]))
    return table(*routes, trust_domain=trust_domain), name


@given(tables_and_names())
def test_the_explanation_never_disagrees_with_what_the_relay_does(case: tuple[RouteTable, str]) -> None:
    routes, name = case
    route = routes.find(name)
    explanation = explain(routes, name)
    encoded = name.encode("utf-8", "surrogatepass")
    if name and not isinstance(judge(hello(server_name(encoded[:400]))), Hello):
        assert (explanation.decision, explanation.reason) == ("refused", Reason.HELLO_MALFORMED)
        return
    assert explanation.decision == ("routed" if route is not None and route.candidates else "refused")
    assert explanation.route is route
    if not name:
        assert explanation.reason is Reason.NO_SNI
    elif route is None:
        assert explanation.reason is Reason.UNKNOWN_SNI
    else:
        assert explanation.reason is (None if route.candidates else Reason.NO_HEALTHY_ENDPOINT)


@given(tables_and_names())
def test_steps_are_lines_of_printable_ascii_with_a_bound(case: tuple[RouteTable, str]) -> None:
    for step in explain(*case).steps:
        assert step.outcome
        assert step.outcome.isascii()
        assert step.outcome.isprintable()
        assert len(step.outcome) < 6 * MAX_SHOWN


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (Policy.ROUND_ROBIN, "weighted round robin over 1 endpoint"),
        (Policy.RANDOM, "at random, by weight, over 1 endpoint"),
        (Policy.LEAST_REQUEST, "fewest streams for its weight of 3 drawn at random over 1 endpoint"),
    ],
)
def test_the_balancing_policy_is_told(policy: Policy, words: str) -> None:
    explanation = explain(table(exact("a.b", policy=policy, choice_count=3)), "a.b")
    assert Step("balancing", words) in explanation.steps
