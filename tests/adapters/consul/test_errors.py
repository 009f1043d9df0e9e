import pytest

from meshgate.adapters.consul.api import PermissionDeniedError, Rule
from meshgate.adapters.consul.api.consul_errors import rule_named_in


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (Rule("service", "web"), 'service "web" { policy = "read" }'),
        (Rule("service", "mesh-gateway", "write"), 'service "mesh-gateway" { policy = "write" }'),
        (Rule("node", prefix=True), 'node_prefix "" { policy = "read" }'),
        (Rule("agent", prefix=True), 'agent_prefix "" { policy = "read" }'),
        (Rule("operator"), 'operator = "read"'),
        (Rule("mesh", access="write"), 'mesh = "write"'),
    ],
)
def test_a_rule_is_written_as_hcl(rule: Rule, text: str) -> None:
    assert str(rule) == text


@pytest.mark.parametrize(
    ("answer", "rule"),
    [
        ("Permission denied: Missing service:write on mesh-gateway", Rule("service", "mesh-gateway", "write")),
        (
            "Permission denied: token with AccessorID '3cbd3456-0a26' lacks permission 'service:read' on \"web\"",
            Rule("service", "web"),
        ),
        (
            "rpc error making call: Permission denied: anonymous token lacks permission 'agent:read' on \"n1\". The an",
            Rule("agent", "n1"),
        ),
        (
            "Permission denied: token with AccessorID 'x' lacks permission 'operator:read'",
            Rule("operator", prefix=True),
        ),
        ("Permission denied", None),
    ],
)
def test_the_missing_rule_is_found_in_the_words_of_old_and_new_versions(answer: str, rule: Rule | None) -> None:
    assert rule_named_in(answer) == rule


def test_a_refusal_says_what_is_missing_and_what_to_add() -> None:
    error = PermissionDeniedError("Permission denied").for_want_of(Rule("service", "secret"))
    assert (
        str(error)
        == 'token may not read service "secret": add service "secret" { policy = "read" } (Permission denied)'
    )
    assert error.missing_rule == Rule("service", "secret")
    assert error.status == "403"


def test_what_consul_names_wins_over_what_was_asked() -> None:
    error = PermissionDeniedError("Missing node:read on n1").for_want_of(Rule("service", "web"))
    assert error.missing_rule == Rule("node", "n1")


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (Rule("service", "gw", "write"), 'token may not register service "gw": add'),
        (Rule("node", prefix=True), "token may not read every node: add"),
        (Rule("operator"), 'token may not read operator: add operator = "read"'),
    ],
)
def test_each_kind_of_rule_reads_as_a_sentence(rule: Rule, text: str) -> None:
    assert str(PermissionDeniedError("no", rule)).startswith(text)


@pytest.mark.parametrize("answer", ["ACL not found", "rpc error making call: ACL not found"])
def test_for_a_token_that_consul_does_not_know_no_rule_is_proposed(answer: str) -> None:
    error = PermissionDeniedError(answer, Rule("service", "web"))
    assert error.missing_rule is None
    assert str(error).startswith("Consul does not know the token")


def test_without_any_hint_the_answer_is_quoted() -> None:
    assert str(PermissionDeniedError("Endpoint is blocked")) == "not permitted: Endpoint is blocked"
