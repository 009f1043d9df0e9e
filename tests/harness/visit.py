"""What somebody who watches the demo can type in another terminal: the lines to copy, and a token that fits them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import trio

from meshgate.adapters.consul.policy import acl_policy
from tests.harness.agent import Consul
from tests.harness.cluster import Federation
from tests.harness.process import child_environment

# Seconds that a command may take which answers in one on a machine that is not busy.
_PATIENCE: Final = 60.0


async def visitors_token(federation: Federation, caller: str) -> str:
    """A token that may read the mesh, and get the certificate of `caller`, as whose sidecar `probe` appears."""
    # A gateway's token may write to its own service and read the rest: here that service is the caller's.
    return await federation.create_policy_token(acl_policy(caller), "visitor")


class Visitor:
    """Asks a datacenter's agent, and the gateway beside it, with `meshgate`, in words that a person can copy."""

    def __init__(self, consul: Consul, token: str, admin: str = "") -> None:
        self._variables = {"CONSUL_HTTP_ADDR": consul.http_addr, "CONSUL_HTTP_TOKEN": token}
        if admin:
            self._variables["MESHGATE_ADMIN_BIND"] = admin

    @property
    def setting(self) -> str:
        """The line that comes before commands."""
        return "export " + " ".join(f"{name}={value}" for name, value in self._variables.items())

    async def ask(self, *arguments: str) -> tuple[int, str]:
        """What a command says, and its exit code."""
        with trio.fail_after(_PATIENCE):
            done = await trio.run_process(
                [sys.executable, "-m", "meshgate", *arguments],
                env=child_environment(**self._variables),
                capture_stdout=True,
                stderr=subprocess.STDOUT,
                check=False,
            )
        return done.returncode, done.stdout.decode(errors="replace")


def command(*arguments: str) -> str:
    """`meshgate` with arguments as it can be typed where this process was started."""
    called = Path(sys.argv[0])
    if called.name != "meshgate":
        return " ".join([sys.executable, "-m", "meshgate", *arguments])
    near = os.path.relpath(called)
    return " ".join([str(called) if near.startswith("..") else near, *arguments])
