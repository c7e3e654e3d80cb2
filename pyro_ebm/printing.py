"""The table of a run: each coordinate by its moments, its quantiles and how well it mixed."""

from __future__ import annotations

__all__ = ["advice", "summary_table"]

import numpy as np
import torch
from torch import Tensor

BAD_R_HAT = 1.1
"""Above it chains have hardly met; below 1.01 all is well."""

MANY_STEPS = 100
"""More leapfrog steps than a target takes whose coordinates are of one scale everywhere."""


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


def advice(
    num_divergences: int, r_hat: float, num_steps: float | None, *, is_model: bool
) -> list[str]:
    """Says what is wrong with a run, if something is, and what to do about it.

    Args:
        num_divergences: The number of its divergent steps.
        r_hat: Its largest R-hat.
        num_steps: The mean number of leapfrog steps of a trajectory, if it has any.
        is_model: Whether the target is a Pyro model.

    Example:
        >>> for line in advice(0, 1.27, 535.0, is_model=True):
        ...     print(line)
        R-hat is up to 1.27: the chains have not mixed, and this is no sample of the target yet.
        Trajectories take 535 leapfrog steps on average: the target is as narrow in one place...
        If the scale of a latent is a latent itself, the target is a funnel, which no step...
        >>> advice(0, 1.01, 535.0, is_model=True)
        []
    """
    lines = []
    if num_divergences:
        lines.append(
            "Where steps diverge the target is too narrow for them, and draws are missing there: "
            "raise target_accept_prob, or take other coordinates."
        )
    if r_hat > BAD_R_HAT:
        lines.append(
            f"R-hat is up to {r_hat:.2f}: the chains have not mixed, and this is no sample of the "
            "target yet."
        )
    if lines and num_steps is not None and num_steps > MANY_STEPS:
        lines.append(
            f"Trajectories take {num_steps:.0f} leapfrog steps on average: the target is as "
            "narrow in one place as it is wide in another."
        )
    if lines and is_model:
        lines.append(
            "If the scale of a latent is a latent itself, the target is a funnel, which no step "
            "size fits: write it non-centred, as pyro.infer.reparam.LocScaleReparam(0.0) does."
        )
    return lines


def _label(name: str, shape: torch.Size, flat_index: int) -> str:
    if not shape:
        return name
    index = torch.unravel_index(torch.tensor(flat_index), shape)
    return f"{name}[{','.join(str(i.item()) for i in index)}]"
