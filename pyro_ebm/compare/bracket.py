r"""The held-out log-likelihood of a model whose energy has no log Z of its own, with its bracket.

.. math:: -\frac1n \sum_i E(x_i) - \log Z^+ \;\le\; \bar\ell \;\le\;
    -\frac1n \sum_i E(x_i) - \log Z^-

with :math:`\log Z` estimated from both sides, between :math:`\log Z^-` and :math:`\log Z^+`.
"""

from __future__ import annotations

__all__ = ["DOUBT", "Bracketed", "bracketed"]

import warnings
from typing import NamedTuple

from torch import Tensor

from ..distributions import Boltzmann
from ..energies.base import Energy
from ..logz.automatic import estimate
from ..logz.held_out import held_out
from ..metrics.base import Estimate
from ..zoo.base import Kind

DOUBT = "a likelihood to doubt"
"""How a note begins that says why an estimate is not to be trusted."""


class Bracketed(NamedTuple):
    """What an estimate of log Z says of held-out data."""

    kind: Kind
    """What the log-likelihood is: "exact" where log Z turned out to be a sum, else "estimate";
    "none" where nothing was found."""
    log_prob: Estimate | None = None
    """The mean log-likelihood, in nats; the error of log Z is in its standard error."""
    bracket: tuple[float, float] | None = None
    """Between which it lies by the bounds on log Z, if the mean energy is taken as it is."""
    notes: tuple[str, ...] = ()
    """What the estimator warned of, or why it found nothing."""


def bracketed(energy: Energy, x: Tensor) -> Bracketed:
    """Estimates the mean log-likelihood of points under an energy of unknown log Z.

    Log Z is :func:`pyro_ebm.logz.estimate`'s: a sum where there are few terms, annealed importance
    sampling from both sides over discrete points, else sequential Monte Carlo with walkers from
    the target. The points have no part in it. A bracket that does not close is returned as wide as
    it is, with what the estimator said of it.

    Args:
        energy: The energy.
        x: Points that it was not trained on, with shape ``(n, *shape)``, of as many coordinates
            as its event.

    Returns:
        The estimate; of kind "none", with the reason, where the estimator refuses the energy.

    Example:
        >>> import torch
        >>> from pyro_ebm.energies import Gaussian
        >>> found = bracketed(Gaussian(torch.zeros(3), 1.0), torch.zeros(5, 3))
        >>> found.kind, round(found.log_prob.value, 3), found.bracket
        ('exact', -2.757, None)
    """
    law = Boltzmann(energy)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            log_z = estimate(law)
        except ValueError as error:
            return Bracketed("none", notes=(f"no likelihood: {error}",))
    mean = held_out(law, x.reshape(len(x), *energy.event_shape), log_z)
    if log_z.method.startswith("exact"):
        return Bracketed("exact", mean)
    middle = mean.value + log_z.value
    notes = tuple(f"{DOUBT}: {warning.message}" for warning in told)
    return Bracketed("estimate", mean, (middle - log_z.upper, middle - log_z.lower), notes)
