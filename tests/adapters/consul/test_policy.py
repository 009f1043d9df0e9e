from pathlib import Path

import pytest

from meshgate.adapters.consul import acl_policy

DEPLOYED = Path(__file__).parents[3] / "deploy" / "consul" / "acl-policy.hcl"


def test_the_deployed_policy_is_the_one_that_the_command_prints() -> None:
    assert DEPLOYED.read_text() == acl_policy("mesh-gateway")


def test_the_policy_names_the_service_that_is_registered() -> None:
    assert 'service "gw-1" {\n  policy = "write"\n}' in acl_policy("gw-1")
    assert "mesh-gateway -rules" not in acl_policy("gw-1")


@pytest.mark.parametrize("name", ["", 'a"b', "a b", "a\nb", "${x}"])
def test_a_name_that_cannot_stand_in_hcl_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no service name"):
        acl_policy(name)
