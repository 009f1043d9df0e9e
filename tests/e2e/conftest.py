"""Two real datacenters for a test module, and what tests ask of the gateways beside them."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from tests.harness.standing import Standing, set_up

from .supervisor import Systemd
from .world import Pair, World


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest, consul_binary: str, standing: Standing) -> Iterator[World]:
    """Two datacenters, one global token with the documented policy, and leave for `shop` to call everybody.

    They are those of the whole test process, emptied, unless the module is marked `own_consul`.
    """
    if request.node.get_closest_marker("own_consul") is None:
        stage = trio.run(standing.stage)
        yield World(stage.federation, stage.token)
        return
    stage = trio.run(set_up, consul_binary)
    try:
        yield World(stage.federation, stage.token)
    finally:
        trio.run(stage.federation.stop)


@pytest.fixture
async def systemd(tmp_path: Path) -> AsyncIterator[tuple[Systemd, str]]:
    path = str(tmp_path / "notify")
    with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_DGRAM) as sock:
        await sock.bind(path)
        yield Systemd(sock), path


@pytest.fixture(scope="module")
def gateways(world: World) -> Iterator[Pair]:
    """What `World.gateways` gives a test, for all tests of a module that leave gateways as they found them.

    Their counters go on from test to test.
    """
    local, remote = world.two_gateways()
    try:
        trio.run(world.start, local, remote)
        yield local, remote
    finally:
        trio.run(world.stop, local, remote)
