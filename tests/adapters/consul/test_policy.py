import re
from pathlib import Path

import pytest

from meshgate.adapters.consul import acl_policy

DEPLOYED = Path(__file__).parents[3] / "deploy" / "consul"


def test_the_deployed_policies_are_those_that_the_command_prints() -> None:
    assert (DEPLOYED / "acl-policy.hcl").read_text() == acl_policy("mesh-gateway")
    assert (DEPLOYED / "acl-policy-enterprise.hcl").read_text() == acl_policy("mesh-gateway", enterprise=True)


def test_the_policies_grant_what_the_watches_ask_for_and_no_right_to_write_but_to_register() -> None:
    for enterprise in (False, True):
        text = acl_policy(enterprise=enterprise)
        assert text.count("write") == 1
        assert not re.search("(?<!{)acl |key|session|event|query", re.sub("#.*", "", text))
        for rule in ('peering = "read"', 'mesh    = "read"', 'service_prefix ""', 'node_prefix ""', 'agent_prefix ""'):
            assert rule in text
    assert 'operator = "read"' in acl_policy(enterprise=True)
    assert "operator" not in acl_policy()


def test_the_policy_names_the_service_that_is_registered() -> None:
    assert 'service "gw-1" {\n  policy = "write"\n}' in acl_policy("gw-1")
    assert "mesh-gateway -rules" not in acl_policy("gw-1")


@pytest.mark.parametrize("name", ["", 'a"b', "a b", "a\nb", "${x}"])
def test_a_name_that_cannot_stand_in_hcl_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no service name"):
        acl_policy(name)
