r"""Objectives for discrete energies: compare a point with its changes at one site.

The conditional of one site given all others is a ratio of densities, in which log Z cancels:

.. math:: \log p(x_i \mid x_{-i}) = -\log \sum_{x_i'} \exp\left(\frac{E(x) - E(x')}{T}\right)
"""

from __future__ import annotations

__all__ = ["PseudoLikelihood", "RatioMatching"]

import torch
from pyro.infer import ELBO
from torch import Tensor

from ..arguments import check_count
from ..distributions import Boltzmann
from .base import Objective
from .single_site import known_alphabet, log_odds_of_changes


class _SingleSite(Objective):
    """An objective that changes a point at each of its sites."""

    serves_latents = False
    serves_continuous = False
    serves_discrete = True

    def __init__(self, num_sites: int | None = None, elbo: ELBO | None = None) -> None:
        super().__init__(elbo)
        if num_sites is not None:
            check_count("num_sites", num_sites)
        self.num_sites = num_sites

    def _log_odds(self, boltzmann: Boltzmann, x: Tensor, name: str) -> tuple[Tensor, float]:
        """Returns the log odds of the changes, and how many sites each of those changed is."""
        self.check(boltzmann, x, name)
        log_odds = log_odds_of_changes(boltzmann, x, name, self.num_sites)
        alphabet = known_alphabet(boltzmann, name)
        shape = boltzmann.event_shape[:-1] if alphabet.one_hot else boltzmann.event_shape
        return log_odds, shape.numel() / log_odds.shape[1]


class PseudoLikelihood(_SingleSite):
    r"""Pseudolikelihood: the product of the conditionals of all sites.

    .. math:: \hat\ell(x) = \sum_i \log p(x_i \mid x_{-i})

    A consistent estimator, exact where sites are independent, less efficient than maximum
    likelihood where they depend on one another. For binary sites and integers alike; it takes
    :math:`(K - 1) D` energies of each datum, all at once. With ``num_sites`` fewer than D the
    sum is an unbiased estimate from as many sites, drawn anew each time for the whole batch.

    References:
        | Statistical analysis of non-lattice data (Besag, 1975), https://doi.org/10.2307/2987782

    Args:
        num_sites: How many sites to change, if not all.
        elbo: The ELBO that takes care of the rest of a model.

    Raises:
        ValueError: If ``num_sites`` is not positive; in use, if data are empty or outside of the
            support, if the support is not of binary sites or integers, or for a latent site, to
            which it carries no gradient of log p.

    Example:
        >>> from torch.distributions import constraints
        >>> spins = constraints.independent(constraints.boolean, 1)
        >>> field = torch.tensor([0.0, 2.0])
        >>> p = Boltzmann(lambda x: -(x * field).sum(-1), event_shape=(2,), support=spins)
        >>> PseudoLikelihood().surrogate(p, torch.tensor([[1.0, 1.0]]))  # log(1/2) + log 0.8808
        tensor([-0.8201])
    """

    def surrogate(self, boltzmann: Boltzmann, x: Tensor, name: str = "x") -> Tensor:  # noqa: D102
        log_odds, weight = self._log_odds(boltzmann, x, name)
        itself = torch.zeros_like(log_odds[:1])
        return -weight * torch.cat([itself, log_odds]).logsumexp(0).sum(0)


class RatioMatching(_SingleSite):
    r"""Ratio matching: the conditionals of binary sites by their squared error.

    .. math:: \hat\ell(x) = -\sum_i \left(1 - p(x_i \mid x_{-i})\right)^2

    The analogue of score matching for binary data, and a consistent estimator. Where a
    conditional is sure and right it hardly moves; where it is sure and wrong its gradient
    vanishes too, unlike that of :class:`PseudoLikelihood`.

    References:
        | Some extensions of score matching (Hyvärinen, 2007),
        | https://doi.org/10.1016/j.csda.2006.09.003

    Args:
        num_sites: How many sites to flip, if not all; as in :class:`PseudoLikelihood`.
        elbo: The ELBO that takes care of the rest of a model.

    Raises:
        ValueError: If ``num_sites`` is not positive; in use, if data are empty or outside of the
            support, if the sites are not binary, or for a latent site, to which it carries no
            gradient of log p.

    Example:
        >>> from torch.distributions import constraints
        >>> spins = constraints.independent(constraints.boolean, 1)
        >>> p = Boltzmann(lambda x: 0 * x.sum(-1), event_shape=(2,), support=spins)
        >>> RatioMatching().surrogate(p, torch.tensor([[1.0, 0.0]]))
        tensor([-0.5000])
    """

    def surrogate(self, boltzmann: Boltzmann, x: Tensor, name: str = "x") -> Tensor:  # noqa: D102
        log_odds, weight = self._log_odds(boltzmann, x, name)
        if len(log_odds) != 1:
            raise ValueError(
                f"RatioMatching needs binary sites, and those of '{name}' have "
                f"{len(log_odds) + 1} values; use PseudoLikelihood"
            )
        return -weight * log_odds.squeeze(0).sigmoid().square().sum(0)
