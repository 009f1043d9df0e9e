"""A short soak with a fixed seed: it works, counts, and no invariant breaks. The long one is `scripts/soak`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.consul, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
FAULTS = (
    "worker SIGKILL",
    "gateway parent SIGSTOP",
    "instance SIGKILL",
    "instance moved",
    "instance cut off from gateways",
    "hostile clients",
    "urgent data",
    "first flights held",
)


def test_a_short_soak_holds_every_invariant(consul_binary: str, tmp_path: Path) -> None:
    file, events = tmp_path / "report.json", tmp_path / "events"
    options = ["--seed", "1", "--gap", "1", "--callers", "8", "--quick", "20", "--small"]
    options += [word for fault in FAULTS for word in ("--only", fault)]
    options += ["--json", str(file), "--events", str(events), "--report", str(tmp_path / "pages")]
    done = subprocess.run(
        [sys.executable, "-m", "soaking", "0.2", *options],
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "CONSUL_BIN": consul_binary},
        capture_output=True,
        text=True,
        check=False,
        timeout=220,
    )
    assert done.returncode == 0, f"{done.stderr}\n{done.stdout}\n{events.read_text() if events.exists() else ''}"
    report = json.loads(file.read_text())
    assert report["violations"] == []
    assert report["seed"] == 1
    streams = report["streams"]
    assert streams["in_order"] > 10
    assert streams["opened"] == streams["in_order"] + streams["broken"] + streams["refused"]
    # A machine that is busy with other things gets fewer of both done.
    assert report["faults"]["total"] >= 3
    assert min(report["bytes"].values()) > 100_000
    assert sum(count for kind, count in streams["by_kind"].items() if kind.endswith("quick")) > 20
    (page,) = (tmp_path / "pages").iterdir()
    assert page.name == f"consul-{report['consul']}.md"
    for told in (report["commit"], "seed 1", f"{streams['opened']} opened", "violations: 0"):
        assert told in page.read_text()
