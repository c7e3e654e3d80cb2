r"""Thermodynamic integration and stepping stones: log Z from walkers at equilibrium on a ladder.

.. math::
    \log Z = \int_0^1 g(\beta) \, d\beta, \qquad g(\beta) = -\mathbb{E}_\beta[V], \qquad
    g'(\beta) = \mathrm{Var}_\beta[V] \ge 0

The chains of replica exchange are independent, so that the standard error of either is that of a
mean over chains, of what each chain adds to first order. It counts how long a chain remembers, and
that its replicas depend on each other.
"""

from __future__ import annotations

__all__ = ["integrated", "stepped", "stepping_stone", "thermodynamic"]

import math
from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor

from ..arguments import check_count
from ..distributions import Boltzmann
from ..kernels.base import Kernel
from ..kernels.transition import seeded_generator
from ..ranks.group import own_stream
from .base import LogZ, grouped, log_mean_exp
from .ladder import Ladder, climb, num_levels
from .plan import Plan, as_plan
from .sharing import num_own, spent


def thermodynamic(
    target: Boltzmann | Plan,
    *,
    num_chains: int = 64,
    num_steps: int = 200,
    num_rungs: int | None = None,
    kernel: Kernel | None = None,
    base: dist.TorchDistribution | None = None,
) -> LogZ:
    r"""Estimates log Z by thermodynamic integration over a ladder of replica exchange.

    .. math::
        \int_{\beta_k}^{\beta_{k+1}} g \, d\beta \approx \tfrac{\delta}{2} (g_k + g_{k+1}) -
        \tfrac{\delta^2}{12} (g'_{k+1} - g'_k), \qquad \delta = \beta_{k+1} - \beta_k

    with means and variances of V over the walkers at each rung; the first gap, over which g may
    begin at minus infinity, is :math:`\log \mathbb{E}_0[e^{-\beta_1 V}]`.

    **Biased** by the rule between rungs, of fourth order in their distance. The bias is estimated
    by that of every other rung, a fifteenth of the change, and is in the standard error. ``lower``
    and ``upper`` are free of it: g never falls, so that the sums of its values on the left and on
    the right enclose the integral, in expectation and as far as the chains have mixed; two
    standard errors are added on both sides. They close as the number of rungs grows.

    Args:
        target: A Boltzmann distribution without a batch, or a :func:`~pyro_ebm.logz.plan`.
        num_chains: The number of independent chains, at least 8, shared among ranks.
        num_steps: The number of steps, after a fifth as many that do not count.
        num_rungs: The number of rungs above the base, at equal distances in :math:`\int
            \mathrm{sd}_\beta(V) d\beta`; if not given, twice as many as let half of the swaps
            happen.
        kernel: What moves the replicas: see :func:`~pyro_ebm.logz.plan`.
        base: The base, if it is not to be fitted.

    Returns:
        The estimate. ``ess`` is the number of independent ladders that would have the same error.

    Raises:
        ValueError: If a count is too small, and whatever :func:`~pyro_ebm.logz.plan` raises.

    References:
        | Improving power posterior estimation of statistical evidence (Friel, Hurn and Wyse,
        | 2014), https://arxiv.org/abs/1209.3198

    Example:
        >>> import pyro, pyro_ebm as ebm
        >>> pyro.set_rng_seed(0)
        >>> z = thermodynamic(ebm.Boltzmann(ebm.energies.DoubleWell(beta=1.0)), num_steps=80)
        >>> abs(z.value - 0.6799) < 4 * z.std_error, z.lower < 0.6799 < z.upper
        (True, True)
    """
    _check(num_chains, num_steps, num_rungs)
    made = as_plan(target, kernel, base)
    num_rungs = 2 * num_levels(made) + 1 if num_rungs is None else num_rungs
    return _of_ladder(integrated, made, num_chains, num_steps, num_rungs)


def integrated(ladder: Ladder) -> LogZ:
    """Integrates over a ladder.

    Args:
        ladder: What independent chains did on it.
    """
    betas, gaps = ladder.betas[1:], ladder.betas[1:].diff()
    first = (-ladder.betas[1] * ladder.excess[..., 0]).exp()
    g = -ladder.excess[..., 1:]
    slope = (g - g.mean((0, 1))).square()
    g, slope = g.mean(0), slope.mean(0)
    begin = first.mean().log()
    each = first.mean(0) / first.mean() - 1 + _corrected(betas, g, slope)
    value = (begin + _corrected(betas, g, slope).mean()).item()
    coarse = torch.tensor([*range(0, len(betas) - 1, 2), len(betas) - 1])
    twice = _corrected(betas[coarse], g[:, coarse], slope[:, coarse]).mean()
    bias = (begin + twice - value).item() / 15
    error = each.std().item() / math.sqrt(len(each))
    lower, of_lower = grouped(first.mean(0).log() + (gaps * g[:, :-1]).sum(-1))
    upper, of_upper = grouped(betas[0] * g[:, 0] + (gaps * g[:, 1:]).sum(-1))
    weights = torch.cat([gaps[:1], gaps[1:] + gaps[:-1], gaps[-1:]]) / 2
    spread = (weights.square() * slope.mean(0)).sum() + first.var() / first.mean().square()
    steps = torch.cat([begin.reshape(1), _steps(betas, g, slope).mean(0)])
    return LogZ(
        value,
        math.hypot(error, bias),
        spread.item() / error**2 if error > 0 else math.nan,
        lower - 2 * of_lower,
        upper + 2 * of_upper,
        "thermodynamic",
        rungs=ladder.rungs(steps),
    )


def _corrected(betas: Tensor, g: Tensor, slope: Tensor) -> Tensor:
    """The integral over all gaps, of each chain."""
    return _steps(betas, g, slope).sum(-1)


def _steps(betas: Tensor, g: Tensor, slope: Tensor) -> Tensor:
    gap = betas.diff()
    return 0.5 * gap * (g[..., :-1] + g[..., 1:]) - gap**2 / 12 * slope.diff(dim=-1)


def stepping_stone(
    target: Boltzmann | Plan,
    *,
    num_chains: int = 64,
    num_steps: int = 200,
    num_rungs: int | None = None,
    kernel: Kernel | None = None,
    base: dist.TorchDistribution | None = None,
) -> LogZ:
    r"""Estimates log Z by ratios of neighbours on a ladder of replica exchange.

    .. math::
        \log \hat Z = \sum_k \log \frac{\overline{\exp(-\delta_k V / 2)}^{\,k}}
        {\overline{\exp(\delta_k V / 2)}^{\,k+1}}, \qquad \delta_k = \beta_{k+1} - \beta_k

    where the bar is the mean over the walkers of a rung: neighbours meet half way (a geometric
    bridge). There is no bias of a rule of integration, as that of
    :func:`~pyro_ebm.logz.thermodynamic`; the logs of means are biased by the inverse of the
    effective number of steps.

    ``lower`` comes from the walkers below each gap alone, which is the stepping stone of Xie et
    al., and ``upper`` from those above: bounds in expectation as far as the chains have mixed,
    with two standard errors.

    Args:
        target: A Boltzmann distribution without a batch, or a :func:`~pyro_ebm.logz.plan`.
        num_chains: The number of independent chains, at least 8, shared among ranks.
        num_steps: The number of steps, after a fifth as many that do not count.
        num_rungs: The number of rungs above the base; if not given, as many as let half of the
            swaps happen.
        kernel: What moves the replicas: see :func:`~pyro_ebm.logz.plan`.
        base: The base, if it is not to be fitted.

    Returns:
        The estimate. ``ess`` is the number of independent ladders that would have the same error.

    Raises:
        ValueError: If a count is too small, and whatever :func:`~pyro_ebm.logz.plan` raises.

    References:
        | Improving marginal likelihood estimation for Bayesian phylogenetic model selection (Xie,
        | Lewis, Fan, Kuo and Chen, 2011), https://doi.org/10.1093/sysbio/syq085

    Example:
        >>> import pyro, pyro_ebm as ebm
        >>> pyro.set_rng_seed(0)
        >>> z = stepping_stone(ebm.Boltzmann(ebm.energies.DoubleWell(beta=1.0)), num_steps=80)
        >>> abs(z.value - 0.6799) < 4 * z.std_error, z.lower < 0.6799 < z.upper
        (True, True)
    """
    _check(num_chains, num_steps, num_rungs)
    made = as_plan(target, kernel, base)
    num_rungs = num_levels(made) if num_rungs is None else num_rungs
    return _of_ladder(stepped, made, num_chains, num_steps, num_rungs)


def stepped(ladder: Ladder) -> LogZ:
    """Goes from rung to rung of a ladder.

    Args:
        ladder: What independent chains did on it.
    """
    gaps = ladder.betas.diff()
    below, above = -gaps * ladder.excess[..., :-1], gaps * ladder.excess[..., 1:]
    up, down = log_mean_exp((below / 2).flatten(0, 1)), log_mean_exp((above / 2).flatten(0, 1))
    of_up, of_down = (below / 2 - up).exp(), (above / 2 - down).exp()
    each = (of_up - of_down).sum(-1)
    error = each.mean(0).std().item() / math.sqrt(each.shape[1])
    lower, of_lower = grouped(log_mean_exp(below).sum(-1))
    upper, of_upper = grouped(-log_mean_exp(above).sum(-1))
    spread = (of_up.flatten(0, 1).var(0) + of_down.flatten(0, 1).var(0)).sum()
    return LogZ(
        (up - down).sum().item(),
        error,
        spread.item() / error**2 if error > 0 else math.nan,
        lower - 2 * of_lower,
        upper + 2 * of_upper,
        "stepping stone",
        rungs=ladder.rungs(up - down),
    )


def _of_ladder(
    estimated: Callable[[Ladder], LogZ],
    made: Plan,
    num_chains: int,
    num_steps: int,
    num_rungs: int,
) -> LogZ:
    """Has each rank climb with its own chains, and estimates from those of all."""
    num_planned = made.path.num_gradients
    with own_stream():
        generator = seeded_generator(made.scouts.device)
        ladder = climb(made, num_own(num_chains, num_chains), num_steps, num_rungs, generator)
    found = estimated(ladder.of_all_ranks())
    return found._replace(num_gradients=spent(made, num_planned))


def _check(num_chains: int, num_steps: int, num_rungs: int | None) -> None:
    check_count("num_chains", num_chains)
    check_count("num_steps", num_steps)
    if num_rungs is not None:
        check_count("num_rungs", num_rungs)
    if num_chains < 8 or num_steps < 10 or (num_rungs is not None and num_rungs < 3):
        raise ValueError(
            "num_chains must be at least 8, num_steps 10 and num_rungs 3, got "
            f"{num_chains}, {num_steps} and {num_rungs}"
        )
