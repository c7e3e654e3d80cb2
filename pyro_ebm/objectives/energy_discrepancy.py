r"""Energy discrepancy: compare the energy of data with its average after a perturbation.

.. math:: \mathrm{ED}(E) = \mathbb{E}_d \, E(x) - \mathbb{E}_d \mathbb{E}_{y \mid x} \left[
    -\log \int q(y \mid x') e^{-E(x')} dx' \right]

It needs neither scores nor chains, and goes from score matching, for a small perturbation, to
maximum likelihood, for a large one.
"""

from __future__ import annotations

__all__ = ["EnergyDiscrepancy"]

import math

import torch
from pyro.infer import ELBO
from torch import Tensor
from torch.distributions import biject_to

from ..arguments import check_at_least, check_count, check_positive
from ..distributions import Boltzmann
from ..potential import unconstrained_log_density
from .base import Objective
from .conditions import evaluate_each
from .single_site import known_alphabet, shifted


class EnergyDiscrepancy(Objective):
    r"""Energy discrepancy, with Gaussian noise or random flips.

    .. math::
        \hat\ell(x) = -\log \left[ \frac wM + \frac1M \sum_m \exp\left(\frac{E(x) - E(x_m)}{T}
        \right) \right], \qquad y \sim q(\cdot \mid x), \quad x_m \sim q(\cdot \mid y)

    The perturbation q is symmetric: in unconstrained space, with the Jacobian in the density,
    :math:`\mathcal{N}(x, \epsilon^2 I)` where the site is continuous; where it is discrete, each
    coordinate changes with probability :math:`\epsilon` to one of its other values.

    With :math:`w = 1` a consistent estimator for every M: the datum is told from M others with
    which it is exchangeable but for its density. With another w **biased** by an amount of order
    1/M; :math:`w = 0` follows energy discrepancy itself as M grows, and is unstable for few. A
    small perturbation hardly sees the weights of well-separated modes; a large one needs many
    points.

    References:
        | Energy discrepancies: a score-independent loss for energy-based models (Schröder, Ou,
        | Lim, Li, Vollmer and Duncan, 2023), https://arxiv.org/abs/2307.06431

    Args:
        noise_scale: The standard deviation :math:`\epsilon > 0` in units of unconstrained x, or
            the probability of a change.
        num_noise: The number M of points for each datum.
        stabilization: The weight :math:`w \ge 0` of the datum among them.
        elbo: The ELBO that takes care of the rest of a model.

    Raises:
        ValueError: If ``noise_scale`` or ``num_noise`` is not positive or ``stabilization`` is
            negative; in use, if data are empty, not finite or outside of the support, if the
            energy breaks its contract, if ``noise_scale`` is no probability where the site is
            discrete, or for a latent site, to which it carries no gradient of log p.

    Example:
        >>> import pyro_ebm as ebm
        >>> objective = EnergyDiscrepancy(noise_scale=0.5, num_noise=8)
        >>> p = ebm.Boltzmann(ebm.energies.MLP(event_shape=(2,)))
        >>> (-objective.surrogate(p, torch.randn(7, 2)).mean()).backward()
    """

    serves_latents = False
    serves_discrete = True

    def __init__(
        self,
        noise_scale: float,
        num_noise: int = 16,
        stabilization: float = 1.0,
        elbo: ELBO | None = None,
    ) -> None:
        super().__init__(elbo)
        check_positive("noise_scale", noise_scale)
        check_count("num_noise", num_noise)
        check_at_least("stabilization", stabilization, 0)
        self.noise_scale = noise_scale
        self.num_noise = num_noise
        self.stabilization = stabilization

    def surrogate(self, boltzmann: Boltzmann, x: Tensor, name: str = "x") -> Tensor:  # noqa: D102
        self.check(boltzmann, x, name)
        if boltzmann.support.is_discrete:
            fn, point, others = Boltzmann.log_density, x, self._flipped(boltzmann, x, name)
        else:
            fn, point = unconstrained_log_density, biject_to(boltzmann.support).inv(x.detach())
            others = self._noised(point)
        log_odds = evaluate_each(fn, boltzmann, others) - fn(boltzmann, point)
        itself = torch.full_like(log_odds[:1], self.stabilization).log()
        return math.log(self.num_noise) - torch.cat([itself, log_odds]).logsumexp(0)

    def _noised(self, u: Tensor) -> Tensor:
        there = u.new_empty(u.shape).normal_()
        back = u.new_empty(self.num_noise, *u.shape).normal_()
        return u + self.noise_scale * (there + back)

    def _flipped(self, boltzmann: Boltzmann, x: Tensor, name: str) -> Tensor:
        if not self.noise_scale < 1:
            raise ValueError(
                f"noise_scale is the probability of a change at the discrete site '{name}' and "
                f"must be below 1, got {self.noise_scale}"
            )
        alphabet = known_alphabet(boltzmann, name)
        sites = x.shape[:-1] if alphabet.one_hot else x.shape

        def changes(shape: torch.Size) -> Tensor:
            changed = torch.rand(shape, device=x.device) < self.noise_scale
            return changed * torch.randint(1, alphabet.size, shape, device=x.device)

        by = changes(sites) + changes(torch.Size((self.num_noise, *sites)))
        return shifted(x, by, alphabet)
