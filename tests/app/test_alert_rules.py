"""The alerts and the dashboard: read by Prometheus's own tool, each alert seen to fire and to be silent."""

import re
from pathlib import Path

import yaml

from meshgate.adapters.relay import FIRST_BYTE_BUCKETS
from meshgate.adapters.relay.worker_process import WorkerEnd
from meshgate.core.reasons import Reason, StreamEnd
from meshgate.core.routes import RouteKind
from tests.promtool import RULES, RULES_TEST, faults, panels, promtool, queries, rules

SERIES = {"meshgate_endpoints": {"destination", "state"}, "meshgate_ready": set[str]()}


def test_the_rules_are_rules() -> None:
    checked = promtool("check", "rules", str(RULES))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_example_of_a_scrape_is_a_configuration() -> None:
    checked = promtool("check", "config", str(RULES.with_name("prometheus.yml")))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_alerts_fire_and_are_silent_as_their_tests_say() -> None:
    tested = promtool("test", "rules", RULES_TEST.name, cwd=RULES_TEST.parent)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_each_alert_has_a_test_in_which_it_fires_and_one_in_which_it_is_silent() -> None:
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    seen = {True: set[str](), False: set[str]()}
    for test in yaml.safe_load(RULES_TEST.read_text())["tests"]:
        for each in test.get("alert_rule_test", ()):
            seen[bool(each["exp_alerts"])].add(each["alertname"])
    assert seen == {True: alerts, False: alerts}


def test_each_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert set(rule["annotations"]) == {"summary", "description"}


def test_each_query_of_the_dashboard_is_promql(tmp_path: Path) -> None:
    recordings = [{"record": f"panel:{number}", "expr": query} for number, (_, query) in enumerate(queries())]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": recordings}]}))
    checked = promtool("check", "rules", str(path))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_each_panel_has_a_title_of_its_own_a_description_and_a_place_of_its_own() -> None:
    every = panels()
    assert len({panel["title"] for panel in every}) == len({panel["id"] for panel in every}) == len(every)
    assert all(panel["description"] for panel in every)
    taken: set[tuple[int, int]] = set()
    for panel in every:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_what_the_queries_look_for_is_what_the_gateway_says() -> None:
    said = {
        "reason": {*Reason, *WorkerEnd},
        "end": {*StreamEnd} - {StreamEnd.REFUSED},
        "kind": {*RouteKind},
        "state": {"healthy", "unhealthy", "failing", "working"},
        "direction": {"received", "sent"},
        "le": {str(bound) for bound in FIRST_BYTE_BUCKETS},
    }
    asked: dict[str, set[str]] = {label: set() for label in said}
    for _, query in queries():
        for label, values in re.findall(r'([a-z]+)=~?"([^"$]+)"', query):
            asked.get(label, set()).update(set(values.split("|")) - {".*"})
    assert {label: values - said[label] for label, values in asked.items() if values - said[label]} == {}
    assert asked["le"] == {"1.0"}
    assert "worker_lost" in asked["end"]
    assert "connect_failed" in asked["reason"]


def test_what_is_recorded_for_the_objectives_is_asked_for_by_an_alert_or_on_the_dashboard() -> None:
    (group,) = [each for each in yaml.safe_load(RULES.read_text())["groups"] if each["name"] == "meshgate.slo"]
    recorded = {rule["record"] for rule in group["rules"]}
    used = {name for at, query in queries() for name in recorded - {at} if re.search(rf"{name}(?!\w)", query)}
    assert used == recorded
    shown = " ".join(target["expr"] for panel in panels() for target in panel["targets"])
    for name in ("stream_errors:ratio_rate1d", "first_byte_slow:ratio_rate1h", "destination_success:ratio_rate5m"):
        assert f"meshgate:{name}" in shown


def test_what_no_series_has_is_found() -> None:
    assert faults('sum by (state, job) (meshgate_endpoints{state="healthy",job="x"})', SERIES) == []
    assert faults("meshgate_readiness == 0", SERIES) == ["no metric meshgate_readiness"]
    assert faults('meshgate_ready{state="x"}', SERIES) == ["meshgate_ready has no label state"]
    assert faults("meshgate:no_such:rate5m > 0", SERIES) == ["no rule records meshgate:no_such:rate5m"]
    assert faults("sum by (node) (meshgate_endpoints)", SERIES) == ["no metric has the label node"]
