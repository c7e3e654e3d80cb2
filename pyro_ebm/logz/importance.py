"""Importance sampling from the base, with the shape of the tail of its weights."""

from __future__ import annotations

__all__ = ["importance"]

import math
import warnings

import pyro.distributions as dist

from ..arguments import check_count
from ..distributions import Boltzmann
from ..kernels.transition import seeded_generator
from ..ranks.group import own_stream
from .base import LogZ, grouped, log_mean_exp, relative_error, weight_ess
from .discrete import DiscretePath
from .pareto import smoothed
from .plan import Plan, as_plan
from .sharing import num_own, of_all_ranks, spent

NUM_GROUPS = 16
"""The groups of draws of which each gives a bound."""
RELIABLE = 0.7
"""The shape of the tail up to which smoothed weights can be trusted."""


def importance(
    target: Boltzmann | Plan,
    *,
    num_samples: int = 10_000,
    base: dist.TorchDistribution | None = None,
) -> LogZ:
    r"""Estimates log Z by importance sampling from the fitted base, Pareto-smoothed.

    .. math:: \log \hat Z = \log \frac1n \sum_i w_i, \qquad w_i = e^{-V(x_i)}, \quad x_i \sim
        e^{-U_0}

    with the largest weights replaced by the quantiles of the Pareto law that fits them. Its shape
    ``k_hat`` says whether to believe the answer: up to 0.7 the standard error can be trusted, and
    above that neither it nor the estimate, whatever they are. Smoothing has a small bias downward
    where it matters; ``lower`` is of the raw weights, in 16 groups, less two standard errors, and
    a bound in expectation always. One evaluation of the energy a draw; use it with a base that was
    learned (:func:`~pyro_ebm.logz.flow`) or of nearly normal targets.

    Args:
        target: A Boltzmann distribution without a batch, or a :func:`~pyro_ebm.logz.plan`.
        num_samples: The number of independent draws, shared among up to 16 ranks.
        base: The base, if it is not to be fitted.

    Returns:
        The estimate, with ``k_hat``. ``ess`` is that of the smoothed weights.

    Warns:
        UserWarning: If ``k_hat`` is above 0.7.

    Raises:
        ValueError: If ``num_samples`` is below 100, and whatever :func:`~pyro_ebm.logz.plan`
            raises.

    References:
        | Pareto smoothed importance sampling (Vehtari, Simpson, Gelman, Yao and Gabry, 2024),
        | https://jmlr.org/papers/v25/19-556.html

    Example:
        >>> import pyro, pyro_ebm as ebm
        >>> pyro.set_rng_seed(0)
        >>> z = importance(ebm.Boltzmann(ebm.energies.DoubleWell(beta=1.0)))
        >>> abs(z.value - 0.6799) < 4 * z.std_error, z.k_hat < 0.7
        (True, True)
    """
    check_count("num_samples", num_samples)
    if num_samples < 100:
        raise ValueError(f"num_samples must be at least 100, got {num_samples}")
    made = as_plan(target, None, base)
    num_samples -= num_samples % NUM_GROUPS
    of_rank, num_planned = num_own(num_samples, NUM_GROUPS), made.path.num_gradients
    with own_stream():
        walkers = made.path.draw_base(of_rank, seeded_generator(made.scouts.device))
    raw = of_all_ranks(-walkers.excess)
    log_w, k_hat = smoothed(raw)
    found = LogZ(
        log_mean_exp(log_w).item(),
        relative_error(log_w).item(),
        weight_ess(log_w).item(),
        -math.inf,
        math.inf,
        "importance",
        spent(made, num_planned),
        k_hat,
    )
    if not k_hat <= RELIABLE:
        way_out = (
            "Give draws of the target to pyro_ebm.logz.plan, or use pyro_ebm.logz.ais"
            if isinstance(made.path, DiscretePath)
            else "Learn the base (pyro_ebm.logz.flow), or use pyro_ebm.logz.smc"
        )
        warnings.warn(
            f"the weights have a tail of shape k_hat = {k_hat:.2f}, above {RELIABLE}: log Z = "
            f"{found.value:.3f} ± {found.std_error:.3f}, of {found.ess:.0f} effective draws, is "
            f"not to be trusted. {way_out}",
            UserWarning,
            stacklevel=2,
        )
    lower, of_lower = grouped(log_mean_exp(raw.reshape(-1, NUM_GROUPS)))
    return found._replace(lower=lower - 2 * of_lower)
