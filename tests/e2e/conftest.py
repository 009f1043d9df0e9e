"""Two real datacenters for a test module, and what tests ask of the gateways beside them."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from tests.harness.standing import Standing, set_up

from .supervisor import Systemd
from .world import World


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
