r"""Score matching: learn the energy through its gradient, without sampling from the model."""

from __future__ import annotations

__all__ = ["DenoisingScoreMatching"]

from collections.abc import Sequence
from functools import partial

import torch
from pyro.infer import ELBO
from torch import Tensor
from torch.distributions import biject_to

from ..distributions import Boltzmann
from ..potential import unconstrained_log_density
from .base import Objective


class DenoisingScoreMatching(Objective):
    r"""Denoising score matching: point from noisy data back to the data.

    .. math::
        \hat\ell(x) = -\frac{\sigma^2}{2} \left| \nabla_{\tilde x} \frac{E_\theta(\tilde x)}{T}
        - \frac{\tilde x - x}{\sigma^2} \right|^2, \qquad \tilde x = x + \sigma \xi

    It learns the law of the *noisy* data, :math:`p * \mathcal{N}(0, \sigma^2 I)`: on
    :math:`\mathcal{N}(0, v)` the precision :math:`1/(v + \sigma^2)`. The factor :math:`\sigma^2`
    makes noise levels comparable and moves no optimum. Weights of well-separated modes are hardly
    seen by any score. Constrained sites are noised in unconstrained space, with the Jacobian in
    the density.

    With a sequence of noise levels, each datum draws one, and the energy is called as
    ``energy(x, sigma=sigma)`` with ``sigma`` of batch shape: one energy for all levels.

    References:
        | A connection between score matching and denoising autoencoders (Vincent, 2011),
        | https://doi.org/10.1162/NECO_a_00142
        | Generative modeling by estimating gradients of the data distribution (Song and
        | Ermon, 2019), https://arxiv.org/abs/1907.05600

    Args:
        sigma: The noise :math:`\sigma > 0` in units of x, or a sequence of levels.
        elbo: The ELBO that takes care of the rest of a model.

    Raises:
        ValueError: If ``sigma`` is not positive; in use, if data are empty or not finite, if the
            energy breaks its contract, or for a latent site, to which it carries no gradient of
            log p.

    Example:
        >>> import pyro_ebm as ebm
        >>> objective = DenoisingScoreMatching(sigma=0.1)
        >>> p = ebm.Boltzmann(ebm.energies.MLP(event_shape=(2,)))
        >>> (-objective.surrogate(p, torch.randn(7, 2)).mean()).backward()
    """

    serves_latents = False

    def __init__(self, sigma: float | Sequence[float], elbo: ELBO | None = None) -> None:
        super().__init__(elbo)
        self.sigma = torch.as_tensor(sigma)
        if not self.sigma.numel() or not bool((self.sigma > 0).all()):
            raise ValueError(f"sigma must be positive, got {sigma}")

    def surrogate(self, boltzmann: Boltzmann, x: Tensor, name: str = "x") -> Tensor:  # noqa: D102
        batch = x.shape[: x.dim() - len(boltzmann.event_shape)]
        sigma = self.sigma.to(x)
        if sigma.dim():
            sigma = sigma[torch.randint(len(sigma), batch, device=x.device)]
            boltzmann = boltzmann.with_energy(partial(boltzmann.energy, sigma=sigma))
        self.check(boltzmann, x, name)
        u = biject_to(boltzmann.support).inv(x.detach())
        sigma = sigma.expand(batch).reshape(batch + (1,) * (u.dim() - len(batch)))
        noise = torch.randn_like(u)
        with torch.enable_grad():
            noisy = (u + sigma * noise).requires_grad_()
            log_density = unconstrained_log_density(boltzmann, noisy)
            (score,) = torch.autograd.grad(log_density.sum(), noisy, create_graph=True)
        return -0.5 * (sigma * score + noise).square().reshape(*batch, -1).sum(-1)
