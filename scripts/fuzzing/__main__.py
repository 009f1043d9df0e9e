"""The command: every target for some seconds. See `scripts/fuzz --help`.

With atheris inputs are grown by the coverage of meshgate's code. Without it they are mutations of the corpora and of
each other, which finds less in the same time, but needs nothing.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Final

from .corpora import ROOT, corpus, folder
from .mutation import mutated
from .targets import TARGETS, broken_by

_KEPT: Final = 400


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="fuzz", description="Fuzzes what reads bytes of strangers.")
    parser.add_argument("seconds", nargs="?", type=float, default=10, help="for each target (default: 10)")
    parser.add_argument("--only", action="append", default=[], metavar="TARGET", help="repeatable")
    parser.add_argument("--seed", type=int, help="of the mutations")
    parser.add_argument("--engine", choices=("atheris", "mutation"), help="default: atheris where it is installed")
    parser.add_argument("--install", action="store_true", help="get atheris first, into the checkout's .cache folder")
    parser.add_argument("--list", action="store_true", help="print the names of the targets and end")
    parser.add_argument("--input", type=Path, metavar="FILE", help="give the targets this one input and nothing else")
    given = parser.parse_args()
    if given.list:
        print("\n".join(TARGETS))
        return 0
    unknown = set(given.only) - set(TARGETS)
    if unknown:
        parser.error(f"no target {', '.join(sorted(unknown))}")
    names = given.only or list(TARGETS)
    if given.input is not None:
        found = {name: broken_by(name, given.input.read_bytes()) for name in names}
        print("\n".join(f"{name}: {problem or 'fine'}" for name, problem in found.items()))
        return 1 if any(found.values()) else 0
    engine = given.engine or ("atheris" if find_spec("atheris") else "mutation")
    seed = given.seed if given.seed is not None else int.from_bytes(os.urandom(4))
    print(f"{engine}, {given.seconds:g} s for each of {len(names)} targets, seed {seed}", flush=True)
    run = _with_atheris if engine == "atheris" else _with_mutations
    failed = [name for name in names if not run(name, given.seconds, seed)]
    print(f"{len(names) - len(failed)} targets held, {len(failed)} broke{': ' if failed else ''}{', '.join(failed)}")
    return 1 if failed else 0


def _with_mutations(name: str, seconds: float, seed: int) -> bool:
    rng, inputs, count = Random(f"{seed} {name}"), corpus(name), 0
    grown = list(inputs)
    end = time.monotonic() + seconds
    for data in inputs:
        if problem := broken_by(name, data):
            return _tell(name, data, problem)
    while time.monotonic() < end:
        data = mutated(rng.choice(grown if rng.random() < 0.3 else inputs), inputs, rng)
        count += 1
        if problem := broken_by(name, data):
            return _tell(name, data, problem)
        if len(data) < 1 << 16:
            # What was changed once is changed again.
            if len(grown) < _KEPT:
                grown.append(data)
            else:
                grown[rng.randrange(_KEPT)] = data
    print(f"{name}: {count} inputs, none broke a promise", flush=True)
    return True


def _tell(name: str, data: bytes, problem: str) -> bool:
    file = Path(tempfile.gettempdir()) / f"fuzz-{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    file.write_bytes(data)
    print(f"{name}: BROKE {problem[:300]}\n  the input is in {file} and begins with {data[:120]!r}", flush=True)
    return False


def _with_atheris(name: str, seconds: float, seed: int) -> bool:
    """In a process of its own, because libFuzzer ends it. What it learned is kept in the checkout's .cache folder."""
    learned = ROOT / ".cache" / "fuzz" / name
    learned.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", f"{__package__}.coverage", name, f"-max_total_time={max(1, round(seconds))}"]
    command += [f"-seed={seed % 2**31 or 1}", "-max_len=20000", "-timeout=10", f"-artifact_prefix={learned}-"]
    command += [str(learned), str(folder(name))]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if done.returncode == 0:
        last = next((line for line in reversed(lines) if line.startswith("Done ")), "done")
        print(f"{name}: {last}", flush=True)
        return True
    told = [line for line in lines if not line.startswith(("#", "INFO:", "WARNING:"))]
    print(f"{name}: BROKE\n  " + "\n  ".join(told[-25:]), flush=True)
    return False


if __name__ == "__main__":
    sys.exit(main())
