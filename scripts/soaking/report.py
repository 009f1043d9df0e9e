"""The end of a run in numbers: for people, as JSON, and as a page of the docs that nobody writes by hand."""

import os
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from tests.harness.agent import consul_version

from .kernel import Usage
from .ledger import Ledger

_PAGE: Final = """# A soak with Consul {consul}

Written by `scripts/soak` at the end of the run, on {date}, of commit {commit}, on {processors} processors.
`scripts/soak {minutes:g} --seed {seed} --quick {quick:g} --gap {gap:g}` makes the same faults and the same traffic.
{{doc}}`../reliability` says what is checked.

```text
{text}
```
"""


def origin(root: Path, binary: str) -> dict[str, Any]:
    """What ran, and where: the commit of the checkout, Consul's version, the processors."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=False).stdout.strip()

    commit = git("rev-parse", "--short=12", "HEAD") or "unknown"
    return {
        "commit": f"{commit} with changes" if git("status", "--porcelain", "--untracked-files=no") else commit,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "consul": ".".join(map(str, consul_version(binary))),
        "processors": len(os.sched_getaffinity(0)),
    }


def write(folder: Path, data: Mapping[str, Any]) -> Path:
    """The page of a run; the one before it with the same Consul is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / f"consul-{data['consul']}.md"
    page.write_text(_PAGE.format(text=as_text(data), **data))
    return page


def as_data(
    ledger: Ledger, seed: int, uncut: str, before: Mapping[str, Usage], after: Mapping[str, Usage]
) -> dict[str, Any]:
    """Everything that was counted."""
    return {
        "seed": seed,
        "seconds": round(ledger.age, 1),
        "streams": {
            "opened": ledger.opened,
            "in_order": ledger.in_order,
            "broken": ledger.breaks.total(),
            "refused": ledger.refusals.total(),
            "by_kind": dict(sorted(ledger.streams.items())),
        },
        "bytes": {"up": ledger.bytes_up, "down": ledger.bytes_down},
        "faults": {"total": ledger.faults.total(), **_sorted(ledger.faults)},
        "hostile": {"total": ledger.hostile.total(), **_sorted(ledger.hostile)},
        "breaks": _sorted(ledger.breaks),
        "refusals": _sorted(ledger.refusals),
        "partitions": uncut or "possible",
        "tables": {"follow_seconds": round(ledger.follow_seconds, 2), "consul_behind": ledger.consul_behind},
        "violations": ledger.violations,
        "before": {name: asdict(usage) for name, usage in before.items()},
        "after": {name: asdict(usage) for name, usage in after.items()},
    }


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def as_text(data: Mapping[str, Any]) -> str:
    """The same for people."""
    streams, amount = data["streams"], data["bytes"]
    lines = [
        f"{data['seconds']:.0f} s, seed {data['seed']}",
        (
            f"streams: {streams['opened']} opened, {streams['in_order']} ended in order, {streams['broken']} broke, "
            f"{streams['refused']} refused"
        ),
        f"bytes: {amount['up'] / 1e6:.1f} MB up, {amount['down'] / 1e6:.1f} MB down, every one checked",
    ]
    if data["partitions"] != "possible":
        lines.append(f"no partitions: {data['partitions']}")
    tables = data["tables"]
    lines.append(
        f"tables said what Consul says at most {tables['follow_seconds']:g} s after all was put right; "
        f"Consul itself was behind {tables['consul_behind']} times"
    )
    lines.append(f"kinds of faults: {sum(name != 'total' for name in data['faults'])}")
    lines.append("streams by way and service:")
    lines += [f"  {count:8}  {name}" for name, count in streams["by_kind"].items()]
    for title in ("faults", "hostile", "breaks", "refusals"):
        lines.append(f"{title}:")
        lines += [f"  {count:8}  {name}" for name, count in data[title].items()]
    for title in ("before", "after"):
        lines.append(
            f"held {title} the load (parent: descriptors, memory; a worker at most: descriptors, pipe ends, memory):"
        )
        for name, usage in data[title].items():
            lines.append(
                f"  {name}: {usage['parent_descriptors']}, {usage['parent_bytes'] / 1e6:.1f} MB; "
                f"{usage['worker_descriptors']}, {usage['worker_pipes']}, {usage['worker_bytes'] / 1e6:.1f} MB"
            )
    lines.append(f"violations: {len(data['violations'])}")
    lines += [f"  {violation}" for violation in data["violations"]]
    return "\n".join(lines)
