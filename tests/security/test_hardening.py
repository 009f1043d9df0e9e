"""The token does not leave the process by `ps`, `/proc` or a core dump."""

import os
import signal
import subprocess
import sys
from pathlib import Path

SECRET = "5f1c9e4e-0000-4000-8000-1234567890ab"
CHILD = """
import ctypes, os, resource, sys
from meshgate.app.gateway.hardening import forbid_core_dumps
from meshgate.app.gateway.hardening import hide_secrets
hide_secrets([%r, ""])
print(ctypes.CDLL(None).prctl(3), flush=True)
forbid_core_dumps()
print(ctypes.CDLL(None).prctl(3), *resource.getrlimit(resource.RLIMIT_CORE), flush=True)
sys.stdin.read()
if sys.argv[1] == "crash":
    os.abort()
"""


def child(*arguments: str, **environ: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", CHILD % SECRET, *arguments],
        env=os.environ | environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_secret_is_overwritten_in_arguments_and_environment_and_nothing_else_is() -> None:
    arguments = ["sleep", "--token", SECRET, f"--token={SECRET}", f"x{SECRET}", "--http-addr=127.0.0.1:8500"]
    process = child(*arguments, CONSUL_HTTP_TOKEN=SECRET, AFTERWARDS="here")
    with process:
        assert process.stdout is not None
        process.stdout.readline(), process.stdout.readline()
        stars = "*" * len(SECRET)
        shown = Path(f"/proc/{process.pid}/cmdline").read_text().split("\0")
        assert shown[3:-1] == [
            "sleep",
            "--token",
            stars,
            f"--token={stars}",
            f"x{SECRET}",
            "--http-addr=127.0.0.1:8500",
        ]
        try:
            environ = Path(f"/proc/{process.pid}/environ").read_text().split("\0")
        except PermissionError:
            return  # Not dumpable: its environment and memory are for those alone who may trace anything.
        assert f"CONSUL_HTTP_TOKEN={stars}" in environ
        assert "AFTERWARDS=here" in environ


def test_process_that_crashes_leaves_no_core() -> None:
    process = child("crash")
    said, _ = process.communicate("")
    # What prctl and getrlimit say: dumpable before, not afterwards, and cores of no size.
    assert said == "1\n0 0 0\n"
    assert process.returncode == -signal.SIGABRT


def test_limit_holds_for_the_processes_it_starts() -> None:
    code = """
import subprocess
from meshgate.app.gateway.hardening import forbid_core_dumps
forbid_core_dumps()
subprocess.run(["sh", "-c", "ulimit -c"], check=True)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "0\n"
