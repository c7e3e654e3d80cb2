r"""Bridge sampling: draws of the target meet draws of the base."""

from __future__ import annotations

__all__ = ["bridge", "linked", "met"]

import math

import pyro.distributions as dist
import torch
from torch import Tensor

from ..arguments import check_count
from ..diagnostics import bulk_ess
from ..distributions import Boltzmann
from ..kernels.base import Kernel
from ..kernels.transition import seeded_generator
from ..ranks.group import own_stream
from .base import LogZ, grouped, log_mean_exp, weight_ess
from .ladder import Ladder, climb, num_levels
from .plan import Plan, as_plan
from .sharing import num_own, of_all_ranks, spent

NUM_GROUPS = 16
"""The groups of draws of the base of which each gives a bound."""
FEWEST = 50
"""The effective draws of the base in a bridge below which it is too long for one span."""
MAX_ITERATIONS = 1000
"""The iteration converges linearly, in some ten steps where the laws overlap."""


def bridge(
    target: Boltzmann | Plan,
    *,
    num_chains: int = 64,
    num_steps: int = 200,
    num_samples: int | None = None,
    kernel: Kernel | None = None,
    base: dist.TorchDistribution | None = None,
) -> LogZ:
    r"""Estimates log Z by the bridge of Meng and Wong between the target and its fitted base.

    .. math::
        \hat Z = \frac{\frac{1}{n_0} \sum_j \ell_j / (s_1 \ell_j + s_0 \hat Z)}
        {\frac{1}{n_1} \sum_i 1 / (s_1 \ell_i + s_0 \hat Z)}, \qquad \ell = e^{-V}, \quad
        s_1 = \frac{n_1}{n_1 + n_0} = 1 - s_0

    with draws :math:`j` of the base and :math:`i` of the target, solved by iteration. It is the
    bridge of least error for independent draws; :math:`n_1` is their effective number. Draws of
    the target are exact where the energy has ``sample``, and elsewhere come from replica exchange
    on the path from the base, which carries chains between modes in the right proportion. They are
    independent of those that the base was fitted to.

    The standard error is that of Frühwirth-Schnatter, with the autocorrelation of the chains in it
    as the variance of the means of independent chains:

    .. math::
        \mathrm{se}^2 = \frac{\mathrm{Var}_0(f_0)}{n_0 \mathbb{E}_0[f_0]^2} +
        \frac{\mathrm{Var}(\bar f_1)}{C \, \mathbb{E}_1[f_1]^2}, \qquad
        f_0 = \frac{\ell}{s_1 \ell + s_0 Z}, \quad f_1 = \frac{Z}{s_1 \ell + s_0 Z}

    The bias is of the order of its square. It is the cheapest estimator where the base overlaps
    with the target, in few dimensions or of nearly normal targets. Where it does not, as
    independent sites and most discrete targets, fewer than 50 of its draws are effective in the
    bridge. Then it has a span for each pair of neighbours on the ladder of replica exchange,
    :math:`\log \hat Z = \sum_k \log \hat r_k`, of which each has an error of that kind; that of
    the sum is that of a mean over chains, as in :func:`~pyro_ebm.logz.stepping_stone`, whose
    spans are geometric.

    Args:
        target: A Boltzmann distribution without a batch, or a :func:`~pyro_ebm.logz.plan`.
        num_chains: The number of independent chains C, at least 8, shared among up to 16 ranks.
        num_steps: The draws of each.
        num_samples: The draws of the base; ``num_chains * num_steps`` if not given.
        kernel: What moves the replicas: see :func:`~pyro_ebm.logz.plan`.
        base: The base, if it is not to be fitted: :func:`~pyro_ebm.logz.flow` learns one.

    Returns:
        The estimate. ``lower`` is the importance estimate of the draws of the base alone, a bound
        in expectation; ``upper`` is the reciprocal one of the draws of the target, as far as they
        have mixed; with many spans both are sums over them. ``ess`` is the effective number of
        draws of the target, or the number of independent ladders that would have the same error.

    Raises:
        ValueError: If a count is too small, and whatever :func:`~pyro_ebm.logz.plan` raises.

    References:
        | Simulating ratios of normalizing constants via a simple identity (Meng and Wong, 1996),
        | https://www3.stat.sinica.edu.tw/statistica/j6n4/j6n43/j6n43.htm
        | Estimating marginal likelihoods for mixture and Markov switching models using bridge
        | sampling techniques (Frühwirth-Schnatter, 2004),
        | https://doi.org/10.1111/j.1368-423X.2004.00125.x

    Example:
        >>> import pyro, pyro_ebm as ebm
        >>> pyro.set_rng_seed(0)
        >>> z = bridge(ebm.Boltzmann(ebm.energies.DoubleWell(beta=1.0)))
        >>> abs(z.value - 0.6799) < 4 * z.std_error
        True
    """
    check_count("num_chains", num_chains)
    check_count("num_steps", num_steps)
    num_samples = num_chains * num_steps if num_samples is None else num_samples
    check_count("num_samples", num_samples)
    if num_chains < 8 or num_steps < 4 or num_samples < 2 * NUM_GROUPS:
        raise ValueError(
            f"num_chains must be at least 8, num_steps 4 and num_samples {2 * NUM_GROUPS}, got "
            f"{num_chains}, {num_steps} and {num_samples}"
        )
    num_samples -= num_samples % NUM_GROUPS
    made = as_plan(target, kernel, base)
    of_rank, num_planned = num_own(num_chains, num_chains), made.path.num_gradients
    with own_stream():
        generator = seeded_generator(made.scouts.device)
        own = made.path.draw_base(num_own(num_samples, NUM_GROUPS), generator)
        of_base, found = of_all_ranks(-own.excess), None
        if made.path.exact:
            excess = of_all_ranks(made.path.draw_target(of_rank * num_steps).excess)
            found = met(of_base, -excess.reshape(num_chains, num_steps), float(len(excess)))
        if found is None:
            ladder = climb(made, of_rank, num_steps, num_levels(made), generator).of_all_ranks()
            of_target = -ladder.excess[..., -1].T
            ess = min(bulk_ess(of_target).item(), float(of_target.numel()))
            found = met(of_base, of_target, ess) or linked(ladder)
    return found._replace(num_gradients=spent(made, num_planned))


def met(of_base: Tensor, of_target: Tensor, ess: float) -> LogZ | None:
    """Solves for the bridge of one span; ``None`` if it is too long.

    Args:
        of_base: -V at draws of the base, ``(n,)``.
        of_target: -V at draws of the target, ``(chain, draw)``.
        ess: The effective number of the latter.
    """
    num_samples, num_chains = len(of_base), len(of_target)
    share = ess / (ess + num_samples)
    value = _iterated(of_base, of_target.flatten(), share)
    f_0, f_1 = _meeting(of_base - value, share), _meeting(of_target - value, share, target=True)
    if weight_ess(f_0.log()) < FEWEST:
        return None
    error = math.hypot(
        (f_0.std() / f_0.mean()).item() / math.sqrt(num_samples),
        (f_1.mean(1).std() / f_1.mean()).item() / math.sqrt(num_chains),
    )
    lower, of_lower = grouped(log_mean_exp(of_base.reshape(-1, NUM_GROUPS)))
    upper, of_upper = grouped(-log_mean_exp(-of_target, 1))
    return LogZ(
        value.item(),
        error,
        ess,
        lower - 2 * of_lower,
        upper + 2 * of_upper,
        "bridge",
    )


def linked(ladder: Ladder) -> LogZ:
    """Solves for a bridge with a span for each pair of neighbours on a ladder.

    Args:
        ladder: What independent chains did on it.
    """
    gaps = ladder.betas.diff()
    below, above = -gaps * ladder.excess[..., :-1], -gaps * ladder.excess[..., 1:]
    spans = _iterated(below.flatten(0, 1), above.flatten(0, 1), 0.5)
    f_0, f_1 = _meeting(below - spans, 0.5), _meeting(above - spans, 0.5, target=True)
    f_0, f_1 = f_0 / f_0.mean((0, 1)), f_1 / f_1.mean((0, 1))
    each = (f_0 - f_1).sum(-1).mean(0)
    error = each.std().item() / math.sqrt(len(each))
    spread = (f_0.flatten(0, 1).var(0) + f_1.flatten(0, 1).var(0)).sum().item()
    lower, of_lower = grouped(log_mean_exp(below).sum(-1))
    upper, of_upper = grouped(-log_mean_exp(-above).sum(-1))
    return LogZ(
        spans.sum().item(),
        error,
        spread / error**2 if error > 0 else math.nan,
        lower - 2 * of_lower,
        upper + 2 * of_upper,
        "bridge",
        rungs=ladder.rungs(spans),
    )


def _meeting(log_ratio: Tensor, share: float, *, target: bool = False) -> Tensor:
    """What a draw adds to the bridge, for the log of l / Z there."""
    one = torch.zeros_like(log_ratio)
    log_mix = torch.logaddexp(log_ratio + math.log(share), one + math.log1p(-share))
    return ((one if target else log_ratio) - log_mix).exp()


def _iterated(of_base: Tensor, of_target: Tensor, share: float) -> Tensor:
    """The log ratio, from log ratios at draws of both sides, with these first; of many spans."""
    value = of_target.median(0).values
    for _ in range(MAX_ITERATIONS):
        up = _meeting(of_base - value, share).mean(0).log()
        down = _meeting(of_target - value, share, target=True).mean(0).log()
        value, before = value + up - down, value
        if not bool(((value - before).abs() > 1e-10).any()):
            break
    return value
