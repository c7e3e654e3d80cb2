"""Figures of samples, scores, training, chains and landscapes.

Each function returns a ``matplotlib.figure.Figure`` that belongs to nobody: no window opens, no
global state of pyplot is touched, and ``figure.savefig(path)`` works without a display. Lines
differ by dash as well as by shade, so that they can be told apart in print. Matplotlib is imported
when a figure is drawn.
"""

from __future__ import annotations

__all__ = [
    "histograms",
    "landscape",
    "rungs",
    "sample_grids",
    "traces",
    "training",
    "training_curves",
]

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = [
    ("#000000", "-"),
    ("#d55e00", "--"),
    ("#0072b2", "-."),
    ("#009e73", ":"),
    ("#7f7f7f", (0, (5, 1, 1, 1, 1, 1))),
]
"""Colours that colour-blind readers and grey printers keep apart, each with a dash of its own."""


def sample_grids(samples: Mapping[str, Tensor], rows: int = 8, columns: int = 6) -> Figure:
    """Draws samples side by side: images in a grid, points of the plane as dots.

    Args:
        samples: Points by title, of one event shape: ``(n, channels, height, width)`` with one or
            three channels, or ``(n, 2)``. The first are shown.
        rows: The number of rows of each grid.
        columns: The number of columns of each grid.

    Raises:
        ValueError: If the points are neither images nor of the plane.

    Example:
        >>> sample_grids({"noise": torch.rand(60, 1, 8, 8)}).get_axes()[0].get_title()
        'noise'
    """
    shape = next(iter(samples.values())).shape[1:]
    planar = shape == (2,)
    if not planar and (len(shape) != 3 or shape[0] not in (1, 3)):
        raise ValueError(
            "samples must be images (n, 1 or 3, height, width) or points (n, 2), got event shape "
            f"{tuple(shape)}"
        )
    height = 2.6 if planar else 2.4 * (rows * shape[1]) / (columns * shape[2])
    figure, axes = _panels(len(samples), width=2.4, height=height)
    pooled = torch.cat([x[: rows * columns].flatten() for x in samples.values()]).float()
    low, high = torch.quantile(pooled, pooled.new_tensor([0.005, 0.995])).tolist()
    for ax, (title, x) in zip(axes, samples.items(), strict=False):
        ax.set_title(title, fontsize=10)
        x = x.detach().cpu()
        if planar:
            ax.scatter(*x[:2000].T.tolist(), s=1, c="black", alpha=0.3, linewidths=0)
            ax.set(xlim=(low - 1, high + 1), ylim=(low - 1, high + 1), aspect="equal")
            ax.set(xlabel="x[0]", ylabel="x[1]")
        else:
            picture = ((_tile(x, rows, columns) - low) / (high - low)).clamp(0, 1)
            picture = picture.squeeze(-1).numpy()
            ax.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ax.axis("off")
    return figure


def _tile(x: Tensor, rows: int, columns: int) -> Tensor:
    """Lays images ``(n, channels, h, w)`` out on one sheet, a pixel apart."""
    gap = functional.pad(x[: rows * columns], (0, 1, 0, 1), value=math.inf)
    _, channels, h, w = gap.shape
    sheet = x.new_full((rows * columns, channels, h, w), math.inf)
    sheet[: len(gap)] = gap
    sheet = sheet.reshape(rows, columns, channels, h, w).permute(0, 3, 1, 4, 2)
    return sheet.reshape(rows * h, columns * w, channels)[:-1, :-1]


def histograms(
    panels: Mapping[str, Mapping[str, Tensor]], label: str = "typicality (nats)", bins: int = 50
) -> Figure:
    """Draws histograms of scores, one panel for each model, one line for each set of points.

    The axis shows the first set, and of the others what lies within three times its width on
    either side; the legend says how much lies beyond.

    Args:
        panels: For each panel, scores ``(n,)`` by the name of the set.
        label: What the scores are, with their unit.
        bins: The number of bins.

    Example:
        >>> figure = histograms({"ebm": {"data": torch.randn(99), "noise": torch.randn(99) - 9}})
        >>> figure.get_axes()[0].get_ylabel()
        'density (1/nat)'
    """
    figure, axes = _panels(len(panels), width=4.0, height=2.8, columns=min(3, len(panels)))
    for ax, (title, sets) in zip(axes, panels.items(), strict=False):
        low, high = _window([scores.detach().double().cpu() for scores in sets.values()])
        edges = torch.linspace(low, high, bins + 1).tolist()
        for (name, scores), (colour, dash) in zip(sets.items(), cycle(STYLES), strict=False):
            beyond = ((scores < low) | (scores > high)).double().mean().item()
            ax.hist(
                scores.tolist(),
                edges,
                weights=[1 / (len(scores) * (edges[1] - edges[0]))] * len(scores),
                histtype="step",
                color=colour,
                linestyle=dash,
                label=name if beyond < 0.05 else f"{name} ({beyond:.0%} beyond)",
            )
        ax.set(title=title, xlabel=label, ylabel="density (1/nat)", yticks=[])
        _legend(ax)
    return figure


def _window(sets: list[Tensor]) -> tuple[float, float]:
    """Returns the ends of an axis over the bulk of all sets, but not far from the first."""
    ends = [torch.quantile(s, s.new_tensor([0.01, 0.99])).tolist() for s in sets]
    reach = 3 * (ends[0][1] - ends[0][0])
    low = max(min(end[0] for end in ends), ends[0][0] - reach)
    high = min(max(end[1] for end in ends), ends[0][1] + reach)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


RECORDS = [
    ("loss (nats per example)", ["loss"]),
    ("surrogate loss (no progress)", ["surrogate loss"]),
    ("contrastive loss (no progress)", ["contrastive loss"]),
    ("energy gap (nats, no progress)", ["energy gap"]),
    ("energy (nats)", ["data energy", "chain energy"]),
    ("acceptance", ["acceptance"]),
    ("gradient norm", ["gradient norm"]),
    ("chains (spreads of the data)", ["chain distance", "chain spread"]),
]
"""The panels of training: what is on the axis, and the records that share it."""

LABEL_WIDTH = 22
"""How many letters fit along the axis of such a panel."""


def training(history: Mapping[str, Sequence[float]]) -> Figure:
    r"""Draws one training run: its loss by the right name, energies, acceptance and gradients.

    Args:
        history: The records by name, one number for each step: those of a
            :class:`~pyro_ebm.objectives.Monitor`, of an error that it raised or of a model of the
            zoo.

    Raises:
        ValueError: If there is no record.

    Example:
        >>> figure = training({"contrastive loss": [0.3, 0.1], "acceptance": [0.9, 0.6]})
        >>> [ax.get_ylabel() for ax in figure.get_axes()]
        ['contrastive loss\n(no progress)', 'acceptance']
    """
    panels = _shared(history)
    if not panels:
        raise ValueError("history is empty; make a step first")
    figure, axes = _panels(len(panels), width=3.2, height=2.2, columns=min(3, len(panels)))
    for ax, (label, records) in zip(axes, panels.items(), strict=True):
        _draw_records(ax, label, records)
    return figure


def training_curves(histories: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Draws what was recorded in training: panel after panel, those of a model side by side.

    The grey line is the record, the dark one its running mean over a hundredth of the steps.

    Args:
        histories: For each model, its records by name, one number for each step.

    Example:
        >>> figure = training_curves({"vae": {"loss": [3.0, 2.0, 1.0]}})
        >>> figure.get_axes()[0].get_title()
        'vae'
    """
    panels = [
        (model, label, records)
        for model, history in histories.items()
        for label, records in _shared(history).items()
    ]
    figure, axes = _panels(len(panels), width=3.2, height=2.2)
    for ax, (model, label, records) in zip(axes, panels, strict=True):
        _draw_records(ax, label, records)
        ax.set_title(model)
    return figure


def _shared(history: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Sequence[float]]]:
    """Groups the records that share an axis, by what stands on it; others stand alone."""
    panels: dict[str, dict[str, Sequence[float]]] = {}
    for name, record in history.items():
        label = next((label for label, names in RECORDS if name in names), name)
        panels.setdefault(label, {})[name] = record
    return panels


def _draw_records(ax: Axes, label: str, records: Mapping[str, Sequence[float]]) -> None:
    means = []
    for (name, record), (colour, dash) in zip(records.items(), cycle(STYLES), strict=False):
        width = max(1, len(record) // 100)
        mean = torch.tensor(record, dtype=torch.float64).unfold(0, width, 1).mean(-1).tolist()
        ax.plot(record, color="#bbbbbb", linewidth=0.5)
        steps = range(width - 1, len(record))
        ax.plot(steps, mean, color=colour, linestyle=dash, linewidth=1.2, label=name)
        means += [value for value in mean if math.isfinite(value)]
    ax.set(xlabel="training step", ylabel=_broken(label))
    if means:
        _clip(ax, means)
    if len(records) > 1:
        low, high = ax.get_ylim()
        ax.set_ylim(low, high + 0.4 * (high - low))  # room for the legend
    _legend(ax)


def _broken(label: str) -> str:
    """Breaks a label that is longer than its axis, before what is in brackets."""
    return label if len(label) <= LABEL_WIDTH else label.replace(" (", "\n(")


def _clip(ax: Axes, mean: list[float]) -> None:
    """Shows the bulk of a curve, not its first spikes."""
    ends = torch.tensor([0.01, 0.98], dtype=torch.float64)
    low, high = torch.quantile(torch.tensor(mean, dtype=torch.float64), ends).tolist()
    margin = 0.3 * (high - low) or 1.0
    ax.set_ylim(low - margin, high + margin)


def traces(draws: Mapping[str, Tensor], num_chains: int = 4) -> Figure:
    """Draws the path of a few chains, a panel for each quantity.

    Args:
        draws: For each quantity, named with its unit, its draws with shape ``(chain, draw)``.
        num_chains: How many chains to show.

    Raises:
        ValueError: If a quantity is not of shape ``(chain, draw)``.

    Example:
        >>> figure = traces({"lp (nats)": torch.randn(4, 100)})
        >>> figure.get_axes()[0].get_ylabel()
        'lp (nats)'
    """
    for name, values in draws.items():
        if values.dim() != 2:
            raise ValueError(
                f"draws['{name}'] must have shape (chain, draw), got {tuple(values.shape)}; "
                "pass one coordinate at a time"
            )
    figure, axes = _panels(len(draws), width=7.0, height=1.5, columns=1)
    for ax, (name, values) in zip(axes, draws.items(), strict=False):
        for chain, (colour, dash) in zip(values[:num_chains], cycle(STYLES), strict=False):
            ax.plot(chain.tolist(), color=colour, linestyle=dash, linewidth=0.8)
        ax.set_ylabel(name)
    axes[len(draws) - 1].set_xlabel(f"draw (the first {min(num_chains, len(values))} chains)")
    return figure


OF_RUNGS = {
    "log_z": "log Z at beta (nats)",
    "ess": "effective part of walkers",
    "accept_prob": "acceptance",
}
"""What is known of a rung, and how its axis is labelled."""


def rungs(path: Mapping[str, Tensor]) -> Figure:
    """Draws how an estimator of log Z fared along its path from the base to the target.

    Where walkers are lost, the effective part falls: there more rungs are needed.

    Args:
        path: The inverse temperatures ``beta (K,)``, and at each the ``log_z`` in nats, the
            effective part ``ess`` and the acceptance ``accept_prob``.

    Example:
        >>> beta = torch.linspace(0, 1, 5)
        >>> figure = rungs({"beta": beta, "log_z": beta, "ess": 1 - beta, "accept_prob": beta})
        >>> [ax.get_ylabel() for ax in figure.get_axes()][1:]
        ['effective part of walkers', 'acceptance']
    """
    figure, axes = _panels(len(OF_RUNGS), width=3.2, height=2.2)
    for ax, (name, label) in zip(axes, OF_RUNGS.items(), strict=True):
        values = path[name].tolist()
        ax.plot(path["beta"].tolist(), values, color="black", marker=".", linewidth=0.8)
        ax.set(xlabel="beta", ylabel=label)
        if name != "log_z":
            ax.set_ylim(0, 1.05)
    return figure


def landscape(
    energies: Mapping[str, Callable[[Tensor], Tensor]],
    samples: Tensor | None = None,
    extent: tuple[float, float, float, float] = (-4.0, 4.0, -4.0, 4.0),
    depth: float = 10.0,
) -> Figure:
    """Draws energies over the plane, measured from their least value, with samples over them.

    Args:
        energies: Energies by title, from points ``(n, 2)`` to nats ``(n,)``.
        samples: Points to draw over each, with shape ``(n, 2)``.
        extent: The ends of both axes ``(left, right, bottom, top)``, in units of x.
        depth: Up to how many nats above the least value contours are drawn.

    Example:
        >>> figure = landscape({"bowl": lambda x: x.square().sum(-1)})
        >>> [ax.get_title() for ax in figure.get_axes()][0]
        'bowl'
    """
    left, right, bottom, top = extent
    x, y = torch.linspace(left, right, 120), torch.linspace(bottom, top, 120)
    points = torch.cartesian_prod(x, y)
    figure, axes = _panels(len(energies), width=3.2, height=3.0)
    levels = torch.linspace(0, depth, 11).tolist()
    for ax, (title, energy) in zip(axes, energies.items(), strict=False):
        with torch.no_grad():
            values = energy(points).reshape(len(x), len(y)).T
        values = (values - values.min()).clamp(max=1.01 * depth)
        args = x.tolist(), y.tolist(), values.tolist(), levels
        filled = ax.contourf(*args, cmap="Greys_r", alpha=0.8)
        ax.contour(*args, colors="black", linewidths=0.3)
        if samples is not None:
            ax.scatter(*samples[:500].T.tolist(), s=2, c="#d55e00", linewidths=0)
        ax.set(title=title, xlabel="x[0]", ylabel="x[1]", xlim=(left, right), ylim=(bottom, top))
    figure.colorbar(filled, ax=axes, label="energy above its least (nats)", shrink=0.8)
    return figure


def _panels(
    count: int, *, width: float, height: float, columns: int | None = None
) -> tuple[Figure, list[Axes]]:
    """Returns a figure of ``count`` panels, each of a size in inches, at most four in a row."""
    from matplotlib.figure import Figure

    columns = min(count, 4) if columns is None else columns
    rows = math.ceil(count / columns)
    size = (width * columns, height * rows + 0.4)
    figure = Figure(figsize=size, layout="constrained", dpi=120)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[count:]:
        ax.axis("off")
    return figure, axes[:count]


def _legend(ax: Axes) -> None:
    if len(ax.get_legend_handles_labels()[0]) > 1:
        ax.legend(frameon=False, fontsize=8, loc="upper left")
