"""The table of a run: each coordinate by its moments, its quantiles and how well it mixed."""

from __future__ import annotations

__all__ = ["summary_table"]

import numpy as np
import torch
from torch import Tensor


def summary_table(
    samples: dict[str, Tensor], checks: dict[str, dict[str, Tensor]], prob: float
) -> str:
    """Lays out mean, spread, quantiles, effective sample size and R-hat of every coordinate.

    Args:
        samples: Draws by site, with shape ``(draw, *shape)``.
        checks: ``n_eff`` and ``r_hat`` by site, with shape ``(*shape)``.
        prob: The probability within the equal-tailed interval.

    Example:
        >>> checks = {"x": {"n_eff": torch.tensor(3.0), "r_hat": torch.tensor(1.0)}}
        >>> print(summary_table({"x": torch.tensor([1.0, 2.0, 3.0])}, checks, 0.9))
           mean   std  5.0%  50.0%  95.0%  n_eff  r_hat
        x  2.00  1.00  1.10   2.00   2.90   3.00   1.00
    """
    low, high = (1 - prob) / 2, (1 + prob) / 2
    rows = [["", "mean", "std", f"{low:.1%}", "50.0%", f"{high:.1%}", "n_eff", "r_hat"]]
    for name, draws in samples.items():
        values = draws.double().reshape(len(draws), -1)
        quantiles = torch.from_numpy(
            np.quantile(values.cpu().numpy(), [low, 0.5, high], axis=0)
        ).to(values)
        columns = [values.mean(0), values.std(0), *quantiles]
        columns += [checks[name][key].flatten() for key in ("n_eff", "r_hat")]
        for i, row in enumerate(torch.stack(columns, dim=1).tolist()):
            rows.append([_label(name, draws.shape[1:], i), *(f"{v:.2f}" for v in row)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows
    )


def _label(name: str, shape: torch.Size, flat_index: int) -> str:
    if not shape:
        return name
    index = torch.unravel_index(torch.tensor(flat_index), shape)
    return f"{name}[{','.join(str(i.item()) for i in index)}]"
