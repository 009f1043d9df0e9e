"""What open streams notice while other processes take them over: how long one stood still, and what throughput was.

A hundredth of them send in bulk, together at a steady rate that a core has room for; on each of the others a message of
64 bytes goes there and back every second. All of the relay is on one core, the start of the new processes too.
"""

import signal
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import median

from .peers import Place, Relay, Subject, Target, ask, sni
from .processes import Running, tree
from .product import Datacenter, Product

PAUSE = 1.0
RATE = 200e6  # Bytes a second, of 3 GB that a core can carry.
SLOT_SECONDS = 0.1
LOOK_SECONDS = 0.02
FULL_SHARE = 0.9
UPGRADE_SECONDS = 60.0


def replacement(place: Place, *, streams: int, seconds: float) -> Mapping[str, float]:
    """A worker of the relay alone is replaced."""
    subject = Relay().start(place, [Target(sni("web"), place.load.backend_port)])
    try:
        return _beside(place, subject, streams, seconds, lambda: ask(subject.running, {"do": "replace"}))
    finally:
        subject.stop()


def upgrade(place: Place, *, streams: int, seconds: float, workers: int) -> Mapping[str, float]:
    """`meshgate run` is upgraded, to what it is already."""
    with tempfile.TemporaryDirectory(dir=place.folder) as folder:
        place = replace(place, folder=Path(folder))
        datacenter = Datacenter(place)
        try:
            subject = Product(datacenter, workers=workers).start(place, [Target(sni("web"), place.load.backend_port)])
            try:
                return _beside(place, subject, streams, seconds, partial(_signal_and_wait, subject.running))
            finally:
                subject.stop()
        finally:
            datacenter.stop()


def _signal_and_wait(gateway: Running) -> None:
    """SIGUSR2, and wait until its workers are others and alone."""
    before = tree(gateway.child.pid)[1:]
    gateway.child.send_signal(signal.SIGUSR2)
    deadline = time.monotonic() + UPGRADE_SECONDS
    while set(before) & set(now := tree(gateway.child.pid)[1:]) or len(now) != len(before):
        if time.monotonic() > deadline:
            raise gateway.failure("was not upgraded")
        time.sleep(LOOK_SECONDS)


def _beside(
    place: Place, subject: Subject, streams: int, seconds: float, act: Callable[[], object]
) -> Mapping[str, float]:
    """What `act` does to the streams in the second half of that time, beside the first half."""
    bulk = max(1, streams // 100)
    options = {"streams": streams - bulk, "bulk": bulk, "rate": RATE, "pause": PAUSE}
    run = place.load.run
    calm = run(
        subject.running, subject.port, "steady", {**options, "seconds": seconds / 2}, own_backend=subject.own_backend
    )
    memory = [0, 0]
    took = [0.0]

    def meanwhile() -> None:
        time.sleep(seconds / 4)
        memory[:] = [subject.running.memory()] * 2
        begun = time.perf_counter()
        acting = threading.Thread(target=act)
        acting.start()
        while acting.is_alive():
            memory[1] = max(memory[1], subject.running.memory())
            acting.join(LOOK_SECONDS)
        took[0] = time.perf_counter() - begun

    moved = run(
        subject.running,
        subject.port,
        "steady",
        {**options, "seconds": seconds},
        own_backend=subject.own_backend,
        meanwhile=meanwhile,
    )
    usual = max(1.0, median(calm.slots))
    return {
        "silence_ms": max(moved.silence_us, moved.max_us) / 1e3,
        "calm_silence_ms": max(calm.silence_us, calm.max_us) / 1e3,
        "slow_s": _longest_slow(moved.slots, usual),
        "lowest_percent": min(moved.slots) / usual * 100,
        "memory_ratio": memory[1] / memory[0],
        "took_s": took[0],
    }


def _longest_slow(slots: Sequence[int], usual: float) -> float:
    """For how many seconds on end less arrived than there should."""
    runs = (len(list(run)) for slow, run in groupby(slots, lambda slot: slot < FULL_SHARE * usual) if slow)
    return max(runs, default=0) * SLOT_SECONDS
