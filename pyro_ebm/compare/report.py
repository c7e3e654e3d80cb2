"""The scorecard as one self-contained HTML page."""

from __future__ import annotations

__all__ = ["page"]

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --line: #ccc; --soft: #666; --paper: #fff; --ink: #111; }
@media (prefers-color-scheme: dark) {
  :root { --line: #444; --soft: #aaa; --paper: #16181c; --ink: #eee; }
}
body { margin: 0 auto; max-width: 66rem; padding: 1rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .35rem .7rem; text-align: left; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } tbody th { position: sticky; left: 0; background: var(--paper); }
thead button { all: unset; cursor: pointer; } thead button:focus-visible { outline: 2px solid; }
[aria-sort=ascending] button::after { content: " ↑"; }
[aria-sort=descending] button::after { content: " ↓"; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1rem 0; } figcaption { color: var(--soft); }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
.error { border-left: 4px solid #d55e00; padding-left: .8rem; }
"""

SCRIPT = """
for (const head of document.querySelectorAll("thead th")) {
  head.firstChild.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0], at = head.cellIndex;
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const compare = (a, b) => {
      const [x, y] = [a, b].map(row => row.cells[at].dataset);
      if (x.group !== y.group) return x.group - y.group;
      const order = isNaN(x.value) ? x.value.localeCompare(y.value) : x.value - y.value;
      return up ? order : -order;
    };
    body.append(...[...body.rows].sort(compare));
  });
}
"""
"""Sorts the table by a column; numbers of unlike kinds stay apart, and gaps come last."""

GROUPS = "=≥≤≈"
"""The signs of numbers that are not to be sorted among each other."""


def page(
    table: Sequence[Mapping[str, str]],
    errors: Sequence[str],
    protocol: Mapping[str, object],
    caveats: Sequence[str],
    figures: Mapping[str, bytes | str],
) -> str:
    """Writes a scorecard as a page that needs no other file and no network.

    Args:
        table: The cells, row by row, by column.
        errors: What failed.
        protocol: How it was measured.
        caveats: What to bear in mind.
        figures: Each figure as PNG, or why it could not be drawn.

    Returns:
        The page.

    Example:
        >>> text = page([{"model": "a"}], [], {"seed": 0}, ["none"], {"broken": "no ink"})
        >>> "<td>" in text, "no ink" in text
        (False, True)
    """
    body = [
        "<h1>Scorecard</h1>",
        _table(table),
        "".join(f'<p class="error">{escape(error)}</p>' for error in errors),
        "<h2>How to read it</h2>",
        "<ul>" + "".join(f"<li>{escape(caveat)}</li>" for caveat in caveats) + "</ul>",
        "<h2>Figures</h2>" if figures else "",
        *(_figure(name, content) for name, content in figures.items()),
        "<h2>Protocol</h2>",
        _list(protocol),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Scorecard</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + f"\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _table(table: Sequence[Mapping[str, str]]) -> str:
    if not table:
        return "<p>No model was measured.</p>"
    head = "".join(
        f'<th scope="col"><button>{escape(column)}</button></th>' for column in table[0]
    )
    rows = "\n".join(_row(list(row.values())) for row in table)
    return (
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table></div>"
    )


def _row(cells: list[str]) -> str:
    first, *rest = cells
    body = "".join(f"<td{_key(cell)}>{escape(cell)}</td>" for cell in rest)
    return f'<tr><th scope="row"{_key(first)}>{escape(first)}</th>{body}</tr>'


def _key(cell: str) -> str:
    """Says what a cell is sorted by: the kind of its number first, then the number."""
    group = len(GROUPS) + 1 if cell == "–" else 1 + GROUPS.find(cell[:1])
    number = re.match(r"[=≥≤≈ ]*(-?[\d,.]+(?:e[+-]?\d+)?|-?inf)(?: ±|$)", cell)
    value = number[1].replace(",", "").replace("inf", "Infinity") if number else cell
    return f' data-group="{group}" data-value="{escape(value)}"'


def _list(protocol: Mapping[str, object]) -> str:
    items = (f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in protocol.items())
    return "<dl>" + "\n".join(items) + "</dl>"


def _figure(name: str, content: bytes | str) -> str:
    if isinstance(content, str):
        return (
            f'<p class="error">The figure {escape(name)} could not be drawn: {escape(content)}</p>'
        )
    data = base64.b64encode(content).decode("ascii")
    return (
        f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(name)}</figcaption></figure>"
    )
