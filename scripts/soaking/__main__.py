"""The command. See `scripts/soak --help`."""

import argparse
import json
import sys
from pathlib import Path

import trio
from tests.harness.cluster import find_consul

from .faults import FAULTS
from .ledger import Ledger
from .network import enter
from .report import as_text, origin, write
from .run import Options, default_seed, soak

_ROOT = Path(__file__).parents[2]


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="soak",
        description="Real Consul, gateways and services under load, with faults at random: nothing may be lost.",
    )
    parser.add_argument("minutes", nargs="?", type=float, default=5.0, help="how long to keep the load up (default: 5)")
    parser.add_argument("--seed", type=int, help="of faults and traffic; what it was is in the report")
    parser.add_argument("--callers", type=int, default=24, help="streams at once (default: 24)")
    parser.add_argument(
        "--quick", type=float, default=50.0, metavar="RATE", help="quick streams begun in a second, beside those (50)"
    )
    parser.add_argument("--gap", type=float, default=3.0, metavar="SECONDS", help="between faults, on average (3)")
    parser.add_argument("--only", action="append", default=[], choices=FAULTS, metavar="FAULT", help="repeatable")
    parser.add_argument("--flat", action="store_true", help="no network namespaces and no partitions")
    parser.add_argument("--small", action="store_true", help="two services instead of five, and shorter streams")
    parser.add_argument("--list", action="store_true", help="print the names of the faults and end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there as well")
    parser.add_argument(
        "--report", type=Path, metavar="FOLDER", help="write the report of this commit there, as docs/soak has them"
    )
    parser.add_argument("--events", type=Path, metavar="FILE", help="write there what happened when")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep the logs of all gateways and Consuls there")
    given = parser.parse_args()
    if given.list:
        print("\n".join(FAULTS))
        return 0
    binary = find_consul(_ROOT / ".cache" / "consul" / "consul")
    uncut = "told not to" if given.flat else enter()
    seed = default_seed() if given.seed is None else given.seed
    only = tuple(given.only)
    options = Options(
        given.minutes * 60,
        seed,
        binary,
        given.callers,
        given.gap,
        only,
        given.logs,
        uncut,
        small=given.small,
        quick=given.quick,
    )

    def say(text: str) -> None:
        print(f"soak: {text}", file=sys.stderr, flush=True)

    ledger = Ledger(events_file=given.events)
    try:
        data = trio.run(soak, options, ledger, say)
    except KeyboardInterrupt:
        return 130
    data = origin(_ROOT, binary) | {"minutes": given.minutes, "quick": given.quick, "gap": given.gap} | data
    if given.report is not None:
        say(f"the report is in {write(given.report, data)}")
    if given.json is not None:
        given.json.write_text(json.dumps(data, indent=1) + "\n")
    print(as_text(data))
    return 1 if data["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
