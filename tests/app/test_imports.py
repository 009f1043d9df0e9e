"""What is imported where memory or time to start counts."""

import json
import subprocess
import sys


def imported(code: str) -> set[str]:
    code = f'import json, sys\n{code}\nprint(json.dumps(sorted(name for name in sys.modules if "." not in name)))'
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(result.stdout))


def test_a_worker_imports_hardly_anything() -> None:
    unwanted = {"httpx", "structlog", "rich", "requests", "prometheus_client", "click", "dotenv", "h11", "tenacity"}
    assert not imported("import meshgate.adapters.relay.worker") & unwanted


def test_a_gateway_imports_no_cryptography_before_it_needs_any() -> None:
    found = imported("import meshgate.app.composition_root")
    assert {"trio", "httpx", "consul", "tenacity"} <= found
    assert "cryptography" not in found


def test_a_gateway_imports_no_library_that_only_others_would_use() -> None:
    code = """
from meshgate.app.cli.main import colorless
with colorless():
    import meshgate.app.composition_root, httpcore
"""
    found = imported(code)
    assert {"httpx", "structlog", "consul"} <= found
    assert not found & {"rich", "pygments"}


def test_a_gateway_that_goes_on_after_an_upgrade_imports_no_more() -> None:
    code = """
import os
from meshgate.app.cli.main import execute
os.environ["_MESHGATE_HAND_OVER"] = "nothing to go on with"
assert execute(["run"]) != 0
"""
    found = imported(code)
    assert "structlog" in found
    assert not found & {"rich", "pygments"}


def test_the_colors_of_a_gateway_are_taken_from_it_alone() -> None:
    code = """
from meshgate.app.cli.main import colorless
with colorless():
    import structlog.dev
    assert structlog.dev.rich is None
import rich.console
with colorless():
    import rich.table
"""
    assert "rich" in imported(code)


def test_the_command_line_imports_no_client_before_it_needs_one() -> None:
    assert not imported("import meshgate.app.cli.main") & {"httpx", "consul", "requests", "trio"}
