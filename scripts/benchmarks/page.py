"""Writes a run into docs/performance.md and the README: what is between their markers is replaced."""

import re
from pathlib import Path

from .charts import chart, groups
from .processes import BenchError
from .results import Results, judge
from .tables import as_markdown, goal_table, item_table

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
README = PAGE.parents[1] / "README.md"
# What the README shows of the goals: the work of a gateway, one row each.
_SHOWN = ("idle-5000", "upload-32", "connection-16", "handshake-2", "roundtrip-32", "product-100")


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
    verdicts = [it for it in judge(results) if it.envoy is not None and it.goal.metric != "p50_us"]
    rows = {it.goal.item: f"| {it.goal.title} | {it.envoy:.2f} |" for it in reversed(verdicts)}
    shown = [rows[name] for name in _SHOWN if name in rows]
    return "\n".join(["| meshgate / Envoy, less is better | |", "| --- | ---: |", *shown])


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
