r"""Annealed importance sampling, in both directions.

.. math::
    \log w = -\sum_{k=1}^{K} (\beta_k - \beta_{k-1}) V(z_{k-1}), \qquad
    \log r = \sum_{k=1}^{K} (\beta_k - \beta_{k-1}) V(z'_k)

A forward walker starts as a draw of the base at :math:`z_0`, and moves at :math:`\beta_k` to
:math:`z_k`; a reverse one starts as a draw of the target at :math:`z'_K`, and moves at
:math:`\beta_{k-1}` to :math:`z'_{k-1}`.
"""

from __future__ import annotations

__all__ = ["Direction", "ais", "anneal", "check_closed", "descend"]

import itertools
import math
import warnings
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from ..arguments import check_count
from ..distributions import Boltzmann
from ..kernels.base import Kernel
from ..kernels.transition import seeded_generator
from ..ranks.group import first, own_stream
from .base import LogZ, Rungs, grouped, log_mean_exp, relative_error, weight_ess
from .ladder import draw_near
from .path import Walkers
from .plan import Plan, as_plan
from .sharing import averaged, num_own, of_all_ranks, spent

NUM_GROUPS = 16
"""The groups of walkers of which each gives a bound."""
OPEN = 1.0
"""A bracket as wide as that, in nats, has not closed."""
APART, SLACK = 5.0, 0.25
"""Directions contradict each other if the reverse one, the higher on average, is lower by so many
standard errors, or higher by so many and so many nats."""
NUM_HALVINGS = 8
"""The rungs that halve the first gap in the reverse direction. Where U rises faster than U_0, the
weight there has no variance: what small gaps leave of that is not seen."""


def ais(
    target: Boltzmann | Plan,
    *,
    num_chains: int = 512,
    num_rungs: int | None = None,
    kernel: Kernel | None = None,
    base: dist.TorchDistribution | None = None,
    reverse: bool = True,
) -> LogZ:
    r"""Estimates log Z by annealed importance sampling, with a bracket from both directions.

    .. math:: \log \hat Z = \log \frac1n \sum_i w_i, \qquad \mathbb{E}[w] = Z, \qquad
        \mathbb{E}[r] = 1/Z

    The estimate is that of the forward walkers; :math:`\hat Z` is unbiased, whatever the kernel
    and however few the rungs, so that :math:`\log \hat Z` is below log Z on average (Jensen). The
    walkers are independent, and the standard error is that of a mean of weights (delta method).

    **The bracket.** ``lower`` is the mean of :math:`\log \hat Z` over 16 groups of walkers, less
    two standard errors: a bound in expectation, always. ``upper`` is the same of
    :math:`-\log \frac1n \sum r` with two standard errors more. It is a bound in expectation where
    the reverse walkers start from exact draws, that is where the energy has ``sample``. Elsewhere
    they start from a long run of replica exchange from the same base, and the bound holds as far
    as that has mixed. A mode that neither finds is in neither.

    Args:
        target: A Boltzmann distribution without a batch, or a :func:`~pyro_ebm.logz.plan`.
        num_chains: The number of walkers in each direction, of which each rank
            (:mod:`pyro_ebm.ranks`) moves its share; the estimate, of all, is the same on each.
        num_rungs: The number of rungs, at equal distances in :math:`\int \mathrm{sd}_\beta(V)
            d\beta`; the walkers move once between two. If not given, sixteen times the square
            of that length, between 16 and 2000: then log weights vary by about a quarter.
        kernel: What moves them: see :func:`~pyro_ebm.logz.plan`.
        base: The base, if it is not to be fitted.
        reverse: Whether to go in the reverse direction too; without, there is no upper bound, and
            no warning.

    Returns:
        The estimate. ``ess`` is that of the weights. The rungs tell the share of walkers that is
        effective by then.

    Warns:
        UserWarning: If the bracket is wider than a nat, or the two directions contradict each
            other.

    Raises:
        ValueError: If a count is too small, and whatever :func:`~pyro_ebm.logz.plan` raises.

    References:
        | Annealed importance sampling (Neal, 2001), https://doi.org/10.1023/A:1008923215028
        | Sandwiching the marginal likelihood using bidirectional Monte Carlo (Grosse, Ghahramani
        | and Adams, 2015), https://arxiv.org/abs/1511.02543

    Example:
        >>> import pyro, pyro_ebm as ebm
        >>> pyro.set_rng_seed(0)
        >>> z = ais(ebm.Boltzmann(ebm.energies.DoubleWell(beta=1.0)))
        >>> abs(z.value - 0.6799) < 4 * z.std_error, z.lower < z.upper
        (True, True)
    """
    check_count("num_chains", num_chains)
    if num_rungs is not None:
        check_count("num_rungs", num_rungs)
    few = num_chains < 2 * NUM_GROUPS or num_chains % NUM_GROUPS
    if few or (num_rungs is not None and num_rungs < 1):
        raise ValueError(
            f"num_chains must be a multiple of {NUM_GROUPS}, at least {2 * NUM_GROUPS}, and "
            f"num_rungs at least 1, got {num_chains} and {num_rungs}"
        )
    of_rank = num_own(num_chains, NUM_GROUPS)
    made = as_plan(target, kernel, base)
    num_rungs = made.num_fine if num_rungs is None else num_rungs
    betas = first(made.rungs(int(first(torch.tensor(num_rungs)))))
    num_planned = made.path.num_gradients
    with own_stream():
        generator = seeded_generator(made.scouts.device)
        walkers = made.path.draw_base(of_rank, generator)
        log_w, accept_prob = anneal(made, walkers, betas, generator)
        log_w, accept_prob = of_all_ranks(log_w, 1), averaged(accept_prob, of_rank)
        log_z = log_mean_exp(log_w, 1)
        found = Direction.of(log_w[-1])
        upper = math.inf
        if reverse:
            down = descend(made, betas, of_rank, generator)
            upper = down.bound
            check_closed(found, down)
    return LogZ(
        found.value,
        found.std_error,
        weight_ess(log_w[-1]).item(),
        found.bound,
        upper,
        "ais",
        spent(made, num_planned),
        rungs=Rungs(betas, log_z, weight_ess(log_w, 1) / num_chains, accept_prob),
    )


class Direction(NamedTuple):
    """What walkers of one direction say of log Z."""

    value: float
    """Their estimate."""
    std_error: float
    bound: float
    """What lies on their side of log Z in expectation, two standard errors further out."""

    @classmethod
    def of(cls, log_w: Tensor) -> Direction:
        """Sums up independent walkers from the base, of which each is unbiased."""
        bound, error = grouped(log_mean_exp(log_w.reshape(-1, NUM_GROUPS)))
        value = log_mean_exp(log_w).item()
        return cls(value, relative_error(log_w).item(), bound - 2 * error)


def descend(made: Plan, betas: Tensor, num_chains: int, generator: torch.Generator) -> Direction:
    """Takes walkers from the target to the base.

    They never come to where the energy is infinite: E[r] Z is the part of the base that is left,
    which the scouts of the plan tell.

    Args:
        made: The plan.
        betas: The rungs, from 0 to 1.
        num_chains: The number of walkers of this rank; of all ranks a multiple of 16.
        generator: Where the noise comes from.
    """
    if made.path.exact:
        walkers = made.path.draw_target(num_chains)
    else:
        walkers = draw_near(made, num_chains, generator)
    halves = betas[1] * 0.5 ** torch.arange(NUM_HALVINGS, 0, -1).to(betas)
    finer = torch.cat([betas[:1], halves, betas[1:]])
    log_r, _ = anneal(made, walkers, finer.flip(0), generator)
    groups = log_mean_exp(of_all_ranks(log_r[-1]).reshape(NUM_GROUPS, -1), 1)
    groups = groups - math.log(made.covered)
    unsure = math.sqrt((1 - made.covered) / (made.covered * made.scouts.shape[1]))
    bound, error = grouped(-groups)
    return Direction(
        -log_mean_exp(groups).item(),
        math.hypot(relative_error(groups).item(), unsure),
        bound + 2 * math.hypot(error, unsure),
    )


def check_closed(up: Direction, down: Direction) -> None:
    """Warns, with the evidence, if two directions leave a wide bracket or contradict each other.

    Args:
        up: The direction from the base.
        down: That from the target.
    """
    noise = APART * math.hypot(up.std_error, down.std_error)
    apart = not -noise <= down.value - up.value <= noise + SLACK
    if down.bound - up.bound < OPEN and not apart:
        return
    warnings.warn(
        f"the bracket of log Z has not closed: {up.value:.3f} ± {up.std_error:.3f} from the base, "
        f"{down.value:.3f} ± {down.std_error:.3f} from the target, bounds [{up.bound:.3f}, "
        f"{down.bound:.3f}]. The base may miss a part of the target, the rungs be too few, or the "
        "energy not normalisable: take more rungs, or give a base= or draws= that cover the "
        "target to pyro_ebm.logz.plan",
        UserWarning,
        stacklevel=3,
    )


def anneal(
    made: Plan, walkers: Walkers, betas: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Takes walkers along inverse temperatures, up or down.

    Args:
        made: The plan.
        walkers: The walkers, at the first.
        betas: The inverse temperatures, ``(K,)``.
        generator: Where the noise comes from.

    Returns:
        The log weights at each, ``(K, C)``, and the mean acceptance there, ``(K,)``.
    """
    log_w = [torch.zeros_like(walkers.excess)]
    accepted = [betas.new_tensor(math.nan)]
    for before, beta in itertools.pairwise(betas):
        log_w.append(log_w[-1] - (beta - before) * walkers.excess)
        accepted.append(betas.new_tensor(math.nan))
        if 0 < beta < 1:
            step_size = made.step_size(beta)
            walkers, accept_prob = made.path.move(walkers, beta, step_size, 1, generator)
            accepted[-1] = accept_prob.double().mean()
    return torch.stack(log_w), torch.stack(accepted)
