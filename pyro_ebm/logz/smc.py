"""Sequential Monte Carlo along a path, in independent islands."""

from __future__ import annotations

__all__ = ["Islands", "sail", "smc", "temperatures"]

import itertools
import math
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from ..arguments import check_between, check_count
from ..distributions import Boltzmann
from ..kernels.base import Kernel
from ..kernels.resampling import systematic
from ..kernels.transition import seeded_generator
from ..ranks.group import first, own_stream
from .annealing import NUM_GROUPS, Direction, check_closed, descend
from .base import LogZ, Rungs, grouped, log_mean_exp, lognormal_error, weight_ess
from .path import taken
from .plan import Plan, as_plan
from .sharing import averaged, num_own, of_all_ranks, spent

RESAMPLE = 0.5
"""The effective share below which an island is resampled."""
NUM_REVERSE = 128
"""The walkers from the target, which are never resampled."""


def smc(
    target: Boltzmann | Plan,
    *,
    num_particles: int = 2048,
    num_islands: int = 32,
    conditional_ess: float | None = None,
    kernel: Kernel | None = None,
    base: dist.TorchDistribution | None = None,
    reverse: bool = True,
) -> LogZ:
    r"""Estimates log Z by sequential Monte Carlo on temperatures that adapt to the target.

    .. math::
        \hat Z = \prod_k \sum_i W_{k-1}^i e^{-(\beta_k - \beta_{k-1}) V(z_{k-1}^i)}

    with weights :math:`W` that become equal where an island is resampled (systematically, once
    half of it is no longer effective), and a move of the kernel at each :math:`\beta_k`. The
    temperatures are those at which the scouts of the :func:`~pyro_ebm.logz.plan` keep
    ``conditional_ess`` of themselves; they, and the step sizes, are fixed before the particles
    start. So :math:`\hat Z` of each island is unbiased, and islands are independent: the estimate
    is the log of their mean, and its standard error that of a mean (delta method) or, if that is
    larger, that of a mean of log-normal variables with the variance of their logs. It counts all
    that resampling makes dependent. A mode that the base does not cover is not found.

    Args:
        target: A Boltzmann distribution without a batch, or a :func:`~pyro_ebm.logz.plan`.
        num_particles: The number of particles, on all islands together.
        num_islands: The number of islands, which divides it; ranks share them, and in the
            reverse direction up to 16 can.
        conditional_ess: The effective share of particles that a step in temperature may leave,
            between 0 and 1; the nearer to 1, the more steps. If not given, 0.9, and 0.98 of a
            discrete target, where a move changes less.
        kernel: What moves the particles: see :func:`~pyro_ebm.logz.plan`.
        base: The base, if it is not to be fitted.
        reverse: Whether 128 walkers go from the target to the base too, by annealed importance
            sampling; without them there is no upper bound, and no warning.

    Returns:
        The estimate. ``lower`` is the mean of :math:`\log \hat Z` over islands, less two standard
        errors: a bound in expectation. ``ess`` is the effective number of final particles, of all
        islands with their weights. ``upper`` is that of :func:`~pyro_ebm.logz.ais`.

    Warns:
        UserWarning: If the bracket is wider than a nat, or the two directions contradict each
            other.

    Raises:
        ValueError: If ``num_islands`` is below 8 or does not divide ``num_particles``,
            ``conditional_ess`` is not between 0 and 1, and whatever :func:`~pyro_ebm.logz.plan`
            raises.

    References:
        | Sequential Monte Carlo samplers (Del Moral, Doucet and Jasra, 2006),
        | https://doi.org/10.1111/j.1467-9868.2006.00553.x
        | Toward automatic model comparison: an adaptive sequential Monte Carlo approach (Zhou,
        | Johansen and Aston, 2016), https://arxiv.org/abs/1303.3123

    Example:
        >>> import pyro, pyro_ebm as ebm
        >>> pyro.set_rng_seed(0)
        >>> z = smc(ebm.Boltzmann(ebm.energies.DoubleWell(beta=1.0)))
        >>> abs(z.value - 0.6799) < 4 * z.std_error, z.rungs.beta[-1].item()
        (True, 1.0)
    """
    check_count("num_particles", num_particles)
    check_count("num_islands", num_islands)
    if num_islands < 8 or num_particles % num_islands or num_particles < 2 * num_islands:
        raise ValueError(
            "num_islands must be at least 8 and divide num_particles, with two or more each, got "
            f"{num_islands} and {num_particles}"
        )
    if conditional_ess is not None:
        check_between("conditional_ess", conditional_ess, 0, 1, inside=True)
    made = as_plan(target, kernel, base)
    betas = temperatures(made, conditional_ess)
    num_planned = made.path.num_gradients
    with own_stream():
        generator = seeded_generator(made.scouts.device)
        found = sail(made, betas, num_particles, num_islands, generator)
        up = found.direction()
        upper = math.inf
        if reverse:
            fine = first(made.rungs(int(first(torch.tensor(made.num_fine)))))
            down = descend(made, fine, num_own(NUM_REVERSE, NUM_GROUPS), generator)
            upper = down.bound
            check_closed(up, down)
    return LogZ(
        up.value,
        up.std_error,
        weight_ess(found.log_weights.flatten()).item(),
        up.bound,
        upper,
        "smc",
        spent(made, num_planned),
        rungs=found.rungs,
    )


def temperatures(made: Plan, conditional_ess: float | None = None) -> Tensor:
    """Returns the rungs that leave so many particles effective, or as many as suit the path.

    Args:
        made: The plan.
        conditional_ess: The effective share of particles that a step may leave.
    """
    share = made.path.conditional_ess if conditional_ess is None else conditional_ess
    gap = math.sqrt(-math.log(share))
    return first(made.rungs(max(1, math.ceil(first(made.lengths[-1]).item() / gap))))


class Islands(NamedTuple):
    """What the islands found."""

    log_z: Tensor
    """The estimate of each, ``(islands,)``."""
    log_weights: Tensor
    """The log weights of the final particles, of all islands on one scale, ``(islands, n)``."""
    rungs: Rungs

    def direction(self) -> Direction:
        """Sums up islands, of which each is unbiased."""
        bound, error = grouped(self.log_z)
        value = log_mean_exp(self.log_z).item()
        return Direction(value, lognormal_error(self.log_z).item(), bound - 2 * error)


def sail(
    made: Plan,
    betas: Tensor,
    num_particles: int,
    num_islands: int,
    generator: torch.Generator,
) -> Islands:
    """Takes islands of particles from the base to the target.

    Args:
        made: The plan.
        betas: The rungs, from 0 to 1.
        num_particles: The number of particles, on all islands of all ranks together.
        num_islands: The number of islands, of which this rank has its share.
        generator: Where the noise comes from.

    Returns:
        What all islands found, the same on every rank.
    """
    of_rank = num_own(num_particles, num_islands)
    num_islands = of_rank * num_islands // num_particles
    walkers = made.path.draw_base(of_rank, generator)
    log_w = torch.zeros_like(walkers.excess).reshape(num_islands, -1)
    offset = log_w[:, 0].clone()
    size = log_w.shape[1]
    begins = torch.arange(num_islands, device=log_w.device).unsqueeze(-1) * size
    log_z, ess = [torch.zeros_like(offset)], [torch.ones_like(offset)]
    accepted = [betas.new_tensor(math.nan)]
    for before, beta in itertools.pairwise(betas):
        log_w = log_w - (beta - before) * walkers.excess.reshape(num_islands, -1)
        by_now = offset + log_mean_exp(log_w, 1)
        left = weight_ess(log_w, 1) / size
        log_z.append(by_now)
        ess.append(left)
        accepted.append(betas.new_tensor(math.nan))
        if beta == 1:
            break
        uneven = (left < RESAMPLE) & by_now.isfinite()
        if bool(uneven.any()):
            drawn = systematic(log_w.softmax(1).nan_to_num(nan=1 / size), generator)
            rows = torch.arange(size, device=log_w.device).expand(num_islands, -1)
            rows = torch.where(uneven.unsqueeze(-1), drawn, rows)
            walkers = taken(walkers, (begins + rows).flatten())
            offset = torch.where(uneven, by_now, offset)
            log_w = torch.where(uneven.unsqueeze(-1), 0.0, log_w)
        walkers, accept_prob = made.path.move(walkers, beta, made.step_size(beta), 1, generator)
        accepted[-1] = accept_prob.double().mean()
    log_z, ess = (of_all_ranks(torch.stack(x), 1) for x in (log_z, ess))
    accept_prob = averaged(torch.stack(accepted), of_rank)
    rungs = Rungs(betas, log_mean_exp(log_z, 1), ess.mean(1), accept_prob)
    return Islands(log_z[-1], of_all_ranks(offset.unsqueeze(-1) + log_w), rungs)
