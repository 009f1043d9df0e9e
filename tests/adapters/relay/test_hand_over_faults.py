"""A hand-over between workers goes wrong at each of its steps: each stream is one worker's afterwards, or told as lost.

The workers are the real ones, started by a wrapper that has one of them do something at a step: die, stop, kill its
parent, send garbage, or have no descriptors or memory left.
"""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import Mock

import pytest
import trio

from meshgate.adapters.relay.messages import HandedOver, HandOver, TookOver
from meshgate.adapters.relay.pool import _HandOver
from meshgate.adapters.relay.worker_process import WorkerPolicy
from meshgate.core.reasons import StreamEnd
from tests.harness.shapes import REPEATED, Names, Shape, driving, endpoints

from .streams import WEB
from .test_hand_over_of_all_shapes import children, children_but, under_load
from .test_orphans import until_gone

WRAPPER = """
import contextlib, os, resource, signal, sys
from functools import partial
from meshgate.adapters.relay import hand_over, messages, stream, worker
from meshgate.adapters.relay.sandbox import Mode

side, step, act, when, once = sys.argv[1:6]
del sys.argv[1:6]
if once:  # What is started in the place of one that has failed does not fail.
    try:
        os.close(os.open(once, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        step = act = ""
hand_over.PATIENCE = 1.0
hand_over.BATCH_STREAMS = 16
worker.OnDemand = partial(worker.OnDemand, patience=60.0)  # As in test_hand_over_of_all_shapes.
left = int(when)

async def garbage(channel):
    await channel.send_all(b"\\0\\0\\0\\x10" + bytes(16))

def due(at):
    global left
    left -= at == step
    return at == step and left == 0

def do(channel):
    if act == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif act == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif act == "orphan":
        os.kill(os.getppid(), signal.SIGKILL)
    elif act == "raise":
        raise MemoryError

class New(hand_over.TakesOver):
    async def run(self):
        usual = resource.getrlimit(resource.RLIMIT_NOFILE)
        if act == "descriptors":
            resource.setrlimit(resource.RLIMIT_NOFILE, (30, usual[1]))
        await super().run()
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)

    async def _step(self):
        if self._prepared and due("prepared"):
            do(self._channel)
        return await super()._step()

    def _prepare(self, batch):
        if due("batch"):
            do(self._channel)
        if act == "memory":
            usual, used = resource.getrlimit(resource.RLIMIT_AS), None
            resource.setrlimit(resource.RLIMIT_AS, (1, usual[1]))
            for size in (*(1 << power for power in range(20, 9, -1)), *range(512, 0, -8)):
                with contextlib.suppress(MemoryError):
                    while True:  # What it has got before, and could use again.
                        used = used, bytes(size)
            try:
                answer = super()._prepare(batch)
            finally:
                resource.setrlimit(resource.RLIMIT_AS, usual)
                del used
        else:
            answer = super()._prepare(batch)
        if due("rebuilt"):
            do(self._channel)
            if act == "garbage":
                return hand_over.Prepared(batch.number + 1)
        return answer

class Old(hand_over.HandsOver):
    async def _offer(self, records, descriptors):
        if due("frozen"):
            do(self._channel)
            if act == "garbage":
                await garbage(self._channel)
        answer = await super()._offer(records, descriptors)
        if isinstance(answer, hand_over.Prepared) and due("prepared"):
            do(self._channel)
        return answer

    async def _say(self, message):
        given = isinstance(message, hand_over.Yours)
        if given and due("let go"):
            do(self._channel)
        said = await super()._say(message)
        if given and due("said"):
            do(self._channel)
        return said

async def send(stream, data, descriptors):
    await messages.send_with_descriptors(stream, data, descriptors)
    if due("offered"):
        do(stream)

def take_over(self, original=stream.Stream.take_over):
    if due("given"):
        do(None)
    original(self)

if side == "new":
    worker.TakesOver = New
    stream.Stream.take_over = take_over
else:
    worker.HandsOver = Old
    hand_over.send_with_descriptors = send

for number in messages.SIGNALS:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, messages.SIGNALS)
worker.main(int(sys.argv[1]), Mode(sys.argv[2]))
"""


def worker(side: str, step: str, act: str, when: int = 1, once: Path | str = "") -> Sequence[str]:
    return (sys.executable, "-P", "-c", WRAPPER, side, step, act, str(when), str(once))


SANE = worker("old", "", "")
# What shows within a moment that the relay goes on; the others have to come to their end, too.
QUICK = (Shape.SHORT, Shape.HALF_HELLO, Shape.SLOW_HELLO)

# What a worker sees of the other one is the same between two messages, so one step of those is enough every time.
LONG = pytest.mark.long

# Before the new worker has said that it is prepared, nothing that comes over it takes a stream along.
HARMLESS = [
    ("new", "batch", "kill", 1),
    pytest.param("new", "rebuilt", "kill", 1, marks=LONG),
    ("new", "batch", "stop", 1),
    pytest.param("new", "rebuilt", "stop", 1, marks=LONG),
    ("new", "rebuilt", "garbage", 1),
    ("new", "batch", "raise", 1),
    ("new", "", "descriptors", 1),
    ("new", "", "memory", 1),
]
# Otherwise the streams of one worker may be lost: of the one that died or was killed for what it did.
HARMFUL = [
    ("new", "prepared", "kill", 2),
    ("new", "prepared", "stop", 2),
    ("new", "given", "kill", 20),
    pytest.param("new", "given", "stop", 20, marks=LONG),
    ("old", "frozen", "kill", 2),
    ("old", "frozen", "stop", 2),
    ("old", "frozen", "garbage", 2),
    ("old", "offered", "kill", 2),
    pytest.param("old", "offered", "stop", 2, marks=LONG),
    pytest.param("old", "prepared", "kill", 2, marks=LONG),
    ("old", "let go", "kill", 2),
    ("old", "let go", "stop", 2),
    ("old", "said", "kill", 2),
]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("side", "step", "act", "when"), HARMLESS)
async def test_no_stream_notices_a_new_worker_that_fails(
    side: str, step: str, act: str, when: int, tmp_path: Path
) -> None:
    policy = WorkerPolicy(command=SANE, silent=10.0)
    async with under_load(1, 5, policy, streams=40, short=2, pace=0.1) as (pool, driver):
        (old,) = pool.relay.workers
        policy.command = worker(side, step, act, when, tmp_path / "failed")
        # What comes by then may be the new one's, who may die.
        with driver.forgiving(open_ones=False):
            moved = await pool.relay.replace(0)
        policy.command = SANE
        if act in ("descriptors", "memory", "raise"):
            # It lives, so the streams that it could not take have the old one still.
            assert moved.left > 0
            assert "descriptors" in moved.why if act == "descriptors" else moved.why in ("it ended", "out of memory")
            assert old in children()
        else:
            # Another one has come into its place, and has taken them.
            assert moved.left == 0
            assert old not in await children_but({old})
        await driver.moved(1, QUICK)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("side", "step", "act", "when"), HARMFUL)
async def test_a_worker_that_fails_takes_no_stream_of_the_other_along(
    side: str, step: str, act: str, when: int, tmp_path: Path
) -> None:
    failing = worker(side, step, act, when, tmp_path / "failed" if side == "new" else "")
    policy = WorkerPolicy(command=failing if side == "old" else SANE, silent=10.0)
    async with under_load(1, 6, policy, streams=60, short=2, pace=0.1) as (pool, driver):
        policy.command = failing if side == "new" else SANE
        with driver.forgiving():
            await pool.relay.replace(0)
            policy.command = SANE
            with trio.fail_after(30):
                while not pool.relay.works:
                    await trio.sleep(0.01)
        await driver.moved(1, QUICK)
    cut = sum(life.cut for life in driver.lives)
    maybe = cut + sum(life.untold for life in driver.lives)
    kept = sum(count for shape, count in driver.in_order.items() if shape not in REPEATED)
    assert kept > 0
    lost = pool.relay.totals.ends.get(StreamEnd.WORKER_LOST, 0)
    assert lost <= maybe
    assert (lost > 0) == (cut > 0)


# Gives its port and its worker, and replaces that when it gets a line.
PARENT = """
import json, sys, trio
from meshgate.adapters.relay import Limits
from meshgate.adapters.relay.pool import RelayPool
from meshgate.adapters.relay.sandbox import Mode
from meshgate.adapters.relay.worker_process import WorkerPolicy
from tests.adapters.relay.streams import WEB, Watcher, endpoint, table_of

async def main():
    backend, old, new = json.loads(sys.argv[1])
    # A confined worker may kill nobody but itself.
    policy = WorkerPolicy(command=old, sandbox=Mode.OFF)
    pool = RelayPool(1, Limits(), Watcher(), drain_seconds=300.0, policy=policy)
    _, port = pool.bind("default", "127.0.0.1", 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run)
        pool.install(table_of({WEB: [endpoint(backend)]}))
        pool.listen()
        while not pool.works:
            await trio.sleep(0.01)
        print(port, pool.workers[0], flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)
        policy.command = new
        await pool.replace(0)
        await trio.sleep_forever()

trio.run(main)
"""


def parent_of(commands: list[object]) -> "subprocess.Popen[str]":
    arguments = [sys.executable, "-c", PARENT, json.dumps(commands)]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("side", "step", "when"),
    [
        ("new", "batch", 1),
        pytest.param("new", "rebuilt", 1, marks=LONG),
        ("new", "prepared", 2),
        ("new", "given", 20),
        ("old", "frozen", 1),
        ("old", "offered", 2),
        pytest.param("old", "prepared", 1, marks=LONG),
        ("old", "let go", 2),
        ("old", "said", 2),
    ],
)
async def test_no_stream_notices_that_the_parent_is_killed_in_the_hand_over(side: str, step: str, when: int) -> None:
    failing = worker(side, step, "orphan", when)
    async with endpoints() as servers:
        commands = [servers.port, *((failing, SANE) if side == "old" else (SANE, failing))]
        with parent_of(commands) as parent:
            assert parent.stdin is not None
            assert parent.stdout is not None
            try:
                port, old = map(int, (await trio.to_thread.run_sync(parent.stdout.readline)).split())
                options = {"streams": 60, "pace": 0.1, "only": set(Shape) - REPEATED}
                async with driving(servers, ("127.0.0.1", port), Names(WEB), **options):  # type: ignore[arg-type]
                    parent.stdin.write("\n")
                    with trio.fail_after(30):
                        while parent.poll() is None:
                            await trio.sleep(0.01)
                    assert parent.returncode == -signal.SIGKILL
                    # Where the new one has not heard of it, the old one keeps them.
                    with contextlib.suppress(trio.TooSlowError):
                        await until_gone(old, 5)
                await until_gone(old, 30)
            finally:
                parent.kill()


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("step", "act"), [("batch", "kill"), ("rebuilt", "garbage")])
async def test_worker_that_shares_goes_on_with_what_a_worker_that_fails_did_not_take(
    step: str, act: str, tmp_path: Path
) -> None:
    policy = WorkerPolicy(command=SANE, silent=10.0)
    async with under_load(1, 8, policy, streams=40, pace=0.1) as (pool, driver):
        (old,) = pool.relay.workers
        policy.command = worker("new", step, act, 1, tmp_path / "failed")
        # What comes by then may be the new one's, who dies.
        with driver.forgiving(open_ones=False):
            await pool.relay.resize(2)
            policy.command = SANE
            one, other = pool.relay._workers
            moved = await pool.relay._move(one, other, HandOver(20, stays=True))
            assert (moved.streams, moved.why != "") == (0, True)
            with trio.fail_after(30):
                while not other.works:
                    await trio.sleep(0.01)
        moved = await pool.relay._move(one, other, HandOver(20, stays=True))
        assert (moved.streams, moved.why) == (20, "")
        assert pool.relay.workers[0] == old
        await driver.moved(1)
        await pool.relay.resize(1)


def test_the_last_word_of_an_old_worker_holds_when_it_ends_before_the_new_one_has_said_its_own() -> None:
    old, new = (Mock(handed=0, taken=0, routed=0) for _ in range(2))
    it = _HandOver(old, new)
    it.hear(old, HandedOver(3, 0, ""))
    it.hear(old, None)
    it.hear(new, TookOver())
    assert it.over.is_set()
    assert it.said[old] == HandedOver(3, 0, "")
