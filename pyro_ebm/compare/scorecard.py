"""The scorecard: what was measured of each model, as a table, as files, as a page."""

from __future__ import annotations

__all__ = ["Row", "Scorecard"]

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..metrics.base import Estimate
from ..zoo.base import Kind
from .bracket import DOUBT
from .report import page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIGNS = {"exact": "=", "bound": "≥", "estimate": "≈"}
"""How a number of each kind stands to the log-likelihood."""

SIGNS_OF_KL = {"exact": "=", "bound": "≤", "estimate": "≈"}
"""How the divergence stands to that of the model, by the kind of its log-likelihood."""


@dataclass
class Row:
    """What was measured of one model; ``None`` where it was not, and ``errors`` say why."""

    model: str
    kind: Kind | None = None
    """What the log-likelihood is; see :mod:`pyro_ebm.zoo.base`."""
    log_prob: Estimate | None = None
    """Its mean over held-out data, in nats per example, and the error from their number."""
    bracket: tuple[float, float] | None = None
    """Between which that mean lies by bounds on an estimated log Z, in nats."""
    kl: Estimate | None = None
    """The divergence of the model from the law of the data, in nats, where that law is known."""
    mode_error: Estimate | None = None
    """The total variation between the weights of the modes of that law and those of samples."""
    modes_found: float | None = None
    """How many of its modes have at least a tenth of their weight."""
    mmd: Estimate | None = None
    """The squared maximum mean discrepancy of samples from held-out data."""
    energy_distance: Estimate | None = None
    """Their energy distance, in units of x."""
    wasserstein: Estimate | None = None
    """Their sliced Wasserstein distance, in units of x."""
    c2st: Estimate | None = None
    """The accuracy of a classifier that tells samples from held-out data: 0.5 if it cannot."""
    precision: Estimate | None = None
    """How many samples lie among held-out data."""
    recall: Estimate | None = None
    """How many of the held-out data lie among samples."""
    copying: Estimate | None = None
    """How often a sample is nearer to the training data than held-out data are."""
    inpainting: Estimate | None = None
    """The squared error of half of each held-out point, restored from the other half."""
    denoising: Estimate | None = None
    """The squared error of held-out points restored from noisy readings."""
    composition: Estimate | None = None
    """The energy distance of the product of two such models, of a part of the law each, from the
    product that is known, in units of x."""
    auroc: dict[str, Estimate] = field(default_factory=dict)
    """By set, how well typicality tells held-out data from out-of-distribution data."""
    train_seconds: float | None = None
    train_passes: float | None = None
    """How many passes of one point through the networks training took, as they were counted."""
    sample_seconds: float | None = None
    """The seconds that 1,000 samples take."""
    train_memory: float | None = None
    """The most memory that training held beyond what was held before it, in MB."""
    sample_memory: float | None = None
    """The same of drawing all samples."""
    num_evaluations: int | None = None
    """How often a network is evaluated for one sample, where the model says so."""
    num_parameters: int | None = None
    errors: list[str] = field(default_factory=list)
    """What failed, and why."""
    notes: list[str] = field(default_factory=list)
    """What could not be measured, and why."""
    num_seeds: int = 1
    """From how many seeds the model was trained. With more than one, all numbers are means."""
    spread: dict[str, float] = field(default_factory=dict)
    """Then, by field, the standard deviation over these seeds."""

    def cells(self) -> dict[str, str]:
        """Returns what the table shows, by column."""
        return {
            "model": self.model,
            "log p (nats)": self._signed("log_prob", SIGNS),
            "bracket (nats)": self._between(),
            "kind": self.kind or "–",
            "KL (nats)": self._signed("kl", SIGNS_OF_KL),
            **{title: self._shown(getattr(self, name), name) for title, name in _TITLES.items()},
            **{f"AUROC {k}": self._shown(area, f"auroc {k}") for k, area in self.auroc.items()},
            **{title: self._counted(name) for title, name in _COUNTED.items()},
        }

    def _doubted(self, estimate: Estimate, name: str) -> Estimate:
        """Puts the spread over seeds in the place of the error, where there are several."""
        return Estimate(estimate.value, self.spread[name]) if self.num_seeds > 1 else estimate

    def _shown(self, estimate: Estimate | None, name: str) -> str:
        return "–" if estimate is None else str(self._doubted(estimate, name))

    def _counted(self, name: str) -> str:
        number = getattr(self, name)
        if number is None:
            return "–"
        if name in self.spread:
            return str(Estimate(number, self.spread[name]))
        if isinstance(number, int):
            return f"{number:,}"
        return f"{float(f'{number:.3g}'):,.0f}" if 1000 <= number < 1e12 else f"{number:.3g}"

    def _signed(self, name: str, signs: dict[Kind, str]) -> str:
        estimate = getattr(self, name)
        if estimate is None:
            return "–"
        estimate = self._doubted(estimate, name)
        is_sharp = estimate.std_error < 5e-5 and math.isfinite(estimate.value)
        number = f"{estimate.value:.4f}" if is_sharp else str(estimate)
        return f"{signs[self.kind]} {number}"

    def _between(self) -> str:
        if self.bracket is None:
            return "–"
        low, high = self.bracket
        digits = 2 if high - low < 1 else 1
        doubt = any(DOUBT in note for note in self.notes)
        return f"{low:.{digits}f} to {high:.{digits}f}{', in doubt' if doubt else ''}"

    def numbers(self) -> dict[str, str | float | None]:
        """Returns everything as flat columns, each estimate beside its standard error.

        With several seeds of training the spread over them stands there too.
        """
        flat: dict[str, str | float | None] = {"model": self.model, "kind": self.kind}
        estimates = {name: getattr(self, name) for name in ESTIMATES}
        estimates |= {f"auroc {name}": area for name, area in self.auroc.items()}
        for name, estimate in estimates.items():
            flat[name], flat[f"{name} std_error"] = estimate or (None, None)
            if self.num_seeds > 1:
                flat[f"{name} spread"] = self.spread.get(name)
        low, high = self.bracket or (None, None)
        flat["log_prob lower"], flat["log_prob upper"] = low, high
        for name in COUNTS:
            flat[name] = getattr(self, name)
        flat["num_seeds"] = self.num_seeds
        flat["errors"], flat["notes"] = "; ".join(self.errors), "; ".join(self.notes)
        return flat


ESTIMATES = (
    "log_prob", "kl", "mode_error", "mmd", "energy_distance", "wasserstein", "c2st", "precision",
    "recall", "copying", "inpainting", "denoising", "composition",
)  # fmt: skip
"""The fields of a row that come with a standard error."""

COUNTS = (
    "modes_found", "train_seconds", "train_passes", "train_memory", "sample_seconds",
    "sample_memory", "num_evaluations", "num_parameters",
)  # fmt: skip
"""Its fields that are numbers alone."""

_TITLES = {
    "weight error": "mode_error",
    "MMD²": "mmd",
    "SW": "wasserstein",
    "C2ST": "c2st",
    "precision": "precision",
    "recall": "recall",
    "copying": "copying",
    "inpainting": "inpainting",
    "denoising": "denoising",
    "composition": "composition",
}
"""Columns of the table, and the fields that they show."""

_COUNTED = {
    "modes": "modes_found",
    "train (s)": "train_seconds",
    "train passes": "train_passes",
    "train (MB)": "train_memory",
    "s / 1,000": "sample_seconds",
    "sample (MB)": "sample_memory",
    "evaluations": "num_evaluations",
    "parameters": "num_parameters",
}
"""The same of numbers without an error."""


@dataclass
class Scorecard:
    """What :func:`pyro_ebm.compare.compare` measured.

    ``str(card)`` is the table, in parts that fit a screen. There is no overall rank;
    :meth:`rankings` ranks likelihoods within a kind.

    Example:
        >>> card = Scorecard([Row("a", "exact", Estimate(-1.25, 0.03)), Row("b", "none")])
        >>> print(card)
        model  log p (nats)    kind
        a      = -1.25 ± 0.03  exact
        b      –               none
    """

    rows: list[Row]
    protocol: dict[str, object] = field(default_factory=dict)
    """How it was measured: sizes, seeds, versions."""
    caveats: list[str] = field(default_factory=list)
    """What to bear in mind."""
    figures: dict[str, Callable[[], Figure]] = field(default_factory=dict)
    """Figures by name, drawn when the card is saved; add your own."""
    left_out: tuple[str, ...] = ()
    """Columns that the table leaves to the files, as it does those that nobody has a number in."""

    def __getitem__(self, model: str) -> Row:
        for row in self.rows:
            if row.model == model:
                return row
        raise KeyError(
            f"no row {model!r}; there are {', '.join(repr(r.model) for r in self.rows)}"
        )

    def rankings(self) -> dict[Kind, list[str]]:
        """Ranks the models by log-likelihood, best first, each kind on its own.

        A bound may lie far below what it bounds, so that it neither beats nor loses to an exact
        value; and one bound may be looser than another.
        """
        kinds = dict.fromkeys(row.kind for row in self.rows if row.log_prob is not None)
        return {
            kind: [
                row.model
                for row in sorted(self.rows, key=lambda row: -_value(row.log_prob))
                if row.kind == kind and row.log_prob is not None
            ]
            for kind in kinds
        }

    def table(self) -> list[dict[str, str]]:
        """Returns the cells of the table, row by row, each row with every column shown."""
        rows = [row.cells() for row in self.rows]
        columns = dict.fromkeys(column for row in rows for column in row)
        shown = sorted(
            (
                column
                for column in columns
                if column in _ALWAYS
                or (column not in self.left_out and {r.get(column, "–") for r in rows} != {"–"})
            ),
            key=lambda column: _ORDER.index(column.split()[0]),
        )
        return [{column: row.get(column, "–") for column in shown} for row in rows]

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        for i, table in enumerate(self._sections().values()):
            yield from [""] if i else []
            lines = [list(table[0]), *(list(row.values()) for row in table)]
            widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
            for line in lines:
                cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
                yield "  ".join(cells).rstrip()
        for row in self.rows:
            yield from (f"{row.model}: {said}" for said in (*row.errors, *row.notes))

    def save(self, directory: str | Path) -> Path:
        """Saves ``scorecard.csv``, ``scorecard.json``, ``report.html`` and the figures as PNG.

        The table is written first; a figure that fails to draw is named in the report.

        Args:
            directory: Where to; it is made if need be, and files of these names are replaced.

        Returns:
            The path of the report.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "scorecard.csv").write_text(self.to_csv(), encoding="utf-8")
        (directory / "scorecard.json").write_text(self.to_json(), encoding="utf-8")
        drawn: dict[str, bytes | str] = {}
        for name, draw in self.figures.items():
            try:
                drawn[name] = _png(draw())
                file = re.sub(r"[^\w.-]+", "_", name)
                (directory / f"{file}.png").write_bytes(drawn[name])
            except Exception as error:  # noqa: BLE001 - the table must stand
                drawn[name] = f"{type(error).__name__}: {error}"
        report = directory / "report.html"
        remarks = {
            "failed": [f"{row.model}: {error}" for row in self.rows for error in row.errors],
            "missing": self._gaps(),
        }
        text = page(self._sections(), remarks, self.protocol, self.caveats, drawn)
        report.write_text(text, encoding="utf-8")
        return report

    def _sections(self) -> dict[str, list[dict[str, str]]]:
        """Parts the table by what its columns are about, so that each fits a page."""
        table = self.table()
        parts = {}
        for heading, words in SECTIONS.items():
            columns = [c for c in (table[0] if table else ()) if c.split()[0] in words]
            if columns:
                parts[heading] = [{c: row[c] for c in ("model", *columns)} for row in table]
        return parts

    def _gaps(self) -> list[str]:
        """Says once what could not be measured of which models, and why."""
        models: dict[str, list[str]] = {}
        for row in self.rows:
            for note in row.notes:
                models.setdefault(note, []).append(row.model)
        return [f"{', '.join(names)}: {note}" for note, names in models.items()]

    def to_csv(self) -> str:
        """Returns every number, a row for each model."""
        rows = [row.numbers() for row in self.rows]
        columns = list(dict.fromkeys(column for row in rows for column in row))
        out = io.StringIO()
        writer = csv.DictWriter(out, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue()

    def to_json(self) -> str:
        """Returns rows, protocol and caveats; an estimate is a pair: value, standard error."""
        rows = [_finite(asdict(row)) for row in self.rows]
        content = {"rows": rows, "protocol": self.protocol, "caveats": self.caveats}
        return json.dumps(content, indent=2, default=str, ensure_ascii=False) + "\n"


_ALWAYS = ("model", "log p (nats)", "kind")

SECTIONS = {
    "Likelihood": ("log", "bracket", "kind", "KL"),
    "Samples": (
        "weight", "modes", "MMD²", "SW", "C2ST", "precision", "recall", "copying",
    ),
    "Tasks": ("inpainting", "denoising", "composition", "AUROC"),
    "Costs": ("train", "s", "sample", "evaluations", "parameters"),
}  # fmt: skip
"""The first words of the columns, from left to right, by what they are about."""

_ORDER = ("model", *(word for words in SECTIONS.values() for word in words))


def _value(estimate: Estimate | None) -> float:
    return -math.inf if estimate is None or math.isnan(estimate.value) else estimate.value


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _finite(value: object) -> object:
    """Writes what JSON has no number for as a word."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
