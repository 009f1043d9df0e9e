"""The instances of the services: a process each, which may die, pause, move to another port and leave the catalog."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Final

from tests.harness.agent import Consul
from tests.harness.instance import Instance
from tests.harness.ports import free_ports
from tests.harness.process import Child, child_environment
from tests.harness.waiting import until

from . import kernel
from .ledger import Ledger
from .network import Place

_SECONDS: Final = 60.0


class SoakInstance(Instance):
    """One instance at its place. `incarnation` changes when it dies or moves.

    `leaf` is the file with its certificate and key.
    """

    def __init__(self, consul: Consul, service: str, number: int, place: Place, leaf: Path, ledger: Ledger) -> None:
        name = f"{service}-{number}"
        super().__init__(consul, service, name, listed_as=name)
        self.place = place
        self._leaf = leaf
        self._ledger = ledger
        self._lives = 0
        self._children: list[Child] = []
        self._seen_damage = 0

    @property
    def child(self) -> Child:
        """The process that listens."""
        return self._children[-1]

    @property
    def incarnation(self) -> str:
        """The name of this life of it."""
        return f"{self.instance}/{self._lives}"

    async def start(self, port: int = 0) -> None:
        """A process that takes connections on `port`, 0 for a free one; returns when it listens."""
        self._lives += 1
        self.port = port or free_ports(1)[0]
        argv = [self.service, self.incarnation, self.place.address, str(self.port), str(self._leaf)]
        child = Child(
            [*self.place.prefix, sys.executable, "-m", "soaking.sidecar", *argv],
            name=f"{self.incarnation}",
            log=self._leaf.parent / f"{self.instance}-{self._lives}.sidecar",
            env=child_environment(PYTHONPATH=os.pathsep.join(path for path in sys.path if path)),
        )
        self._children.append(child)
        await self._until_said(child, "listening")

    async def go_deaf(self, child: Child) -> None:
        """An earlier process of it takes no more connections; those that are open live on."""
        child.signal(signal.SIGUSR1)
        await self._until_said(child, "deaf")

    async def die(self) -> None:
        """SIGKILL, with all that it carries; also for what is left of it at other ports."""
        # Nothing that it carries changes between the look and the end.
        for child in [child for child in self._children if child.running]:
            if await kernel.stop(child.pid):
                incarnation = child.name
                self._ledger.death("endpoint killed", kernel.legs_of_stopped([child.pid]), incarnation=incarnation)
                await child.kill()

    def damage(self) -> list[str]:
        """What its processes have said of damaged streams, each once, and whether one ended that nobody had ended."""
        said = [line for child in self._children for line in child.log.read_text().splitlines() if "DAMAGE" in line]
        fresh, self._seen_damage = said[self._seen_damage :], len(said)
        return [f"{self.instance} received damage: {line}" for line in fresh]

    async def register(self) -> None:
        """Puts it into the catalog at its present address and waits until it is there."""
        await self.consul.register(
            {
                "ID": self.instance,
                "Name": self.service,
                "Address": self.place.address,
                "Port": self.port,
                "Connect": {"Native": True},
                "Checks": [self.check],
            }
        )
        await self.set_health("passing")

    async def stop(self) -> None:
        """Ends all its processes."""
        for child in self._children:
            await child.kill()

    async def _until_said(self, child: Child, word: str) -> None:
        async def missing() -> str | None:
            if not child.running and word == "listening":
                raise OSError(f"{child.name} ended with {child.returncode}: {child.last_lines()}")
            return None if word in child.log.read_text().split() or not child.running else f"not {word}"

        await until(f"{child.name} to be {word}", missing, seconds=_SECONDS)


async def write_leaf(consul: Consul, service: str, folder: Path) -> Path:
    """The file with the certificate and key of a service, and the roots."""
    leaf = await consul.get(f"/v1/agent/connect/ca/leaf/{service}")
    roots = await consul.get("/v1/agent/connect/ca/roots")
    file = folder / f"{service}.leaf"
    file.touch(mode=0o600)
    file.write_text(json.dumps({"leaf": leaf, "roots": roots}))
    return file
