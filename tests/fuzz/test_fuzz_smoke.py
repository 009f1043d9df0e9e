"""Every fuzz target for a moment, from its corpus, with mutations that are the same each time."""

import importlib
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT / "scripts"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "fuzzing", *arguments],
        env={**os.environ, "PYTHONPATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )


@cache
def targets() -> list[str]:
    return fuzz("--list").stdout.split()


def test_no_target_breaks_a_promise() -> None:
    done = fuzz("0.2", "--engine", "mutation", "--seed", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(targets())} targets held, 0 broke" in done.stdout


def test_there_is_a_target_for_every_decoder_and_a_corpus_for_every_target() -> None:
    lines = (ROOT / "src/meshgate/adapters/consul/api/records.py").read_text().splitlines()
    decoders = {line.split()[0].removeprefix("decode_") for line in lines if line.startswith("decode_")}
    assert len(decoders) > 10
    assert decoders <= set(targets())
    missing = [name for name in targets() if not any((ROOT / "tests/data/fuzz" / name.split("_openssl")[0]).iterdir())]
    assert missing == []


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("resolvers", '[{"Name": "web", "ConnectTimeout": 1' + "0" * 400 + "}]"),
        ("agent_facts", '{"Config": "\\ud800"}'),
        ("datacenters", '"\\ud800"'),
        ("instances", "[" * 5000),
        ("chain", '{"Chain": {"ServiceName": "\\n", "StartNode": "x"}}'),
    ],
)
def test_what_once_broke_a_promise_does_not_again(target: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    assert importlib.import_module("fuzzing.targets").broken_by(target, text.encode()) is None


def test_one_input_can_be_given(tmp_path: Path) -> None:
    file = tmp_path / "input"
    file.write_text('"web"')
    done = fuzz("--only", "datacenters", "--only", "hello", "--input", str(file))
    assert (done.returncode, done.stdout) == (0, "datacenters: fine\nhello: fine\n")


def test_a_broken_promise_is_told_with_its_input(tmp_path: Path) -> None:
    broken = "from fuzzing import targets; targets.TARGETS = {'hello': lambda data: data[9999:][0]}"
    code = f"{broken}\nimport sys; sys.argv = ['fuzz', '1']; from fuzzing.__main__ import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'scripts'}{os.pathsep}{ROOT}", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "hello: BROKE IndexError" in done.stdout
    assert len(list(tmp_path.glob("fuzz-hello-*"))) == 1
