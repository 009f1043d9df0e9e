"""What every kind of test may use."""

import operator
import os
import signal
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, settings

from tests.harness.agent import Version, consul_version
from tests.harness.cluster import find_consul
from tests.harness.standing import Standing

# How long an example takes says something about the machine's other work only.
settings.register_profile("without-a-clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("without-a-clock")

# Containers often forbid Python to keep what it compiles. Hundreds of processes are started here, and each would
# compile the gateway again; pytest would rewrite every assertion again in each of its own.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A shell that starts the tests in the background has SIGINT ignored, and every process of theirs would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@cache
def _consul() -> str:
    fetched = Path(__file__).parents[1] / ".cache" / "consul" / "consul"
    try:
        return find_consul(fetched)
    except FileNotFoundError as error:
        pytest.fail(f"{error}; scripts/test fetches one", pytrace=False)


@cache
def _version() -> Version:
    return consul_version(_consul())


@pytest.fixture(scope="session")
def consul_binary() -> str:
    """The Consul of the tests marked `consul`. Without one they fail: they are never skipped."""
    return _consul()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what takes long, and what this Consul is too old or too new for; CONSUL_BIN names another one."""
    if item.get_closest_marker("long") is not None and "LONG_TESTS" not in os.environ:
        pytest.skip("LONG_TESTS=1 asks for it")
    for name, fits in (("since_consul", operator.ge), ("before_consul", operator.lt)):
        for marker in item.iter_markers(name):
            version, why = marker.args
            if not fits(_version(), version):
                pytest.skip(f"{name.replace('_', ' ')} {_dotted(version)}, this is {_dotted(_version())}: {why}")


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


@pytest.fixture(scope="session")
def standing(consul_binary: str) -> Iterator[Standing]:
    """The pair of datacenters of this process; a module gets it by the fixture `world` of `tests/e2e`."""
    pair = Standing(consul_binary)
    try:
        yield pair
    finally:
        trio.run(pair.stop)


# The files that take longest, the longest first. One of them that began last would be waited for by all.
LONGEST = (
    "adapters/relay/test_hand_over_faults.py",
    "e2e/test_upgrade_faults.py",
    "e2e/test_start_without_consul.py",
    "e2e/test_upgrade.py",
    "e2e/test_wan_federation.py",
    "e2e/test_upgrade_of_all_shapes.py",
    "adapters/consul/test_outages.py",
    "e2e/test_cold_services.py",
    "bench/test_bench_smoke.py",
    "soak/test_soak_smoke.py",
    "e2e/test_asking_with_gateways.py",
    "e2e/test_registration.py",
    "adapters/consul/test_real_consul.py",
    "adapters/consul/test_real_agent.py",
    "adapters/relay/test_rogue_workers.py",
    "e2e/test_maintenance.py",
    "security/test_running_gateway.py",
    "e2e/test_asking_commands.py",
    "adapters/relay/test_stream_model.py",
    "e2e/test_replacement.py",
    "e2e/test_upgrade_without_consul.py",
    "adapters/consul/test_real_login.py",
    "adapters/relay/test_sandbox.py",
    "e2e/test_demo_cleanup.py",
    "e2e/test_demo_questions.py",
    "e2e/test_last_lines.py",
    "adapters/relay/test_draining.py",
    "e2e/test_outage.py",
    "e2e/test_operating.py",
    "adapters/relay/test_outliers.py",
    "e2e/test_registration_options.py",
    "security/test_attackers.py",
    "e2e/test_discovery_chains.py",
    "adapters/consul/test_peering.py",
    "e2e/test_partitions.py",
    "e2e/test_openapi.py",
    "e2e/test_monitoring.py",
    "e2e/test_dashboard_page.py",
    "adapters/relay/test_worker_life.py",
    "e2e/test_peering.py",
    "e2e/test_demo_parts.py",
    "e2e/test_dashboard.py",
    "app/test_last_known.py",
    "e2e/test_rebuilt_datacenter.py",
    "adapters/state/test_state_file.py",
    "adapters/relay/test_hand_over.py",
    "adapters/relay/test_pool.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files go first, then those that start datacenters or gateways; the others fill the gaps."""
    order = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}

    def place(item: pytest.Item) -> tuple[int, bool]:
        return order.get(item.path, len(order)), item.get_closest_marker("consul") is None

    items.sort(key=place)
