"""`scripts/audit`: a finding fails, and so does half an answer; being offline is neither silent nor a success."""

import json
import os
import subprocess
from pathlib import Path

import pytest

AUDIT = Path(__file__).parents[2] / "scripts" / "audit"
FINE = {"name": "trio", "version": "0.33", "vulns": []}
WEAK = {"name": "h11", "version": "0.14", "vulns": [{"id": "PYSEC-2025-1", "fix_versions": ["0.16"]}]}
UNKNOWN = {"name": "httpx", "skip_reason": "could not be looked up: no route"}


def audit(folder: Path, answer: object, code: int, **more: str) -> "subprocess.CompletedProcess[str]":
    """`scripts/audit` with a pip-audit that gives this answer; None: it fails without one."""
    (folder / "answer").write_text(json.dumps(answer))
    write = '[ -n "$out" ] && cp "$(dirname "$0")/answer" "$out"' if answer is not None else ":"
    tool = folder / "pip-audit"
    tool.write_text(
        "#!/bin/sh\n"
        'while [ $# -gt 1 ]; do [ "$1" = --output ] && out=$2; shift; done\n'
        f"{write}\necho 'cannot connect' >&2\nexit {code}\n"
    )
    tool.chmod(0o755)
    environ = os.environ | {"AUDIT_COMMAND": str(tool), "AUDIT": ""} | more
    return subprocess.run([str(AUDIT)], env=environ, capture_output=True, text=True, timeout=60, check=False)


def test_nothing_found_is_said_and_fine(tmp_path: Path) -> None:
    ended = audit(tmp_path, {"dependencies": [FINE]}, 0)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "audit: 1 packages, no known weakness\n", "")


def test_a_finding_fails_and_names_the_way_out(tmp_path: Path) -> None:
    ended = audit(tmp_path, {"dependencies": [FINE, WEAK, UNKNOWN]}, 1)
    assert ended.returncode == 1
    assert "h11 0.14: PYSEC-2025-1, fixed in 0.16" in ended.stderr


@pytest.mark.parametrize(
    ("answer", "code", "why"),
    [
        (None, 1, "cannot connect"),
        ({"nonsense": 1}, 1, "cannot connect"),
        ({"dependencies": [UNKNOWN]}, 0, "none of them could be looked up: could not be looked up: no route"),
        ({"dependencies": [FINE]}, 2, "pip-audit ended with 2"),
    ],
)
@pytest.mark.parametrize(("asked", "ends"), [("", 3), ("require", 1)])
def test_no_answer_is_no_success_and_where_there_is_access_a_failure(
    tmp_path: Path, answer: object, code: int, why: str, asked: str, ends: int
) -> None:
    ended = audit(tmp_path, answer, code, AUDIT=asked)
    assert ended.returncode == ends
    assert "WARNING: the dependencies were NOT audited" in ended.stderr
    assert why in ended.stderr
    assert "no known weakness" not in ended.stdout


def test_half_an_answer_is_a_failure(tmp_path: Path) -> None:
    """Somebody could be asked, so what was not answered is not for want of access."""
    ended = audit(tmp_path, {"dependencies": [FINE, UNKNOWN]}, 0)
    assert ended.returncode == 1
    assert "not looked up, though others were: httpx" in ended.stderr
    assert "no known weakness" not in ended.stdout


def test_the_suite_calls_no_verdict_by_its_name() -> None:
    script = (AUDIT.parent / "test").read_text()
    assert '[ "$name $code" = "audit of dependencies 3" ]' in script
    assert 'summary+=("NO VERDICT  $name' in script
