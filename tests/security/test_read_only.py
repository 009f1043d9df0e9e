"""The gateway needs no right and writes nowhere: it runs on a read-only file system, as unit and image have it."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.harness.ports import free_ports
from tests.harness.process import Child, child_environment
from tests.harness.waiting import until

from . import processes

# All that is mounted becomes read-only for what is started then, which has no capability and can gain none.
WRITABLE = 8
READ_ONLY = """
mount --rbind / / && mount -o remount,ro,bind / || exit 9
for place in /tmp /var/tmp /dev/shm /run; do mount -o remount,ro,bind "$place" 2>/dev/null; done
cd / && touch "$1/written" 2>/dev/null && exit 8
shift
exec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all "$@"
"""


def in_read_only(folder: Path, *command: str) -> list[str]:
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", READ_ONLY, "sh", str(folder), *command]


@pytest.fixture
def prefix(tmp_path: Path) -> list[str]:
    """What makes a command run so; the test is skipped where that is forbidden, in some containers."""
    tried = subprocess.run(in_read_only(tmp_path, "true"), capture_output=True, check=False)
    assert tried.returncode != WRITABLE
    if tried.returncode != 0:
        pytest.skip(f"no mount namespace may be made here: {tried.stderr.decode().strip()}")
    return in_read_only(tmp_path)


async def test_gateway_starts_and_stops_without_rights_on_a_read_only_file_system(prefix: list[str]) -> None:
    port, admin, nowhere = free_ports(3)
    command = [sys.executable, "-m", "meshgate", "run", f"--address=127.0.0.1:{port}", "--workers=2"]
    command += [f"--http-addr=127.0.0.1:{nowhere}", f"--admin-bind=127.0.0.1:{admin}"]
    gateway = Child([*prefix, *command], name="gateway", log=Path("/dev/null"), env=child_environment())
    try:
        async with httpx.AsyncClient(trust_env=False) as client:

            async def missing() -> str | None:
                assert gateway.running, gateway.returncode
                try:
                    answer = await client.get(f"http://127.0.0.1:{admin}/livez")
                except httpx.TransportError:
                    return "no answer"
                return None if answer.is_success else answer.text

            await until("the admin address", missing, seconds=20)
        status = dict(line.split(":\t") for line in processes.of(gateway.pid, "status").decode().splitlines())
        assert status["NoNewPrivs"] == "1"
        assert {status[name].strip("0") for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {""}
        assert len(processes.children(gateway.pid)) == 2
    finally:
        await gateway.stop(30)
    assert gateway.returncode == 0
