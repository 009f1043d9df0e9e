"""What `meshgate run` holds in memory: the libraries that it uses, and no others."""

import json
import subprocess
import sys

import pytest

from meshgate.app.gateway.lean import as_if_missing, package_without_its_init

_IMPORTED = """
import json, sys
import meshgate.app.cli.main
from meshgate.app.cli.commands.run import run
import meshgate.app.cli.commands.run as command
ran = []
with command.lean_imports():
    import meshgate.app.composition_root
from meshgate.adapters.consul.transport import MeshConsul
print(json.dumps(sorted(name for name in sys.modules if "." not in name)))
"""


def imported(code: str) -> set[str]:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(result.stdout))


def test_a_gateway_does_not_import_what_it_never_uses() -> None:
    found = imported(_IMPORTED)
    assert {"trio", "httpx", "msgspec", "structlog"} <= found
    assert not found & {"rich", "pygments", "requests", "urllib3", "charset_normalizer", "cryptography", "consul"}


def test_the_commands_still_find_what_a_gateway_does_without() -> None:
    code = _IMPORTED.replace("print(", "import rich, consul, requests\nimport meshgate.app.cli.commands.top\nprint(")
    assert {"rich", "consul", "requests"} <= imported(code)


def test_a_worker_imports_hardly_anything() -> None:
    code = """
import json, sys
import meshgate.adapters.relay.worker
print(json.dumps(sorted(name for name in sys.modules if "." not in name)))
"""
    unwanted = {"httpx", "structlog", "rich", "requests", "prometheus_client", "click", "dotenv", "h11", "tenacity"}
    assert not imported(code) & unwanted


def test_a_package_that_is_hidden_is_missing_for_that_long() -> None:
    name = "wsgiref"
    sys.modules.pop(name, None)
    with as_if_missing(name, "json"):
        with pytest.raises(ImportError):
            __import__(name)
        assert json is __import__("json")
    assert __import__(name).__name__ == name


def test_a_package_that_is_not_installed_stays_so() -> None:
    with package_without_its_init("no_such_package"), pytest.raises(ImportError):
        __import__("no_such_package.part")


def test_a_package_that_was_imported_before_is_left_alone() -> None:
    with package_without_its_init("json"):
        assert __import__("json") is json
    assert sys.modules["json"] is json
