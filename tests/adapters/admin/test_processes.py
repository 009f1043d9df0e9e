import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from meshgate.adapters.admin.processes import usage_of


def test_a_process_is_measured() -> None:
    usage = usage_of(os.getpid())
    assert usage is not None
    spent = resource.getrusage(resource.RUSAGE_SELF)
    assert usage.cpu_seconds == pytest.approx(spent.ru_utime + spent.ru_stime, rel=0.2, abs=0.5)
    assert 1 << 20 < usage.resident_bytes <= spent.ru_maxrss * 1024
    assert usage.max_fds == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    with Path("/dev/null").open() as first, first:
        more = usage_of(os.getpid())
    assert usage.open_fds is not None
    assert more is not None
    assert more.open_fds == usage.open_fds + 1


def test_a_program_with_an_odd_name_is_measured() -> None:
    rename = (
        'import ctypes, sys; ctypes.CDLL(None).prctl(15, b") R 1 (x 2", 0, 0, 0); print(flush=True); sys.stdin.read()'
    )
    with subprocess.Popen([sys.executable, "-c", rename], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        usage = usage_of(child.pid)
        child.communicate()
    assert usage is not None
    assert usage.resident_bytes > 1 << 20


def test_what_is_no_process_is_not_measured() -> None:
    assert usage_of(0) is None
    assert usage_of(1 << 30) is None
