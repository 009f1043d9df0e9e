"""Writes a run into docs/performance.md and the README: what is between their markers is replaced."""

import re
from pathlib import Path

from .charts import chart, groups
from .processes import BenchError
from .results import Results, judge
from .tables import as_markdown, goal_table, item_table

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
README = PAGE.parents[1] / "README.md"
# What the README shows of the goals, in words for somebody who does not know the work items.
_SHOWN = {
    "idle-5000": "memory of an idle connection",
    "upload-32": "CPU time to move a gigabyte, over 32 streams",
    "connection-16": "CPU time of a new connection",
    "handshake-2": "CPU time of a connection with an mTLS handshake and a request",
    "roundtrip-32": "CPU time of a small request on a standing connection, one of 32",
    "product-100": "memory at rest (meshgate with two workers)",
}


def write_page(results: Results, page: Path = PAGE, readme: Path = README) -> None:
    """Replace tables and charts of the pages by those of a run.

    Raises:
        BenchError: a page has lost a marker.
    """
    folder = page.with_suffix("")
    folder.mkdir(exist_ok=True)
    drawn = groups(results)
    for name, items in drawn.items():
        (folder / f"{name}.svg").write_text(chart(results, items))
    text = page.read_text()
    text = _replace(text, "machine", _machine(results))
    text = _replace(text, "goals", as_markdown(goal_table(results)))
    text = _replace(text, "tables", "\n\n".join(_section(results, name, drawn, folder.name) for name in results.items))
    page.write_text(text)
    readme.write_text(_replace(readme.read_text(), "envoy", _beside_envoy(results)))


def _beside_envoy(results: Results) -> str:
    """A row for each of `_SHOWN` that was measured: our figure divided by Envoy's."""
    # Of the goals of one item the first is that of its cost.
    ratios = {it.goal.item: it.envoy for it in reversed(judge(results)) if it.envoy is not None}
    rows = [f"| {words} | {ratios[item]:.2f} |" for item, words in _SHOWN.items() if item in ratios]
    return "\n".join(["| meshgate, compared with Envoy | Envoy = 1 |", "| --- | ---: |", *rows])


def _section(results: Results, name: str, drawn: dict[str, list[str]], folder: str) -> str:
    group = name.rpartition("-")[0]
    lines = [f"### {results.items[name].title}", "", as_markdown(item_table(results, name))]
    if group in drawn and drawn[group][-1] == name:
        lines += ["", f"![{results.items[name].metrics[0].title}: {group}]({folder}/{group}.svg)"]
    return "\n".join(lines)


def _machine(results: Results) -> str:
    return "\n".join(f"- {key}: {value}" for key, value in results.machine.items())


def _replace(text: str, name: str, content: str) -> str:
    pattern = re.compile(rf"(<!-- bench:{name} -->\n).*?(<!-- /bench:{name} -->)", re.DOTALL)
    changed, count = pattern.subn(lambda found: f"{found[1]}\n{content}\n\n{found[2]}", text)
    if count != 1:
        raise BenchError(f"a page has no place for {name!r}")
    return changed
