"""The scorecard as one self-contained HTML page."""

from __future__ import annotations

__all__ = ["page"]

import base64
import re
import struct
from collections.abc import Mapping, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --line: #ccc; --soft: #595959; --paper: #fff; --ink: #111;
  --shade: #0004; }
@media (prefers-color-scheme: dark) {
  :root { --line: #444; --soft: #b0b0b0; --paper: #16181c; --ink: #eee; --shade: #fff3; }
}
body { margin: 0 auto; max-width: 70rem; padding: 1rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
h1 + p { text-wrap: pretty; } h1 + p, .note, figcaption, small, dt { color: var(--soft); }
.wide { overflow-x: auto; background:
  linear-gradient(to right, var(--paper) 2rem, transparent 4rem) left / 50% calc(100% + 2px) local,
  linear-gradient(to left, var(--paper) 2rem, transparent 4rem) right / 50% calc(100% + 2px) local,
  linear-gradient(to right, var(--shade), transparent) left / 1rem 100% scroll,
  linear-gradient(to left, var(--shade), transparent) right / 1rem 100% scroll;
  background-repeat: no-repeat; }
.wide:focus-visible { outline: 2px solid; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .35rem .6rem; text-align: left; border-bottom: 1px solid var(--line); }
.count { text-align: right; }
th { font-weight: 600; } thead th { vertical-align: top; }
tr > :first-child { position: sticky; left: 0; background: var(--paper); }
thead button { all: unset; cursor: pointer; } thead button:focus-visible { outline: 2px solid; }
thead button::after { content: "↕"; margin-left: .3em; color: var(--soft); font-weight: 400; }
[aria-sort=ascending] button::after { content: "↑"; color: inherit; font-weight: 600; }
[aria-sort=descending] button::after { content: "↓"; color: inherit; font-weight: 600; }
small { display: block; font-size: .8em; font-weight: 400; }
li { margin-bottom: .3rem; } ul { padding-left: 1.2rem; }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .2rem 1rem; }
dd { margin: 0; }
figure { margin: 1rem 0 1.5rem; } figcaption { margin-bottom: .4rem; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; vertical-align: top; }
.error { border-left: 4px solid #d55e00; padding-left: .8rem; }
@media (max-width: 40rem) {
  table { font-size: .875rem; } th, td { padding: .35rem .45rem; }
  img { max-width: none; }
  dl { display: block; } dd { margin-bottom: .4rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; } .wide { overflow: visible; }
  table { font-size: 7.5pt; } th, td { padding: .2rem .3rem; } img { max-width: 100%; }
  thead button::after { content: none; } h2 { break-after: avoid; }
  table, figure, li { break-inside: avoid; }
}
"""

SCRIPT = """
const heads = [...document.querySelectorAll("thead th")];
const bodies = [...document.querySelectorAll("tbody")];
for (const head of heads) {
  head.firstChild.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending", at = head.cellIndex;
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const compare = (a, b) => {
      const [x, y] = [a, b].map(row => row.cells[at].dataset);
      if (x.group !== y.group) return x.group - y.group;
      const order = isNaN(x.value) ? x.value.localeCompare(y.value) : x.value - y.value;
      return up ? order : -order;
    };
    const order = [...head.closest("table").tBodies[0].rows].sort(compare);
    const names = order.map(row => row.dataset.row);
    for (const body of bodies) {
      const rows = Object.fromEntries([...body.rows].map(row => [row.dataset.row, row]));
      body.append(...names.map(name => rows[name]));
    }
  });
}
"""
"""Sorts all tables by a column; numbers of unlike kinds stay apart, and gaps come last."""

GROUPS = "=≥≤≈"
"""The signs of numbers that are not to be sorted among each other."""

AIMS = {
    "log": "high is good, by kind",
    "bracket": "of an estimate",
    "KL": "0 is best, by kind",
    "weight": "0 is best",
    "modes": "all is best",
    "MMD²": "0 is best",
    "SW": "low is good",
    "C2ST": "0.5 is best",
    "precision": "as of data",
    "recall": "as of data",
    "copying": "0.5 is best",
    "inpainting": "low is good",
    "denoising": "low is good",
    "composition": "0 is best",
    "AUROC": "1 is best",
    "s": "of 1,000 samples",
    "evaluations": "of one sample",
}
"""Where the numbers of a column should be, or what they are of, by its first word."""

CAPTIONS = {
    "samples": "Samples of each model, beside held-out data; not chosen, the first that came.",
    "typicality": "How typical points are for each model, by its log p or what stands for it. "
    "Own samples should lie where held-out data lie, data out of distribution to their left.",
    "training": "What was recorded in training: grey at each step, dark the running mean.",
    "chains": "Paths of chains that drew samples: they should mix, and have no trend.",
}
"""What a figure shows, by the first word of its name."""


def page(
    tables: Mapping[str, Sequence[Mapping[str, str]]],
    remarks: Mapping[str, Sequence[str]],
    protocol: Mapping[str, object],
    caveats: Sequence[str],
    figures: Mapping[str, bytes | str],
) -> str:
    """Writes a scorecard as a page that needs no other file and no network.

    Args:
        tables: By their headings, tables of the same rows: the cells, row by row, by column. The
            first column names the row.
        remarks: ``failed``, ``missing``: what failed, and what could not be measured.
        protocol: How it was measured; ``data`` and ``settings`` stand at the top too.
        caveats: What to bear in mind, each with what it is about before a colon.
        figures: Each figure as PNG, or why it could not be drawn.

    Returns:
        The page.

    Example:
        >>> tables = {"Costs": [{"model": "a"}]}
        >>> text = page(tables, {}, {"seed": 0}, ["none"], {"broken": "no ink"})
        >>> "<td>" in text, "no ink" in text
        (False, True)
    """
    lead = "; ".join(
        f"{name}: {escape(str(protocol[name]))}"
        for name in ("data", "settings")
        if name in protocol
    )
    missing = [f"<li>{escape(note)}</li>" for note in remarks.get("missing", ())]
    body = [
        "<h1>Scorecard</h1>",
        f"<p>{lead}</p>" if lead else "",
        *(f'<p class="error">{escape(error)}</p>' for error in remarks.get("failed", ())),
        *(_table(heading, table) for heading, table in tables.items() if table),
        "" if any(tables.values()) else "<p>No model was measured.</p>",
        f'<h2>Not measured, and why</h2><ul class="note">{"".join(missing)}</ul>'
        if missing
        else "",
        "<h2>How to read it</h2>",
        "<ul>" + "".join(f"<li>{_bold(caveat)}</li>" for caveat in caveats) + "</ul>",
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


def _table(heading: str, table: Sequence[Mapping[str, str]]) -> str:
    columns = list(table[0])
    marks = [_mark([row[column] for row in table]) for column in columns]
    head = "".join(map(_head, columns, marks))
    rows = "\n".join(_row(i, list(row.values()), marks) for i, row in enumerate(table))
    return (
        f'<h2>{escape(heading)}</h2>\n<div class="wide" tabindex="0" role="region" '
        f'aria-label="{escape(heading)}"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table></div>"
    )


def _mark(cells: Sequence[str]) -> str:
    """Marks columns of bare numbers, which are read from the right."""
    is_count = all(re.fullmatch(r"[\d,.e+-]+|–", cell) for cell in cells) and {*cells} != {"–"}
    return ' class="count"' if is_count else ""


def _head(column: str, mark: str) -> str:
    aim = AIMS.get(column.split()[0], "")
    small = f"<small>{aim}</small>" if aim else ""
    return f'<th scope="col"{mark}><button>{escape(column)}</button>{small}</th>'


def _row(number: int, cells: list[str], marks: list[str]) -> str:
    first, *rest = cells
    body = "".join(
        f"<td{_key(cell)}{mark}>{escape(cell)}</td>"
        for cell, mark in zip(rest, marks[1:], strict=True)
    )
    return f'<tr data-row="{number}"><th scope="row"{_key(first)}>{escape(first)}</th>{body}</tr>'


def _key(cell: str) -> str:
    """Says what a cell is sorted by: the kind of its number first, then the number."""
    group = len(GROUPS) + 1 if cell == "–" else 1 + GROUPS.find(cell[:1])
    number = re.match(r"[=≥≤≈ ]*(-?[\d,.]+(?:e[+-]?\d+)?|-?inf)(?: ±|$)", cell)
    value = number[1].replace(",", "").replace("inf", "Infinity") if number else cell
    return f' data-group="{group}" data-value="{escape(value)}"'


def _bold(caveat: str) -> str:
    term, colon, text = caveat.partition(": ")
    return f"<b>{escape(term)}</b>: {escape(text)}" if colon else escape(caveat)


def _list(protocol: Mapping[str, object]) -> str:
    told = {k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in protocol.items()}
    items = (f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in told.items())
    return "<dl>" + "\n".join(items) + "</dl>"


def _figure(name: str, content: bytes | str) -> str:
    if isinstance(content, str):
        return (
            f'<p class="error">The figure {escape(name)} could not be drawn: {escape(content)}</p>'
        )
    data = base64.b64encode(content).decode("ascii")
    # Of 120 dots per inch, 84 leave its text about as large as that of the page.
    width, height = (7 * side // 10 for side in struct.unpack(">II", content[16:24]))
    caption = CAPTIONS.get(name.split()[0], "")
    said = f"<b>{escape(name)}</b>{': ' if caption else ''}{escape(caption)}"
    return (
        f'<figure><figcaption>{said}</figcaption><div class="wide" tabindex="0" role="region" '
        f'aria-label="{escape(name)}"><img alt="{escape(caption or name)}" width="{width}" '
        f'height="{height}" src="data:image/png;base64,{data}"></div></figure>'
    )
