"""The command: measures, prints, writes. See `scripts/bench --help`."""

import argparse
import os
import platform
import resource
import sys
import tempfile
import time
import timeit
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from tests.harness.ports import free_ports

from meshgate import __version__

from .handshakes import start_server
from .items import FULL, QUICK, SMOKE, Item, work_items
from .load import Load
from .page import write_page
from .peers import Direct, Peer, Place, Relay, Target, sni
from .processes import BenchError, Cores
from .product import Datacenter, Product
from .results import Results
from .resumed import SERVICE, sidecar_hello
from .rivals import find_peers
from .runner import Runner
from .tables import as_text, goal_table, item_table

TLS_SERVICE = "vault"


def main() -> int:
    """Run the command line."""
    options = _parser().parse_args()
    try:
        results = Results.load(options.read) if options.read else _measure(options)
        _print(results)
        if options.json is not None:
            results.save(options.json)
        if options.docs:
            write_page(results)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench",
        description="Measures meshgate beside Envoy, HAProxy and nginx, as far as they are installed.",
    )
    parser.add_argument("--quick", action="store_true", help="short runs, two rounds: to see a large effect")
    parser.add_argument("--smoke", action="store_true", help="only see that it works, with meshgate alone")
    parser.add_argument("--only", metavar="NAME", action="append", help="work items whose names begin so; repeatable")
    parser.add_argument("--list", action="store_true", help="print the names of the work items and end")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often everything is done")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--read", type=Path, metavar="FILE", help="measure nothing, show what --json wrote")
    parser.add_argument("--docs", action="store_true", help="write tables and charts into docs/performance.md")
    parser.add_argument("--install", action="store_true", help="get HAProxy and nginx (Debian's packages) first")
    parser.add_argument(
        "--beside",
        metavar="LABEL=SRC",
        action="append",
        default=[],
        help="measure another version of meshgate too, whose package lies in the folder SRC; repeatable",
    )
    parser.add_argument("--peers", type=Path, default=Path("/nonexistent"), help=argparse.SUPPRESS)
    return parser


def _measure(options: argparse.Namespace) -> Results:
    sizes = SMOKE if options.smoke else QUICK if options.quick else FULL
    if options.rounds:
        sizes = replace(sizes, rounds=options.rounds)
    tls_port = free_ports(1)[0]
    items = [item for item in work_items(sizes, sni(TLS_SERVICE), tls_port) if _wanted(item, options.only)]
    if options.list:
        print("\n".join(item.name for item in items))
        sys.exit(0)
    if not items:
        raise BenchError("no work item has such a name (--list prints them)")
    rivals, missing = ([], []) if options.smoke else find_peers(options.peers.absolute())
    for line in missing:
        _say(line)
    _raise_descriptor_limit()
    machine = _machine()
    with tempfile.TemporaryDirectory(prefix="meshgate-bench-") as name, ExitStack() as stack:
        cores = Cores.pick()
        if cores.relay == cores.load:
            _say("only one core: relay and load share it, the numbers are of little use")
        os.sched_setaffinity(0, {cores.load})
        load = Load(Path(name), cores, sidecar_hello())
        place = Place(Path(name), cores, load)
        datacenter = Datacenter(place)
        stack.callback(datacenter.stop)
        others = [_another(version, datacenter) for version in options.beside]
        peers = [Direct(), Product(datacenter), Relay(), *rivals, *others]
        results = Results(machine, {peer.name: peer.title for peer in peers})
        stack.callback(start_server(place, tls_port).stop)
        targets = [Target(sni(SERVICE), load.backend_port), Target(sni(TLS_SERVICE), tls_port)]
        runner = stack.enter_context(Runner(place, peers, partial(_product, datacenter), targets, results))
        for number, item in enumerate(items, 1):
            _say(f"{number}/{len(items)} {item.title}")
            runner.do(item, sizes.rounds)
    return results


def _print(results: Results) -> None:
    for name in results.items:
        print(f"\n{results.items[name].title}\n{as_text(item_table(results, name))}")
    goals = goal_table(results)
    if len(goals) > 1:
        print(f"\nGoals\n{as_text(goals)}")
    print()
    for key, value in results.machine.items():
        print(f"{key}: {value}")


def _machine() -> dict[str, str]:
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "meshgate": __version__,
        "processor": f"{cpu}, {len(os.sched_getaffinity(0))} cores usable",
        "kernel": platform.release(),
        "Python": f"{platform.python_version()}, a loop of a million additions in {_plain_loop():.0f} ms",
        "load average at the start": f"{os.getloadavg()[0]:.2f}",
    }


def _plain_loop() -> float:
    """What plain Python takes here: builds of one version differ by a third, and none says how it was optimized."""
    return min(timeit.repeat("x = 0\nfor i in range(1_000_000): x += i", number=1, repeat=5)) * 1000


def _product(datacenter: Datacenter, workers: int) -> Peer:
    return Product(datacenter, workers=workers)


def _another(version: str, datacenter: Datacenter) -> Peer:
    label, equals, source = version.partition("=")
    if not equals or not (Path(source) / "meshgate").is_dir():
        raise BenchError(f"--beside {version}: not a label, =, and a folder with the package meshgate")
    return Product(datacenter, label, Path(source).absolute())


def _wanted(item: Item, only: list[str] | None) -> bool:
    return not only or any(item.name.startswith(name) for name in only)


def _raise_descriptor_limit() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _say(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
