"""Commands of meshgate, asked as an operator asks them, and what they answered."""

import json
import sys
from dataclasses import dataclass
from typing import Any

import trio

from tests.harness.agent import Consul
from tests.harness.gateway import GatewayProcess
from tests.harness.process import child_environment


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


async def meshgate(consul: Consul, token: str, *arguments: str) -> Outcome:
    done = await trio.run_process(
        [sys.executable, "-m", "meshgate", *arguments],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env=child_environment(CONSUL_HTTP_ADDR=consul.http_addr, CONSUL_HTTP_TOKEN=token),
        cwd=consul.folder,
    )
    return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())


def flags_of(gateway: GatewayProcess) -> list[str]:
    address = "{}:{}".format(*gateway.address)
    return [f"--address={address}", f"--wan-address={address}", f"--admin-bind={gateway.admin}"]


def checks(outcome: Outcome) -> dict[str, dict[str, str]]:
    return {check["check"]: check for check in outcome.data["checks"]}


def failed(outcome: Outcome) -> set[str]:
    return {name for name, check in checks(outcome).items() if check["status"] == "failed"}


async def probe(consul: Consul, token: str, *arguments: str) -> Outcome:
    return await meshgate(consul, token, "probe", *arguments, "--yes", "--json")


def upstreams(outcome: Outcome) -> list[dict[str, Any]]:
    (sidecar,) = outcome.data["sidecars"]
    found: list[dict[str, Any]] = sidecar["upstreams"]
    return found
