"""Charts as SVG, by hand: horizontal bars in groups, with a line from the least to the most that a round gave."""

from collections.abc import Sequence
from statistics import median
from xml.sax.saxutils import escape

from .results import FLOOR, OURS, Results

_COLOURS = {OURS: "#2563eb", FLOOR: "#9ca3af", "envoy": "#db2777", "haproxy": "#d97706", "nginx": "#059669"}
_OTHER = "#6b7280"
_WIDTH, _LEFT, _RIGHT, _TOP = 720, 150, 90, 40
_BAR, _GAP = 16, 12
_STYLE = "text{font:12px sans-serif;fill:#1f2937}.title{font-size:14px;font-weight:bold}.group{font-weight:bold}"


def groups(results: Results) -> dict[str, list[str]]:
    """The names of the items that several products took part in, by chart: `roundtrip-1` and `-32` share one."""
    found: dict[str, list[str]] = {}
    for name in results.items:
        if results.rivals(name):
            found.setdefault(name.rpartition("-")[0], []).append(name)
    return found


def chart(results: Results, names: Sequence[str]) -> str:
    """The first metric of the items, one group of bars for each item."""
    metric = results.items[names[0]].metrics[0]
    most = max(max(results.items[name].of(peer, metric.key), default=0) for name, peer in _bars(results, names)) or 1
    body = []
    y = _TOP
    for name in names:
        item = results.items[name]
        body.append(f'<text x="12" y="{y + 12}" class="group">{escape(item.title)}</text>')
        y += 20
        for peer in (peer for group, peer in _bars(results, names) if group == name):
            body.append(_bar(results.peers.get(peer, peer), peer, item.of(peer, metric.key), metric.digits, most, y))
            y += _BAR + 3
        y += _GAP
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y}" viewBox="0 0 {_WIDTH} {y}">'
    better = "more is better" if metric.more_is_better else "less is better"
    return "\n".join(
        [
            head,
            f"<style>{_STYLE}</style>",
            f'<rect width="{_WIDTH}" height="{y}" fill="#ffffff"/>',
            f'<text x="12" y="22" class="title">{escape(metric.title)} ({better})</text>',
            *body,
            "</svg>\n",
        ]
    )


def _bars(results: Results, names: Sequence[str]) -> list[tuple[str, str]]:
    metric = results.items[names[0]].metrics[0].key
    return [
        (name, peer)
        for name in names
        for peer in sorted(results.items[name].values, key=lambda peer: (peer != FLOOR, peer != OURS))
        if results.items[name].of(peer, metric)
    ]


def _bar(title: str, peer: str, values: Sequence[float], digits: int, most: float, y: int) -> str:
    scale = (_WIDTH - _LEFT - _RIGHT) / most
    middle = median(values)
    line = y + _BAR / 2
    return (
        f'<text x="{_LEFT - 8}" y="{y + 12}" text-anchor="end">{escape(title)}</text>'
        f'<rect x="{_LEFT}" y="{y}" width="{middle * scale:.1f}" height="{_BAR}" fill="{_COLOURS.get(peer, _OTHER)}"/>'
        f'<line x1="{_LEFT + min(values) * scale:.1f}" x2="{_LEFT + max(values) * scale:.1f}" '
        f'y1="{line}" y2="{line}" stroke="#111827"/>'
        f'<text x="{_LEFT + max(values) * scale + 6:.1f}" y="{y + 12}">{middle:,.{digits}f}</text>'
    )
