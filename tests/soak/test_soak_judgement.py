"""The soak can fail: what has no cause is a violation, and damage is found."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(code: str) -> str:
    """What the code prints, with the package of the soak at hand."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.syspath_prepend(str(ROOT / "scripts"))
        exec(compile(code, "judgement", "exec"), {"__name__": "judgement"})
    return printed.getvalue()


LEDGER = """
from soaking.ledger import Ledger, Route
ledger = Ledger()
near, far = frozenset(("a:40001", "b:8443")), frozenset(("c:40002", "d:9000"))
route = Route("web", "local", "gateway-1", "dc1", "dc2", legs={near, far}, incarnation="web-1/0")
"""


def test_a_break_without_a_death_is_a_violation() -> None:
    code = "ledger.broke(route, 'reset'); ledger.settle(); print(len(ledger.violations))"
    assert run(f"{LEDGER}\n{code}") == "1\n"


def test_the_death_of_another_process_is_no_cause() -> None:
    legs = "{frozenset(('a:40001', 'b:8444')), frozenset(('e:40002', 'd:9000'))}"
    code = f"ledger.death('worker killed', {legs}); ledger.broke(route, 'reset'); ledger.settle()"
    assert run(f"{LEDGER}\n{code}; print(len(ledger.violations))") == "1\n"


def test_the_death_of_what_carried_the_stream_is_a_cause_on_either_leg_and_at_the_endpoint() -> None:
    # Of a leg that both ends have closed only the process's own end is known.
    for death in ("'a', {near}", "'a', {far}", "'a', {frozenset(('c:40002',))}", "'a', incarnation='web-1/0'"):
        code = f"ledger.death({death}); ledger.broke(route, 'reset'); print(ledger.violations, dict(ledger.breaks))"
        assert run(f"{LEDGER}\n{code}") == "[] {'a': 1}\n"


def test_what_a_process_has_yet_to_read_of_a_closed_connection_dies_with_it() -> None:
    code = """
import os, socket
from soaking.kernel import legs_of_stopped
from soaking.messages import spot
with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
    own = spot(*client.getsockname())
    print(frozenset((own, spot(*server.getsockname()))) in legs_of_stopped([os.getpid()]))
    client.shutdown(socket.SHUT_WR)
    accepted = server.accept()[0]
    assert accepted.recv(1) == b""
    accepted.sendall(b"the last words")
    accepted.close()
    while (client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]) != 7:
        pass
    print(frozenset((own,)) in legs_of_stopped([os.getpid()]))
    assert client.recv(100) == b"the last words"
"""
    assert run(code) == "True\nTrue\n"


def test_a_break_before_the_drain_timeout_is_a_violation() -> None:
    code = "ledger.death('drain', {near}, after=5); ledger.broke(route, 'x'); ledger.settle()"
    assert run(f"{LEDGER}\n{code}; print(len(ledger.violations))") == "1\n"


def test_a_refusal_is_explained_only_by_what_concerns_it() -> None:
    concerned = ("gateway-1", "behind dc2", "web", "from dc1 behind dc2")
    for about in (*concerned, "gateway-2", "behind dc1", "from dc2 behind dc2"):
        code = f"ledger.disturb('x', '{about}'); ledger.refused(route, 'alert'); ledger.settle()"
        violations = 0 if about in concerned else 1
        assert run(f"{LEDGER}\n{code}; print(len(ledger.violations))") == f"{violations}\n"


def test_what_lasts_no_longer_excuses_only_streams_begun_before() -> None:
    begun = "ledger.shock('x', 'web'); ledger.refused(route, 'reset'); ledger.settle(); print(len(ledger.violations))"
    assert run(f"{LEDGER}\n{begun}") == "0\n"
    before = LEDGER.replace("route =", "ledger.shock('x', 'web')\nroute =")
    assert run(f"{before}\nledger.refused(route, 'reset'); ledger.settle(); print(len(ledger.violations))") == "1\n"


def test_a_refusal_by_another_alert_than_the_disturbance_names_is_a_violation() -> None:
    for alert, violations in (("internal_error", 0), ("decode_error", 1), (None, 1)):
        code = f"ledger.disturb('x', 'web').alert = 'internal_error'; ledger.refused(route, 'x', {alert!r})"
        assert run(f"{LEDGER}\n{code}; ledger.settle(); print(len(ledger.violations))") == f"{violations}\n"


def test_a_cause_that_becomes_known_later_counts_and_nothing_is_judged_before() -> None:
    code = "ledger.refused(route, 'x'); ledger.settle(60); ledger.disturb('late', 'web').start = 0; ledger.settle()"
    assert run(f"{LEDGER}\n{code}; print(ledger.violations, dict(ledger.refusals))") == "[] {'late': 1}\n"


NETWORK = """
import os, socket, subprocess, sys, tempfile
from pathlib import Path
import trio
from soaking.network import Network, enter
if why := enter():
    print(why)
    sys.exit()
SERVER = "import socket; s = socket.create_server(('', 7000)); print('up', flush=True)\\nwhile True: s.accept()"
async def main():
    with tempfile.TemporaryDirectory() as folder:
        network = Network("", Path(folder))
        one, two, three = [await network.place() for _ in range(3)]
        server = subprocess.Popen([*one.prefix, sys.executable, "-c", SERVER], stdout=subprocess.PIPE)
        server.stdout.readline()
        def reaches(place):
            client = f"import socket; socket.create_connection(('{one.address}', 7000), 1.5)"
            done = subprocess.run([*place.prefix, sys.executable, "-c", client], capture_output=True)
            return "yes" if done.returncode == 0 else "no"
        print(reaches(two), reaches(three))
        network.cut([one], [two])
        print(reaches(two), reaches(three))
        network.heal([one], [two])
        print(reaches(two), reaches(three))
        server.kill()
        await network.close()
trio.run(main)
"""


def test_places_that_are_cut_from_each_other_do_not_reach_each_other_and_all_others_do(tmp_path: Path) -> None:
    script = tmp_path / "network.py"
    script.write_text(NETWORK)
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'scripts'}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, str(script)], env=env, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    if len(lines) == 1:
        pytest.skip(f"no network to cut here: {lines[0]}")
    assert lines == ["yes yes", "no yes", "yes yes"]


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


QUICK = """
import trio
from soaking.messages import PlainStream, Receiver
from meshgate.adapters.mesh_tls import RefusedError
class Transport:
    def __init__(self, data): self.data = data
    async def receive_some(self, _):
        data, self.data = self.data, b""
        return data
async def main():
    for data in (bytes.fromhex("15030300020250"), bytes(2), b""):
        try:
            await Receiver(PlainStream(Transport(data)), "web").receive()
        except RefusedError as error:
            print(error.alert)
        except Exception as error:
            print(type(error).__name__)
trio.run(main)
"""


def test_a_truncated_quick_stream_and_an_alert_in_place_of_its_greeting_are_found() -> None:
    assert run(QUICK).splitlines() == ["internal_error", "OverError", "OverError"]
