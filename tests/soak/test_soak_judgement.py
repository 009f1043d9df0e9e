"""The soak can fail: what has no cause is a violation, and damage is found."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(code: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LEDGER = """
from soaking.ledger import Ledger, Route
ledger = Ledger()
route = Route("web", "local", "gateway-1", "dc2", legs={(40001, 8443), (40002, 9000)}, incarnation="web-1/0")
"""


def test_a_break_without_a_death_is_a_violation() -> None:
    assert run(f"{LEDGER}\nledger.broke(route, 'reset'); print(len(ledger.violations))") == "1\n"


def test_the_death_of_another_process_is_no_cause() -> None:
    code = "ledger.death('worker killed', {(40001, 8444), (40003, 9000)}); ledger.broke(route, 'reset')"
    assert run(f"{LEDGER}\n{code}; print(len(ledger.violations))") == "1\n"


def test_the_death_of_what_carried_the_stream_is_a_cause_on_either_leg_and_at_the_endpoint() -> None:
    for death in ("'a', {(40001, 8443)}", "'a', {(40002, 9000)}", "'a', incarnation='web-1/0'"):
        code = f"ledger.death({death}); ledger.broke(route, 'reset'); print(ledger.violations, dict(ledger.breaks))"
        assert run(f"{LEDGER}\n{code}") == "[] {'a': 1}\n"


def test_a_break_before_the_drain_timeout_is_a_violation() -> None:
    code = "ledger.death('drain', {(40001, 8443)}, after=5); ledger.broke(route, 'x'); print(len(ledger.violations))"
    assert run(f"{LEDGER}\n{code}") == "1\n"


def test_a_refusal_is_explained_only_by_what_concerns_it() -> None:
    for about, violations in (("gateway-1", 0), ("behind dc2", 0), ("web", 0), ("gateway-2", 1), ("behind dc1", 1)):
        code = f"ledger.disturb('x', '{about}'); ledger.refused(route, 'alert'); print(len(ledger.violations))"
        assert run(f"{LEDGER}\n{code}") == f"{violations}\n"


STREAM = """
import trio
from soaking.messages import DamagedError, Receiver, Sender
class Pipe:
    def __init__(self): self.data = b""
    async def send_all(self, data): self.data += data
    async def receive_some(self):
        data, self.data = self.data, b""
        return data
async def main(change):
    pipe = Pipe()
    sender = Sender(pipe, "web")
    for payload in (b"one", b"two", b""):
        await sender.send(payload)
    pipe.data = change(pipe.data)
    receiver = Receiver(pipe, SERVICE)
    try:
        while await receiver.receive(): pass
        await receiver.expect_end()
        print("whole")
    except DamagedError as error:
        print("damaged")
    except Exception as error:
        print(type(error).__name__)
"""


def carried(change: str, service: str = "web") -> str:
    return run(f"SERVICE = '{service}'\n{STREAM}\ntrio.run(main, {change})").strip()


def test_bytes_changed_lost_doubled_or_moved_are_found() -> None:
    frame = 13 + 3 + 3 + 16
    assert carried("lambda data: data") == "whole"
    assert carried("lambda data: data.replace(b'two', b'twO')") == "damaged"
    assert carried(f"lambda data: data[{frame}:]") == "damaged"
    assert carried(f"lambda data: data[:{frame}] + data") == "damaged"
    assert carried(f"lambda data: data[{frame}:{2 * frame}] + data[:{frame}] + data[{2 * frame}:]") == "damaged"
    assert carried("lambda data: data + b'x'") == "damaged"
    assert carried("lambda data: data[:-1]") == "OverError"


def test_a_stream_of_another_service_is_found() -> None:
    assert carried("lambda data: data", "api") == "damaged"
