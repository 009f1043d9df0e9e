"""What a test needs of the Consul that it runs with: scripts/test fetches 1.8.7, and CONSUL_BIN names another."""

import pytest

from tests.harness.agent import Version, consul_version


def needs_consul(binary: str, oldest: Version, what: str) -> None:
    """Skip the test where Consul is older than `oldest`; `what` it lacks then is in the reason."""
    version = consul_version(binary)
    if version < oldest:
        wanted, there = (".".join(map(str, each)) for each in (oldest, version))
        pytest.skip(f"{what}: needs Consul {wanted} or newer, this is {there} (name one in CONSUL_BIN)")
