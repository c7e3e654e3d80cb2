r"""A mixture of Gaussians given evidence, exactly.

With the known coordinates K of a point and the others U,

.. math::
    p(x_U \mid x_K) = \sum_k w_k' \, \mathcal{N}(x_U; m_U + A (x_K - m_K),
    \Sigma_{UU} - A \Sigma_{KU}), \qquad A = \Sigma_{UK} \Sigma_{KK}^{-1}, \quad
    w_k' \propto w_k \, \mathcal{N}(x_K; m_K, \Sigma_{KK})

where each component has moments of its own. A noisy reading :math:`y = x + \sigma \epsilon` is
known coordinates of the pair :math:`(x, y)`, which is a mixture of Gaussians too.
"""

from __future__ import annotations

__all__ = ["fill", "unblur"]

import pyro.distributions as dist
import torch
from torch import Tensor


def fill(law: dist.MixtureSameFamily, x: Tensor, known: Tensor, num_draws: int) -> Tensor:
    """Draws the unknown coordinates given the known ones.

    Args:
        law: The mixture, of multivariate normals ``(D,)``.
        x: Points, with shape ``(n, D)``.
        known: Which coordinates are known, with shape ``(D,)``.
        num_draws: The number of draws of each.

    Returns:
        Whole points, with shape ``(num_draws, n, D)``.
    """
    loc, covariance = law.component_distribution.loc, law.component_distribution.covariance_matrix
    loc, covariance, x = loc.double(), covariance.double(), x.double()
    gain = torch.linalg.solve(
        covariance[:, known][:, :, known], covariance[:, known][:, :, ~known]
    ).mT
    rest = covariance[:, ~known][:, :, ~known] - gain @ covariance[:, known][:, :, ~known]
    of_known = dist.MultivariateNormal(loc[:, known], covariance[:, known][:, :, known])
    log_w = law.mixture_distribution.logits.double()
    log_w = log_w + of_known.log_prob(x[:, known].unsqueeze(1))
    which = dist.Categorical(logits=log_w).sample((num_draws,))
    off = (x[:, known].unsqueeze(1) - loc[:, known]).unsqueeze(-1)
    mean = loc[:, ~known] + (gain @ off).squeeze(-1)
    mean = mean[torch.arange(len(x)), which]
    factor = torch.linalg.cholesky(0.5 * (rest + rest.mT))[which]
    drawn = mean + (factor @ torch.randn_like(mean).unsqueeze(-1)).squeeze(-1)
    whole = x.expand(num_draws, *x.shape).clone()
    whole[..., ~known] = drawn
    return whole


def unblur(law: dist.MixtureSameFamily, y: Tensor, sigma: float, num_draws: int) -> Tensor:
    """Draws points given readings with noise.

    Args:
        law: The mixture, of multivariate normals ``(D,)``.
        y: Readings, with shape ``(n, D)``.
        sigma: The standard deviation of the noise.
        num_draws: The number of draws of each.

    Returns:
        Points, with shape ``(num_draws, n, D)``.
    """
    loc, covariance = law.component_distribution.loc, law.component_distribution.covariance_matrix
    dim, noise = loc.shape[-1], sigma**2 * torch.eye(loc.shape[-1]).to(covariance)
    rows = torch.cat([covariance, covariance], -1), torch.cat([covariance, covariance + noise], -1)
    pairs = dist.MixtureSameFamily(
        law.mixture_distribution,
        dist.MultivariateNormal(torch.cat([loc, loc], -1), torch.cat(rows, -2)),
    )
    known = torch.arange(2 * dim) >= dim
    return fill(pairs, torch.cat([y, y], -1), known, num_draws)[..., :dim]
