"""The pages of promises name only tests that exist, and the page about observability what the gateway says."""

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest

from meshgate.adapters.relay.stream import SETTLED_SECONDS
from meshgate.adapters.relay.worker import REPORT_SECONDS
from meshgate.adapters.relay.worker_process import MOST_KEPT
from meshgate.app.admin.admin_pages import admin_routes
from meshgate.app.admin.history import BUSIEST, MINUTES
from meshgate.app.admin.metrics import Metrics
from meshgate.app.gateway.stream_observer import KEPT
from meshgate.app.logs.access_log import line_of
from meshgate.core.reasons import StreamEnd
from tests import versions
from tests.app.gateway_double import GatewayDouble
from tests.app.stream_records import RECORD
from tests.app.test_metrics import full_gateway
from tests.promtool import rules

ROOT = Path(__file__).parents[2]
# A file, or a test in it, as a page names it: below `tests`, which may be left out.
NAMED = re.compile(r"`(?:tests/)?([\w/]+/test_\w+\.py)(?:::(\w+))?`")


def page(name: str) -> str:
    """The page, with abbreviations of files (`T` is `security/test_token.py`) written out."""
    text = (ROOT / name).read_text()
    for short, file in re.findall(r"`(\w)` is `([\w/.]+)`", " ".join(text.split())):
        text = text.replace(f"`{short}::", f"`{file}::")
    return text


@pytest.mark.parametrize(("name", "at_least"), [("docs/reliability.md", 60), ("SECURITY.md", 40)])
def test_every_test_that_a_page_names_exists(name: str, at_least: int) -> None:
    named = NAMED.findall(page(name))
    assert len(named) > at_least
    assert [f"{path}::{test}" for path, test in named if not exists(ROOT / "tests" / path, test)] == []


def test_every_row_of_promises_names_a_test() -> None:
    tables = page("docs/reliability.md").split("| promise | held by |\n| --- | --- |\n")[1:]
    rows = [row for table in tables for row in table.partition("\n\n")[0].splitlines()]
    assert rows
    assert [row for row in rows if "::test_" not in row] == []


def test_every_row_of_security_names_a_test() -> None:
    """A row may say that the test of the one above holds it, too."""
    table: list[list[str]] = []
    for line in page("SECURITY.md").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[-1] not in ("test", "---"):
            table.append(cells)
    assert table
    assert [row for row in table if not (NAMED.search(row[-1]) or row[-1] == "the same")] == []


def exists(path: Path, test: str) -> bool:
    return path.exists() and (not test or test in functions(path))


@cache
def functions(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_the_bounds_on_the_observability_page_are_those_of_the_code() -> None:
    text = " ".join(page("docs/observability.md").split())
    found = (rule for rule in rules() if rule.get("record", "").endswith(":objective"))
    objectives = {rule["record"]: float(rule["expr"].removeprefix("vector(").removesuffix(")")) for rule in found}
    assert objectives == {"meshgate:slo_success:objective": 0.999, "meshgate:slo_first_byte:objective": 0.99}
    assert [MINUTES, SETTLED_SECONDS, REPORT_SECONDS] == [60, 3.0, 0.5]
    for said in (
        f"keeps the last {KEPT} of each end",
        f"the {BUSIEST} destinations with the most streams of each minute",
        f'older than about 4 seconds gets a line with `"end":"worker_lost"`, up to {MOST_KEPT:,} of them',
        f"are those of its first {SETTLED_SECONDS:g} seconds",
        "99.9 % of the streams are carried, and 99 % of them get a byte from their endpoint within a second",
    ):
        assert said in text, said


def rows_below(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading of the observability page, its head left out."""
    table = page("docs/observability.md").split(f"\n## {heading}\n")[1].partition("| --- |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines() if line.strip("| -")]


async def test_the_metrics_on_the_observability_page_are_those_of_the_gateway() -> None:
    said: dict[str, set[str]] = {}
    for names, *_ in rows_below("Metrics"):
        for name, labels in re.findall(r"`meshgate_(\w+)(?:\{([\w,]+)\})?`", names):
            said[name.removesuffix("_total")] = set(filter(None, labels.split(",")))
    (workers,) = [row[1] for row in rows_below("Metrics") if "worker_…" in row[0]]
    said |= {f"worker_{name.removesuffix('_total')}": {"worker"} for name in re.findall(r"`(\w+)`", workers)}
    found: dict[str, set[str]] = {}
    for family in await Metrics(full_gateway()).families():
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[family.name.removeprefix("meshgate_")] = labels
    assert said == found


def test_the_fields_and_ends_on_the_pages_are_those_of_the_access_log() -> None:
    rows = {name: meaning for names, meaning in rows_below("The access log") for name in re.findall(r"`(\w+)`", names)}
    assert list(rows) == list(json.loads(line_of(RECORD)))
    assert {*re.findall(r"`(\w+)`", rows["end"])} == {*StreamEnd}
    (told,) = [row[1] for row in rows_below("Metrics") if row[0].startswith("`meshgate_stream_ends_total")]
    # Those that were refused are in another metric.
    assert {*re.findall(r"`(\w+)`", told)} == {*StreamEnd} - {StreamEnd.REFUSED}
    section = page("docs/troubleshooting.md").split("## A stream was cut\n")[1].partition("\n## ")[0]
    helped = [
        end for line in section.splitlines() if line.startswith("| `") for end in line.split(" | ")[0].split(", ")
    ]
    assert {end.strip("| `") for end in helped} == {"end", *StreamEnd} - {"closed", "refused"}


def test_the_paths_on_the_observability_page_are_those_of_the_admin_address() -> None:
    gateway = GatewayDouble()
    served = {path for _, path in admin_routes(gateway, Metrics(gateway))}
    text = " ".join(cell for row in rows_below("The admin address") for cell in row)
    shown = set(re.findall(r"`(?:POST )?(/[\w./]*)", text))
    assert {path for path in served if not path.startswith("/dashboard")} <= shown
    assert shown <= served


def test_the_alerts_on_the_pages_exist() -> None:
    alerts = {rule.get("alert") for rule in rules()}
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {name for path in pages for name in re.findall(r"`(Meshgate\w+)`", path.read_text())}
    assert named
    assert named <= alerts


@pytest.mark.parametrize(("needs", "words"), [(versions.SINCE, "before"), (versions.BEFORE, "from")])
def test_what_is_skipped_on_some_version_of_consul_is_listed_with_its_reason(
    needs: tuple[versions.Need, ...], words: str
) -> None:
    rows = [line.strip("| ").split(" | ") for line in page("docs/reliability.md").splitlines() if line.startswith("| ")]
    listed = {(row[1], row[2]) for row in rows if len(row) == 3}
    assert {(f"{words} {'.'.join(map(str, version))}", why) for version, why in needs} <= listed


def test_no_test_is_skipped_for_a_version_without_being_listed() -> None:
    marks = [
        (path.name, *found)
        for path in (ROOT / "tests").rglob("test_*.py")
        for found in re.findall(r"mark\.(since_consul|before_consul)\(([^)]*)\)", path.read_text())
    ]
    known = {f"*{name}" for name, value in vars(versions).items() if value in (*versions.SINCE, *versions.BEFORE)}
    assert marks
    assert [mark for mark in marks if mark[2] not in known] == []
    assert [mark for mark in marks if mark[0] not in page("docs/reliability.md")] == []


def test_the_readmes_ratios_are_those_of_the_benchmark() -> None:
    goals = page("docs/performance.md").partition("<!-- bench:goals -->")[2].partition("<!-- /bench:goals -->")[0]
    cells = [[cell.strip() for cell in line.split("|")] for line in goals.splitlines() if line.startswith("| ")]
    envoys = {row[1]: row[3] for row in cells}
    table = page("README.md").partition("<!-- bench:envoy -->")[2].partition("<!-- /bench:envoy -->")[0]
    assert re.findall(r"\| ([\d.]+) \|\n", table) == [
        envoys[title]
        for title in (
            "memory per idle connection",
            "CPU per GB, one way, streams: 32",
            "CPU per connection",
            "CPU per mTLS handshake and round trip, 2 clients",
            "CPU per 64 B round trip, 32 connections",
            "memory of the whole product at rest, 2 workers",
        )
    ]
