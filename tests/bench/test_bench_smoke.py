"""The benchmark works and prints. What it measures here means nothing, and no test ever judges a time."""

import importlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# It starts some twenty processes one after the other.
pytestmark = [pytest.mark.consul, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("the load generator needs a C compiler")
    file = tmp_path_factory.mktemp("bench") / "results.json"
    done = bench("--smoke", "--json", str(file))
    assert done.returncode == 0, done.stderr
    return file


def test_every_work_item_gives_numbers_for_meshgate(results: Path) -> None:
    items = json.loads(results.read_text())["items"]
    listed = bench("--smoke", "--list").stdout.split()
    assert list(items) == listed
    for item in items.values():
        ours = item["values"]["meshgate"]
        assert [metric["key"] for metric in item["metrics"] if metric["key"] not in ours] == []
        for key, values in ours.items():
            assert all(map(math.isfinite, values)), key
            # These are what memory grew by. Beside the few streams of a smoke run, a process may well shrink.
            # The others cannot: rates, times, sizes, and CPU time, which stays counted whatever ends.
            assert key in {"kb_per_stream", "kb_per_service"} or min(values) >= 0, key


def test_cpu_time_stays_counted_when_its_thread_or_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway's idle threads end. What one had taken was missing afterwards, and a cost could fall below zero."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    processes = importlib.import_module("benchmarks.processes")
    program = """if True:
        import threading
        ending = threading.Event()
        def work():
            sum(range(2_000_000))
            print("worked", flush=True)
            ending.wait()
        thread = threading.Thread(target=work)
        thread.start()
        input()
        ending.set()
        thread.join()
        print("ended", flush=True)
        input()
    """
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, text=True, bufsize=1) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        running = processes.Running(child, Path())
        assert child.stdout.readline() == "worked\n"
        before = running.cpu()
        child.stdin.write("\n")
        assert child.stdout.readline() == "ended\n"
        assert running.cpu() >= before > 0
        child.kill()
    assert running.cpu() >= before


def test_the_floor_is_measured_beside_it(results: Path) -> None:
    items = json.loads(results.read_text())["items"]
    assert items["roundtrip-8"]["values"]["direct"]["per_s"][0] > 0


def test_the_tables_and_the_goals_are_printed(results: Path) -> None:
    shown = bench("--read", str(results))
    assert shown.returncode == 0, shown.stderr
    assert "Connect, hello, one round trip, close" in shown.stdout
    assert "ratio meshgate / peer" in shown.stdout


def test_a_ratio_is_judged_against_envoy_and_the_best_of_the_others(tmp_path: Path) -> None:
    def values(*cpu: float) -> dict[str, list[float]]:
        return {"cpu_us": list(cpu)}

    metric = {"key": "cpu_us", "title": "CPU µs", "digits": 1, "more_is_better": False}
    peers = {"meshgate": values(8, 9, 30), "envoy": values(10, 10, 40), "nginx": values(4, 6, 10)}
    item = {"title": "A connection", "metrics": [metric], "values": peers}
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"machine": {}, "peers": {"nginx": "nginx 1"}, "items": {"connection-16": item}}))
    goal = next(line for line in bench("--read", str(file)).stdout.splitlines() if "CPU per connection" in line)
    # The ratios of the rounds are 0.8, 0.9 and 0.75 to the one, 2, 1.5 and 3 to the other.
    shown = " ".join(goal.split())
    assert shown == "CPU per connection 9.0 CPU µs 0.80 ≤ 0.55 missed 2.00 (nginx 1) ≤ 1.2 missed"


def test_what_is_measured_on_meshgate_alone_has_a_goal_of_its_own(tmp_path: Path) -> None:
    metric = {"key": "ratio", "title": "ratio", "digits": 2, "more_is_better": False}
    item = {"title": "Beside", "metrics": [metric], "values": {"meshgate": {"ratio": [1.0, 1.04, 1.2]}}}
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"machine": {}, "peers": {}, "items": {"scale-9000": item}}))
    goal = next(line for line in bench("--read", str(file)).stdout.splitlines() if "beside 9,000" in line)
    assert goal.split()[-5:] == ["1.04", "ratio", "≤", "1.05", "met"]


def test_an_unknown_work_item_is_an_error() -> None:
    done = bench("--only", "nonsense")
    assert done.returncode == 1
    assert "no work item" in done.stderr
