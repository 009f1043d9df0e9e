"""The demo as a newcomer has it: started, read, and asked in another terminal with the lines that it prints."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.harness.process import Child, child_environment
from tests.harness.waiting import until

from .remains import entries

pytestmark = pytest.mark.consul


async def test_lines_that_the_demo_prints_can_be_typed_while_it_runs(consul_binary: str, tmp_path: Path) -> None:
    environment = child_environment(CONSUL_BIN=consul_binary, TMPDIR=str(tmp_path))
    log = tmp_path / "demo.log"
    demo = Child([sys.executable, "-m", "meshgate", "demo"], name="the demo", log=log, env=environment)

    async def missing() -> str | None:
        assert demo.running, demo.last_lines()
        return None if "Traffic goes on" in log.read_text() else demo.last_lines(1)

    try:
        await until("the demo", missing, seconds=90)
        shown = log.read_text().partition("Ask for yourself")[2].splitlines()[1:]
        lines = [line.strip() for line in shown if line.startswith("    ")][:9]
        assert lines[0].startswith("cd /")  # They are to be typed in another terminal, which may be anywhere.
        assert lines[1].startswith("export CONSUL_HTTP_ADDR=127.0.0.1:")
        done = await trio.run_process(
            ["/bin/sh", "-ec", "\n".join(lines)],
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            env=child_environment(),
            cwd=tmp_path,
        )
        said = done.stdout.decode()
        assert "ok: web answers and accepts the caller" in said
        assert "shop-sidecar-proxy (for shop)" in said
        assert "mode   local, set by registration Proxy.Upstreams" in said
        assert "routed: datacenter" in said
        # Who uses the bandwidth, which endpoints there are, what was cut, what would break without the other one.
        assert re.search(r"CLIENT .*\n127\.0\.0\.1:\d+ +\*?\.?dc2 ", said)
        assert re.search(r"ENDPOINT .*\n127\.0\.0\.1:\d+ ", said)
        assert "streams that ended since" in said
        assert "if all gateways of datacenter dc2 go away:\n  1 cut:\n    dc2 (datacenter)" in said
        demo.signal(signal.SIGINT)
        with trio.fail_after(30):
            assert await demo.wait() == 0
    finally:
        await demo.stop()
    assert entries(tmp_path) == [log]
