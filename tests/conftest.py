"""What every kind of test may use."""

import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from meshgate.app.demo.cluster import find_consul

# How long an example takes says something about the machine's other work only.
settings.register_profile("without-a-clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("without-a-clock")

# A shell that starts the tests in the background has SIGINT ignored, and every process of theirs would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def consul_binary() -> str:
    """The Consul of the tests marked `consul`. Without one they fail: they are never skipped."""
    fetched = Path(__file__).parents[1] / ".cache" / "consul" / "consul"
    try:
        return find_consul(fetched)
    except FileNotFoundError as error:
        pytest.fail(f"{error}; scripts/test fetches one", pytrace=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start datacenters or gateways go first: they take longest, and the others fill the gaps."""
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)
