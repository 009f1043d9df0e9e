"""The load generator: compiled once, started anew for each measurement, asked for one line of JSON."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.harness.ports import free_ports

from .processes import BenchError, Cores, Running, start

SOURCE = Path(__file__).with_name("load.c")
SETTLE_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Measured:
    """What one run of the load saw, and what the peer spent on it.

    Latencies are in µs from sending a message (for churn: from connecting) to having all of the answer. `cpu` is the
    peer's, in ns. `bytes` counts bulk bytes alone, those of both directions. `silence_us` and `slots` are those of a
    steady load: how long an upload stood still at most, and the uploads' bytes in each tenth of a second.
    """

    operations: int
    seconds: float
    bytes: int
    p50_us: float
    p90_us: float
    p99_us: float
    max_us: float
    cpu: int
    silence_us: float = 0.0
    slots: Sequence[int] = ()


class Load:
    """The compiled generator. Its backend listens on `backend_port` while it runs.

    Args:
        folder: where its program and its hello are kept.
        cores: it runs on the load's.
        hello: what each stream begins with.
    """

    def __init__(self, folder: Path, cores: Cores, hello: bytes) -> None:
        self.folder = folder
        self.cores = cores
        self.backend_port = free_ports(1)[0]
        self.program = folder / "load"
        self.hello = folder / "hello"
        self.hello.write_bytes(hello)
        compiler = shutil.which("cc")
        if compiler is None:
            raise BenchError("needs a C compiler (cc) for the load generator")
        subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-o", self.program, SOURCE], check=True)

    def serve(self, port: int) -> Running:
        """The backend alone, on the relay's core: what one end of a stream costs without a relay."""
        return start([self.program, "serve", str(port)], self.cores.relay, self.folder, "direct")

    def run(
        self,
        peer: Running,
        port: int,
        mode: str,
        options: Mapping[str, float],
        *,
        own_backend: bool,
        at_ready: Callable[[], None] | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> Measured:
        """One measurement of a peer that listens on `port`; see load.c for modes and options.

        Args:
            own_backend: whether the load brings the backend along.
            at_ready: called when all connections stand and nothing moves.
            meanwhile: called while the work is done.

        Raises:
            BenchError: bytes were lost or changed, nothing moved for a long time, or the peer ended.
        """
        words = [f"{key}={value}" for key, value in options.items()]
        backend = str(self.backend_port if own_backend else 0)
        command: list[str | Path] = [self.program, mode, backend, str(port), self.hello, *words]
        generator = start(command, self.cores.load, self.folder, "load", talks=True)
        try:
            self._expect(generator, peer, "ready")
            if at_ready is not None:
                at_ready()
            before = peer.cpu()
            _tell(generator)
            if meanwhile is not None:
                meanwhile()
            answer = json.loads(self._expect(generator, peer))
            time.sleep(SETTLE_SECONDS)  # What the last closes set in motion belongs to the work.
            cpu = peer.cpu() - before
            _tell(generator)
            generator.child.wait()
        finally:
            generator.stop()
        return Measured(cpu=cpu, **answer)

    def _expect(self, generator: Running, peer: Running, wanted: str | None = None) -> str:
        assert generator.child.stdout is not None
        line = generator.child.stdout.readline().strip()
        if not line or (wanted is not None and line != wanted):
            generator.child.wait()
            failure = generator.failure("the load failed")
            raise BenchError(f"{peer.log.stem}: {failure}\n{peer.log.read_text(errors='replace').strip()[-1000:]}")
        return line


def _tell(generator: Running) -> None:
    assert generator.child.stdin is not None
    generator.child.stdin.write("\n")
    generator.child.stdin.flush()
