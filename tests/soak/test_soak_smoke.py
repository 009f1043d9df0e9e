"""A short soak with a fixed seed: it works, counts, and no invariant breaks. The long one is `scripts/soak`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.consul, pytest.mark.timeout(240), pytest.mark.xdist_group("outage")]

ROOT = Path(__file__).parents[2]
FAULTS = ("worker SIGKILL", "gateway parent SIGSTOP", "instance killed", "instance moved", "hostile clients")


def test_a_short_soak_holds_every_invariant(consul_binary: str, tmp_path: Path) -> None:
    file, events = tmp_path / "report.json", tmp_path / "events"
    only = [word for fault in FAULTS for word in ("--only", fault)]
    kept = ["--json", str(file), "--events", str(events)]
    done = subprocess.run(
        [sys.executable, "-m", "soaking", "0.35", "--seed", "1", "--gap", "1.5", "--callers", "12", *only, *kept],
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
    assert streams["in_order"] > 30
    assert streams["opened"] == streams["in_order"] + streams["broken"] + streams["refused"]
    assert report["faults"]["total"] >= len(FAULTS)
    assert min(report["bytes"].values()) > 1_000_000
