"""The results as tables, for a terminal and for Markdown."""

from collections.abc import Sequence
from statistics import median

from .items import Metric
from .results import FLOOR, OURS, Measurement, Results, Verdict, judge

Table = list[list[str]]


def item_table(results: Results, name: str) -> Table:
    """A row for each peer of a work item: medians, the spread of the first metric, and our ratio to the peer by it."""
    item = results.items[name]
    main = item.metrics[0]
    compared = any(peer not in (OURS, FLOOR) for peer in item.values)
    head = [
        "",
        *(metric.title for metric in item.metrics),
        "spread of the first",
        *(["meshgate / it"] if compared else []),
    ]
    rows = [head]
    for peer in sorted(item.values, key=lambda peer: (peer != FLOOR, peer != OURS)):
        row = [results.peers.get(peer, peer), *(_median(item, peer, metric) for metric in item.metrics)]
        row.append(_spread(item.of(peer, main.key), main.digits))
        if compared:
            ratio = None if peer in (OURS, FLOOR) else results.ratio(name, main.key, peer)
            row.append("" if ratio is None else f"{ratio:.2f}")
        rows.append(row)
    return rows


def goal_table(results: Results) -> Table:
    """The goals of the project and what was measured."""
    rows = [["ratio meshgate / peer", "meshgate", "vs Envoy", "goal", "", "vs the best", "goal", ""]]
    for verdict in judge(results):
        goal = verdict.goal
        if goal.most is not None:
            met = _met(verdict.ours, goal.most)
            rows.append([goal.title, _ours(results, verdict), "", "", "", "", f"≤ {goal.most:g}", met])
            continue
        best = (
            "" if verdict.best is None or goal.best is None else f"{verdict.best:.2f} ({results.peers[_best(verdict)]})"
        )
        rows.append(
            [
                goal.title,
                _ours(results, verdict),
                "" if verdict.envoy is None or goal.envoy is None else f"{verdict.envoy:.2f}",
                "" if goal.envoy is None else f"≤ {goal.envoy:g}",
                _met(verdict.envoy, goal.envoy),
                best,
                "" if goal.best is None else f"≤ {goal.best:g}",
                _met(verdict.best, goal.best),
            ]
        )
    return rows


def as_text(table: Table) -> str:
    """Columns of a terminal: the first one to the left, the others to the right."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = []
    for row in table:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  " + "  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())
    return "\n".join(lines)


def as_markdown(table: Table) -> str:
    """A Markdown table."""
    head, *rows = table
    rule = [":---", *("---:" for _ in head[1:])]
    return "\n".join(_markdown_row(row) for row in (head, rule, *rows))


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _median(item: Measurement, peer: str, metric: Metric) -> str:
    values = item.of(peer, metric.key)
    return f"{median(values):,.{metric.digits}f}" if values else ""


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{min(values):,.{digits}f} to {max(values):,.{digits}f}" if len(values) > 1 else ""


def _ours(results: Results, verdict: Verdict) -> str:
    metrics = results.items[verdict.goal.item].metrics
    metric = next(metric for metric in metrics if metric.key == verdict.goal.metric)
    return f"{verdict.ours:,.{metric.digits}f} {metric.title}"


def _best(verdict: Verdict) -> str:
    assert verdict.best_peer is not None
    return verdict.best_peer


def _met(ratio: float | None, goal: float | None) -> str:
    if ratio is None or goal is None:
        return ""
    return "met" if ratio <= goal else "missed"
