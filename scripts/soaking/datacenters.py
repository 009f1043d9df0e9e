"""The two datacenters of a run, each server at a place of its own."""

import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar, Self

from tests.harness.agent import Consul, Ports, Version
from tests.harness.cluster import Federation, Report
from tests.harness.process import Child

from .network import Network, Place


class PlacedConsul(Consul):
    """A server at a place."""

    def __init__(
        self, binary: str, version: Version, datacenter: str, ports: Ports, folder: Path, token: str, place: Place
    ) -> None:
        super().__init__(binary, version, datacenter, ports, folder, token)
        self.place = place
        self.http_addr = f"{place.address}:{ports.http}"

    def start(self) -> None:
        """Starts the process with what `configure` wrote."""
        self._child = Child(
            [*self.place.prefix, self.binary, "agent", "-config-file", str(self.folder / "consul.json")],
            name=f"Consul of {self.datacenter}",
            log=self.folder / "log",
        )


class PlacedFederation(Federation):
    """Two datacenters whose servers have the next of `places`."""

    places: ClassVar[list[Place]] = []

    @classmethod
    def _prepared(cls, binary: str, version: Version) -> Self:
        folder, token = Path(tempfile.mkdtemp(prefix="meshgate-")), str(uuid.uuid4())
        one, other = (
            PlacedConsul(binary, version, name, Ports.pick(), folder / name, token, place)
            for name, place in zip(("dc1", "dc2"), cls.places, strict=True)
        )
        federation = cls(one, other, folder)
        try:
            for consul, peer in ((one, other), (other, one)):
                address = consul.place.address
                consul.configure(
                    primary=one.datacenter,
                    wan=[],
                    bind_addr=address,
                    advertise_addr=address,
                    client_addr=address,
                    retry_join_wan=[f"{peer.place.address}:{peer.ports.serf_wan}"],
                )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return federation


@asynccontextmanager
async def two_placed_datacenters(binary: str, network: Network, say: Report) -> AsyncIterator[PlacedFederation]:
    """Both, for the length of the block."""
    PlacedFederation.places = [await network.place(), await network.place()]
    federation = await PlacedFederation.start(binary, say)
    try:
        yield federation
    finally:
        await federation.stop()
