"""What a run's draws are worth, and whether they are right.

Means are taken over all draws. R-hat and effective sample sizes are those of up to 256 chains,
evenly spaced, the sizes then in proportion to all chains: to rank the draws of thousands takes
longer than to make them, and chains are alike.
"""

import math
from typing import NamedTuple

import torch

from benchmarks.references import Moments
from pyro_ebm.diagnostics import bulk_ess, split_r_hat

MAX_R_HAT = 1.02
MAX_R_HAT_ALONE = 1.05
"""Of one chain: the halves of a few hundred draws differ by more than 2 % by chance."""
MAX_Z = 5.0
JUDGED = 256
MANY_CHAINS = 64
"""As many means of chains say by themselves how far off the mean of all may be."""


class Quality(NamedTuple):
    ess: float
    """The least bulk effective sample size, of all coordinates and their squares."""
    r_hat: float
    """The largest R-hat of all coordinates."""
    z: float
    """The largest error of a mean or mean square, in its standard error and the reference's."""

    def void(self, num_chains):
        """Why the row does not count, or nothing."""
        if not self.r_hat < (MAX_R_HAT if num_chains > 1 else MAX_R_HAT_ALONE):
            return f"R-hat {self.r_hat:.3f}"
        if not self.z < MAX_Z:
            return f"means off by {self.z:.1f} standard errors"
        return ""


def quality(draws: dict[str, torch.Tensor], reference: dict[str, Moments]) -> Quality:
    """Measures draws ``(chain, draw, *shape)`` by site."""
    ess, r_hat, z = [], [], []
    for name, values in draws.items():
        columns = values.reshape(*values.shape[:2], -1)
        some = slice(None, None, max(1, len(columns) // JUDGED))
        share = len(columns[some]) / len(columns)
        for i, column in enumerate(columns.unbind(-1)):
            x = column.double()
            if not x.isfinite().all():
                return Quality(math.nan, math.nan, math.nan)
            r_hat.append(split_r_hat(x[some]))
            moments = reference[name]
            for power, mean, mcse in (
                (x, moments.mean[i], moments.mean_mcse[i]),
                (x.square(), moments.square[i], moments.square_mcse[i]),
            ):
                ess.append(bulk_ess(power[some]) / share)
                error = (_square_error(power, ess[-1]) + mcse**2).sqrt()
                z.append((power.mean() - mean).abs() / error)
    worst = torch.stack(ess).min(), torch.stack(r_hat).max(), torch.stack(z).max()
    return Quality(*(value.item() for value in worst))


def _square_error(x: torch.Tensor, ess: torch.Tensor) -> torch.Tensor:
    """The variance of the mean of draws ``(chain, draw)``.

    Bulk effective sample size is that of ranks: of a heavy tail it takes too little notice.
    """
    by_ess = x.var() / ess
    return by_ess.maximum(x.mean(1).var() / len(x)) if len(x) >= MANY_CHAINS else by_ess
