r"""The result that every estimator of log Z returns, and the statistics that they share."""

from __future__ import annotations

__all__ = [
    "LogZ",
    "Rungs",
    "check_distribution",
    "grouped",
    "log_mean_exp",
    "lognormal_error",
    "relative_error",
    "weight_ess",
]

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..distributions import Boltzmann
from ..plotting import rungs as picture_of_rungs

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_distribution(target: object) -> None:
    """Refuses what is no distribution, or more than one.

    Args:
        target: What log Z is asked of.

    Raises:
        ValueError: If it is no Boltzmann distribution, or has a batch.
    """
    if not isinstance(target, Boltzmann):
        raise ValueError(
            f"log Z is of a Boltzmann distribution, got {type(target).__name__}: give "
            "Boltzmann(energy)"
        )
    if target.batch_shape:
        raise ValueError(
            f"log Z is of one distribution, got batch_shape {tuple(target.batch_shape)}"
        )


class Rungs(NamedTuple):
    """How an estimator fared at each rung of its path, from the base to the target."""

    beta: Tensor
    """The inverse temperatures, from 0 to 1, ``(K,)``."""
    log_z: Tensor
    """The log Z at each, in nats, ``(K,)``."""
    ess: Tensor
    """The effective part of the walkers at each, from 0 to 1, ``(K,)``."""
    accept_prob: Tensor
    """The mean acceptance of the kernel at each; NaN where it did not move, ``(K,)``."""


class LogZ(NamedTuple):
    r"""An estimate of :math:`\log Z` with what is known of its error, all in nats.

    Example:
        >>> print(LogZ(1.25, std_error=0.02, ess=830.0, lower=1.2, upper=1.31))
        log Z = 1.250 ± 0.020 nats, in [1.200, 1.310], ESS 830
    """

    value: float
    """The estimate."""
    std_error: float
    """Its standard error."""
    ess: float
    """The effective number of independent weights behind it."""
    lower: float
    """A lower bound in expectation, less two of its own standard errors; minus infinity if none
    was computed."""
    upper: float
    """An upper bound in expectation, plus two of its own standard errors; infinity if none was
    computed."""
    method: str = ""
    """The name of the estimator."""
    num_gradients: int = 0
    """How often the energy was evaluated with its gradient, by all walkers together, with all
    that it took to find a base and a schedule."""
    k_hat: float = math.nan
    """The shape of the tail of the importance weights, where they were looked at: above 0.7 their
    mean, and the standard error with it, is not to be trusted."""
    rungs: Rungs | None = None
    """How each rung of a path fared, if there was one."""

    def __str__(self) -> str:
        return (
            f"log Z = {self.value:.3f} ± {self.std_error:.3f} nats, "
            f"in [{self.lower:.3f}, {self.upper:.3f}], ESS {self.ess:.0f}"
        )

    def plot(self) -> Figure:
        """Draws log Z, the effective part of the walkers and the acceptance along the path.

        Raises:
            ValueError: If the estimator followed no path.
        """
        if self.rungs is None:
            raise ValueError(f"{self.method or 'this estimate'} followed no path: nothing to plot")
        return picture_of_rungs(self.rungs._asdict())


def log_mean_exp(log_weights: Tensor, dim: int = 0) -> Tensor:
    """The log of the mean of weights, over one dimension."""
    return log_weights.logsumexp(dim) - math.log(log_weights.shape[dim])


def relative_error(log_weights: Tensor) -> Tensor:
    r"""The standard error of the log of a mean of independent weights, by the delta method.

    .. math:: \mathrm{se}(\log \bar w) \approx \frac{s_w}{\bar w \sqrt{n}}

    Args:
        log_weights: Logs of independent weights, with shape ``(n, *)``.

    Returns:
        The standard errors, with shape ``(*,)``; NaN if all weights are zero.
    """
    weights = (log_weights - log_mean_exp(log_weights)).exp()
    return weights.std(0) / math.sqrt(len(weights))


def lognormal_error(logs: Tensor) -> Tensor:
    r"""The standard error of the log of a mean of few independent estimates of Z.

    .. math::
        \mathrm{se} = \max\left(\frac{s_w}{\bar w \sqrt{n}},
        \sqrt{\frac{e^{s^2} - 1}{n}}\right), \qquad s^2 = \mathrm{Var}(\log w)

    The first is that of :func:`relative_error`. It is too small where few estimates spread widely,
    as their largest, of which the mean and its error are made, are not among them: of 32 with
    :math:`s = 1` the 95 % interval holds the truth in 89 %. The logs of products of many factors
    are nearly normal, and :math:`s` is known from all of them: that makes it 94 % or more.

    References:
        | A lognormal central limit theorem for particle approximations of normalizing constants
        | (Bérard, Del Moral and Doucet, 2014), https://arxiv.org/abs/1307.0181

    Args:
        logs: Logs of unbiased estimates, with shape ``(n,)``.

    Returns:
        The standard error, 0-d; that of :func:`relative_error` if an estimate is zero.
    """
    error = relative_error(logs)
    if not bool(logs.isfinite().all()):
        return error
    return torch.maximum(error, (logs.var().expm1() / len(logs)).sqrt())


def weight_ess(log_weights: Tensor, dim: int = 0) -> Tensor:
    r"""The effective number of weights, :math:`(\sum w)^2 / \sum w^2`, over one dimension."""
    ess = (2 * log_weights.logsumexp(dim) - (2 * log_weights).logsumexp(dim)).exp()
    return ess.nan_to_num(nan=0.0)


def grouped(logs: Tensor) -> tuple[float, float]:
    """The mean of independent logs, of which each is below log Z on average, and its error.

    Args:
        logs: Logs of unbiased estimates, with shape ``(n,)``.
    """
    if not bool(logs.isfinite().all()):
        return logs.mean().item(), 0.0
    return logs.mean().item(), logs.std().item() / math.sqrt(len(logs))
