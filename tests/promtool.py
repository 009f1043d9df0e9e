"""Prometheus's promtool, and what the files for Prometheus and Grafana ask of a gateway's metrics."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
RULES_TEST = ROOT / "deploy" / "prometheus" / "rules_test.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "meshgate.json"

_METRIC = re.compile(r"\b(meshgate_[a-z0-9_]+|process_[a-z_]+|up)\b(?:\{([^}]*)\})?")
_RECORDED = re.compile(r"\bmeshgate:[a-z0-9_:]+")
_GROUPED = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
# What Prometheus adds to each series that it scrapes.
_ADDED = frozenset(("job", "instance"))


def promtool(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run it. It is only ever missing where there is no apt to bring it (scripts/get-promtool)."""
    kept = ROOT / ".cache" / "prometheus" / "promtool"
    program = os.environ.get("PROMTOOL") or shutil.which("promtool") or (str(kept) if kept.exists() else None)
    if program is None and not shutil.which("apt-get"):
        pytest.skip("no promtool on the PATH")
    assert program is not None, "no promtool: scripts/get-promtool fetches one"
    return subprocess.run([program, *arguments], check=False, capture_output=True, text=True, timeout=110, **options)


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """All expressions of the rules and the dashboard, and where they are from."""
    for rule in rules():
        yield rule.get("alert") or rule["record"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", "5m").replace("$job", ".*")
            yield panel["title"], expression.replace("$instance", ".*")


def recorded() -> set[str]:
    """The names under which Prometheus keeps what the rules compute."""
    return {rule["record"] for rule in rules() if "record" in rule}


def faults(expression: str, series: dict[str, set[str]]) -> list[str]:
    """What an expression uses that no series has. `series` are the labels of each metric."""
    found = [f"no rule records {name}" for name in _RECORDED.findall(expression) if name not in recorded()]
    known = set(_ADDED)
    for name, matchers in _METRIC.findall(_GROUPED.sub("", expression)):
        if name == "up":
            continue
        if name not in series:
            found.append(f"no metric {name}")
            continue
        known |= series[name]
        used = set(re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)", matchers))
        found += [f"{name} has no label {label}" for label in used - series[name] - _ADDED]
    grouped = {label.strip() for labels in _GROUPED.findall(expression) for label in labels.split(",")}
    return found + [f"no metric has the label {label}" for label in grouped - known - {""}]
