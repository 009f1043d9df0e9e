import resource
import subprocess
import sys
from typing import Any

import pytest

from meshgate.adapters import machine


@pytest.fixture
def descriptors(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A system with these limits; notes what it was asked for."""

    def make(soft: Any, hard: Any, refuses: Any = False) -> Any:
        asked = []

        def set_limit(_: Any, wanted: Any) -> None:
            asked.append(wanted)
            if refuses:
                raise ValueError("not allowed to raise maximum limit")

        monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
        monkeypatch.setattr(resource, "setrlimit", set_limit)
        return asked

    return make


def test_the_soft_limit_is_raised_to_the_hard_one(descriptors: Any) -> None:
    asked = descriptors(1024, 20000)
    assert machine.reachable_descriptors() == machine.raise_descriptor_limit() == 20000
    assert asked == [(20000, 20000)]


def test_an_enormous_hard_limit_is_not_taken_up(descriptors: Any) -> None:
    asked = descriptors(1024, 1073741816)
    assert machine.raise_descriptor_limit() == 1 << 20
    assert asked == [(1 << 20, 1073741816)]
    descriptors(1024, resource.RLIM_INFINITY)
    assert machine.reachable_descriptors() == 1 << 20


def test_the_soft_limit_is_never_lowered(descriptors: Any) -> None:
    for soft in (1 << 21, resource.RLIM_INFINITY):
        asked = descriptors(soft, resource.RLIM_INFINITY)
        assert machine.raise_descriptor_limit() >= 1 << 20
        assert asked == []


def test_a_refusal_leaves_the_limit_as_it_was(descriptors: Any) -> None:
    descriptors(1024, 20000, refuses=True)
    assert machine.raise_descriptor_limit() == 1024


def test_the_real_limit_is_raised() -> None:
    code = (
        "import resource as r; from meshgate.adapters import machine;"
        "r.setrlimit(r.RLIMIT_NOFILE, (300, r.getrlimit(r.RLIMIT_NOFILE)[1]));"
        "wanted = machine.reachable_descriptors(); assert wanted > 300;"
        "assert machine.raise_descriptor_limit() == wanted;"
        "assert r.getrlimit(r.RLIMIT_NOFILE)[0] == wanted"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)


@pytest.mark.parametrize(("descriptors", "streams"), [(1024, 412), (202, 1), (200, 1), (10, 1)])
def test_two_descriptors_a_stream_after_the_reserve(descriptors: Any, streams: Any) -> None:
    assert machine.streams_for(descriptors) == streams


def test_there_is_a_core_to_use() -> None:
    assert machine.usable_cores() >= 1


@pytest.mark.parametrize(("soft", "told"), [(300, True), (2200, False)])
def test_a_low_limit_is_told_when_a_gateway_starts(soft: int, told: bool) -> None:
    # An address that is not of this machine ends it at once.
    command = [sys.executable, "-m", "meshgate", "run", "--bind-address", "nowhere=192.0.2.1:1"]
    shell = ["sh", "-c", 'ulimit -n "$0" && exec "$@"', str(soft), *command]
    done = subprocess.run(shell, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}, check=False)
    assert done.returncode == 1, done.stderr
    line = 'the limit of open files is low: limit="300 descriptors for 50 streams" advice="raise it: ulimit -n, Limit'
    assert (line in done.stderr) == told
