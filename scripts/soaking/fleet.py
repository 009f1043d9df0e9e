"""The gateways: two in each datacenter, replaced and restarted as the faults will have it."""

import signal
import ssl
import sys
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Final

import httpx
import trio
from tests.harness.agent import Consul, ConsulError
from tests.harness.gateway import GatewayProcess
from tests.harness.process import Child, child_environment
from tests.harness.waiting import LateError, until

from . import kernel
from .ledger import Death, Ledger
from .messages import spot
from .network import Network, Place

WORKERS: Final = 2
DRAIN_SECONDS: Final = 6.0
# Held queries of every other gateway: too few for all services, so that some of these are cold and asked for.
FEW_WATCHES: Final = 7
_LOOK_SECONDS: Final = 0.2
# For what has to end by itself. Far more than it takes: a machine that is busy with other things is no fault.
_END_SECONDS: Final = 60.0
_READY_SECONDS: Final = 60.0
_NO_AUTHORITIES: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class Gateway(GatewayProcess):
    """One gateway at its place. `takes` says whether callers may open streams through it."""

    def __init__(self, consul: Consul, instance: str, token_file: Path, place: Place, *, watches: int = 100) -> None:
        super().__init__(consul, "", instance=instance)
        self._watches = watches
        self.place = place
        self.address = (place.address, self.address[1])
        self.admin_socket = consul.folder / f"{instance}.sock"  # Out of the reach of partitions.
        self.admin = f"unix://{self.admin_socket}"
        self.takes = False
        self.state = consul.folder / f"state-{instance}"
        self._token_file = token_file

    @property
    def processes(self) -> list[int]:
        """The process ids of its workers and, last, its own."""
        return [*self.workers, self.child.pid]

    @property
    def port(self) -> int:
        """Where it takes streams."""
        return self.address[1]

    @property
    def workers(self) -> list[int]:
        """The process ids of its workers."""
        return kernel.workers_of(self.child.pid)

    async def until_workers(self, seconds: float, without: int = 0) -> None:
        """Waits until as many workers as there should be take connections, not counting that one.

        Raises:
            LateError: not in time.
        """

        async def missing() -> str | None:
            count = sum(kernel.relays(pid) for pid in self.workers if pid != without)
            return None if count == WORKERS else f"{count} workers"

        await until(f"the workers of {self.instance}", missing, seconds=seconds)

    def spawn(self, extra: object = None) -> None:
        """Starts it, and does not wait."""
        del extra
        self.state.mkdir(mode=0o700, exist_ok=True)
        address = spot(*self.address)
        self._child = Child(
            [*self.place.prefix, sys.executable, "-m", "meshgate", "run"],
            name=f"gateway {self.instance} of {self.consul.datacenter}",
            log=self.consul.folder / f"{self.instance}.log",
            env=child_environment(
                CONSUL_HTTP_ADDR=self.consul.http_addr,
                CONSUL_HTTP_TOKEN_FILE=str(self._token_file),
                MESHGATE_SERVICE=self.service,
                MESHGATE_PROXY_ID=self.instance,
                MESHGATE_ADDRESS=address,
                MESHGATE_WAN_ADDRESS=address,
                MESHGATE_ADMIN_BIND=self.admin,
                MESHGATE_WORKERS=str(WORKERS),
                MESHGATE_DENY_ENDPOINTS="none",  # All datacenters are on this machine.
                MESHGATE_DRAIN_TIMEOUT=f"{DRAIN_SECONDS:g}s",
                # The answer to a hello may be on its way for twice as long as the longest cut (retransmission timeouts
                # double), and a client that has not got it must not be ended for its silence.
                MESHGATE_HANDSHAKE_TIMEOUT="2m",
                MESHGATE_STATE_DIR=str(self.state),
                MESHGATE_CATALOG_WATCHES=str(self._watches),
            ),
        )

    async def page(self, path: str) -> bytes:
        """What its admin address answers."""
        return await self._fetch(path)

    async def _fetch(self, path: str) -> bytes:
        transport = httpx.AsyncHTTPTransport(verify=_NO_AUTHORITIES, uds=str(self.admin_socket))
        async with httpx.AsyncClient(transport=transport, trust_env=False, timeout=10) as client:
            return (await client.get(f"http://localhost{path}")).content


class Fleet:
    """All gateways by datacenter."""

    def __init__(self, datacenters: Collection[Consul], token_file: Path, ledger: Ledger, network: Network) -> None:
        self.by_datacenter: dict[str, list[Gateway]] = {consul.datacenter: [] for consul in datacenters}
        self._consuls = {consul.datacenter: consul for consul in datacenters}
        self._token_file = token_file
        self._ledger = ledger
        self._network = network
        self._numbers = iter(range(1, 1_000_000))
        self.gone: list[Gateway] = []

    @property
    def all(self) -> list[Gateway]:
        """Those that run or should."""
        return [gateway for gateways in self.by_datacenter.values() for gateway in gateways]

    def taking(self, datacenter: str) -> list[Gateway]:
        """Those through which streams may be opened."""
        return [gateway for gateway in self.by_datacenter[datacenter] if gateway.takes]

    async def add(self, datacenter: str) -> Gateway:
        """A new gateway, ready and known to the others."""
        number, place = next(self._numbers), await self._network.place()
        watches = {"watches": FEW_WATCHES} if number % 2 else {}
        gateway = Gateway(self._consuls[datacenter], f"gateway-{number}", self._token_file, place, **watches)
        self.by_datacenter[datacenter].append(gateway)
        await self.bring_up(gateway)
        return gateway

    async def bring_up(self, gateway: Gateway) -> None:
        """Starts it, and lets callers in once it is ready, with all its workers."""
        try:
            gateway.spawn()
            await gateway.until_ready(_READY_SECONDS)
            await gateway.until_workers(_READY_SECONDS)
        except LateError as error:
            self._ledger.violation(f"a gateway was not ready in time: {error}")
            return
        gateway.takes = True
        self._ledger.note(f"{gateway.instance} of {gateway.consul.datacenter} is up, port {gateway.port}")

    async def drain(self, gateway: Gateway) -> None:
        """SIGTERM; its streams may end at a quiet moment after its grace, not before. It is taken out of the fleet."""
        self.by_datacenter[gateway.consul.datacenter].remove(gateway)
        self.gone.append(gateway)
        workers = gateway.workers
        death = self._ledger.death("drain", after=DRAIN_SECONDS / 10 - 0.1)
        gateway.child.signal(signal.SIGTERM)
        # Whoever has not heard yet still comes.
        await trio.sleep(0.3)
        gateway.takes = False
        with trio.move_on_after(DRAIN_SECONDS + _END_SECONDS) as scope:
            await self.see_off(death, [gateway.child.pid, *workers])
            # A process whose last threads still end is gone for the kernel's lists, and cannot be waited for yet.
            await gateway.child.wait()
        if scope.cancelled_caught:
            self._ledger.violation(f"{gateway.instance} did not end {DRAIN_SECONDS + _END_SECONDS:g} s after SIGTERM")
            await gateway.child.kill()
        elif gateway.child.returncode != 0:
            self._ledger.violation(f"{gateway.instance} drained and ended with {gateway.child.returncode}")

    async def see_off(self, death: Death, pids: Collection[int]) -> None:
        """Keeps account of the connections of processes that will end by themselves, until they have."""
        while any(map(kernel.alive, pids)):
            # All that were ever seen: the processes end one after another.
            death.legs = frozenset(death.legs) | kernel.legs_of(pids)
            await trio.sleep(_LOOK_SECONDS)

    async def stop_all(self) -> None:
        """Ends everything that runs."""
        async with trio.open_nursery() as nursery:
            for gateway in self.all:
                with suppress(RuntimeError, ConsulError):
                    nursery.start_soon(gateway.stop)
