"""Writes a run into docs/performance.md: between its markers everything is replaced, the rest is for people."""

import re
from pathlib import Path

from .charts import chart, groups
from .processes import BenchError
from .results import Results
from .tables import as_markdown, goal_table, item_table

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


def write_page(results: Results, page: Path = PAGE) -> None:
    """Replace tables and charts of the page by those of a run.

    Raises:
        BenchError: the page has lost a marker.
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
        raise BenchError(f"docs/performance.md has no place for {name!r}")
    return changed
